"""OKDDip fixtures' configs and parameter names in our methods, variables, results."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import config as configs
from cdl_jax import losses, plugins
from cdl_jax.methods.base import StreamInfo

METHODS = {"base": "supervised", "cl": "cl_ilr", "ind": "individual", "one": "one", "dml": "dml", "okddip": "okddip"}
METHODS["kd"] = "kd"
# A size of each family, from which the numbers of a case depart.
FAMILIES = {"densenet": "densenetd40k12", "vgg": "vgg16", "resnet_imagenet": "resnet18", "resnet": "resnet32"}
KEYS = {"growth", "blocks", "init_features", "bottleneck", "compression", "block", "depths", "widths", "channel_unit"}
KEYS |= {"dropout", "inner_multiplier"}


def state_names(config, arrays):
    """Names of the program's state, from whichever of the two has them."""
    return [name for name, _ in config.get("names", [])] or [n[6:] for n in arrays if n.startswith("param/")]


def family(state):
    if any("features.conv0" in name for name in state):
        return "densenet"
    if any(name.endswith(("layer1.0.weight", "layer1.0.bias")) for name in state):
        return "vgg"
    return "resnet_imagenet" if any(name.split(".")[0].startswith("layer4") for name in state) else "resnet"


def method_name(config, state):
    if config.get("ensemble_mode") or "query_weight.weight" in state:
        return "okddip"
    if "method" in config:
        return METHODS[config["method"]]
    if "control_v1.weight" in state:
        return "one"
    return "cl_ilr" if any("classifier3_1" in name or "fc_1" in name for name in state) else "supervised"


def build(config, arrays, image_size=32):
    """Returns (method, shapes of its variables, names of the program's state).

    The method has all of the program's ways.
    """
    state = state_names(config, arrays)
    kind, method = family(state), method_name(config, state)
    separate_networks = any(name.startswith("stu0.") for name in state)
    choices = {"network": FAMILIES[kind]}
    if method == "okddip":
        choices |= {"base": "network" if separate_networks else "branch"}
    if method not in ("supervised", "kd"):
        choices |= {"reference": True}
    if method == "kd":
        choices |= {"teacher": "vgg16"}  # the only teacher there is among the cases
    made = configs.default(method, data="glyph_mini", **choices)
    network = made.student if method == "kd" else made.network
    network.update({k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in KEYS and k in network})
    network.image_size = image_size
    if "dropout" in network:
        network.dropout = 0.0  # all cases are without
    if method == "kd":
        made.teacher.update(channel_unit=int(re.search(r"unit (\d+)", config["teacher"])[1]), weights="random")
    options = made.get(method, {})
    given = {"temperature": "temperature", "alpha": "alpha", "loss": "loss", "start_consistency": "start_consistency"}
    given |= {"rampup_length": "length", "branches": "num_branches", "networks": "num_branches", "bpscale": "bpscale"}
    given |= {"ensemble_mode": "en", "pairwise": "pairwise"}
    for theirs, ours in given.items():
        if theirs in config and ours in options:
            options[ours] = type(options[ours])(config[theirs])
    if method == "cl_ilr":
        options.bpscale = config.get("bpscale", False)
    made.train.epochs = config.get("epochs", 300)
    made.optim.update(name="sgd", momentum=config.get("momentum", 0.9), nesterov=config.get("nesterov", True))
    made.optim.update(weight_decay=config.get("weight_decay", 0.0), learning_rate=config.get("lr", 0.1))
    made.optim.update(schedule="steps", milestones=tuple(config.get("milestones", ())))
    classes = config["num_classes"]
    built = plugins.load_plugin("methods", method).build(made, StreamInfo(classes, (classes,)))
    return built, jax.eval_shape(built.init, jax.random.key(0)), state


def context(classes, epoch=0):
    """The context of a step of the only task."""
    numbers = {"task": 0, "first": 0, "end": classes, "epoch": epoch, "step": 0}
    arrays = {name: jnp.int32(value) for name, value in numbers.items()}
    return losses.Context(**arrays, progress=jnp.float32(epoch), key=jax.random.key(0))


def to_nhwc(array):
    """Converts images `[batch, 3, size, size]` to our layout."""
    return array.transpose(0, 2, 3, 1)


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_name(path, state, count):
    """The program's name of a leaf of our variables; `count` is the number of peers."""
    network, _, *inner, leaf = path
    leaf = _LEAVES[leaf]
    if network in ("attention", "gate"):
        where = {"query": "query_weight", "key": "key_weight", "linear": "control_v1", "norm": "bn_v1"}[inner[0]]
        return f"{where}.{leaf}"
    if network == "block":
        shared = "Branch0" if any(name.startswith("Branch0") for name in state) else "layer3_0"
        return f"{shared}.{_dense(inner[0])}.{leaf}"
    number = count - 1 if network == "leader" else int(network.split("_")[1]) if "_" in network else None
    prefix = ""
    if inner[0] in ("stem", "tail"):  # a separate network
        part, *inner = inner
        prefix = f"stu{number}." if number is not None else ""
        number = None
    else:
        part = "stem" if network == "stem" else "tail"
    branch = "" if number is None else f"_{number}"
    rename = {"densenet": _densenet, "vgg": _vgg}.get(family(state), _resnet)
    module = rename(part, inner, branch)
    if branch and f"{module}.{leaf}" not in state:  # ImageNet's heads
        module = module.replace("classifier3", "fc")
    return f"{prefix}{module}.{leaf}"


def _resnet(part, inner, branch):
    if inner[0] == "classifier":
        return f"classifier3{branch}" if branch else "fc"
    if inner[0] != "stages":
        return inner[0]
    stage, block = inner[1].split("_")
    last = {"shortcut": "downsample.0", "shortcut_bn": "downsample.1"}.get(inner[2], inner[2])
    return f"{stage}{branch}.{block}.{last}"


def _vgg(part, inner, branch):
    if inner[0].startswith("fc"):
        return f"{f'classifier3{branch}' if branch else 'classifier'}.{3 * int(inner[0][2:])}"
    group, layer = inner
    number = int(layer[-1])
    if group == "layer0":
        return f"{layer[:-1]}{number + 1}"
    return f"{f'layer3{branch}' if branch else group}.{3 * number + (layer[:-1] == 'bn')}"


def _densenet(part, inner, branch):
    if part == "tail":
        if inner[0] == "block":
            return f"features.denseblock3.{_dense(inner[1])}"
        if inner[0] == "norm":
            return f"norm_final{branch}" if branch else "features.norm_final"
        return f"classifier3{branch}" if branch else "classifier"
    if inner[0] == "conv0":
        return "features.conv0"
    if inner[0].startswith("blocks_"):
        return f"features.denseblock{int(inner[0][-1]) + 1}.{_dense(inner[1])}"
    return f"features.transition{inner[0][-1]}.{'norm' if inner[0].startswith('norm') else 'conv'}"


def _dense(layer):
    """`norm1_0` -> `denselayer1.norm1`."""
    kind, number = layer.split("_")
    return f"denselayer{int(number) + 1}.{kind}"


def load(shapes, state, arrays, count=0):
    """Our variables of the given shapes from arrays by the program's names."""
    flat = {}
    for path, old in flatten_dict(shapes).items():
        array = arrays[torch_name(path, state, count)]
        flat[path] = _ours(array) if path[-1] == "kernel" else array
        assert flat[path].shape == old.shape, (path, flat[path].shape, old.shape)
    return unflatten_dict(flat)


def to_torch(variables, state, count=0):
    """Leaves (values, gradients, ...) under the program's names and in its layouts."""
    flat = flatten_dict(jax.tree.map(_on_host, variables))
    return {
        torch_name(path, state, count): _theirs(leaf) if path[-1] == "kernel" else leaf for path, leaf in flat.items()
    }


def _on_host(leaf):
    """Returns a concrete array as NumPy's, and a traced array unchanged.

    NumPy's operations compile nothing.
    """
    return leaf if isinstance(leaf, jax.core.Tracer) else np.asarray(leaf)


def _ours(kernel):
    return kernel.T if kernel.ndim == 2 else kernel.transpose(2, 3, 1, 0)


def _theirs(kernel):
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)


def generated(listed):
    """Generates the state that full-size cases do not store: {name: float32 array}."""
    state = {}
    for index, (name, shape) in enumerate(sorted(listed)):
        x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(index * 2654435761 % 2**32)
        x = (x % 2**32).astype(np.uint32)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
        u = x / 2.0**32
        if name.endswith("running_var"):
            value = 0.5 + u
        elif name.endswith(("running_mean", "bias")):
            value = 0.2 * (u - 0.5)
        elif len(shape) == 1:
            value = 0.2 + 0.2 * u if name.endswith((".bn2.weight", ".bn3.weight")) else 0.5 + 0.5 * u
        else:
            gain = 2 if len(shape) == 4 else 1
            value = (2 * u - 1) * np.sqrt(3 * gain / np.prod(shape[1:]))
        state[name] = value.astype(np.float32).reshape(shape)
    return state
