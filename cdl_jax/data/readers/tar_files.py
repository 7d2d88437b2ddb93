"""Lists the images of a tar archive once, then reads each by its offset.

The archive is not unpacked.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cdl_jax.data.readers import image_files
from cdl_jax.data.readers.image_files import EXTENSIONS, SkippedFiles, hidden_reason
from cdl_jax.errors import UserError

_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zX": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_BLOCK = 512
_MAX_DEPTH = 64  # folders
_MAX_PADDING = 2**20  # bytes behind the end that are searched for a second archive
_MAX_NAME = 2**20  # bytes of a name, and of other records about the next member
_RECORDS_ABOUT_NEXT = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Entry(tarfile.TarInfo):
    """A header of a member; refuses records of unlimited size.

    tarfile would read such records into memory whatever their size.
    """

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


class ArchivePath:
    """A file or folder of an archive.

    It has the methods of `pathlib.Path` that layouts need.

    Args:
      archive: path of the archive.
      names: names of the folders above it and its own; empty: the top of the archive.
      entry: entries by name of a folder, location of a file, None if nothing is there.
    """

    def __init__(self, archive: str, names: tuple[str, ...], entry: "dict[str, Any] | Member | None"):
        self.archive, self.names, self.entry = archive, names, entry

    def __truediv__(self, name: str) -> "ArchivePath":
        names = tuple(part for part in name.split("/") if part not in ("", "."))
        entry = self.entry
        for part in names:
            entry = entry.get(part) if isinstance(entry, dict) else None
        return ArchivePath(self.archive, self.names + names, entry)

    def __str__(self):
        return f"{self.archive}: {'/'.join(self.names)}" if self.names else self.archive

    @property
    def name(self) -> str:
        """The last name of the path."""
        return self.names[-1] if self.names else Path(self.archive).name

    def is_dir(self) -> bool:
        """Tests for a folder."""
        return isinstance(self.entry, dict)

    def is_file(self) -> bool:
        """Tests for a file."""
        return isinstance(self.entry, Member)

    def list_entries(self, skipped: SkippedFiles) -> tuple[list[str], list[str]]:
        """Returns the names of the folders and of the images, both sorted.

        `image_files.list_entries` returns the same for a folder on disk.
        """
        folders, images = [], []
        for name, entry in sorted(self.entry.items()):
            if isinstance(entry, dict):
                folders.append(name)
            elif name.lower().endswith(EXTENSIONS):
                images.append(name)
            else:
                skipped.add_file(entry.name)
        return folders, images


def list_entries(folder: Path | ArchivePath, skipped: SkippedFiles) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the images, both sorted.

    The folder is on disk or in an archive.
    """
    return (
        folder.list_entries(skipped) if isinstance(folder, ArchivePath) else image_files.list_entries(folder, skipped)
    )


def is_file(place: Path | ArchivePath) -> bool:
    """Tests for a file on disk or in an archive; a place that cannot be read has none."""
    return place.is_file() if isinstance(place, ArchivePath) else os.path.isfile(place)


def image_at(place: Path | ArchivePath) -> str | Member:
    """Returns what the decoder reads: a path, or a member of an archive."""
    return place.entry if isinstance(place, ArchivePath) else str(place)


def read_tree(path: Path, skipped: SkippedFiles) -> ArchivePath:
    """Returns the folders and files of an archive.

    An archive within the archive is a folder, as ImageNet is delivered. A hard link is the file that it names. Of two
    files with one name the later counts, as after unpacking.

    Args:
      path: of an uncompressed tar archive.
      skipped: counts symbolic links, special files, and hidden names (also `..` and `__MACOSX`).

    Raises:
      UserError: the archive cannot be read, is compressed, truncated or damaged.
    """
    tree: dict[str, Any] = {}
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            for name, kind, location in _members(file, path, 0, end):
                names = _split_name(name)
                reason = next(filter(None, map(hidden_reason, names)), "")
                reason = reason or "below too many folders" * (len(names) > _MAX_DEPTH)
                if not reason and kind == "link":
                    target = ArchivePath(str(path), (), tree) / location
                    location = target.entry[2:] if target.is_file() else None
                    reason = "" if location else "hard links to nothing"
                if reason or kind == "other":
                    if kind != "folder":
                        skipped.add(reason or location, name)
                elif not _insert(tree, names, None if kind == "folder" else Member(str(path), name, *location)):
                    skipped.add("with the name of another entry", name)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or ' '.join(str(error).split())})") from None
    return ArchivePath(str(path), (), tree)


def _split_name(name):
    return [part for part in name.split("/") if part not in ("", ".")]


def _insert(tree, names, member) -> bool:
    """Adds a file or a folder to a tree; returns False if its place is taken.

    member: the file; None: a folder.
    """
    *folders, last = names if member else [*names, ""]
    for folder in folders:
        tree = tree.setdefault(folder, {})
        if not isinstance(tree, dict):
            return False
    if member:
        if isinstance(tree.get(last), dict):
            return False
        tree[last] = member
    return True


def _members(file, path, start: int, end: int) -> Iterator[tuple[str, str, Any]]:
    """Yields (name, kind, content) of the members of the archive at `start`.

    Archives in this archive yield their members too.

    Kinds: "file" with (offset, size), "folder" with None, "link" with the name of its file, "other" with a reason to
    skip it.
    """
    file.seek(start)
    first = file.read(4)
    for magic, program in _COMPRESSED.items():
        if first.startswith(magic):
            raise UserError(f"{path}: is compressed, so its files cannot be read by offset: run {program} on it once")
    file.seek(start)
    position = start
    try:
        archive = open_archive(file, "r:")
        while (member := archive.next()) is not None:
            archive.members.clear()  # a million of them would fill the memory
            position = member.offset_data + member.size
            if position > end:
                raise tarfile.ReadError(f"{member.name} is cut off")
            if member.isdir():
                yield member.name, "folder", None
            elif member.islnk():
                yield member.name, "link", member.linkname
            elif member.issym():
                yield member.name, "other", "symbolic links"
            elif not member.isreg() or member.issparse():
                yield member.name, "other", "special files"
            elif member.name.endswith(".tar"):
                folder = member.name.removesuffix(".tar")
                for name, kind, content in _members(file, path, member.offset_data, position):
                    yield f"{folder}/{name}", kind, f"{folder}/{content}" if kind == "link" else content
            else:
                yield member.name, "file", (member.offset_data, member.size)
        position = archive.offset
        file.seek(position)
        # tarfile treats an unreadable header as the end.
        if position + _BLOCK > end or file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError("the archive has no end mark")
        rest = file.read(min(_MAX_PADDING, end - position - _BLOCK))
        after = next((row for row in range(0, len(rest), _BLOCK) if rest[row + 257 : row + 262] == b"ustar"), None)
        if after is not None:
            raise UserError(
                f"{path}: a second archive begins at byte {position + _BLOCK + after:,}, behind the end of the first: "
                "set data.path to one of them, or join them by `tar --concatenate`"
            )
    except (UserError, OSError):
        raise
    except Exception as error:  # the bytes are not trusted: their reader may raise anything
        if position == 0 and (kind := _other_kind(first, path)):
            raise UserError(f"{path}: {kind}") from None
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: incomplete or damaged near byte {position:,} ({reason}); download or pack it again"
        ) from None


def _other_kind(first, path) -> str:
    """Returns what a file is that is no archive, and what to do.

    The text is empty if the kind of the file is unknown.
    """
    text = first.lstrip(b"\xef\xbb\xbf \r\n\t")
    if first.startswith(b"PK") and path.suffix.lower() == ".npz":
        return "is an .npz: read it by --config.data.name=arrays"
    if first.startswith(b"PK"):
        return "is a zip archive, which is not read: unpack it and set data.path to the folder"
    if path.name.lower().endswith(EXTENSIONS):
        return "is one image: set data.path to a folder with one folder per class"
    if text.startswith(b"<"):
        return "is a web page or XML, not a tar archive: download the data again"
    if text.startswith((b"{", b"[")):
        return "is JSON, which is not read: write the list as a .csv with lines of file,label,split"
    return ""
