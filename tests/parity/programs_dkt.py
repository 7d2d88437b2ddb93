"""DKT fixtures' networks and parameter names in ours: modules, variables, results."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cdl_jax.models import slim_resnet
from cdl_jax.models.modules.two_heads import TwoHeads
from cdl_jax.models.modules.two_heads import torch_name as two_headed_name
from cdl_jax.models.weights.pretrained import from_torch
from cdl_jax.options import defaults

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
# Layers within one of the program's larger residual blocks.
_RESIDUAL = {"conv1": "residual_function.0", "bn1": "residual_function.1"}
_RESIDUAL |= {"conv2": "residual_function.3", "bn2": "residual_function.4"}
_BLOCK = re.compile(r"(?:^|\.)(?:layer|conv(?=\d_x))(\d)(?:_x)?\.(\d+)\.")  # of a name: its stage and number
_FIRST = re.compile(r"(?:^|\.)conv1(?:\.0)?\.weight$")
_CLASSIFIER = re.compile(r"^(?:cl|linear|fc)\.weight$")
_OUTER = {"conv1": "conv1.0", "bn1": "conv1.1", "linear": "fc"}


def build(state):
    """Builds the module of a program's state.

    The module is a residual network of any width and depth, with one head or two.
    """
    blocks = _blocks(state)
    section = ConfigDict(defaults(slim_resnet.OPTIONS))
    section.depths = tuple(len(blocks[stage]) for stage in sorted(blocks))
    section.width = next(len(array) for name, array in state.items() if _FIRST.search(name))
    section.shortcut = "projection" if any("shortcut" in name for name in state) else "padded"
    classes = next(len(array) for name, array in state.items() if _CLASSIFIER.search(name))
    backbone = slim_resnet.build(section, classes)
    return TwoHeads(backbone, classes) if "cl.weight" in state else backbone


def _blocks(state):
    """Returns stage -> numbers of its blocks."""
    blocks = {}
    for name in state:
        if block := _BLOCK.search(name):
            blocks.setdefault(int(block[1]), set()).add(int(block[2]))
    return blocks


def our_name(layer, state):
    """Returns our path of a layer of a slim network.

    A layer is `conv1`, a block such as `layer2.0`, a part of a block, or a stage.
    """
    name, _, inside = layer.partition(".")
    stage = re.fullmatch(r"layer(\d+)", name)
    if not stage:
        return f"stem/{name}"
    numbers = _blocks(state)
    block, _, part = inside.partition(".")
    part = {"shortcut.0": "shortcut", "shortcut.1": "shortcut_bn"}.get(part, part)
    where = "tail" if int(stage[1]) == max(numbers) else "stem"
    block = block or max(numbers[int(stage[1])])
    return f"{where}/stages/{name}_{block}" + (f"/{part}" if part else "")


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
        flat[path] = np.asarray(array, dtype)
    assert len(flat) == len(state)
    return unflatten_dict(flat)


def to_torch(variables, state):
    """Returns leaves (values, gradients, ...) by the state's names, in its layouts."""
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
