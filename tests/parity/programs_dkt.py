"""The DKT fixtures' networks and parameter names in ours: modules to build, variables to load, results."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cdl_jax.models import slim_resnet
from cdl_jax.models.pretrained import from_torch
from cdl_jax.models.two_heads import TwoHeads
from cdl_jax.models.two_heads import torch_name as two_headed_name

_SIZES = {"slimres18": "slim_resnet18", "res32": "resnet32_padded", "res34": "resnet34_32px"}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Layers within one of the program's larger residual blocks.
_RESIDUAL = {"conv1": "residual_function.0", "bn1": "residual_function.1"}
_RESIDUAL |= {"conv2": "residual_function.3", "bn2": "residual_function.4"}
_OUTER = {"conv1": "conv1.0", "bn1": "conv1.1", "linear": "fc"}


def build(spec, classes, state):
    """The module of a description, single-headed where the program's state has no second head."""
    section = ConfigDict(slim_resnet.variant(_SIZES[spec["arch"].split()[0]]))
    section.width = spec.get("nf", spec.get("base_width", section.width))
    section.depths = tuple(spec.get("blocks", section.depths))
    backbone = slim_resnet.build(section, classes)
    return TwoHeads(backbone, classes) if "cl.weight" in state else backbone


def part_of(arrays, start):
    """The arrays below `start`, without it."""
    return {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}


def load(module, state, dtype=jnp.float32):
    """The module's variables with the values of the program's state."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = {}
    for path, leaf in flatten_dict(shapes).items():
        array = from_torch(state[torch_name(path, state)], len(leaf.shape))
        assert array.shape == leaf.shape, path
        flat[path] = jnp.asarray(array, dtype)
    assert len(flat) == len(state)
    return unflatten_dict(flat)


def to_torch(variables, state):
    """Leaves (values, gradients, ...) under the names of the program's state and in its layouts."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(variables).items()}
    return {torch_name(path, state): _theirs(leaf) if path[-1] == "kernel" else leaf for path, leaf in flat.items()}


def torch_name(path, state):
    """The program's name of a leaf of our variables."""
    _, *module, leaf = path
    large = any("residual_function" in name for name in state)
    of_backbone = _large_name if large else slim_resnet.torch_name
    inside = "/".join(module)
    if "cl.weight" in state:
        first = next(name for name in state if not name.startswith(("cl.", "student.")))
        return f"{two_headed_name(inside, of_backbone, first.split('.')[0] + '.')}.{_LEAVES[leaf]}"
    return f"{of_backbone(inside)}.{_LEAVES[leaf]}"


def _large_name(path):
    name = slim_resnet.torch_name(path)
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name)
    if not block:
        return _OUTER[name]
    stage, number, layer = block.groups()
    return f"conv{int(stage) + 1}_x.{number}.{_RESIDUAL.get(layer, layer)}"


def _theirs(kernel):
    return kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
