"""Reads the official files of CIFAR-10 and CIFAR-100.

The files are python or binary ones, in an archive or unpacked.

Python files are pickles. The reader builds arrays of numbers and plain containers only (see `pickles`), so a forged
file cannot run code. Archives are read in memory; nothing is written to disk.

Layout: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import functools
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from cdl_jax.data.readers import locate, pickles, tar_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError

_PIXELS = 3 * 32 * 32
_MAX_MEMBERS = 1000  # of an archive; the official ones have fewer than ten
_MAX_BYTES = 400 * 10**6  # bytes of all files together; the official ones have 186 million in each form


@dataclass(frozen=True)
class Layout:
    """One official form of a data set.

    archive: name of the tar file.
    folder: name of the folder in it.
    train: names of the files of training images, in official order.
    test: names of the files of test images, in official order.
    names_file: name of the file with the class names.
    labels: key of the labels in a pickle (python form); None: binary form.
    class_names: key of the class names in a pickle (python form); None: binary form.
    label_bytes: bytes before the pixels of a record (binary form); the last of them is the label.
    """

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names_file: str
    labels: str | None = None
    class_names: str | None = None
    label_bytes: int = 1

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files."""
        return (*self.train, *self.test, self.names_file)


def load(name: str, layouts: tuple[Layout, ...], path: str) -> Dataset:
    """Reads a data set from the first complete layout at a path.

    Args:
      name: of the data set.
      layouts: forms of the data set.
      path: an archive, its folder, or a folder that contains either; empty: the search paths.

    Raises:
      UserError: nothing is found, or files are missing, damaged, truncated, or have other content than CIFAR files.
    """
    remedy = f"run: python -m cdl_jax.fetch {name}"
    root = locate.find(
        path,
        [entry for layout in layouts for entry in (layout.folder, layout.archive)],
        what=name,
        remedy=remedy,
        fetch_name=name,
        inside=[layout.names_file for layout in layouts],
    )
    contents = dict(_read_folder(root, layouts) if root.is_dir() else _read_archive(root, layouts, remedy))
    missing = {}
    for layout in layouts:
        missing[layout] = [file for file in layout.files if file not in contents]
        if not missing[layout]:
            break
    else:
        layout, absent = min(missing.items(), key=lambda item: len(item[1]))
        raise UserError(f"{root}: {layout.folder}/{absent[0]} is missing, so {name} is incomplete; {remedy}")
    read = _read_pickles if layout.labels else _read_records
    train, test = (read(root, files, layout, contents) for files in (layout.train, layout.test))
    return Dataset(name, _class_names(root, layout, contents), Split(*train), Split(*test))


def _read_folder(folder, layouts) -> Iterator[tuple[str, bytes]]:
    bytes_left = _MAX_BYTES
    for file in sorted({file for layout in layouts for file in layout.files}):
        if (folder / file).is_file():
            try:
                bytes_left -= (folder / file).stat().st_size
                if bytes_left < 0:
                    raise UserError(f"{folder / file}: larger than any CIFAR file; check data.path")
                yield file, (folder / file).read_bytes()
            except OSError as error:
                raise UserError(f"{folder / file}: cannot be read ({error.strerror})") from None


def _read_archive(archive, layouts, remedy) -> Iterator[tuple[str, bytes]]:
    file_names = {f"{layout.folder}/{file}": file for layout in layouts for file in layout.files}
    members = 0
    try:
        with open(archive, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        # tarfile's own gzip streams do not compare checksums; this one does at its end.
        with (gzip.open if compressed else open)(archive, "rb") as file, tar_files.open_archive(file, "r|") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()
                # Checked before unpacking, and at every member, since skipping a member unpacks it too.
                members += 1
                if tar.offset > _MAX_BYTES or members > _MAX_MEMBERS:
                    raise UserError(
                        f"{archive}: {' '.join(member.name.split())[:100]}, number {members}, has {member.size} "
                        f"bytes by its header, so this is not CIFAR; {remedy}"
                    )
                name = file_names.get(str(PurePosixPath(member.name)))
                if name and member.isreg():
                    yield name, tar.extractfile(member).read()
            for _ in range(_MAX_BYTES >> 20):
                if not file.read(1 << 20):
                    break
    except UserError:
        raise
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{archive}: damaged, truncated or not a tar archive ({reason}); {remedy}") from None


class _Array:
    """A placeholder of an array in a pickle.

    NumPy's own `__setstate__` therefore never receives the file's bytes.
    """

    def __init__(self, as_bytes):
        self._as_bytes = as_bytes

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        content = self._as_bytes(content) if isinstance(content, str) else content
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order="F" if fortran else "C")


class _NumberType:
    """A placeholder of a dtype in a pickle."""

    def __init__(self, code, *_):
        self.value = np.dtype(code.decode("latin1") if isinstance(code, bytes) else code)
        if self.value.kind not in "uif":
            raise UserError(f"it contains an array of {self.value}, unlike CIFAR files")

    def __setstate__(self, state):
        self.value = self.value.newbyteorder(state[1])


def _allowed_names():
    """Returns the names that pickles of number arrays refer to, with replacements."""
    as_bytes = functools.cache(lambda text: text.encode("latin1"))  # one copy, however often a pickle refers to it
    array, encode = lambda *_: _Array(as_bytes), lambda text, *_: as_bytes(text)
    return {
        "numpy.core.multiarray._reconstruct": array,
        "numpy._core.multiarray._reconstruct": array,
        "numpy.ndarray": "ndarray",  # an argument of _reconstruct
        "numpy.dtype": lambda *arguments: _NumberType(*arguments),
        "_codecs.encode": encode,  # how Python 3 writes bytes in protocol 2
    }


def unpickle(content: bytes, where: str) -> dict[str, Any]:
    """Returns the dict in an official python file, with text as keys.

    Args:
      content: of the file.
      where: name of the file, for messages.

    Raises:
      UserError: the content is not a pickle of a dict, is truncated, or refers to anything else than arrays of numbers
        and containers.
    """
    try:
        loaded = pickles.load(
            content, _allowed_names(), lambda name: UserError(f"it refers to {name}, unlike CIFAR files")
        )
    except UserError as error:
        raise UserError(f"{where}: refused, {' '.join(str(error).split())[:200]}; get the official file") from None
    except Exception as error:  # a forged or cut pickle can fail in any way
        raise UserError(
            f"{where}: damaged or not a pickle ({' '.join(str(error).split())[:200]}); get the official file"
        ) from None
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: contains a {type(loaded).__name__}, not a dict; get the official file")
    return {
        key.decode("latin1") if isinstance(key, bytes) else key: getattr(value, "value", None)
        if isinstance(value, _Array)
        else value
        for key, value in loaded.items()
    }


def _read_pickles(where, files, layout, contents):
    """Returns (labels int32 `[n]`, images uint8 `[n, 32, 32, 3]`)."""
    labels, planes = [], []
    for file in files:
        batch = unpickle(contents[file], f"{where}: {file}")
        data, numbers = batch.get("data"), batch.get(layout.labels)
        has_images = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (_PIXELS,)
        if not has_images or not isinstance(numbers, list) or len(numbers) != len(data):
            raise UserError(
                f"{where}: {file} does not contain 'data' uint8 [n, {_PIXELS}] and a list {layout.labels!r} of n labels"
            )
        try:
            labels.append(np.asarray(numbers, np.int32).reshape(len(data)))
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{where}: {file} has {layout.labels!r} that are not whole numbers") from None
        planes.append(data)
    return np.concatenate(labels), _channels_last(np.concatenate(planes))


def _read_records(where, files, layout, contents):
    """Returns the same as `_read_pickles`.

    A record has label bytes, then red, green and blue planes.
    """
    for file in files:
        if len(contents[file]) % (layout.label_bytes + _PIXELS):
            raise UserError(f"{where}: {file} does not end with a complete record; it is truncated or not a CIFAR file")
    records = np.frombuffer(b"".join(contents[file] for file in files), np.uint8)
    records = records.reshape(-1, layout.label_bytes + _PIXELS)
    return records[:, layout.label_bytes - 1].astype(np.int32), _channels_last(records[:, layout.label_bytes :])


def _channels_last(planes):
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _class_names(where, layout, contents):
    content = contents[layout.names_file]
    if not layout.class_names:
        return tuple(line.strip() for line in content.decode("latin1").splitlines() if line.strip())
    names = unpickle(content, f"{where}: {layout.names_file}").get(layout.class_names)
    if not isinstance(names, list):
        raise UserError(f"{where}: {layout.names_file} has no list {layout.class_names!r}")
    return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)
