"""Pictures in a tar archive of class folders, found once, then read by their place in it; nothing is unpacked."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cdl_jax.data.readers.image_files import EXTENSIONS, LeftOut, hidden
from cdl_jax.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz"}
_BLOCK = 512
_LONGEST_NAME = 2**20  # bytes; and of all else that stands in an archive about its next member
_ABOUT_THE_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Entry(tarfile.TarInfo):
    """What tarfile makes of a header, without what it would read whole into memory whatever its size."""

    def _proc_member(self, archive):
        if self.type == tarfile.GNUTYPE_SPARSE or (self.type in _ABOUT_THE_NEXT and self.size > _LONGEST_NAME):
            raise tarfile.ReadError(f"a member of {self.size} bytes and type {self.type!r}, which is not read")
        return super()._proc_member(archive)


def opened(file, mode: str) -> tarfile.TarFile:
    """The archive in an open file, for reading by `next()`, `mode` as in `tarfile.open`.

    Raises:
      Exception: of any kind, here and at `next()`, where the archive is damaged.
    """
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_Entry)


class Member(NamedTuple):
    """A picture of an archive: `size` bytes from `offset` on."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self):
        return f"{self.archive}: {self.name}"

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
          OSError: the archive is not there or no longer as long as it was.
        """
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError("the archive has become shorter")
        return content


def classes(path: Path) -> dict[str, dict[str, list[Member]]]:
    """The pictures of an archive: `{part: {class: pictures}}`, pictures in the order of their names.

    A picture's class is the folder that it lies in, or, as ImageNet is delivered, the archive within the archive. Its
    part is the folder above where that is called train, test or val, else "". All that lies further up means nothing.
    What is no file, hidden (also `..`), of `__MACOSX`, no picture by its name, or in no folder is left out, counted and
    logged. Of two files of one name the later counts, as if they had been unpacked.

    Raises:
      UserError: the archive cannot be read, is compressed, ends too early or is damaged, or has no picture in a folder.
    """
    found, left_out, homeless = {}, LeftOut(), 0
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            for name, offset, size in _files(file, path, 0, end):
                parts = [part for part in name.split("/") if part not in ("", ".")]
                *folders, picture = parts or [""]
                if reason := next(filter(None, map(hidden, parts)), ""):
                    left_out.add(reason, name)
                elif not picture.lower().endswith(EXTENSIONS):
                    left_out.add_file(name)
                elif not folders:
                    homeless += 1
                    left_out.add("outside of class folders", name)
                else:
                    if folders[-1] == "images" and len(folders) > 2 and folders[-3] in ("train", "test", "val"):
                        folders.pop()  # as Tiny-ImageNet has it
                    part = folders[-2] if len(folders) > 1 and folders[-2] in ("train", "test", "val") else ""
                    members = found.setdefault(part, {}).setdefault(folders[-1], {})
                    members[picture] = Member(str(path), name, offset, size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not found:
        raise UserError(
            f"{path}: no pictures ({', '.join(EXTENSIONS)}) in class folders, {homeless} outside of any: pack one "
            "folder a class"
        )
    left_out.log(path)
    return {
        part: {name: [members[key] for key in sorted(members)] for name, members in sorted(found[part].items())}
        for part in found
    }


def _files(file, path, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the plain files of the archive at `start`, and of the archives in it under its name."""
    file.seek(start)
    first = file.read(2)
    if first in _COMPRESSED:
        raise UserError(
            f"{path}: is compressed, so nothing in it can be read by its place: run {_COMPRESSED[first]} on it once"
        )
    file.seek(start)
    at = start
    try:
        archive = opened(file, "r:")
        while (member := archive.next()) is not None:
            archive.members.clear()  # a million of them would fill the memory
            at = member.offset_data + member.size
            if at > end:
                raise tarfile.ReadError(f"{member.name} is cut off")
            if not member.isreg() or member.issparse():
                continue
            if member.name.endswith(".tar"):
                folder = member.name.removesuffix(".tar")
                for name, *place in _files(file, path, member.offset_data, at):
                    yield f"{folder}/{name}", *place
            else:
                yield member.name, member.offset_data, member.size
        at = archive.offset
        file.seek(at)
        if at + _BLOCK > end or file.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes an unreadable header for the end
            raise tarfile.ReadError("no end of the archive there")
    except (UserError, OSError):
        raise
    except Exception as error:  # the bytes are not trusted: their reader may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: incomplete or damaged near byte {at:,} ({reason}); download or pack it again"
        ) from None
