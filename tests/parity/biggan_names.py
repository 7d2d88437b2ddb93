"""Names and layouts of BigGAN's arrays in the authors' code."""

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

# Our name of a leaf or layer -> the authors'.
_LEAVES = {"kernel": "weight", "embedding": "weight", "u": "u0", "mean": "stored_mean", "var": "stored_var"}
_LAYERS = {"norm1": "bn1", "norm2": "bn2", "shortcut": "conv_sc", "head_0": "linear_cls_1", "head_1": "linear_cls_2"}


def torch_name(path: tuple[str, ...], network: str) -> str:
    """Returns the authors' name of a leaf.

    >>> torch_name(("params", "blocks_1", "norm2", "gain"), "G"), torch_name(("spectral", "head_0", "u"), "D")
    ('blocks.1.0.bn2.gain.weight', 'linear_cls_1.u0')

    Args:
      path: collection, modules, leaf.
      network: "G" or "D".
    """
    _, *modules, leaf = path
    name = _LEAVES.get(leaf, leaf)
    if modules[0].startswith("blocks_"):
        table = ".weight" if leaf in ("gain", "bias") and modules[1].startswith("norm") else ""
        return f"blocks.{modules[0][7:]}.0.{_LAYERS.get(modules[1], modules[1])}.{name}{table}"
    if network == "G" and modules[0] in ("norm", "conv"):
        return f"output_layer.{0 if modules[0] == 'norm' else 2}.{'gain' if leaf == 'scale' else name}"
    return f"{_LAYERS.get(modules[0], modules[0])}.{name}"


def from_torch(arrays, prefix, shapes, network=""):
    """Returns the variables of a network with the arrays below a prefix.

    Args:
      arrays: of a case.
      prefix: such as "param/G".
      shapes: variables of the network, or their shapes.
      network: "G" or "D"; default: the last part of the prefix.
    """
    network, found = network or prefix.rpartition("/")[2][:1], {}
    for path, leaf in flatten_dict(shapes).items():
        array = jnp.asarray(arrays[f"{prefix}/{torch_name(path, network)}"])
        if path[-1] == "kernel":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        assert array.shape == leaf.shape, (path, array.shape, leaf.shape)
        found[path] = array
    return unflatten_dict(found)


def to_torch(variables, prefix, network=""):
    """Returns a network's arrays, or gradients of that tree, by `from_torch`'s names."""
    network, found = network or prefix.rpartition("/")[2][:1], {}
    for path, array in flatten_dict(variables).items():
        if path[-1] == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        found[f"{prefix}/{torch_name(path, network)}"] = array
    return found
