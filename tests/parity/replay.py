"""Replays cases that the authors' programs computed, and compares.

A case is a pair `<name>.json` and `<name>.npz`, anywhere below the folder of `--goldens`. Its `system`, or the part of
the system to which its `kind` belongs, chooses the test file. Its `kind` chooses the runner: a function from (config,
arrays) to {"out/..." or "grad/...": array}.
"""

import json

import numpy as np
import pytest

SYSTEMS = ("cdl", "dkt", "okddip", "vkd")  # each has a test file of its own, so that workers share the cases

# Part of a system with a test file of its own -> kinds. The test file of the system replays all other kinds.
PARTS = {
    "detection_data": (
        "detect_prepare", "detect_resize_sizes", "detect_transforms", "detect_transform_boxes", "detect_postprocess",
        "detect_coco_eval",
    ),
    "detection_model": (
        "msda_core", "msda_module", "swin_ram_stage", "swin_pretrained_keys", "decoder_layer_dropout", "vidt_tiny",
        "vidt_tiny_options", "vidt_wo_neck", "vidt_full", "detect_masks", "detect_cross_scale_fusion",
        "detect_parameters",
    ),
    "detection_losses": (
        "detect_matcher_losses", "detect_matcher_edge", "detect_token_label_loss", "detect_distil_module",
        "detect_distil_loss", "detect_token_distil_unit", "detect_token_matching_baseline", "detect_train_steps",
        "lr_cosine_detection",
    ),
    "generation": (
        "gan_spectral_norm", "gan_generator", "gan_discriminator", "gan_hinge", "gan_lecam", "gan_ema",
        "gan_diffaugment", "gan_kd_dlgan_losses", "gan_frechet", "gan_inception_score",
        "gan_kernel_distance", "gan_metric_protocol", "gan_subset", "gan_clip_visual", "gan_vkd_term",
    ),
    "generation_step": ("gan_step",),
}  # fmt: skip
PART_OF_KIND = {kind: part for part, kinds in PARTS.items() for kind in kinds}


def find_cases(folder, system, part=None):
    """Returns the sorted paths of cases of a system, or of its part, below a folder."""
    cases = {path: json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}
    return [path for path, case in cases.items() if (case["system"], PART_OF_KIND.get(case["kind"])) == (system, part)]


def replay(path, runners, record_property):
    """Runs a case and compares every array that it stores below `out/` and `grad/`.

    Args:
        path: JSON file of the case.
        runners: kind -> runner. A kind without a runner is skipped, with its name.
        record_property: pytest's fixture. It receives the largest error of each quantity.
    """
    case = json.loads(path.read_text())
    runner = runners.get(case["kind"])
    if runner is None:
        pytest.skip(f"no runner for kind {case['kind']!r} of system {case['system']!r}")
    arrays = read_arrays(path)
    ours = runner({**case["config"], "case_what": case["what"]}, arrays)
    wanted = {name: array for name, array in arrays.items() if name.startswith(("out/", "grad/"))}
    assert wanted, "the case names nothing to compare"
    assert set(wanted) <= set(ours), f"the runner does not compute {sorted(set(wanted) - set(ours))}"
    steepest = max((np.abs(array).max() for name, array in wanted.items() if name.startswith("grad/")), default=0.0)
    errors = {
        name: relative_error(ours[name], array, steepest if name.startswith("grad/") else 0.0)
        for name, array in wanted.items()
    }
    worst = {}
    for name, error in errors.items():
        worst[quantity(name)] = max(float(error), worst.get(quantity(name), 0.0))
    record_property("parity", {"system": case["system"], "kind": case["kind"], **worst})
    failed = {
        name: f"{errors[name]:.2e} > {limit(case, name):.0e}" for name in wanted if errors[name] > limit(case, name)
    }
    assert not failed, failed


def read_arrays(path):
    """The arrays of a case, with those of its companion `<name>.grads.npz`."""
    arrays = {}
    for file in (path.with_suffix(".npz"), path.with_suffix(".grads.npz")):
        if file.is_file():
            with np.load(file) as content:
                arrays |= content
    return arrays


def relative_error(ours, wanted, steepest=0.0) -> float:
    """Returns max|ours - wanted| / max|wanted|.

    Zeros are compared on a scale of 1e-3, and names are compared exactly. A gradient that rounding alone separates from
    zero is compared on the scale of the case's `steepest`.
    """
    if wanted.dtype.kind == "U":
        return 0.0 if np.array_equal(ours, wanted) else np.inf
    ours, wanted = np.asarray(ours, np.float64), np.asarray(wanted, np.float64)
    assert ours.shape == wanted.shape, (ours.shape, wanted.shape)
    assert np.isfinite(ours).all() or not np.isfinite(wanted).all()
    difference = np.abs(ours - wanted).max(initial=0.0)
    largest = np.abs(wanted).max(initial=0.0)
    if 0 < largest < 1e-12 < steepest:
        largest = steepest
    return difference / (largest or 1e-3)


def quantity(name) -> str:
    """Returns the kind of an array by its name: a key of the cases' tolerances."""
    if name.startswith("grad/"):
        return "grads"
    after = "param_after" in name or "params_after" in name
    return "after_steps" if after or name.startswith(("out/after_", "out/final/")) else "values"


def limit(case, name) -> float:
    """The tolerance that a case states for one of its arrays."""
    what, stated, more = quantity(name), case["tol"], case.get("tolerance", {})
    of_values = isinstance(more, dict) and what == "values"
    return more.get("relative_to_max_abs", stated[what]) if of_values else stated[what]
