"""Reads and writes the weights of published detectors.

The weights are Swin classifiers, and checkpoints of ViDT and VkD. Names and layouts are those of the published
programs' state dicts. A checkpoint of a VkD student has projectors beside the detector; they are left out, so that the
student can be a teacher.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax.errors import UserError
from cdl_jax.models.weights.messages import duplicate_error, shorten
from cdl_jax.models.weights.state_dicts import check_not_quantized, looks_like, read_tensors

# From paths of parameters to torch's names, applied in this order.
_TO_TORCH = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^(heads|params)/", ""),
        (r"^token_labels/", "transformer/"),
        (r"^reference_points/", "transformer/reference_points/"),
        (r"^decoder_layers_(\d+)/", r"transformer/decoder/layers/\1/"),
        (r"^fusion/", "fusion/multi_scaler/"),
        (r"(^|/)(refinenet_\d+)_(smoothing|resConfUnit\d)/", r"\1\2/\3/"),
        (r"^(input_proj)_(\d+)/", r"\1/\2/"),
        (r"^((input_proj/\d+|input_proj|tgt_proj|query_pos_proj))/linear/", r"\1/0/"),
        (r"^((input_proj/\d+|input_proj|tgt_proj|query_pos_proj))/norm/", r"\1/1/"),
        (r"(^|/)(layers|blocks|class_embed|bbox_embed|iou_embed)_(\d+)(?=/)", r"\1\2/\3"),
        (r"^(\w+_projector(?:_\d+)?)/projector/raw$", r"\1/projector/parametrizations/weight/original"),
        (r"^(\w+_projector(?:_\d+)?)/projector/base$", r"\1/projector/parametrizations/weight/0/base"),
        (r"/in_proj_kernel$", "/in_proj_weight"),
        (r"/(kernel|scale)$", "/weight"),
        (r"/", "."),
    ]
]
# Dense layers here that are 1x1 convolutions in the published programs.
_CONVOLUTIONS = re.compile(
    r"(input_proj(\.\d+)?|tgt_proj|query_pos_proj)\.0\.weight"
    r"|(.*\.)?(layer_\d+_rn|refinenet_\d+\.(smoothing|resConfUnit\d\.conv[13]))\.weight"
)
_PATCH_EMBEDDING = re.compile(r"(.*\.)?patch_embed\.proj\.weight")
# Tensors of a detector's checkpoint that no output depends on, or that are computed here.
_UNUSED = re.compile(
    r"backbone\.norm\d\..*|backbone\.layers\.\d\.downsample\.(expansion|norm2)\..*|transformer\.level_embed"
    r"|.*\.(relative_position_index|attn_mask)"
    r"|(.*\.)?refinenet_\d+\.(smoothing|resConfUnit1)\..*"
)
_PROJECTORS = re.compile(r"(patch_projector_\d+|body_det_projector|neck_det_projector)\..*")
_HEAD_COPIES = re.compile(r"transformer\.decoder\.(?=(bbox_embed|class_embed)\.)")
# Tensors of a Swin classifier that a detector does not have.
_OF_CLASSIFIER = re.compile(r"(norm|head)\..*|.*\.attn_mask")
_INDEX = ".relative_position_index"  # computed here
# Parameters of the detector's backbone that a Swin classifier does not have.
_FRESH = re.compile(r"det_token|det_pos_embed|layers\.\d+\.blocks\.\d+\.det_pos_linear\..*|layers\.3\.downsample\..*")
_WRAPPERS = ("model.", "state_dict.", "model_state_dict.", "module.")


def torch_name(path: str) -> str:
    """Returns the name of a parameter in the published programs.

    Args:
      path: of the parameter, `a/b/kernel`, in a detector, in a part of one, or in the projectors of a student.

    >>> torch_name("backbone/layers_0/blocks_1/attn/qkv/kernel"), torch_name("heads/bbox_embed_2/layers_0/bias")
    ('backbone.layers.0.blocks.1.attn.qkv.weight', 'bbox_embed.2.layers.0.bias')
    >>> torch_name("decoder_layers_0/self_attn/in_proj_kernel"), torch_name("input_proj_3/norm/scale")
    ('transformer.decoder.layers.0.self_attn.in_proj_weight', 'input_proj.3.1.weight')
    >>> torch_name("patch_projector_1/projector/raw"), torch_name("patch_projector_1/scale")
    ('patch_projector_1.projector.parametrizations.weight.original', 'patch_projector_1.weight')
    """
    for pattern, replacement in _TO_TORCH:
        path = pattern.sub(replacement, path)
    return path


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts parameters to the names and layouts of the published programs.

    Args:
      params: nested dict of arrays, of a detector or of a part of one.

    Returns:
      Name -> array, in the dtype of the parameter.
    """
    return {
        # Contiguous: safetensors writes the memory of an array, also that of a transposed view.
        (name := torch_name(path)): np.ascontiguousarray(_to_torch_layout(name, path, np.asarray(array)))
        for path, array in flatten_dict(params, sep="/").items()
    }


def from_torch(state: Mapping[str, np.ndarray], params: Mapping[str, Any], source: str | Path) -> dict:
    """Converts a state dict to parameters.

    Args:
      state: name -> array, of the published programs.
      params: nested dict of arrays or their shapes.
      source: of the state dict, for messages.

    Returns:
      Nested dict of NumPy arrays, as `params`, in the dtype of the state dict.

    Raises:
      UserError: names or shapes do not fit, or numbers are not finite floats. One message lists them.
    """
    found, expected = {}, flatten_dict(params, sep="/")
    names = {path: torch_name(path) for path in expected}
    missing = [name for name in names.values() if name not in state]
    unexpected = sorted(set(state) - set(names.values()))
    wrong, broken = [], []
    for path, leaf in expected.items():
        if (name := names[path]) not in state:
            continue
        array = state[name]
        if not _fits(name, path, array, leaf.shape):
            shape = list(_torch_shape(name, path, leaf.shape))
            wrong.append(f"{name} expected {shape} found {list(array.shape)}")
        elif array.dtype.kind in "iubO" or not np.can_cast(array.dtype, np.float64) or not np.isfinite(array).all():
            broken.append(name)
        else:
            found[path] = np.ascontiguousarray(_from_torch_layout(path, array))
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong, "no finite floats": broken}
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names)
        raise UserError(f"{source} does not fit the detector: {listed}. {_hint(state)}")
    return unflatten_dict(found, sep="/")


def unused_shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the parameters of a published detector that no output depends on.

    They are in checkpoints and in published numbers of parameters. They are not created here.
    Those of cross-scale fusion are left out.

    Args:
      params: nested dict of arrays or their shapes, of `vidt.ViDT` or `vidt.ViDTWithoutNeck`.

    Returns:
      Name -> shape in the layout of the published programs.
    """
    shapes, backbone = {}, params["backbone"]
    for stage in range(4):
        name, layer = f"backbone.layers.{stage}.downsample", backbone[f"layers_{stage}"]
        width = layer["blocks_0"]["norm1"]["scale"].shape[0]
        if "downsample" in layer:
            merged = layer["downsample"]["reduction"]["kernel"].shape[1]
            shapes |= {f"{name}.expansion.weight": (merged, width)}
            shapes |= {f"{name}.norm2.{part}": (width,) for part in ("weight", "bias")}
        if stage:
            shapes |= {f"backbone.norm{stage}.{part}": (width,) for part in ("weight", "bias")}
    if "tgt_proj" in params:
        shapes["transformer.level_embed"] = (4, params["tgt_proj"]["norm"]["scale"].shape[0])
    return shapes


def load(path: str | Path, params: Mapping[str, Any]) -> dict:
    """Loads a detector by `load_detector`, or its backbone by `load_backbone`.

    A file is that of a detector if a name in it begins with `backbone.`.

    Raises:
      UserError: as these functions.
    """
    is_detector = any(name.startswith("backbone.") for name in unwrap(read_tensors(path)))
    return (load_detector if is_detector else load_backbone)(path, params)


def load_detector(path: str | Path, params: Mapping[str, Any]) -> dict:
    """Loads the parameters of a detector from a checkpoint of ViDT or VkD.

    Projectors of a VkD student, copies of the heads inside the decoder and tensors that no output depends on are left
    out.

    Args:
      path: the file: of torch.save, .safetensors or .npz.
      params: nested dict of arrays or their shapes, of `vidt.ViDT` or `vidt.ViDTWithoutNeck`.

    Returns:
      Nested dict of NumPy float32 arrays.

    Raises:
      UserError: the file is missing or unreadable, copies of a head differ, or names or shapes do not fit.
    """
    state = _read(path)
    expected_names = {torch_name(name) for name in flatten_dict(params, sep="/")}
    tensors, projectors = {}, 0
    for name, array in state.items():
        if _PROJECTORS.fullmatch(name):
            projectors += 1
            continue
        new = _HEAD_COPIES.sub("", name)
        if new not in expected_names and _is_surplus(new, expected_names):
            continue
        if new in tensors and not np.array_equal(tensors[new], array, equal_nan=True):
            raise duplicate_error(Path(path), new, new, name)
        tensors[new] = array
    if projectors:
        logging.getLogger("cdl_jax").info("%s: left out %d tensors of projectors", path, projectors)
    return _as_float32(from_torch(tensors, params, path))


def load_backbone(path: str | Path, params: Mapping[str, Any]) -> dict:
    """Loads a Swin classifier into the backbone of a detector.

    The classifier's last norm and head are left out. What a classifier does not have, such as the detection tokens,
    is as in `params`.

    Args:
      path: the file: of torch.save, .safetensors or .npz. The names are those of Swin's program or of timm.
      params: nested dict of arrays, of `vidt.ViDT` or `vidt.ViDTWithoutNeck`.

    Returns:
      `params` with the backbone of the file in float32.

    Raises:
      UserError: the file is missing or unreadable, or names or shapes do not fit.
    """
    backbone = flatten_dict(params["backbone"], sep="/")
    fresh = {name: leaf for name, leaf in backbone.items() if _FRESH.fullmatch(torch_name(name))}
    shared = unflatten_dict({name: leaf for name, leaf in backbone.items() if name not in fresh}, sep="/")
    state = backbone_tensors(_read(path))
    loaded = from_torch({name: array for name, array in state.items() if not name.endswith(_INDEX)}, shared, path)
    merged = {**fresh, **flatten_dict(_as_float32(loaded), sep="/")}
    return {**params, "backbone": unflatten_dict(merged, sep="/")}


def backbone_tensors(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a Swin classifier that a detector's backbone has.

    The names are Swin's.
    timm's later releases count a merging to the stage behind it: `layers.1.downsample` is `layers.0.downsample` here.
    """
    tensors = {name: array for name, array in state.items() if not _OF_CLASSIFIER.fullmatch(name)}
    if any(name.startswith("layers.0.downsample.") for name in tensors):
        return tensors
    return {
        re.sub(r"^layers\.(\d+)(?=\.downsample\.)", lambda match: f"layers.{int(match[1]) - 1}", name): array
        for name, array in tensors.items()
    }


def unwrap(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the network of a checkpoint without the names of the dicts around it.

    >>> sorted(unwrap({"model.module.a": 1, "model.module.b": 2, "optimizer.c": 3}))
    ['a', 'b']
    """
    state = dict(state)
    while prefix := next((p for p in _WRAPPERS if any(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
    return state


def _read(path):
    state = unwrap(read_tensors(path))
    check_not_quantized(Path(path), state)
    return state


def _is_surplus(name, wanted):
    """Returns whether a tensor of a checkpoint is without use in a detector.

    `wanted` has the names of the detector's tensors.
    """
    # Without refinement one head has an entry for each level.
    shared = re.sub(r"^(class_embed|bbox_embed|iou_embed)\.\d+\.", r"\1.0.", name)
    one_head = shared in wanted and re.sub(r"\.0\.", ".1.", shared, count=1) not in wanted
    return bool(_UNUSED.fullmatch(name)) or one_head


def _from_torch_layout(path, array):
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
        return array if path.endswith("conv2/kernel") else array.reshape(-1, array.shape[-1])
    return array.T if path.endswith("kernel") else array


def _to_torch_layout(name, path, array):
    if path.endswith("kernel"):
        shape = _torch_shape(name, path, array.shape)
        if len(shape) == 4:
            out, channels, *sides = shape
            return array.reshape(*sides, channels, out).transpose(3, 2, 0, 1)
        return array.T
    return array


def _torch_shape(name, path, shape):
    """Returns the shape in a state dict of a parameter of `shape`."""
    if not path.endswith("kernel"):
        return tuple(shape)
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    if _PATCH_EMBEDDING.fullmatch(name):
        return shape[1], shape[0] // 16, 4, 4
    return (shape[1], shape[0], 1, 1) if _CONVOLUTIONS.fullmatch(name) else (shape[1], shape[0])


def _fits(name, path, array, shape):
    return tuple(array.shape) == _torch_shape(name, path, shape)


def _as_float32(params):
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({name: np.asarray(array, np.float32) for name, array in flat.items()}, sep="/")


def _hint(state: Iterable[str]) -> str:
    layout = looks_like([name.removeprefix("backbone.") for name in state])
    has = f"; the file looks like {layout}" if layout and layout != "a Swin Transformer" else ""
    return f"Check embed_dim, depths, heads, window, dim, decoder_layers and the number of classes{has}"


def _some(names) -> str:
    return ", ".join(shorten(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
