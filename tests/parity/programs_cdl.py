"""CDL fixtures' configs and parameter names in ours: methods, variables, results."""

import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import config as configs
from cdl_jax import losses
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo
from cdl_jax.models.weights import pretrained

LEARNERS = {"l2p": "l2p", "dual": "dualprompt", "dualprompt": "dualprompt", "coda": "coda", "apt": "apt"}
SCHEMES = {"KD": "kd", "DKD": "dkd", "FitNets": "fitnets", "ReviewKD": "reviewkd", "KD_Token": "kd_token"}


def learner_options(config):
    """Our options for the program's list of prompt parameters."""
    method, values = config["method"], config["prompt_param"]
    if method == "apt":
        return {"ema": config.get("ema_coeff", 0.5), "teacher_prompts": "merged"}
    names = {
        "l2p": ("pool", "length"),
        "dualprompt": ("pool", "length", "general_length"),
        "coda": ("pool", "length"),
    }[LEARNERS[method]]
    options = {name: int(value) for name, value in zip(names, values, strict=False)}
    if method == "l2p":
        options["deep"] = values[2] > 0
    if method == "coda":
        options["ortho"] = float(values[2])
    elif "summed over the batch" in config["case_what"] or config.get("key_loss", "").startswith("legacy"):
        options["key_loss"] = "legacy_sum"
    return options


def scheme_options(config, scheme):
    """Our options of a scheme."""
    options = {"alpha": config.get("kd_alpha", 0.5), "temperature": float(config.get("Soft_T", 2.0))}
    if scheme == "dkd":
        weights = config["dkd"]
        options["temperature"] = float(weights["T"])
        options["target_weight"], options["other_weight"] = float(weights["alpha"]), float(weights["beta"])
    if scheme in ("fitnets", "reviewkd"):
        options["feature_weight"] = config["feature_weight"]
    if scheme == "kd_token":
        if config["kd_prompt_param"] is None:  # the program of 2024-12 has no such parameter
            options["variant"] = "deit"
        else:
            options["n_layers"], options["length"] = config["kd_prompt_param"]
    if scheme == "prompt_mapping":
        options["pool"] = int(config.get("mapping_pool", 0))
        options["length"] = int(config.get("mapping_length", 0))
        options["counter"] = "fixed" if config["mapping_task_counter"] == 0 else "advance"
    return options


def build(config, arrays):
    """(method, the shapes of its variables) of a case."""
    scheme = "prompt_mapping" if "mapping_task_counter" in config else SCHEMES[config.get("KD_method", "KD")]
    made = configs.default("cdl", data="glyph_mini", learner=LEARNERS[config["method"]], distill=scheme)
    made.learner.update(learner_options(config))
    made.distill.update(scheme_options(config, scheme))
    student = config.get("student_dims") or config["query_dims"]
    size = next(a.shape[-1] for name, a in arrays.items() if name.startswith("in/") and "images" in name)
    patch = next(a.shape[-1] for name, a in arrays.items() if name.endswith("patch_embed.proj.weight"))
    for section, (dim, depth, count) in (("teacher", config["teacher_dims"]), ("student", student)):
        made[section].update(dim=dim, depth=depth, heads=count, patch_size=patch, image_size=size)
    made.train.epochs = config.get("epochs", 20)
    made.optim.update(name=config.get("optimizer", "adam").lower(), learning_rate=float(config.get("lr", 1e-3)))
    made.optim.update(betas=tuple(config.get("betas", (0.9, 0.999))), eps=float(config.get("eps", 1e-8)))
    made.optim.weight_decay = float(config.get("weight_decay", 0.0))
    tasks, each = config.get("n_tasks", 4), config.get("classes_per_task", 3)
    method = cdl.build(made, StreamInfo(tasks * each, (each,) * tasks))
    return method, jax.eval_shape(method.init, jax.random.key(0))


def context(config, task, epoch=0):
    """The context of a step of `task`."""
    each = config.get("classes_per_task", 3)
    numbers = {"task": task, "first": task * each, "end": (task + 1) * each, "epoch": epoch, "step": 0}
    arrays = {name: jnp.int32(value) for name, value in numbers.items()}
    return losses.Context(**arrays, progress=jnp.float32(epoch), key=jax.random.key(0))


def to_nhwc(array):
    """Converts images `[batch, 3, size, size]` to our layout."""
    return array.transpose(0, 2, 3, 1)


def backbone(arrays, prefix, template):
    """Returns our backbone's parameters from the timm-named arrays below `prefix`."""
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **{name: array for name, array in state.items() if name != "add_T_token"})
        return pretrained.load_vit(path, template)


_KINDS = {"prompts": "e_p", "keys": "e_k", "attention": "e_a", "general": "g_p"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "shift": "bias"}


def torch_name(path, deit=False):
    """Returns the program's name of a leaf of `{"network": ..., "distill": ...}`.

    The name is None for leaves of backbones, which have timm's names.

    deit: the distillation token is that of the program of 2024-12.
    """
    name, leaf = ".".join(path), _LEAVES.get(path[-1])
    kind, _, layer = path[-1].rpartition("_")
    fixed = {
        "network.prompts.prompts": "prompt.prompt_tokens",
        "network.state.prompts.merged": "prompt.global_merged_prompt",
        "distill.params.token": "feat.add_T_token" if deit else "kd_prompt.kd_p_0",
    }
    if name in fixed:
        return fixed[name]
    if name.startswith("network.backbone."):
        return None
    if name.startswith("network.prompts."):
        return f"prompt.{_KINDS[kind]}_{layer}"
    if name.startswith("distill.params.mapping."):
        return f"project_fc_layers.{_KINDS[kind]}_{layer}"
    if name.startswith("distill.params.prompts_"):
        return f"kd_prompt.kd_p_{layer}"
    for start, module in (
        ("network.head.", "last"), ("network.state.head.", "clf_norm"),
        ("distill.params.head.", "kd_last"), ("distill.state.head.", "kd_cls_norm"),
    ):  # fmt: skip
        if name.startswith(start):
            return f"{module}.{leaf}"
    review = re.fullmatch(r"distill\.params\.(norm\w|proj\w)_(\d+)\.\w+", name)
    if review:
        return f"ReviewKD_layers.abfs.{review[2]}.{review[1]}.{leaf}"
    assert name in ("distill.params.kernel", "distill.params.bias"), name
    return f"project_t_s.proj.{leaf}"


def load(arrays, prefix, network, distill=None):
    """Fills `network` (and the scheme's variables) with the arrays below `prefix`.

    `network` and `distill` are given as shapes.
    """
    network = {**network, "backbone": backbone(arrays, prefix + "feat.", network["backbone"])}
    deit = prefix + "feat.add_T_token" in arrays
    flat = flatten_dict({"network": network, "distill": distill or {}}, keep_empty_nodes=True)
    for path, old in flat.items():
        name = torch_name(path, deit) if hasattr(old, "shape") else None
        if name is None:
            continue
        array = arrays[prefix + name]
        flat[path] = array.T if path[-1] == "kernel" else array[0] if "add_T" in name else array
        assert flat[path].shape == old.shape, name
    both = unflatten_dict(flat)
    return both["network"] if distill is None else (both["network"], both["distill"])


def to_torch(network, distill=None, deit=False):
    """Returns leaves (values, gradients, ...) by the program's names, in its layouts.

    Backbones are left out.
    """
    ours = {}
    for path, leaf in flatten_dict({"network": network, "distill": distill or {}}).items():
        name = torch_name(path, deit)
        if name is not None:
            leaf = np.asarray(leaf)
            ours[name] = leaf.T if path[-1] == "kernel" else leaf[None] if "add_T" in name else leaf
    return ours
