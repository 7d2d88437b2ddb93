"""Lists the images of a tar archive once, then reads each by its offset, without unpacking."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cdl_jax.data.readers.image_files import EXTENSIONS, SkippedFiles, hidden_reason
from cdl_jax.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz"}
_BLOCK = 512
_MAX_NAME = 2**20  # bytes of a name, and of other records about the next member
_RECORDS_ABOUT_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Entry(tarfile.TarInfo):
    """A header of a member; refuses records that tarfile would read into memory whatever their size."""

    def _proc_member(self, archive):
        if self.type == tarfile.GNUTYPE_SPARSE or (self.type in _RECORDS_ABOUT_NEXT and self.size > _MAX_NAME):
            raise tarfile.ReadError(f"a member of {self.size} bytes and type {self.type!r}, which is refused")
        return super()._proc_member(archive)


def open_archive(file: BinaryIO, mode: str) -> tarfile.TarFile:
    """Opens the archive in an open file, for reading by `next()`.

    Args:
      file: binary, readable.
      mode: as in `tarfile.open`.

    Raises:
      Exception: of any kind, here and at `next()`, if the archive is damaged.
    """
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_Entry)


class Member(NamedTuple):
    """An image of an archive: `size` bytes from `offset` on."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self):
        return f"{self.archive}: {self.name}"

    def read(self) -> bytes:
        """Returns the encoded image.

        Raises:
          OSError: the archive is missing or shorter than before.
        """
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("the archive has become shorter")
        return content


def images_by_class(path: Path) -> dict[str, dict[str, list[Member]]]:
    """Lists the images of an archive by part and class.

    The class of an image is its folder, or, as ImageNet is delivered, the archive within the archive. Its part is the
    folder above if its name is train, test or val, else "". Folders further up are ignored. Members that are not files,
    are hidden (also `..`), belong to `__MACOSX`, are not images by their names, or have no folder are skipped, counted
    and logged. Of two files with one name the later counts, as after unpacking.

    Args:
      path: of an uncompressed tar archive.

    Returns:
      {part: {class: images}}, images in the order of their names.

    Raises:
      UserError: the archive cannot be read, is compressed, truncated or damaged, or has no image in a folder.
    """
    found, skipped, num_outside = {}, SkippedFiles(), 0
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            for name, offset, size in _files(file, path, 0, end):
                parts = [part for part in name.split("/") if part not in ("", ".")]
                *folders, image = parts or [""]
                if reason := next(filter(None, map(hidden_reason, parts)), ""):
                    skipped.add(reason, name)
                elif not image.lower().endswith(EXTENSIONS):
                    skipped.add_file(name)
                elif not folders:
                    num_outside += 1
                    skipped.add("outside of class folders", name)
                else:
                    if folders[-1] == "images" and len(folders) > 2 and folders[-3] in ("train", "test", "val"):
                        folders.pop()  # the layout of Tiny-ImageNet
                    part = folders[-2] if len(folders) > 1 and folders[-2] in ("train", "test", "val") else ""
                    members = found.setdefault(part, {}).setdefault(folders[-1], {})
                    members[image] = Member(str(path), name, offset, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not found:
        raise UserError(
            f"{path}: no images ({', '.join(EXTENSIONS)}) in class folders, {num_outside} outside of them: pack one "
            "folder per class"
        )
    skipped.log(path)
    return {
        part: {name: [members[key] for key in sorted(members)] for name, members in sorted(found[part].items())}
        for part in found
    }


def _files(file, path, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset, size) of the regular files of the archive at `start`, and of the archives in it."""
    file.seek(start)
    first = file.read(2)
    if first in _COMPRESSED:
        raise UserError(
            f"{path}: is compressed, so its files cannot be read by offset: run {_COMPRESSED[first]} on it once"
        )
    file.seek(start)
    position = start
    try:
        archive = open_archive(file, "r:")
        while (member := archive.next()) is not None:
            archive.members.clear()  # a million of them would fill the memory
            position = member.offset_data + member.size
            if position > end:
                raise tarfile.ReadError(f"{member.name} is cut off")
            if not member.isreg() or member.issparse():
                continue
            if member.name.endswith(".tar"):
                folder = member.name.removesuffix(".tar")
                for name, *location in _files(file, path, member.offset_data, position):
                    yield f"{folder}/{name}", *location
            else:
                yield member.name, member.offset_data, member.size
        position = archive.offset
        file.seek(position)
        # tarfile treats an unreadable header as the end.
        if position + _BLOCK > end or file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError("the archive has no end mark")
    except (UserError, OSError):
        raise
    except Exception as error:  # the bytes are not trusted: their reader may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: incomplete or damaged near byte {position:,} ({reason}); download or pack it again"
        ) from None
