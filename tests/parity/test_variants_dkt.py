"""DKT's runners take every setting of their kinds: cases made here by plain NumPy."""

import numpy as np
import pytest

from tests.parity import runners_dkt, steps_dkt

RNG = np.random.default_rng(0)
CLASSES, BATCH = 5, 3


def numbers(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def batch_norm(state, name, width):
    state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * numbers(width), 0.1 * numbers(width)
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = 0.1 * numbers(width), 1 + 0.1 * abs(numbers(width))


def res18(width, blocks, prefix="res18.", heads=("cl", "student")):
    """Returns a state of the authors' larger networks.

    A name is `conv2_x.0.residual_function.0.weight`, for example.
    """
    state = {f"{prefix}conv1.0.weight": numbers(width, 3, 3, 3) / 5}
    batch_norm(state, f"{prefix}conv1.1", width)
    before = width
    for stage, count in enumerate(blocks):
        own = width * 2**stage
        for i in range(count):
            name = f"{prefix}conv{stage + 2}_x.{i}"
            for layer, channels in (("0", before), ("3", own)):
                state[f"{name}.residual_function.{layer}.weight"] = numbers(own, channels, 3, 3) / np.sqrt(9 * channels)
                batch_norm(state, f"{name}.residual_function.{int(layer) + 1}", own)
            if before != own:
                state[f"{name}.shortcut.0.weight"] = numbers(own, before, 1, 1) / np.sqrt(before)
                batch_norm(state, f"{name}.shortcut.1", own)
            before = own
    for head in heads:
        state[f"{head}.weight"], state[f"{head}.bias"] = numbers(CLASSES, before), numbers(CLASSES)
    return state


def convolved(x, kernel, stride):
    """`x` [batch, channels, h, w] with a kernel of 3x3 (padding 1) or 1x1."""
    pad = kernel.shape[-1] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, kernel)


def in_numpy(state, x, prefix="res18."):
    """Features, CL and ST logits of `res18` in test mode, in double precision."""
    state = {name.removeprefix(prefix): array.astype(np.float64) for name, array in state.items()}

    def normed(x, name):
        scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return (x - state[f"{name}.running_mean"][:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][
            :, None, None
        ]

    x = np.maximum(normed(convolved(x.astype(np.float64), state["conv1.0.weight"], 1), "conv1.1"), 0)
    stage = 2
    while f"conv{stage}_x.0.residual_function.0.weight" in state:
        i = 0
        while f"conv{stage}_x.{i}.residual_function.0.weight" in state:
            name, stride = f"conv{stage}_x.{i}", 2 if i == 0 and stage > 2 else 1
            y = convolved(x, state[f"{name}.residual_function.0.weight"], stride)
            y = np.maximum(normed(y, f"{name}.residual_function.1"), 0)
            y = normed(convolved(y, state[f"{name}.residual_function.3.weight"], 1), f"{name}.residual_function.4")
            if f"{name}.shortcut.0.weight" in state:
                x = normed(convolved(x, state[f"{name}.shortcut.0.weight"], stride), f"{name}.shortcut.1")
            x, i = np.maximum(x + y, 0), i + 1
        stage += 1
    features = x.mean(axis=(2, 3))
    return features, *(features @ state[f"{head}.weight"].T + state[f"{head}.bias"] for head in ("cl", "student"))


def cross_entropy(logits, labels):
    return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels])


@pytest.mark.parametrize(("width", "blocks"), [(4, (2, 2, 2, 2)), (3, (1, 2))])
def test_a_two_headed_resnet_18_of_any_width_and_depth(width, blocks):
    state = res18(width, blocks)
    x, labels, teacher = numbers(BATCH, 3, 16, 16), RNG.integers(0, CLASSES, BATCH), numbers(BATCH, CLASSES)
    arrays = {f"param/{name}": array for name, array in state.items()}
    arrays |= {"in/x": x, "in/labels": labels.astype(np.int32), "in/teacher_logits": teacher}
    config = {"arch": "res18", "base_width": width, "blocks": list(blocks), "num_classes": CLASSES, "kd_rel": 0.5}
    ours = runners_dkt.run_model({**config, "loss": "mse"}, arrays)
    for name, wanted in zip(("features", "cl_logits", "st_logits"), in_numpy(state, x), strict=True):
        np.testing.assert_allclose(ours[f"out/eval/{name}"], wanted, rtol=2e-4, atol=2e-4)
    cl, st = (np.asarray(ours[f"out/train/{name}_logits"], np.float64) for name in ("cl", "st"))
    np.testing.assert_allclose(ours["out/train/st_loss"], np.mean((st - teacher) ** 2), rtol=1e-5)
    np.testing.assert_allclose(ours["out/train/cl_loss"], cross_entropy(cl, labels), rtol=1e-5)
    assert {name for name in ours if name.startswith("grad/")} == {
        f"grad/{name}" for name in state if "running" not in name
    }
    assert {name for name in ours if "buffers_after" in name} == {
        f"out/train/buffers_after/{name}" for name in state if "running" in name
    }


@pytest.mark.parametrize("kind", ["mse", "kd", "soft_mse", "none"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_of_each_kind_and_reduction_with_or_without_a_teacher(kind, reduction):
    cl, st, teacher = (numbers(BATCH, CLASSES) for _ in range(3))
    labels = RNG.integers(0, CLASSES, BATCH).astype(np.int32)
    arrays = {"in/cl_logits": cl, "in/st_logits": st, "in/teacher_logits": teacher, "in/labels": labels}
    if kind == "none":
        del arrays["in/teacher_logits"]
    config = {"st_loss": kind, "reduction": reduction, "T": 3, "kd_rel": 0.25}
    p, q = (np.exp(z / 3.0) / np.exp(z / 3.0).sum(1, keepdims=True) for z in (teacher.astype(float), st.astype(float)))
    reduce = getattr(np, reduction)
    wanted = {
        "mse": reduce((st - teacher) ** 2),
        "kd": reduce(p * (np.log(p) - np.log(q))),
        "soft_mse": reduce((q - p) ** 2),
        "none": 0.0,
    }[kind]
    ours = runners_dkt.run_loss(config, arrays)
    true = cross_entropy(cl.astype(float), labels) * (BATCH if reduction == "sum" else 1)
    np.testing.assert_allclose(ours["out/st_loss"], wanted, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(ours["out/total_loss"], true + 0.25 * wanted, rtol=1e-4)


def stopped(seen, patience=2, margin=0.0, **wanted):
    arrays = {"in/accuracy_seen_before_epoch": np.array(seen, np.float32)}
    arrays |= {f"out/{name}": np.array(value) for name, value in wanted.items()}
    found = runners_dkt.run_early_stopping({"patience": patience, "margin": margin}, arrays)
    return [float(found[f"out/{name}"]) for name in ("stopped_before_epoch", "restored_weights_of_epoch", "best_value")]


def test_early_stopping_in_which_the_first_weights_stay_the_best_or_nothing_stops():
    assert stopped([0.5, 0.25, 0.375, 0.75]) == [2, 0, 0.5]
    assert stopped([0.5, 0.25, 0.375], restored_weights_of_epoch=-1) == [2, -1, 0.5]
    assert stopped([0.5, 0.625, 0.25, 0.375], margin=0.25) == [2, 1, 0.5]
    assert stopped([0.25, 0.5, 0.75]) == [3, 2, 0.75]
    assert stopped([0.25, 0.5, 0.75], stopped_before_epoch=-1, restored_weights_of_epoch=-1) == [-1, -1, 0.75]


def test_weights_that_miss_zero_by_rounding_go_on():
    config = {
        "falls": {"kd_rel_initial": 0.3, "schedule": 1, "decreasing": True, "experience_flag": True, "step_size": 0.1},
        "whole": {"kd_rel_initial": 1, "schedule": 2, "decreasing": True, "experience_flag": False, "step_size": 1},
    }
    ours = runners_dkt.run_kd_weight(config, {f"out/kd_rel/{name}": np.zeros(6) for name in config})
    np.testing.assert_allclose(ours["out/kd_rel/falls"], [0.2, 0.1, 0, -0.1, -0.2, -0.3], atol=1e-7)
    np.testing.assert_array_equal(ours["out/kd_rel/whole"], [1, 0, 0, 0, 0, 0])


def test_a_constant_rate_and_a_first_task_without_old_classes():
    rates = runners_dkt.run_rate({"lr": 0.5, "step": 0, "gamma": 0.1, "epochs": 3, "n_experiences": 2}, {})
    np.testing.assert_array_equal(rates["out/lr"], [0.5] * 6)
    arrays = {"in/logits": numbers(BATCH, CLASSES), "in/labels": np.zeros(BATCH, np.int32)}
    config = {"active_classes": [], "alpha": 1.5, "T": 2}
    lwf, eeil = runners_dkt.run_lwf(config, arrays), runners_dkt.run_eeil(config, arrays)
    assert float(lwf["out/distill_penalty"]) == 0.0 and float(eeil["out/distill_loss"]) == 0.0
    assert np.isfinite(lwf["grad/logits"]).all() and not np.asarray(eeil["grad/logits"]).any()


def test_cutmix_of_images_that_are_not_square():
    x = numbers(2, 3, 8, 16)
    arrays = {"in/x": x, "in/lam": np.array([0.75], np.float32), "in/cx": np.array([4]), "in/cy": np.array([8]),
              "in/permutation": np.array([1, 0])}  # fmt: skip
    ours = runners_dkt.run_cutmix({"height": 8, "width": 16, "beta": 1}, arrays)
    assert np.asarray(ours["out/boxes_x1y1x2y2"]).tolist() == [[2, 4, 6, 12]]  # half of each side: 4 rows, 8 columns
    np.testing.assert_allclose(ours["out/adjusted_lam"], [0.75])
    np.testing.assert_array_equal(ours["out/x_mixed_with_first_box"][0, :, 2:6, 4:12], x[1, :, 2:6, 4:12])


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"optimizer": "sgd"}, lambda p, g: p - 0.1 * g),
        ({"optimizer": "SGD", "weight_decay": 0.5, "clip_global_norm": None}, lambda p, g: p - 0.1 * (g + 0.5 * p)),
        ({"optimizer": "adam"}, lambda p, g: p - 0.1 * g / (abs(g) + 1e-8)),
        ({"optimizer": "adamw"}, lambda p, g: p - 0.1 * (g / (abs(g) + 1e-8) + 0.01 * p)),  # torch's default decay
        ({"clip_global_norm": 0.5, "optimizer": "sgd"}, lambda p, g: p - 0.1 * g / 5),  # of a gradient of norm 2.5
    ],
)
def test_optimizers_of_the_programs(config, wanted):
    params, gradients = np.array([1.0, -2.0], np.float32), np.array([1.5, 2.0], np.float32)
    clip, optimizer = steps_dkt._optimizer({"lr": 0.1, **config})
    clipped, _ = clip.update(gradients, clip.init(params))
    direction, _ = optimizer.update(clipped, optimizer.init(params), params)
    np.testing.assert_allclose(params + direction, wanted(params, gradients), rtol=1e-5)
