"""Selects the tensors of one network among those of a checkpoint.

The wrappers in front of their names are removed.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.models.weights.messages import duplicate_error
from cdl_jax.models.weights.torch_files import NAMELESS

# Wrappers of a network: an entry of a checkpoint (`{"model": ...}`) or a prefix of the names (`model.`).
_WRAPPERS = (
    "state_dict", "model", "model_state", "model_state_dict", "net", "network", "module", "_orig_mod", "weights",
    "params", "student", "teacher", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema", "params_ema",
    "base_encoder", "momentum_encoder", "encoder_q", "encoder_k", "online_network", "target_network",
    "backbone", "vit", "dinov2", "deit",
)  # fmt: skip
# These wrappers are the backbone of a larger network: tensors beside them may be its classifier.
_BACKBONES = ("backbone", "vit", "dinov2", "deit")
# Names of a network's blocks in the readable layouts, behind any prefix ("root"). Each root is a network.
_BLOCK = re.compile(
    r"(?P<root>(?:.*?\.)??)(?:blocks\.\d+\.(?:\d+\.)?(?:norm[12]|attn|mlp|ls[12]|gamma_[12])\b"
    r"|encoder\.layer\.\d+\.|encoder\.layers\.encoder_layer_\d+\.|layer\d\.\d+\.(?:conv|bn)\d|s\d\.b\d+\.conv\d"
    r"|_blocks\.\d+\._).*"
)
_STAGE = re.compile(r"(.*\.)?(layers|stages|levels|blocks)\.\d+\.")  # the end of a root inside one network, as in Swin
_ADAPTER = re.compile(r"(.*[._])?lora([._].*)?", re.IGNORECASE)
_TOP = "."  # the `weights_key` of tensors without a prefix
_CLASSIFIER = re.compile(r"(head|head_dist|fc|classifier|cls_classifier|distillation_classifier)\.(weight|bias)")
# Buffers of layers, which are not trained.
_BUFFER = re.compile(r"(.*\.)?(num_batches_tracked|position_ids|n_averaged)")


def select(path: Path, state: Mapping[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """Returns the tensors of one network without the wrappers in front of their names.

    Any prefix before the blocks of a readable layout is a wrapper, and so are the names in `_WRAPPERS`. Tensors beside
    a wrapper, such as a head for self-supervised training, are left out with a log line. A classifier beside a backbone
    is kept.

    Args:
      path: the file, for messages.
      state: the tensors of the file by name.
      key: the network, "" for the only one.

    Raises:
      UserError: there are several networks and no `key`, or there is no network of this name.
    """
    roots = _roots(state)
    inner, chosen = _at_root(path, state, roots, key) if roots else _without_wrappers(path, state, key)
    if key and key not in chosen:
        has = f"it has {', '.join(chosen)}" if chosen else "it holds one network, so leave weights_key empty"
        raise UserError(f"{path} has no network {key!r}: {has}")
    return {name: value for name, value in inner.items() if not _BUFFER.fullmatch(name)}


def _roots(state):
    """Returns the prefixes of the networks in `state`, in the order of the file.

    >>> _roots(["model.blocks.0.attn.qkv.weight", "model_ema.module.blocks.0.attn.qkv.weight", "epoch"])
    ['model.', 'model_ema.module.']
    """
    roots = {}
    for name in state:
        if match := _BLOCK.fullmatch(name):
            if not _STAGE.fullmatch(match["root"]):
                roots[match["root"]] = None
        elif match := NAMELESS.fullmatch(name):
            roots[match["root"] + "["] = None
    return [] if all(root.endswith("[") for root in roots) else list(roots)


def _at_root(path, state, roots, key):
    """Returns the tensors of the network that `key` selects among `roots`.

    The second value has the names that select the network.
    """
    candidates = roots if len(roots) > 1 else roots + _copies(state, roots[0])
    labels = _labels(candidates)
    selected = [root for root in candidates if key == labels[root]]
    selected = selected or [root for root in candidates if key and key in _parts(root)]
    if len(candidates) > 1 and len(selected) != 1:
        _refuse_choice(path, key, [labels[root] for root in candidates])
    root = selected[0] if selected else candidates[0]
    if root.endswith("["):
        raise UserError(f"{path}: the tensors of {labels[root]} have no names: choose another network in weights_key")
    others = [other for other in candidates if other != root and other.startswith(root)]
    inner = {
        name.removeprefix(root): value
        for name, value in state.items()
        if name.startswith(root) and not name.startswith(tuple(others))
    }
    parts = _parts(root)
    outer = [".".join(parts[:n]) + "." * bool(n) for n in range(len(parts))]
    outer = [prefix for prefix in outer if not any(o != root and o.startswith(prefix) for o in candidates)]
    for prefix in outer:
        for name in [n for n in state if n.startswith(prefix) and _CLASSIFIER.fullmatch(n.removeprefix(prefix))]:
            new = name.removeprefix(prefix)
            if new in inner:
                raise duplicate_error(path, new, root + new, name)
            inner[new] = state[name]
    if len(inner) < len(state):
        left = [name for name in state if not name.startswith(root)]
        if adapter := [name for name in left if _ADAPTER.fullmatch(name)]:
            raise UserError(f"{path} has a LoRA adapter beside the network ({adapter[0]}): merge it into the weights")
        logging.getLogger("cdl_jax").info("%s: took %d of %d tensors, %s*", path, len(inner), len(state), root)
    return inner, [*parts, labels[root]] if root or len(candidates) > 1 else []


def _parts(root):
    """Returns the words of a root: "model.module." -> ["model", "module"]."""
    return root.rstrip(".[").split(".") if root.rstrip(".[") else []


def _labels(roots):
    """Returns for each root the shortest of its names that no other root has.

    >>> _labels(["model.a.", "model.b.", "ema.a."])
    {'model.a.': 'model.a', 'model.b.': 'model.b', 'ema.a.': 'ema'}
    >>> _labels(["model.", "model_ema.module."])
    {'model.': 'model', 'model_ema.module.': 'model_ema'}
    """
    parts = {root: _parts(root) for root in roots}
    shared = 0
    while len({tuple(words[: shared + 1]) for words in parts.values()}) == 1 and all(
        len(words) > shared + 1 for words in parts.values()
    ):
        shared += 1
    first = {root: words[shared : shared + 1] for root, words in parts.items()}
    unique = {root for root, words in first.items() if words and list(first.values()).count(words) == 1}
    return {root: first[root][0] if root in unique else ".".join(words) or _TOP for root, words in parts.items()}


def _copies(state, root):
    """Returns the prefixes, beside `root`, of copies of the tensors under `root`.

    Most tensors of a copy have the names of tensors under `root`. An average of only some of the parameters is such a
    copy, and so is one whose names have no dots.
    """
    inner = {name.removeprefix(root) for name in state if name.startswith(root)}
    inner |= {name.replace(".", mark) for name in inner for mark in ("", "_")}
    groups, parts = {}, _parts(root)
    for name in state:
        words = name.split(".")
        shared = next((n for n, pair in enumerate(zip(parts, words, strict=False)) if pair[0] != pair[1]), len(parts))
        if shared < min(len(parts), len(words) - 1):
            groups.setdefault(tuple(words[: shared + 1]), []).append(words)
    copies = []
    for group, names in groups.items():
        for depth in range(len(group), len(group) + 3):
            same = sum(".".join(words[depth:]) in inner for words in names)
            if 2 * same > len(names):
                copies.append(".".join(names[0][:depth]) + ".")
                break
    return copies


def _refuse_choice(path, key, names):
    if key:
        raise UserError(f"{path} has no network {key!r}: weights_key must be one of {', '.join(names)}")
    raise UserError(
        f"{path} has several networks: choose one with weights_key={names[0]!r}; it has {', '.join(names)}"
        + f" ({_TOP!r} is the network without a prefix)" * (_TOP in names)
    )


def _without_wrappers(path, state, key):
    """Returns the tensors inside the names of `_WRAPPERS`, and these names.

    The layout of the tensors is not known.
    """
    chosen = []
    while True:
        parts = [part for part in _WRAPPERS if any(name.startswith(part + ".") for name in state)]
        inside = sum(name.startswith(tuple(part + "." for part in parts)) for name in state)
        if not parts or 2 * inside < len(state):  # the name of a part, not a wrapper around the network
            break
        if len(parts) == 1:
            parts += [copy.split(".")[0] for copy in _copies(state, parts[0] + ".")]
        if len(parts) > 1 and key not in parts:
            _refuse_choice(path, key, parts)
        part = key if key in parts else parts[0]
        chosen.append(part)
        inner = {name.removeprefix(part + "."): value for name, value in state.items() if name.startswith(part + ".")}
        if part in _BACKBONES:
            inner = {**{name: value for name, value in state.items() if _CLASSIFIER.fullmatch(name)}, **inner}
        if len(inner) < len(state):
            logging.getLogger("cdl_jax").info("%s: took %d of %d tensors, %s.*", path, len(inner), len(state), part)
        state = inner
    return state, chosen
