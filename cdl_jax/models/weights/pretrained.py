"""Pretrained weights: local files of other programs in, those of a ViT out again under timm's names."""

import logging
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax.errors import UserError
from cdl_jax.models.modules.heads import is_head
from cdl_jax.models.weights.state_dicts import looks_like, read_state

# DeiT's distillation branch, DINOv2's token for masked patches, Hugging Face's pooler: no parts of the plain ViT.
_TRAINING_ONLY = ("dist_token", "head_dist.weight", "head_dist.bias", "mask_token", "pooler.dense.weight",
                  "pooler.dense.bias")  # fmt: skip
_HEAD = ("head.", "pre_logits.", "head_dist.")


def load_vit(path, params, key: str = "") -> dict:
    """Parameters of a ViT from a local weight file, as a nested dict of numpy float32 arrays.

    Formats: see `cdl_jax.models.weights.state_dicts.read_state`. Position embeddings of another square grid are resized
    (see `resize_positions`); a class token without a position gets zeros. A classification head is taken if `params`
    has one and dropped if not; the shapes must agree. DeiT's distillation token, its position and its head, and
    DINOv2's mask token are left out with a warning that names them.

    Args:
      path: the file.
      params: the parameters wanted: arrays or `jax.ShapeDtypeStruct`s in the tree of `cdl_jax.models.vit.ViT`. The
        number of attention heads cannot be seen in it and is not checked.
      key: see `read_state`.

    Raises:
      UserError: no such file, an unreadable one, numbers that are not finite, or names and shapes that do not fit; all
        of the latter are in the one message.
    """
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten_dict(params, sep="/").items()}
    state = read_state(path, key)
    layout = looks_like(state)
    prefix = 2 if "dist_token" in state else 1
    if ignored := [name for name in _TRAINING_ONLY if name in state]:
        logging.getLogger("cdl_jax").warning("%s: ignored %s, which a plain ViT has not", path, ", ".join(ignored))
    dropped = _TRAINING_ONLY if "head/kernel" in wanted else _TRAINING_ONLY + _HEAD
    state = {name: array for name, array in state.items() if not name.startswith(dropped)}

    found = {}
    for name, shape in wanted.items():
        array = state.pop(_timm_name(name), None)
        if array is not None:
            array = _from_timm(name, array)
            found[name] = _fit_positions(path, array, shape, prefix) if name == "pos_embed" else array
    _check(path, wanted, found, list(state), layout)
    loaded = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in found.items()}
    if broken := [name for name, array in loaded.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} has NaN or infinity in {_some(broken)}: download or convert it again")
    return unflatten_dict(loaded, sep="/")


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def load_network(path, network, torch_name, key: str = "") -> dict:
    """Variables `{"params", "batch_stats"}` of a network from a state dict of torch's, as numpy float32 arrays.

    A classifier of another number of classes is left as it is in `network`, with a warning. Position embeddings
    ("pos_embed") of another square grid are resized, see `resize_positions`.

    Args:
      path: the file; formats as in `load_vit`.
      network: the variables wanted, arrays or `jax.ShapeDtypeStruct`s.
      key: see `read_state`.
      torch_name: maps the path of one of our modules, `a/b`, to the name that torch has for it.

    Raises:
      UserError: as `load_vit`.
    """
    state, found, wanted, fresh = read_state(path, key), {}, {}, {}
    layout = looks_like(state)
    for ours, leaf in flatten_dict(network).items():
        module, name = "/".join(ours[1:-1]), ours[-1]
        theirs = f"{torch_name(module)}.{_LEAVES[name]}" if module else name
        array = state.pop(theirs, None)
        if array is not None:
            array = from_torch(array, len(leaf.shape))
            if theirs == "pos_embed":
                array = _fit_grid(path, array, leaf.shape)
            if is_head(ours) and array.shape != leaf.shape:
                logging.getLogger("cdl_jax").warning("%s: left out %s, of other classes", path, theirs)
                fresh[ours] = leaf
                continue
            found["/".join(ours)] = array
        wanted["/".join(ours)] = tuple(leaf.shape)
    _check(path, wanted, found, list(state), layout)
    loaded = {tuple(name.split("/")): np.ascontiguousarray(array, np.float32) for name, array in found.items()}
    if broken := ["/".join(name) for name, array in loaded.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} has NaN or infinity in {_some(broken)}: download or convert it again")
    return unflatten_dict({**loaded, **fresh})


def from_torch(array: np.ndarray, rank: int) -> np.ndarray:
    """torch's layout in ours: `[out, in, row, column]` of a convolution, `[out, in]` of a dense layer or a 1x1 one."""
    if rank == 4 and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if rank == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.T if rank == array.ndim == 2 else array


def resize_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings `[old * old, dim]` resized to `[grid * grid, dim]`, float32.

    Bicubic with half-pixel centres, repeated borders, Keys' a = -0.75 and no antialiasing: what torch's `interpolate`
    computes, and with it timm 0.4 and Hugging Face's DINOv2. (Newer timm antialiases.) `jax.image.resize` has
    a = -0.5 and other borders, so this is written out.
    """
    old = math.isqrt(table.shape[0])
    weights = np.zeros((grid, old))
    centre = (np.arange(grid) + 0.5) * old / grid - 0.5
    for tap in (-1, 0, 1, 2):
        pixel = np.floor(centre).astype(int) + tap
        np.add.at(weights, (np.arange(grid), pixel.clip(0, old - 1)), _keys(np.abs(centre - pixel)))
    square = table.astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("ai,bj,ijd->abd", weights, weights, square, optimize=True)
    return resized.reshape(grid * grid, -1).astype(np.float32)


def to_timm(params) -> dict[str, np.ndarray]:
    """The parameters under timm's names and in its layouts (dense `[out, in]`, patches `[dim, 3, row, column]`).

    The exact inverse of `load_vit`: values and dtypes are those of `params`.
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


def save_timm(path, params, dtype="float32") -> None:
    """Writes `to_timm(params)` as .safetensors or .npz, by the suffix; the file appears whole or not at all.

    Args:
      path: the file; one that exists is replaced.
      params: parameters of a ViT.
      dtype: "float32", "float16" or, in .safetensors only, "bfloat16".

    Raises:
      UserError: another suffix or dtype, or a value too large for the dtype.
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
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            if path.suffix == ".npz":
                np.savez(file, **state)
            else:
                from safetensors.numpy import save

                file.write(save(state))
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _timm_name(name: str) -> str:
    """`block_0/attn/qkv/kernel` -> `blocks.0.attn.qkv.weight`."""
    name = name.replace("block_", "blocks/").replace("patch_embed/", "patch_embed/proj/")
    if "layer_scale" in name:
        name = name.replace("layer_scale", "ls").replace("/scale", "/gamma")
    return name.replace("/kernel", "/weight").replace("/scale", "/weight").replace("/", ".")


def _from_timm(name, array):
    """The array in our layout; one of an unexpected rank is left as it is, for the check of shapes to report."""
    if name == "patch_embed/kernel" and array.ndim == 4:
        return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if name.endswith("/kernel") and array.ndim == 2 else array


def _fit_positions(path, array, shape, prefix):
    """Position embeddings `[1, n, dim]` for the wanted shape, or as they are where they cannot be made to fit.

    prefix: how many rows stand before the patches (class token, distillation token).
    """
    if array.ndim != 3 or (array.shape[0], array.shape[2]) != (1, shape[2]):
        return array
    rows, grid = array[0], math.isqrt(shape[1] - 1)
    if math.isqrt(len(rows)) ** 2 == len(rows) and prefix == 1:  # no row for the class token: it has no position
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
    """Position embeddings `[1, n, dim]` of as many tokens before the patches as in the wanted shape, one or two."""
    if array.ndim != 3 or array.shape[::2] != shape[::2]:
        return array
    prefix = next((n for n in (1, 2) if math.isqrt(max(shape[1] - n, 0)) ** 2 == shape[1] - n), 0)
    old, grid = array.shape[1] - prefix, math.isqrt(shape[1] - prefix)
    if array.shape == shape or math.isqrt(max(old, 0)) ** 2 != old or not (prefix and old):
        return array
    logging.getLogger("cdl_jax").info("%s: position embeddings resized from %d to %d patches", path, old, grid**2)
    return np.concatenate([array[0, :prefix], resize_positions(array[0, prefix:], grid)])[None]


def _keys(x):
    """Keys' cubic convolution kernel at distances `x` in [0, 2], a = -0.75 (Keys, 1981)."""
    a = -0.75
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    return np.where(x <= 1, near, a * (((x - 5) * x + 8) * x - 4))


def _check(path, wanted, found, unexpected, layout):
    """Raises one UserError for everything that does not fit."""
    missing = [name for name in wanted if name not in found]
    shapes = [
        f"{name} wanted {list(wanted[name])} found {list(array.shape)}"
        for name, array in found.items()
        if array.shape != wanted[name]
    ]
    # bfloat16 and its like are no numpy kind: they are told by what they can be cast to.
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
