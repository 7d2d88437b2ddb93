"""Reads files of torch.save without torch and without running code in them.

Declared sizes are compared with the number of stored bytes before memory is allocated.
"""

import io
import math
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np

from cdl_jax.data.readers import pickles
from cdl_jax.errors import UserError
from cdl_jax.models.weights.messages import AS_SAFETENSORS, duplicate_error, quantized_error, shorten

_MOST_ENTRIES = 200_000  # of the dicts in a file of torch; large networks have some thousand tensors

_LONGEST_PICKLE = 8 * 2**20  # bytes, without the numbers; about 200 per tensor

_LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # the first values of files of torch before 1.6, each a pickle
LEGACY_START = b"\x80\x02\x8a\n" + _LEGACY[0].to_bytes(10, "little") + b"."

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

NAMELESS = re.compile(r"(?P<root>.*)\[\d+\]")  # tensors of a list: `_collect` numbers them
_OF_OPTIMIZER = re.compile(r"(.*\.)?(exp_avg|exp_avg_sq|max_exp_avg_sq|exp_inf|momentum_buffer|square_avg|step)")


def read_zip(path: Path, archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Returns the tensors of a file of torch.save since torch 1.6 by name.

    The file is a zip archive.

    Raises:
      UserError: the file is damaged, holds no state dict, or would need code to be run.
    """
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
        raise UserError(f"{path} was written on a big-endian machine: {AS_SAFETENSORS}")

    if members[pickled[0]].file_size > _LONGEST_PICKLE:
        raise UserError(f"{path} holds more than the tensors of a state dict: {AS_SAFETENSORS}")

    def storage(key, dtype, count):
        content = archive.read(f"{root}data/{key}")
        if count * dtype.itemsize != len(content):
            raise _wrong_storage(path, key, dtype, count, f"{len(content)} bytes")
        return np.frombuffer(content, dtype)

    return _state_dict(path, _unpickled(path, archive.read(pickled[0]), storage))


def read_legacy(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file of torch.save before torch 1.6 by name.

    The file is consecutive pickles (two numbers, sizes of the machine's types, state, keys), then all storages.

    Raises:
      UserError: the file is damaged, holds no state dict, or would need code to be run.
    """
    content = path.read_bytes()
    file, storages, left = io.BytesIO(content), {}, [len(content)]

    def load_pickle():
        return pickles.load(file, {}, lambda name: _refused(path, name))

    if any(load_pickle() != number for number in _LEGACY):
        raise UserError(f"{path} is a bare pickle, which torch.save has not written: {AS_SAFETENSORS}")
    if load_pickle().get("little_endian") is not True:
        raise UserError(f"{path} was written on a big-endian machine: {AS_SAFETENSORS}")

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
    """Returns the tensors of an unpickled object by name.

    The names of the dicts around a tensor are prefixes of its name.
    """
    tensors = {}
    if isinstance(state, dict):
        _collect(path, state, "", 0, tensors, [_MOST_ENTRIES])
    if not tensors or all(NAMELESS.fullmatch(name) for name in tensors):
        has = f"; it has {shorten(', '.join(map(str, state)))}" if isinstance(state, dict) else ""
        raise UserError(f"{path} holds no state dict (names to tensors), alone or under 'model'{has}: {AS_SAFETENSORS}")
    return tensors


def _collect(path, entries, prefix, depth, tensors, left):
    """Adds the tensors of nested dicts to `tensors`.

    Tensors of an optimizer and other entries are left out.
    """
    for name, value in entries.items():
        left[0] -= 1
        if left[0] < 0:  # a dict that many others share
            raise UserError(f"{path} holds more than the tensors of a state dict: {AS_SAFETENSORS}")
        if isinstance(name, int) and prefix and _is_weight(value):
            tensors[f"{prefix[:-1]}[{name}]"] = value
        if not isinstance(name, str) or _OF_OPTIMIZER.fullmatch(name):
            continue
        place = prefix + name
        if isinstance(value, np.ndarray):
            if place in tensors:
                raise duplicate_error(path, place, place, place)
            tensors[place] = value
        elif isinstance(value, dict) and depth < 8:
            _collect(path, value, place + ".", depth + 1, tensors, left)
        elif isinstance(value, list | tuple) and 0 < len(value) <= left[0]:
            tensors |= {f"{place}[{i}]": array for i, array in enumerate(value) if _is_weight(array)}


def _is_weight(value):
    return isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "fV"  # "V": bfloat16 and similar


def _unpickled(path, content, storage_at):
    """Unpickles a file of torch.save.

    Tensors are NumPy views of `storage_at(key, dtype, count)` `[count]`.
    """
    storages = {}

    def rebuild_tensor(storage, offset, size, stride, *_):
        return _view(path, storage, offset, size, stride)

    def rebuild_parameter(tensor, *_):
        return tensor

    def storage_of(pid):
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or not isinstance(storage, str) or storage not in _STORAGES or not isinstance(key, str):
            raise UserError(f"{path}: a reference that is not a tensor storage: {AS_SAFETENSORS}")
        if any(part is not None for part in view):
            raise UserError(f"{path}: a storage that is part of another: {AS_SAFETENSORS}")
        if key not in storages:
            dtype = _STORAGES[storage]
            if not isinstance(count, int):
                raise _wrong_storage(path, key, dtype, count, "no such number")
            storages[key] = storage_at(key, dtype, count)
        return storages[key]

    allowed = {
        "collections.OrderedDict": lambda: OrderedDict(),
        "argparse.Namespace": lambda: _Ignored(),  # the settings of a program beside its weights
        "torch._utils._rebuild_tensor_v2": rebuild_tensor,
        "torch._utils._rebuild_parameter": rebuild_parameter,
        **{f"torch.{name}": name for name in _STORAGES},
    }
    try:
        return pickles.load(content, allowed, lambda name: _refused(path, name), storage_of)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a state dict: {shorten(error)}: {AS_SAFETENSORS}") from None


class _Ignored:
    """An object whose content is left out."""

    def __setstate__(self, state):
        pass


def _refused(path, name):
    if "qtensor" in name or "quantized" in name:
        return quantized_error(path, name)
    return UserError(f"{path} wants to call {shorten(name)}, which was not run: {AS_SAFETENSORS}")


def _wrong_storage(path, key, dtype, count, stored):
    return UserError(f"{path}: storage {shorten(key)} declares {shorten(count)} {dtype} but stores {stored}")


def _view(path, storage, offset, size, stride):
    """Returns a view of `storage` `[numbers]` as a tensor.

    A tensor that does not lie inside `storage` is refused.
    """
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
