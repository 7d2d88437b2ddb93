"""What a config's `weights` stands for: a file, a folder, a timm name, a file of this package, or random numbers.

A ViT's weights are in timm's names; those of other networks, with their running statistics, in our own, or in torch's
where the family tells the names.
"""

import logging
import os
import re
import zipfile
from importlib import resources
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax.data.readers import npz_files
from cdl_jax.data.readers.locate import search_paths
from cdl_jax.errors import MissingWeightsError, UserError
from cdl_jax.models.modules.heads import is_head
from cdl_jax.models.weights import pretrained
from cdl_jax.runtime import paths

OF_HUB = ("model.safetensors", "pytorch_model.bin")  # the files' names in folders of the Hugging Face hub
_IN_FOLDER = (*OF_HUB, "weights.npz")
_TIMM = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_]+")
_SUFFIXES = (".safetensors", ".npz", ".npy", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".tar", ".pkl", ".pickle", ".h5",
             ".msgpack", ".zip", ".gz")  # fmt: skip


def from_section(section) -> str | tuple[str, str]:
    """Returns what `load` takes for a network's section: its `weights`, with its `weights_key` where that is set.

    Raises:
      UserError: a `weights_key` without a file.
    """
    part = section.get("weights_key", "")  # teachers' runs from before this option have none
    if not part:
        return section.weights
    if section.weights in ("", "random"):
        raise UserError(f"weights_key={part!r} needs a checkpoint: name it in weights, or leave it out")
    return section.weights, part


def load(weights: str | tuple[str, str], params, key: str):
    """`params` with the values that `weights` names.

    Args:
      weights: a file, folder or timm name (see `find`); "package:NAME" for a file that this package ships; or "random",
        which keeps `params`. In a tuple with it, which network of the checkpoint, see `state_dicts.read_state`.
      params: nested dict of arrays, or of their shapes.
      key: the config key, for messages.

    Raises:
      UserError: `weights` is empty, or the file is missing or does not fit. Random weights are never put in its place.
    """
    weights, part = weights if isinstance(weights, tuple) else (weights, "")
    if not weights:
        raise UserError(f"config.{key} is empty: name a file of pretrained weights, or say 'random'")
    if weights == "random":
        logging.getLogger("cdl_jax").warning("config.%s is 'random': this backbone is not pretrained", key)
        return params
    if weights.startswith("package:"):
        name = weights.removeprefix("package:") + ".npz"
        with resources.as_file(resources.files("cdl_jax.models.weights") / "packaged" / name) as path:
            return pretrained.load_vit(path, params, part)
    return pretrained.load_vit(find(weights, key), params, part)


def load_network(weights: str | tuple[str, str], network, key: str, torch_name=None, new_head: bool = False):
    """As `load`, for the variables `{"params", "batch_stats"}` of a whole network.

    torch_name: the family's names in torch's state dicts, see `pretrained.load_network`.
    new_head: whether a head of another number of classes stays as it is in `network`, with a warning; one of a state
      dict of torch's always does.

    Raises:
      UserError: as `load`. A network other than a ViT is read from a file that `save` wrote, or from a state dict of
        torch's where its family has `torch_name`.
    """
    if is_vit(network):
        return {**network, "params": load(weights, network["params"], key)}
    weights, part = weights if isinstance(weights, tuple) else (weights, "")
    if weights == "random":
        return network
    if not weights:
        raise UserError(f"config.{key} is empty: name a file of trained weights")
    weights = str(find(weights, key))
    if torch_name is not None and not _ours(weights):
        return pretrained.load_network(weights, network, torch_name, part)
    if part:
        raise UserError(f"config.{key}={weights!r} holds one network: leave weights_key={part!r} out")
    leaves = flatten_dict(network, sep="/")
    wanted = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    try:
        with zipfile.ZipFile(weights) as archive:
            npz_files.check(weights, archive, times=20)
        with np.load(weights, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except UserError:
        raise
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config.{key}={weights!r} cannot be read ({reason}): name the weights.npz of a run") from None
    if strange := [n for n, array in found.items() if array.dtype.kind != "f" or not np.isfinite(array).all()]:
        raise UserError(f"config.{key}={weights!r}: {strange[0]} holds no finite numbers: name the file of another run")
    odd = [n for n in sorted({*wanted, *found}) if n not in wanted or n not in found or found[n].shape != wanted[n]]
    fresh = [n for n in odd if new_head and is_head(n.split("/")) and n in wanted and n in found]
    odd = [n for n in odd if n not in fresh]
    if odd:
        raise UserError(
            f"config.{key}={weights!r} is of another architecture: {len(odd)} arrays do not fit, first {odd[0]}; "
            "choose the network and the number of classes that it was trained with"
        )
    if fresh:
        logging.getLogger("cdl_jax").warning("%s: left out %s, of other classes", weights, ", ".join(fresh))
    return unflatten_dict({n: leaves[n] if n in fresh else found[n].astype(np.float32) for n in wanted}, sep="/")


def find(weights: str, key: str) -> Path:
    """Returns the file that `weights` names.

    Args:
      weights: a file; a folder with one of `model.safetensors`, `pytorch_model.bin` and `weights.npz`; or the name of a
        timm model with its tag, with or without `timm/`, for what `python -m cdl_jax.fetch` has fetched.
      key: the config key, for messages.

    Raises:
      UserError: there is no such file, or the folder has none of these.
      MissingWeightsError: `weights` is a timm name that is not fetched yet.
    """
    path = paths.resolve(weights, f"config.{key}")
    if path.is_file():
        return path
    if path.is_dir():
        for name in _IN_FOLDER:
            if (path / name).is_file():
                return path / name
        if parts := sorted(path.glob("*.index.json")):
            raise UserError(f"config.{key}: {parts[0]} is of weights in several files: save them as one .safetensors")
        raise UserError(f"config.{key}: the folder {path} has none of {', '.join(_IN_FOLDER)}: name the file itself")
    name = weights.removeprefix("timm/")
    if not _TIMM.fullmatch(name) or name.endswith(_SUFFIXES):
        hint = "; a model of timm needs its tag, as in vit_base_patch16_224.augreg_in21k" if "/" not in name else ""
        raise UserError(f"config.{key}={weights!r}: no such file or folder{hint}")
    places = [place / "timm" / name for place in search_paths()]
    for place in places:
        for file in _IN_FOLDER:
            if (place / file).is_file():
                return place / file
    raise MissingWeightsError(
        f"config.{key}={weights!r}: these weights are not in {places[0].parent}; "
        f"run `python -m cdl_jax.fetch {name}`, or name a file",
        name,
    )


def save(path: Path, network) -> None:
    """Writes a network's variables as .npz: a ViT in timm's names and float16, others in our own and float32."""
    if is_vit(network):
        pretrained.save_timm(path, network["params"], "float16")
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        np.savez(file, **flatten_dict(network, sep="/"))
    os.replace(aside, path)


def is_vit(network) -> bool:
    """Whether the variables are those of `models.vit.ViT`, whose files have timm's names."""
    kernel = network["params"].get("patch_embed", {}).get("kernel")
    return "batch_stats" not in network and kernel is not None and kernel.ndim == 2


def _ours(path) -> bool:
    """Whether a file is one that `save` wrote; a missing or unreadable one is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.startswith("params/") for name in archive.namelist())
    except Exception:  # the bytes are not trusted: their reader may raise anything
        return False
