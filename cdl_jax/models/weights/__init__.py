"""Loads the `weights` of a config.

`weights` is a file, a folder, a timm name, a file of this package, or random numbers. Weights of a ViT have timm's
names. Weights of other networks, with their running statistics, have the names of this package, or torch's names if the
family has `torch_name`.
"""

import difflib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.data.readers import npz_files
from cdl_jax.data.readers.locate import search_paths
from cdl_jax.errors import MissingWeightsError, UserError
from cdl_jax.models.modules.heads import is_head
from cdl_jax.models.weights import pretrained, state_dicts
from cdl_jax.runtime import paths

OF_HUB = ("model.safetensors", "pytorch_model.bin")  # names of the files in folders of the Hugging Face hub
_IN_FOLDER = (*OF_HUB, "weights.npz")
_TIMM = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_]+")
_HUB = re.compile(r"(hf[-_]hub:)?(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")
# The models that `python -m cdl_jax.fetch --list` names, for hints.
TIMM_MODELS = (
    "vit_base_patch16_224.augreg_in21k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "deit_small_patch16_224.fb_in1k",
    "deit_tiny_patch16_224.fb_in1k",
)
# Files that the shipped configs name and `cdl_jax.fetch` does not download.
_PUBLISHED = {"regnety_160-a5fe301d.pth": "https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth"}
_SUFFIXES = (".safetensors", ".npz", ".npy", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".tar", ".pkl", ".pickle", ".h5",
             ".msgpack", ".zip", ".gz")  # fmt: skip


def from_section(section: ConfigDict) -> str | tuple[str, str]:
    """Returns the argument `weights` of `load` for the option section of a network.

    Returns:
      `section.weights`, or (`section.weights`, `section.weights_key`) if the key is set.

    Raises:
      UserError: `weights_key` is set without a file.

    >>> from_section(ConfigDict({"weights": "model.pth", "weights_key": "model_ema"}))
    ('model.pth', 'model_ema')
    """
    part = section.get("weights_key", "")  # runs of teachers from before this option do not have it
    if not part:
        return section.weights
    if section.weights in ("", "random"):
        raise UserError(f"weights_key={part!r} needs a checkpoint: name it in weights, or leave it out")
    return section.weights, part


def load(
    weights: str | os.PathLike | tuple[str | os.PathLike, str], params: Mapping[str, Any], key: str
) -> Mapping[str, Any]:
    """Loads the parameters of a ViT.

    Args:
      weights: a file, folder or timm name (see `find`); "package:NAME", a file of this package; or "random". In a
        tuple: (weights, network of the checkpoint), see `state_dicts.read_state`.
      params: nested dict of arrays or of their shapes.
      key: config key of the weights, for messages.

    Returns:
      The loaded parameters, as a nested dict of float32 arrays; with "random" `params`.

    Raises:
      UserError: `weights` is empty, or the file is missing or does not fit. Random weights never replace a file.
    """
    weights, part = _as_text(weights, key)
    if not weights:
        raise UserError(f"config.{key} is empty: name a file of pretrained weights, or set it to 'random'")
    if weights == "random":
        logging.getLogger("cdl_jax").warning("config.%s is 'random': this backbone is not pretrained", key)
        return params
    if weights.startswith("package:"):
        with packaged_file(weights) as path:
            return pretrained.load_vit(path, params, part)
    return pretrained.load_vit(find(weights, key), params, part)


def packaged_file(weights: str) -> AbstractContextManager[Path]:
    """Returns the context of the path of a file of this package.

    Args:
      weights: `package:NAME`.

    Raises:
      UserError: the package has no file of this name.

    >>> with packaged_file("package:glyph_mini_student") as path:
    ...     path.name
    'glyph_mini_student.npz'
    """
    name, folder = weights.removeprefix("package:"), resources.files("cdl_jax.models.weights") / "packaged"
    known = [file.name.removesuffix(".npz") for file in folder.iterdir() if file.name.endswith(".npz")]
    if name not in known:
        raise UserError(f"weights={weights!r} are not in this package: {plugins.did_you_mean(name, known)}")
    return resources.as_file(folder / f"{name}.npz")


def load_network(
    weights: str | os.PathLike | tuple[str | os.PathLike, str],
    network: Mapping[str, Any],
    key: str,
    torch_name: Callable[[str], str] | None = None,
    new_head: bool = False,
) -> Mapping[str, Any]:
    """Loads the variables of a network of any family.

    A network other than a ViT is read from a file that `save` wrote, or, if its family has `torch_name`, from a state
    dict of torch.

    Args:
      weights: see `load`.
      network: `{"params", "batch_stats"}` of arrays or of their shapes.
      key: config key of the weights, for messages.
      torch_name: maps module paths to names in torch's state dicts, see `pretrained.load_network`. Default None.
      new_head: whether a head for another number of classes is left as in `network`, with a warning. Default False. A
        head in a state dict of torch is always treated so.

    Returns:
      The loaded variables, as `network`.

    Raises:
      UserError: see `load`.
    """
    if is_vit(network):
        return {**network, "params": load(weights, network["params"], key)}
    weights, part = _as_text(weights, key)
    if weights == "random":
        return network
    if not weights:
        raise UserError(f"config.{key} is empty: name a file of trained weights")
    if weights.startswith("package:"):
        packaged_file(weights)
        raise UserError(f"config.{key}={weights!r} is a ViT, which this network is not: name a file of weights")
    weights = str(find(weights, key))
    if torch_name is not None and not _is_saved_by_this_package(weights):
        return pretrained.load_network(weights, network, torch_name, part)
    if kind := state_dicts.other_format(weights):
        raise UserError(
            f"config.{key}={weights!r} is {kind}, and this network is read only from a .npz that this program saved, "
            "such as the weights.npz of a run: name one"
        )
    if part:
        raise UserError(f"config.{key}={weights!r} holds one network: leave weights_key={part!r} out")
    leaves = flatten_dict(network, sep="/")
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    try:
        with zipfile.ZipFile(weights) as archive:
            npz_files.check(weights, archive, times=20)
        with np.load(weights, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UserError:
        raise
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.{key}={weights!r} cannot be read ({reason}): name the weights.npz of a run") from None
    if not_finite := [n for n, array in arrays.items() if array.dtype.kind != "f" or not np.isfinite(array).all()]:
        raise UserError(
            f"config.{key}={weights!r}: {not_finite[0]} does not have finite numbers: name the file of another run"
        )
    names = sorted({*shapes, *arrays})
    misfits = [n for n in names if n not in shapes or n not in arrays or arrays[n].shape != shapes[n]]
    new = [n for n in misfits if new_head and is_head(n.split("/")) and n in shapes and n in arrays]
    misfits = [n for n in misfits if n not in new]
    if misfits:
        raise UserError(
            f"config.{key}={weights!r} is of another architecture: {len(misfits)} arrays do not fit, first {misfits[0]}"
            "; choose the network and the number of classes that it was trained with"
        )
    if new:
        logging.getLogger("cdl_jax").warning("%s: left out %s, of other classes", weights, ", ".join(new))
    return unflatten_dict({n: leaves[n] if n in new else arrays[n].astype(np.float32) for n in shapes}, sep="/")


def find(weights: str, key: str) -> Path:
    """Returns the file that `weights` names.

    Args:
      weights: a file; a folder with `model.safetensors`, `pytorch_model.bin` or `weights.npz`; or the name of a timm
        model with its tag, with or without `timm/`, whose weights `python -m cdl_jax.fetch` has fetched.
      key: config key of the weights, for messages.

    Raises:
      UserError: the file does not exist, or the folder has none of these files.
      MissingWeightsError: `weights` is a timm name that is not fetched yet.
    """
    path = paths.resolve(weights, f"config.{key}")
    weights = os.fsdecode(weights)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:
        raise UserError(
            f"config.{key}={weights[:200]!r} cannot be read ({error.strerror}): name another path"
        ) from None
    if is_file:
        return path
    if is_folder:
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        if parts := sorted(path.glob("*.index.json")):
            raise UserError(f"config.{key}: {parts[0]} is of weights in several files: save them as one .safetensors")
        raise UserError(f"config.{key}: the folder {path} has none of {', '.join(_IN_FOLDER)}: name the file itself")
    name = weights.removeprefix("timm/")
    if not _TIMM.fullmatch(name) or name.endswith(_SUFFIXES):
        raise UserError(f"config.{key}={weights!r}: no such file or folder{_hint(weights)}")
    folders = [folder / "timm" / name for folder in search_paths()]
    for folder in folders:
        for file in _IN_FOLDER:
            if (folder / file).is_file():
                return folder / file
    raise MissingWeightsError(
        f"config.{key}={weights!r}: these weights are not in {folders[0].parent}; "
        f"run `python -m cdl_jax.fetch {name}`, or name a file{_similar_model(name)}",
        name,
    )


def _hint(weights: str) -> str:
    """Returns a hint for a text that names no file, "" if there is none.

    The hint follows the message.

    >>> _hint("facebook/dinov2-small")
    '; for a model of the Hugging Face hub run `hf download facebook/dinov2-small --local-dir FOLDER`, name FOLDER'
    """
    if address := _PUBLISHED.get(Path(weights).name):
        return f"; download it from {address} and name its path"
    if weights.strip().casefold() in ("random", "none", "scratch"):
        return "; did you mean 'random'?"
    hub = _HUB.fullmatch(weights)
    name = hub["name"] if hub else weights
    if hub and hub[1] and name.startswith("timm/"):
        return f"; did you mean {name!r}?"
    if hub and not name.endswith(_SUFFIXES) and not Path(weights).parent.is_dir():
        return f"; for a model of the Hugging Face hub run `hf download {name} --local-dir FOLDER`, name FOLDER"
    if "/" in weights or weights.endswith(_SUFFIXES):
        return ""
    return "; a model of timm needs its tag, as in vit_base_patch16_224.augreg_in21k" + _similar_model(name)


def _similar_model(name: str) -> str:
    """Returns a hint for a mistyped name of a timm model, "" if none is similar.

    >>> _similar_model("vit_bse_patch16_224.augreg_in21k")
    "; did you mean 'vit_base_patch16_224.augreg_in21k'?"
    """
    close = difflib.get_close_matches(name, TIMM_MODELS, n=1, cutoff=0.9)
    return f"; did you mean {close[0]!r}?" if close and name not in TIMM_MODELS else ""


def _as_text(weights, key: str) -> tuple[str, str]:
    """Returns the argument `weights` of `load` as two texts.

    The texts are the weights, and the network of a checkpoint.
    """
    weights, part = weights if isinstance(weights, tuple) else (weights, "")
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise UserError(f"config.{key}={weights!r} is not a path: name a file or folder of weights, or 'random'")
    return os.fspath(weights) if weights is not None else "", part


def save(path: Path, network: Mapping[str, Any]) -> None:
    """Writes the variables of a network as .npz.

    A ViT is written with timm's names in float16, another network with the names of this package in float32.
    """
    if is_vit(network):
        pretrained.save_timm(path, network["params"], "float16")
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **flatten_dict(network, sep="/"))
    os.replace(temporary, path)


def is_vit(network: Mapping[str, Any]) -> bool:
    """Returns whether the variables are those of `models.vit.ViT`.

    Files of a ViT have timm's names.
    """
    kernel = network["params"].get("patch_embed", {}).get("kernel")
    return "batch_stats" not in network and kernel is not None and kernel.ndim == 2


def _is_saved_by_this_package(path) -> bool:
    """Returns whether `save` wrote the file; False for a missing or unreadable file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("params/") for name in archive.namelist())
    except Exception:  # the bytes are not trusted: their reader may raise anything
        return False
