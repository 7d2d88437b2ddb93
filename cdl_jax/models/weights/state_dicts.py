"""Reads weight files of other programs into timm's names and array layouts.

Every file is treated as hostile. No code in it is run. Declared sizes are compared with the number of stored bytes
before memory is allocated.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cdl_jax.data.readers import npz_files
from cdl_jax.errors import UserError
from cdl_jax.models.weights import networks, onnx_files, torch_files
from cdl_jax.models.weights.messages import AS_SAFETENSORS, duplicate_error, quantized_error, shorten

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
    """Reads the tensors of one network of a weight file.

    Wrappers and prefixes such as `model`, `state_dict`, `teacher`, `module.` and `backbone.` are removed. The names may
    be those of timm, DeiT, Google's .npz files ("How to train your ViT?", Steiner et al., 2022), Facebook's DINOv2,
    Hugging Face's transformers or torchvision. Names of other layouts are unchanged.

    Args:
      path: the file; formats as in `read_tensors`.
      key: the network of a checkpoint with several, such as raw and averaged weights. Default "": the only one.

    Returns:
      timm's name -> array in timm's layout and in the dtype of the file.

    Raises:
      UserError: see `read_tensors`, or the network is quantized, or the file has several networks and there is no
        `key`, or it has no network of this name.
    """
    path = Path(path)
    state = networks.select(path, read_tensors(path), key)
    check_not_quantized(path, state)
    return _to_timm(path, state)


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a weight file, under their names in the file.

    The content determines the format: safetensors, NumPy's .npz, files of torch.save (also before torch 1.6), or a ViT
    that torch exported to ONNX (see `cdl_jax.models.weights.onnx_files`).

    Returns:
      Name -> array in the layout and dtype of the file. Names of the dicts around a tensor are prefixes.

    Raises:
      UserError: the file is missing or damaged, or its format cannot be read safely.
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
                    state = torch_files.read_zip(path, archive)
        elif start[8:9] == b"{":
            state = _read_safetensors(path)
        elif start.startswith(torch_files.LEGACY_START):
            state = torch_files.read_legacy(path)
        elif start.startswith(b"\x80"):
            raise UserError(f"{path} is a bare pickle, which torch.save has not written: {AS_SAFETENSORS}")
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
        raise UserError(f"{path} is damaged or not a weight file ({shorten(error)}): download it again") from error
    return state


def other_format(path: str | Path) -> str:
    """Returns the format of a file of weights in words.

    The format is "" for .npz and for files that are no weights.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(torch_files.LEGACY_START):
        return "a file of torch"
    if start[8:9] == b"{":
        return "a .safetensors file"
    try:
        with zipfile.ZipFile(path) as archive:
            return "a file of torch" if any(name.endswith("/data.pkl") for name in archive.namelist()) else ""
    except Exception:  # the bytes are not trusted: their reader may raise anything
        return ""


def _other_kind(start):
    """Returns what a file is, from its first bytes; "" if that is unknown.

    The text follows the message.
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for signature, kind in _OTHER_FILES.items():
        if start.startswith(signature) or text.startswith(signature):
            return f"; it is {kind}"
    return "" if start else "; it is empty, download it again"


def looks_like(names: Iterable[str]) -> str:
    """Returns a network's layout in words, from tensor names; "" if it is unknown.

    >>> looks_like(["layer1.0.conv1.weight"])
    "a ResNet in torch's layout"
    """
    for layout, pattern in _LAYOUTS:
        if any(pattern.fullmatch(name) for name in names):
            return layout
    return ""


def check_not_quantized(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Raises a UserError if the tensors of a network are quantized."""
    wrong = [name for name, array in state.items() if array.dtype.itemsize == 1 and array.dtype.kind != "b"]
    wrong = [name for name in state if _QUANTIZED.fullmatch(name)] or wrong
    if wrong:
        raise quantized_error(path, f"{wrong[0]} is {state[wrong[0]].dtype}")


def _read_safetensors(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        for name in file.keys():
            if (dtype := file.get_slice(name).get_dtype()) not in _SAFE_DTYPES:
                raise quantized_error(path, f"{name} is {dtype}")
        return {name: file.get_tensor(name) for name in file.keys()}


def _read_npz(path, archive):
    npz_files.check(path, archive, times=20)  # trained weights are hardly compressible
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _to_timm(path: Path, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts a state in any of the known layouts to timm's names and layouts.

    Raises:
      UserError: two tensors have one name in timm's layout.
    """
    # Google's training checkpoints have the optimizer state beside the weights.
    prefixes = [name.removesuffix("embedding/kernel") for name in state if re.fullmatch(_GOOGLE_START, name)]
    if len(prefixes) > 1:
        raise duplicate_error(path, "patch_embed.proj.weight", *(f"{name}embedding/kernel" for name in prefixes[:2]))
    for prefix in prefixes:
        state = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    result, sources = {}, {}
    for name, array in state.items():
        new = name
        for pattern, replacement in _TO_TIMM:
            new = pattern.sub(replacement, new)
        if not _KNOWN.fullmatch(new):
            result[name] = array  # under its own name, for the error message
        elif new in sources:
            raise duplicate_error(path, new, sources[new], name)
        else:
            sources[new] = name
            result[new] = _from_flax(name, array) if "/" in name else array
    return _join_qkv(path, result)


def _from_flax(name, array):
    """Converts an array from Google's layout to timm's.

    A dense kernel becomes `[out, in]`, that of a convolution `[out, in, row, column]`.
    """
    *_, module, leaf = name.split("/")
    if module in ("query", "key", "value"):  # kernel [dim, heads, dim / heads], bias [heads, dim / heads]
        array = array.reshape(*array.shape[: array.ndim - 2], -1)
    elif module == "out" and array.ndim == 3:  # kernel [heads, dim / heads, dim]
        array = array.reshape(-1, array.shape[-1])
    if leaf != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _join_qkv(path, state):
    """Joins query, key and value layers to timm's single layer.

    Incomplete triples are unchanged.
    """
    for name in [n for n in state if n.endswith((".attn.query.weight", ".attn.query.bias"))]:
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        parts = [state.get(n) for n in names]
        if all(part is not None and part.shape == parts[0].shape and part.ndim for part in parts):
            if (joined := name.replace(".query.", ".qkv.")) in state:
                raise duplicate_error(path, joined, joined, name)
            state[joined] = np.concatenate(parts)
            for n in names:
                del state[n]
    return state
