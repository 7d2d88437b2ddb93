"""Loads pretrained weights of other programs, and saves those of a ViT.

The weights are in files. Those of a ViT are saved under timm's names.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax.errors import UserError
from cdl_jax.models.modules.heads import is_head
from cdl_jax.models.weights import openai_clip
from cdl_jax.models.weights.state_dicts import looks_like, read_state

# DeiT's distillation branch, DINOv2's mask token, Hugging Face's pooler: a plain ViT does not have them.
_TRAINING_ONLY = ("dist_token", "head_dist.weight", "head_dist.bias", "mask_token", "pooler.dense.weight",
                  "pooler.dense.bias")  # fmt: skip
_HEAD = ("head.", "pre_logits.", "head_dist.")


def load_vit(path: str | Path, params: Mapping[str, Any], key: str = "") -> dict:
    """Loads the parameters of a ViT from a local weight file.

    Position embeddings of another square grid are resized (see `resize_positions`). A class token without a position
    gets zeros. A classification head is loaded if `params` has one and dropped if not; the shapes must agree. DeiT's
    distillation token, its position and its head, and DINOv2's mask token are left out with a warning that names them.

    Args:
      path: the file; formats as in `cdl_jax.models.weights.state_dicts.read_state`.
      params: arrays or `jax.ShapeDtypeStruct`s in the tree of `cdl_jax.models.vit.ViT`. The number of attention heads
        does not follow from it and is not checked.
      key: see `read_state`.

    Returns:
      Nested dict of NumPy float32 arrays.

    Raises:
      UserError: the file is missing or unreadable, numbers are not finite, or names or shapes do not fit. One message
        lists all names and shapes that do not fit.
    """
    expected = {name: tuple(leaf.shape) for name, leaf in flatten_dict(params, sep="/").items()}
    state = read_state(path, key)
    layout = looks_like(state)
    prefix = 2 if "dist_token" in state else 1
    if ignored := [name for name in _TRAINING_ONLY if name in state]:
        logging.getLogger("cdl_jax").warning(
            "%s: ignored %s, which a plain ViT does not have", path, ", ".join(ignored)
        )
    dropped = _TRAINING_ONLY if "head/kernel" in expected else _TRAINING_ONLY + _HEAD
    state = {name: array for name, array in state.items() if not name.startswith(dropped)}

    found, patches = {}, ""
    for name, shape in expected.items():
        array = state.pop(_timm_name(name), None)
        if array is not None:
            if name == "patch_embed/kernel":
                patches = _patch_misfit(array, shape)
            array = _from_timm(name, array)
            found[name] = _fit_positions(path, array, shape, prefix) if name == "pos_embed" else array
    _check(path, expected, found, list(state), layout, patches)
    loaded = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in found.items()}
    if broken := [name for name, array in loaded.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} has NaN or infinity in {_some(broken)}: download or convert it again")
    return unflatten_dict(loaded, sep="/")


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def load_network(path: str | Path, network: Mapping[str, Any], torch_name: Callable[[str], str], key: str = "") -> dict:
    """Loads the variables of a network from a state dict of torch.

    A classifier for another number of classes is left as in `network`, with a warning. Position embeddings
    ("pos_embed") of another square grid are resized (see `resize_positions`).

    Args:
      path: the file; formats as in `load_vit`.
      network: `{"params", "batch_stats"}` of arrays or `jax.ShapeDtypeStruct`s.
      torch_name: maps the path of a module, `a/b`, to its name in the state dict; to "" if files never have it, so
        that the module is left as in `network`.
      key: see `read_state`.

    Returns:
      `{"params", "batch_stats"}` of NumPy float32 arrays.

    Raises:
      UserError: see `load_vit`.
    """
    state, found, expected, new_head = read_state(path, key), {}, {}, {}
    layout = looks_like(state)
    state = openai_clip.to_timm(state)
    for leaf_path, leaf in flatten_dict(network).items():
        module, name = "/".join(leaf_path[1:-1]), leaf_path[-1]
        if module and not torch_name(module):
            new_head[leaf_path] = leaf
            continue
        stored_name = f"{torch_name(module)}.{_LEAVES[name]}" if module else name
        array = state.pop(stored_name, None)
        if array is not None:
            array = from_torch(array, len(leaf.shape))
            if stored_name == "pos_embed":
                array = _fit_grid(path, array, leaf.shape)
            if is_head(leaf_path) and array.shape != leaf.shape:
                logging.getLogger("cdl_jax").warning("%s: left out %s, of other classes", path, stored_name)
                new_head[leaf_path] = leaf
                continue
            found["/".join(leaf_path)] = array
        expected["/".join(leaf_path)] = tuple(leaf.shape)
    _check(path, expected, found, list(state), layout)
    loaded = {tuple(name.split("/")): np.ascontiguousarray(array, np.float32) for name, array in found.items()}
    if broken := ["/".join(name) for name, array in loaded.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} has NaN or infinity in {_some(broken)}: download or convert it again")
    return unflatten_dict({**loaded, **new_head})


def from_torch(array: np.ndarray, rank: int) -> np.ndarray:
    """Transposes an array from torch's layout to Flax's.

    Args:
      array: `[out, in, row, column]` of a convolution, `[out, in]` of a dense layer, or a vector.
      rank: number of dimensions in Flax; 2 turns a 1x1 convolution into the kernel of a dense layer.

    >>> from_torch(np.zeros((8, 3, 5, 5)), 4).shape, from_torch(np.zeros((8, 3)), 2).shape
    ((5, 5, 3, 8), (3, 8))
    """
    if rank == 4 and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if rank == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.T if rank == array.ndim == 2 else array


def resize_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Resizes position embeddings to another square grid.

    The interpolation is bicubic with half-pixel centers, repeated borders, Keys' a = -0.75 and no antialiasing. This is
    torch's `interpolate`, which timm 0.4 and Hugging Face's DINOv2 use; newer timm antialiases. `jax.image.resize` has
    a = -0.5 and other borders.

    Args:
      table: `[old * old, dim]`.
      grid: new number of patches along a side.

    Returns:
      float32 `[grid * grid, dim]`.

    >>> resize_positions(np.ones((4, 3)), 3).shape
    (9, 3)
    """
    old = math.isqrt(table.shape[0])
    weights = np.zeros((grid, old))
    center = (np.arange(grid) + 0.5) * old / grid - 0.5
    for tap in (-1, 0, 1, 2):
        pixel = np.floor(center).astype(int) + tap
        np.add.at(weights, (np.arange(grid), pixel.clip(0, old - 1)), _keys(np.abs(center - pixel)))
    square = table.astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("ai,bj,ijd->abd", weights, weights, square, optimize=True)
    return resized.reshape(grid * grid, -1).astype(np.float32)


def to_timm(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts the parameters of a ViT to timm's names and layouts.

    The conversion is the exact inverse of `load_vit`.

    Args:
      params: nested dict of arrays.

    Returns:
      Name -> array with the values and dtype of `params`; dense kernels `[out, in]`, patches `[dim, 3, row, column]`.
    """
    state = {}
    for name, leaf in flatten_dict(params, sep="/").items():
        array = np.asarray(leaf)
        if name == "patch_embed/kernel":
            patch = math.isqrt(array.shape[0] // 3)
            array = array.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
        elif name.endswith("/kernel"):
            array = array.T
        state[_timm_name(name)] = np.ascontiguousarray(array)
    return state


def save_timm(path: str | Path, params: Mapping[str, Any], dtype: str = "float32") -> None:
    """Writes `to_timm(params)` atomically as .safetensors or .npz, by the suffix.

    Args:
      path: the file; an existing file is replaced.
      params: parameters of a ViT.
      dtype: "float32", the default, "float16" or, in .safetensors only, "bfloat16".

    Raises:
      UserError: the suffix or dtype is another one, or a value is too large for the dtype.
    """
    path = Path(path)
    dtypes = {".npz": ("float32", "float16"), ".safetensors": ("float32", "float16", "bfloat16")}
    if path.suffix not in dtypes:
        raise UserError(f"cannot save weights as {path}: use the suffix .safetensors or .npz")
    if str(dtype) not in dtypes[path.suffix]:
        raise UserError(f"cannot save weights as {dtype} in {path}: use one of {', '.join(dtypes[path.suffix])}")
    dtype = np.dtype(ml_dtypes.bfloat16 if str(dtype) == "bfloat16" else dtype)
    with np.errstate(over="ignore"):
        state = {name: array.astype(dtype) for name, array in to_timm(params).items()}
    if broken := [name for name, array in state.items() if not np.isfinite(array).all()]:
        raise UserError(f"cannot save weights as {dtype} in {path}: NaN or infinity in {_some(broken)}; use float32")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if path.suffix == ".npz":
                np.savez(file, **state)
            else:
                from safetensors.numpy import save

                file.write(save(state))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _timm_name(name: str) -> str:
    """Returns timm's name of a parameter.

    `block_0/attn/qkv/kernel` becomes `blocks.0.attn.qkv.weight`.
    """
    name = name.replace("block_", "blocks/").replace("patch_embed/", "patch_embed/proj/")
    if "layer_scale" in name:
        name = name.replace("layer_scale", "ls").replace("/scale", "/gamma")
    return name.replace("/kernel", "/weight").replace("/scale", "/weight").replace("/", ".")


def _patch_misfit(array, shape):
    """Returns what is wrong with a patch kernel in torch's layout, "" if nothing is.

    Flattened, kernels of other channels and patches have the same number of rows.
    """
    patch = math.isqrt(shape[0] // 3)
    if array.ndim == 4 and array.shape[1:] == (3, patch, patch):
        return ""
    kernel = f"[{shape[1]}, 3, {patch}, {patch}]"
    return f"patch_embed/kernel expected {list(shape)} found {list(array.shape)}, a file of this model has {kernel}"


def _from_timm(name, array):
    """Transposes an array to Flax's layout.

    An array of an unexpected rank is unchanged and fails the later check of shapes.
    """
    if name == "patch_embed/kernel" and array.ndim == 4:
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if name.endswith("/kernel") and array.ndim == 2 else array


def _fit_positions(path, array, shape, prefix):
    """Resizes position embeddings `[1, n, dim]` to `shape`.

    Position embeddings that cannot be resized are unchanged.

    Args:
      prefix: number of rows before the patches (class token, distillation token).
    """
    if array.ndim != 3 or (array.shape[0], array.shape[2]) != (1, shape[2]):
        return array
    rows, grid = array[0], math.isqrt(shape[1] - 1)
    if math.isqrt(len(rows)) ** 2 == len(rows) and prefix == 1:  # without a row for the class token
        rows = np.concatenate([np.zeros_like(rows[:1]), rows])
    first, patches = rows[:1], rows[prefix:]
    if not len(patches) or math.isqrt(len(patches)) ** 2 != len(patches) or grid**2 != shape[1] - 1:
        return array
    if len(patches) != grid**2:
        logging.getLogger("cdl_jax").info(
            "%s: position embeddings resized from %d to %d patches", path, len(patches), grid**2
        )
        patches = resize_positions(patches, grid)
    return np.concatenate([first, patches])[None]


def _fit_grid(path, array, shape):
    """Resizes position embeddings `[1, n, dim]` to `shape`.

    The embeddings have as many tokens before the patches as `shape` has, one or two.
    """
    if array.ndim != 3 or array.shape[::2] != shape[::2]:
        return array
    prefix = next((n for n in (1, 2) if math.isqrt(max(shape[1] - n, 0)) ** 2 == shape[1] - n), 0)
    old, grid = array.shape[1] - prefix, math.isqrt(shape[1] - prefix)
    if array.shape == shape or math.isqrt(max(old, 0)) ** 2 != old or not (prefix and old):
        return array
    logging.getLogger("cdl_jax").info("%s: position embeddings resized from %d to %d patches", path, old, grid**2)
    return np.concatenate([array[0, :prefix], resize_positions(array[0, prefix:], grid)])[None]


def _keys(x):
    """Computes Keys' cubic convolution kernel at distances `x` in [0, 2].

    The parameter a is -0.75 (Keys, 1981).
    """
    a = -0.75
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    return np.where(x <= 1, near, a * (((x - 5) * x + 8) * x - 4))


def _check(path, expected, found, unexpected, layout, patches=""):
    """Raises one UserError for all names, shapes and dtypes that do not fit."""
    missing = [name for name in expected if name not in found]
    shapes = [
        f"{name} expected {list(expected[name])} found {list(array.shape)}"
        for name, array in found.items()
        if array.shape != expected[name] and not (patches and name == "patch_embed/kernel")
    ]
    shapes += [patches] if patches else []
    # bfloat16 and similar dtypes are not a NumPy kind: the test is whether they can be cast to float64.
    types = [
        name for name, array in found.items() if array.dtype.kind in "iub" or not np.can_cast(array.dtype, np.float64)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes, "no floating-point numbers": types}
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names)
        raise UserError(
            f"{path} does not fit the model: {listed}. "
            "Check dim, depth, patch_size, layer_scale and the number of classes"
            + (f"; the file looks like {layout}" if layout else "")
        )


def _some(names) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
