"""Reads weight files of other programs into one form: timm's names and array layouts.

Every file is treated as hostile. No code in it is run. Declared sizes are compared with the number of stored bytes
before memory is allocated.
"""

import io
import logging
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from cdl_jax.data.readers import npz_files, pickles
from cdl_jax.errors import UserError
from cdl_jax.models.weights import onnx_files

_AS_SAFETENSORS = "save the state dict alone as .safetensors (safetensors.torch.save_file) and load that"

_MOST_ENTRIES = 200_000  # of the dicts in a file of torch; large networks have some thousand tensors

_LONGEST_PICKLE = 8 * 2**20  # bytes, without the numbers; about 200 per tensor

_LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # the first values of files of torch before 1.6, each a pickle
_LEGACY_START = b"\x80\x02\x8a\n" + _LEGACY[0].to_bytes(10, "little") + b"."

_ONNX_START = b"\x08"  # the tag of the format's version; the format has no signature

_OTHER_FILES = {  # first bytes -> what the file is
    b"<": "a web page, not the file at its address",
    b"\x1f\x8b": "compressed with gzip, unpack it first",
    b"bzh": "compressed with bzip2, unpack it first",
    b"\xfd7zXZ": "compressed with xz, unpack it first",
    b"\x89HDF": "an HDF5 file (.h5)",
    b"\x93NUMPY": "one array (.npy), not arrays by name",
    b"GGUF": "a GGUF file of a language model",
    b"{": "JSON text, such as the index of weights in several files",
}

_SAFE_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

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
_NAMELESS = re.compile(r"(?P<root>.*)\[\d+\]")  # tensors of a list: `_collect` numbers them
_OF_OPTIMIZER = re.compile(r"(.*\.)?(exp_avg|exp_avg_sq|max_exp_avg_sq|exp_inf|momentum_buffer|square_avg|step)")
_ADAPTER = re.compile(r"(.*[._])?lora([._].*)?", re.IGNORECASE)
_TOP = "."  # the `weights_key` of tensors without a prefix
_CLASSIFIER = re.compile(r"(head|head_dist|fc|classifier|cls_classifier|distillation_classifier)\.(weight|bias)")
# Buffers of layers, which are not trained.
_BUFFER = re.compile(r"(.*\.)?(num_batches_tracked|position_ids|n_averaged)")
_QUANTIZED = re.compile(
    r".*(weight_quantized|\.qweight|\.qzeros|\.weight_scale|\.SCB|\.absmax|\.quant_state.*|\.zero_point"
    r"|\._packed_params.*)"
)

# Patterns of names that identify a layout; the first match counts.
_LAYOUTS = (
    ("a LoRA adapter, not a network", re.compile(r".*lora_[AaBb]\b.*")),
    ("CLIP in Hugging Face's layout", re.compile(r"(.*\.)?vision_model\..*")),
    ("CLIP in OpenAI's layout", re.compile(r"(.*\.)?transformer\.resblocks\..*")),
    ("a Swin Transformer", re.compile(r"(.*\.)?layers\.\d+\.blocks\.\d+\..*")),
    ("a ViT with SwiGLU blocks", re.compile(r"(.*\.)?blocks\.\d+\.mlp\.w12\..*")),
    ("a ViT in Hugging Face's layout", re.compile(r"(.*\.)?encoder\.layer\.\d+\.attention\..*")),
    ("a ViT in torchvision's layout", re.compile(r"(.*\.)?encoder_layer_\d+\.self_attention\..*")),
    ("a ViT in Google's layout", re.compile(r"(.*/)?encoderblock_\d+/.*")),
    ("a ViT in timm's layout", re.compile(r"(.*\.)?blocks\.\d+\.attn\..*")),
    ("a ConvNeXt", re.compile(r"(.*\.)?stages\.\d+\.blocks\.\d+\.conv_dw\..*")),
    ("a RegNet in timm's layout", re.compile(r"(.*\.)?s\d\.b\d+\.conv\d\..*")),
    ("a ResNet in torch's layout", re.compile(r"(.*\.)?layer\d+\.\d+\.(conv\d|bn\d)\..*")),
    ("a VGG or DenseNet in torchvision's layout", re.compile(r"(.*\.)?features\..*")),
    ("a language model", re.compile(r".*(word_embeddings|embed_tokens|wte)\..*")),
)

# From the names of Google's Flax programs, Hugging Face, torchvision, DINOv2 and DeiT III to timm's, applied in this
# order. No two layouts share a name, so that the layout need not be known.
_TO_TIMM = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2's chunks number their blocks consecutively
        (r"^cls$", "cls_token"),
        (r"^Transformer/posembed_input/pos_embedding$", "pos_embed"),
        (r"^Transformer/encoder_norm/", "norm/"),
        (r"^Transformer/encoderblock_(\d+)/", r"blocks/\1/"),
        (r"^embedding/", "patch_embed/proj/"),
        (r"^pre_logits/", "pre_logits/fc/"),
        (r"/LayerNorm_0/", "/norm1/"),
        (r"/LayerNorm_2/", "/norm2/"),
        (r"/MlpBlock_3/Dense_0/", "/mlp/fc1/"),
        (r"/MlpBlock_3/Dense_1/", "/mlp/fc2/"),
        (r"/MultiHeadDotProductAttention_1/out/", "/attn/proj/"),
        (r"/MultiHeadDotProductAttention_1/", "/attn/"),
        (r"/(kernel|scale)$", ".weight"),
        (r"/", "."),
        (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.attention\.", ".attn."),
        (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(linear_1|0)\.", ".mlp.fc1."),
        (r"\.mlp\.(linear_2|3)\.", ".mlp.fc2."),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        (r"^layernorm\.", "norm."),
        (r"^(cls_)?classifier\.", "head."),
        (r"^distillation_classifier\.", "head_dist."),
    ]
]
_GOOGLE_START = r"(opt/target/|params/)?embedding/kernel"
_KNOWN = re.compile(
    r"cls_token|dist_token|mask_token|pos_embed|blocks\.\d+\.ls[12]\.gamma"
    r"|(patch_embed\.proj|norm|head|head_dist|pre_logits\.fc"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|query|key|value|proj)|mlp\.fc[12]))\.(weight|bias)"
)


def read_state(path: str | Path, key: str = "") -> dict[str, np.ndarray]:
    """Reads the tensors of a weight file.

    The content determines the format: safetensors, NumPy's .npz, files of torch.save (also before torch 1.6), or a ViT
    that torch exported to ONNX (see `cdl_jax.models.weights.onnx_files`). Wrappers and prefixes such as `model`,
    `state_dict`, `teacher`, `module.` and `backbone.` are removed. The names may be those of timm, DeiT, Google's .npz
    files ("How to train your ViT?", Steiner et al., 2022), Facebook's DINOv2, Hugging Face's transformers or
    torchvision. Names of other layouts are unchanged.

    Args:
      path: the file.
      key: the network of a checkpoint with several, such as raw and averaged weights. Default "": the only one.

    Returns:
      timm's name -> array in timm's layout and in the dtype of the file.

    Raises:
      UserError: the file is missing, damaged or quantized, its format cannot be read safely, it has several networks
        and there is no `key`, or it has no network of this name.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no weights at {path}: fetch them with `python -m cdl_jax.fetch` or give the path of a file that exists"
        )
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                if any(info.filename.endswith(".npy") for info in archive.infolist()):
                    state = _read_npz(path, archive)
                else:
                    state = _read_torch(path, archive)
        elif start[8:9] == b"{":
            state = _read_safetensors(path)
        elif start.startswith(_LEGACY_START):
            state = _read_legacy_torch(path)
        elif start.startswith(b"\x80"):
            raise UserError(f"{path} is a bare pickle, which torch.save has not written: {_AS_SAFETENSORS}")
        elif start.startswith(_ONNX_START):
            state = onnx_files.read(path)
        elif start.startswith(b"version https://git-lfs"):
            raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` or download the file")
        else:
            use = "use .safetensors, .npz, the .pth of a state dict or .onnx"
            raise UserError(f"{path} is not a weight file: {use}{_other_kind(start)}")
    except UserError:
        raise
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        raise UserError(f"{path} is damaged or not a weight file ({_one_line(error)}): download it again") from error
    state = _unwrapped(path, state, key)
    _check_not_quantized(path, state)
    return _to_timm(path, state)


def other_format(path: str | Path) -> str:
    """Returns the format of a file of weights in words, "" for .npz and for files that are none."""
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(_LEGACY_START):
        return "a file of torch"
    if start[8:9] == b"{":
        return "a .safetensors file"
    try:
        with zipfile.ZipFile(path) as archive:
            return "a file of torch" if any(name.endswith("/data.pkl") for name in archive.namelist()) else ""
    except Exception:  # the bytes are not trusted: their reader may raise anything
        return ""


def _other_kind(start):
    """Returns what a file is, from its first bytes, to follow the message; "" if that is unknown."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, kind in _OTHER_FILES.items():
        if start.startswith(signature) or text.startswith(signature):
            return f"; it is {kind}"
    return "" if start else "; it is empty, download it again"


def looks_like(names: Iterable[str]) -> str:
    """Returns the layout of a network in words, from the names of its tensors; "" if it is unknown.

    >>> looks_like(["layer1.0.conv1.weight"])
    "a ResNet in torch's layout"
    """
    for layout, pattern in _LAYOUTS:
        if any(pattern.fullmatch(name) for name in names):
            return layout
    return ""


def _unwrapped(path, state, key):
    """Returns the tensors of one network without the wrappers in front of their names.

    Any prefix before the blocks of a readable layout is a wrapper, and so are the names in `_WRAPPERS`. Tensors beside
    a wrapper, such as a head for self-supervised training, are left out with a log line. A classifier beside a backbone
    is kept.
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
        elif match := _NAMELESS.fullmatch(name):
            roots[match["root"] + "["] = None
    return [] if all(root.endswith("[") for root in roots) else list(roots)


def _at_root(path, state, roots, key):
    """Returns the tensors of the network that `key` selects among `roots`, and the names that select it."""
    wanted = roots if len(roots) > 1 else roots + _copies(state, roots[0])
    labels = _labels(wanted)
    selected = [root for root in wanted if key == labels[root]]
    selected = selected or [root for root in wanted if key and key in _parts(root)]
    if len(wanted) > 1 and len(selected) != 1:
        _refuse_choice(path, key, [labels[root] for root in wanted])
    root = selected[0] if selected else wanted[0]
    if root.endswith("["):
        raise UserError(f"{path}: the tensors of {labels[root]} have no names: choose another network in weights_key")
    others = [other for other in wanted if other != root and other.startswith(root)]
    inner = {
        name.removeprefix(root): value
        for name, value in state.items()
        if name.startswith(root) and not name.startswith(tuple(others))
    }
    parts = _parts(root)
    outer = [".".join(parts[:n]) + "." * bool(n) for n in range(len(parts))]
    outer = [prefix for prefix in outer if not any(o != root and o.startswith(prefix) for o in wanted)]
    for prefix in outer:
        for name in [n for n in state if n.startswith(prefix) and _CLASSIFIER.fullmatch(n.removeprefix(prefix))]:
            new = name.removeprefix(prefix)
            if new in inner:
                raise _second_source(path, new, root + new, name)
            inner[new] = state[name]
    if len(inner) < len(state):
        left = [name for name in state if not name.startswith(root)]
        if adapter := [name for name in left if _ADAPTER.fullmatch(name)]:
            raise UserError(f"{path} has a LoRA adapter beside the network ({adapter[0]}): merge it into the weights")
        logging.getLogger("cdl_jax").info("%s: took %d of %d tensors, %s*", path, len(inner), len(state), root)
    return inner, [*parts, labels[root]] if root or len(wanted) > 1 else []


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
    """Returns prefixes, beside `root`, of tensors most of which have the names of tensors under `root`.

    An average of only some of the parameters is such a copy, and so is one whose names have no dots.
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


def _second_source(path, name, first, second):
    return UserError(
        f"{path} has two tensors for {name}: {_one_line(first)} and {_one_line(second)}: save the network alone, each "
        "parameter once"
    )


def _without_wrappers(path, state, key):
    """Returns the tensors inside the names of `_WRAPPERS`, and these names, for a layout that is not known."""
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


def _check_not_quantized(path, state):
    wrong = [name for name, array in state.items() if array.dtype.itemsize == 1 and array.dtype.kind != "b"]
    wrong = [name for name in state if _QUANTIZED.fullmatch(name)] or wrong
    if wrong:
        raise _quantized(path, f"{wrong[0]} is {state[wrong[0]].dtype}")


def _quantized(path, why):
    return UserError(f"{path} is quantized ({_one_line(why)}): take the checkpoint in float32, float16 or bfloat16")


def _read_safetensors(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        for name in file.keys():
            if (dtype := file.get_slice(name).get_dtype()) not in _SAFE_DTYPES:
                raise _quantized(path, f"{name} is {dtype}")
        return {name: file.get_tensor(name) for name in file.keys()}


def _read_npz(path, archive):
    npz_files.check(path, archive, times=20)  # trained weights are hardly compressible
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_torch(path, archive):
    members = {info.filename: info for info in archive.infolist()}
    pickled = [name for name in members if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise UserError(f"{path} is a zip file but neither an .npz nor the .pth of a state dict")
    root = pickled[0].removesuffix("data.pkl")
    for info in members.values():
        # torch.save stores and never compresses, so no member can be larger than the file.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UserError(f"{path}: compressed member {info.filename}, which torch.save never writes: not read")
    if sum(info.file_size for info in members.values()) > path.stat().st_size:
        raise UserError(f"{path}: its members overlap or are cut off; download it again")
    if root + "byteorder" in members and archive.read(root + "byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine: {_AS_SAFETENSORS}")

    if members[pickled[0]].file_size > _LONGEST_PICKLE:
        raise UserError(f"{path} holds more than the tensors of a state dict: {_AS_SAFETENSORS}")

    def storage(key, dtype, count):
        content = archive.read(f"{root}data/{key}")
        if count * dtype.itemsize != len(content):
            raise _wrong_storage(path, key, dtype, count, f"{len(content)} bytes")
        return np.frombuffer(content, dtype)

    return _state_dict(path, _unpickled(path, archive.read(pickled[0]), storage))


def _read_legacy_torch(path):
    """Reads consecutive pickles (two numbers, sizes of the machine's types, state, keys), then all storages."""
    content = path.read_bytes()
    file, storages, left = io.BytesIO(content), {}, [len(content)]

    def load_pickle():
        return pickles.load(file, {}, lambda name: _refused(path, name))

    if any(load_pickle() != number for number in _LEGACY):
        raise UserError(f"{path} is a bare pickle, which torch.save has not written: {_AS_SAFETENSORS}")
    if load_pickle().get("little_endian") is not True:
        raise UserError(f"{path} was written on a big-endian machine: {_AS_SAFETENSORS}")

    def storage(key, dtype, count):
        if not 0 <= count * dtype.itemsize <= left[0]:
            raise _wrong_storage(path, key, dtype, count, "fewer")
        left[0] -= count * dtype.itemsize
        return storages.setdefault(key, np.zeros(count, dtype))

    state = _state_dict(path, _unpickled(path, file, storage))
    missing = dict(storages)
    for key in load_pickle():
        block, (count,) = missing.pop(key), struct.unpack("<q", file.read(8))
        if count != len(block):
            raise _wrong_storage(path, key, block.dtype, len(block), str(count))
        block[:] = np.frombuffer(file.read(block.nbytes), block.dtype, count)  # the tensors are views of it
    if missing:
        raise UserError(f"{path} lacks the numbers of {len(missing)} tensors: download it again")
    return state


def _state_dict(path, state):
    """Returns the tensors of an unpickled object by name, with the names of the dicts around them as prefixes."""
    tensors = {}
    if isinstance(state, dict):
        _collect(path, state, "", 0, tensors, [_MOST_ENTRIES])
    if not tensors or all(_NAMELESS.fullmatch(name) for name in tensors):
        has = f"; it has {_one_line(', '.join(map(str, state)))}" if isinstance(state, dict) else ""
        raise UserError(
            f"{path} holds no state dict (names to tensors), alone or under 'model'{has}: {_AS_SAFETENSORS}"
        )
    return tensors


def _collect(path, entries, prefix, depth, tensors, left):
    """Adds the tensors of nested dicts to `tensors`; those of an optimizer and other entries are left out."""
    for name, value in entries.items():
        left[0] -= 1
        if left[0] < 0:  # a dict that many others share
            raise UserError(f"{path} holds more than the tensors of a state dict: {_AS_SAFETENSORS}")
        if isinstance(name, int) and prefix and _is_weight(value):
            tensors[f"{prefix[:-1]}[{name}]"] = value
        if not isinstance(name, str) or _OF_OPTIMIZER.fullmatch(name):
            continue
        place = prefix + name
        if isinstance(value, np.ndarray):
            if place in tensors:
                raise _second_source(path, place, place, place)
            tensors[place] = value
        elif isinstance(value, dict) and depth < 8:
            _collect(path, value, place + ".", depth + 1, tensors, left)
        elif isinstance(value, list | tuple) and 0 < len(value) <= left[0]:
            tensors |= {f"{place}[{i}]": array for i, array in enumerate(value) if _is_weight(array)}


def _is_weight(value):
    return isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "fV"  # "V": bfloat16 and similar


def _unpickled(path, content, storage_at):
    """Unpickles a file of torch.save, with tensors as NumPy views of `storage_at(key, dtype, count)` `[count]`."""
    storages = {}

    def rebuild_tensor(storage, offset, size, stride, *_):
        return _view(path, storage, offset, size, stride)

    def rebuild_parameter(tensor, *_):
        return tensor

    def storage_of(pid):
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or not isinstance(storage, str) or storage not in _STORAGES or not isinstance(key, str):
            raise UserError(f"{path}: a reference that is not a tensor storage: {_AS_SAFETENSORS}")
        if any(part is not None for part in view):
            raise UserError(f"{path}: a storage that is part of another: {_AS_SAFETENSORS}")
        if key not in storages:
            dtype = _STORAGES[storage]
            if not isinstance(count, int):
                raise _wrong_storage(path, key, dtype, count, "no such number")
            storages[key] = storage_at(key, dtype, count)
        return storages[key]

    allowed = {
        "collections.OrderedDict": lambda: OrderedDict(),
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": rebuild_parameter,
        **{f"torch.{name}": name for name in _STORAGES},
    }
    try:
        return pickles.load(content, allowed, lambda name: _refused(path, name), storage_of)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a state dict: {_one_line(error)}: {_AS_SAFETENSORS}") from None


def _refused(path, name):
    if "qtensor" in name or "quantized" in name:
        return _quantized(path, name)
    return UserError(f"{path} wants to call {_one_line(name)}, which was not run: {_AS_SAFETENSORS}")


def _wrong_storage(path, key, dtype, count, stored):
    return UserError(f"{path}: storage {_one_line(key)} declares {_one_line(count)} {dtype} but stores {stored}")


def _view(path, storage, offset, size, stride):
    """Returns a view of `storage` `[numbers]` as a tensor, after a check that the tensor lies inside."""
    numbers = (offset, *size, *stride)
    # A view of a view with gaps would make the bounds below wrong.
    is_contiguous = isinstance(storage, np.ndarray) and storage.ndim == 1 and storage.flags.c_contiguous
    if not is_contiguous or len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise UserError(f"{path}: a tensor with impossible sizes; download it again")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else 0
    # More numbers than stored (strides of 0) would be small here and huge in the first copy.
    if last >= max(storage.size, 1) or count > storage.size:
        raise UserError(f"{path}: a tensor declares {list(size)} but only {storage.size} numbers are stored for it")
    return np.lib.stride_tricks.as_strided(storage[offset:], size, [s * storage.itemsize for s in stride])


def _to_timm(path: Path, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts a state in any of the known layouts to timm's names and layouts.

    Raises:
      UserError: two tensors have one name in timm's layout.
    """
    # Google's training checkpoints have the optimizer state beside the weights.
    networks = [name.removesuffix("embedding/kernel") for name in state if re.fullmatch(_GOOGLE_START, name)]
    if len(networks) > 1:
        raise _second_source(path, "patch_embed.proj.weight", *(f"{name}embedding/kernel" for name in networks[:2]))
    for prefix in networks:
        state = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    result, sources = {}, {}
    for name, array in state.items():
        new = name
        for pattern, replacement in _TO_TIMM:
            new = pattern.sub(replacement, new)
        if not _KNOWN.fullmatch(new):
            result[name] = array  # under its own name, for the error message
        elif new in sources:
            raise _second_source(path, new, sources[new], name)
        else:
            sources[new] = name
            result[new] = _from_flax(name, array) if "/" in name else array
    return _join_qkv(path, result)


def _from_flax(name, array):
    """Converts an array from Google's layout to timm's: dense `[out, in]`, convolution `[out, in, row, column]`."""
    *_, module, leaf = name.split("/")
    if module in ("query", "key", "value"):  # kernel [dim, heads, dim / heads], bias [heads, dim / heads]
        array = array.reshape(*array.shape[: array.ndim - 2], -1)
    elif module == "out" and array.ndim == 3:  # kernel [heads, dim / heads, dim]
        array = array.reshape(-1, array.shape[-1])
    if leaf != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _join_qkv(path, state):
    """Joins query, key and value layers to timm's single layer; incomplete triples are unchanged."""
    for name in [n for n in state if n.endswith((".attn.query.weight", ".attn.query.bias"))]:
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        parts = [state.get(n) for n in names]
        if all(part is not None and part.shape == parts[0].shape and part.ndim for part in parts):
            if (joined := name.replace(".query.", ".qkv.")) in state:
                raise _second_source(path, joined, joined, name)
            state[joined] = np.concatenate(parts)
            for n in names:
                del state[n]
    return state


def _one_line(value) -> str:
    return " ".join(str(value).split())[:200]
