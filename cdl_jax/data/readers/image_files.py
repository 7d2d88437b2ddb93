"""Lists image files in folders, and counts skipped files."""

import logging
import os
from pathlib import Path, PurePosixPath

from cdl_jax.errors import UserError
from cdl_jax.runtime.console import one_line

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_MAX_REASONS = 6  # in a log line


class SkippedFiles:
    """Counts skipped files and folders by reason, with the first name of each."""

    def __init__(self):
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts one file or folder."""
        count, first = self._counts.get(reason, (0, name))
        self._counts[reason] = count + 1, first

    def add_file(self, name: str) -> None:
        """Counts a file that is not an image by its name."""
        ending = PurePosixPath(name).suffix.lower()[:12]
        self.add(f"with the ending {ending}" if ending else "without an ending", name)

    def merge(self, other: "SkippedFiles") -> None:
        """Adds the counts of another object."""
        for reason, (count, first) in other._counts.items():
            total, name = self._counts.get(reason, (0, first))
            self._counts[reason] = total + count, name

    def log(self, where: str | Path) -> None:
        """Logs one line about a path if anything was skipped."""
        if not self._counts:
            return
        total, reasons = sum(count for count, _ in self._counts.values()), sorted(self._counts.items())
        parts = [f"{count:,} {reason} (first {first})" for reason, (count, first) in reasons[:_MAX_REASONS]]
        rest = sum(count for _, (count, _) in reasons[_MAX_REASONS:])
        line = f"{where}: left out {total:,} files or folders: {', '.join(parts)}" + f", {rest:,} others" * bool(rest)
        logging.getLogger("cdl_jax").warning("%s", one_line(line))


def hidden_reason(name: str) -> str:
    """Returns "hidden" or "of __MACOSX" for names to skip, else "".

    >>> hidden_reason(".DS_Store"), hidden_reason("cat")
    ('hidden', '')
    """
    return "hidden" if name.startswith(".") else "of __MACOSX" if name == "__MACOSX" else ""


def list_entries(folder: Path, skipped: SkippedFiles) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the images in a folder, both sorted.

    Args:
      folder: to list.
      skipped: counts hidden entries, `__MACOSX`, files with other endings, and what is neither a file nor a folder.

    Raises:
      UserError: the folder cannot be read.
    """
    folders, images = [], []
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}): allow reading the folder, or remove it"
        ) from None
    for entry in entries:
        if reason := hidden_reason(entry.name):
            skipped.add(reason, entry.path)
        elif _is_kind(entry.is_dir):
            folders.append(entry.name)
        elif not _is_kind(entry.is_file):
            skipped.add("not a file, or a broken link", entry.path)
        elif entry.name.lower().endswith(EXTENSIONS):
            images.append(entry.name)
        else:
            skipped.add_file(entry.path)
    return folders, images


def _is_kind(test) -> bool:
    try:
        return test()
    except OSError:  # of a link to itself
        return False


def image_names(folder: Path) -> tuple[str, ...]:
    """Returns the names of the image files in a folder, sorted."""
    return tuple(list_entries(folder, SkippedFiles())[1])
