"""Lists image files in folders, and counts what is left out."""

import logging
import os
from pathlib import Path, PurePosixPath

from cdl_jax.runtime.console import one_line

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_SHOWN = 6  # reasons in a log line


class LeftOut:
    """Counts of the files and folders that a source leaves out, by reason, each with the first name."""

    def __init__(self):
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Counts one file or folder."""
        count, first = self._found.get(reason, (0, name))
        self._found[reason] = count + 1, first

    def add_file(self, name: str) -> None:
        """Counts a file that is not an image by its name."""
        ending = PurePosixPath(name).suffix.lower()[:12]
        self.add(f"with the ending {ending}" if ending else "without an ending", name)

    def log(self, where) -> None:
        """Logs one line; none if nothing was left out."""
        if not self._found:
            return
        total, reasons = sum(count for count, _ in self._found.values()), sorted(self._found.items())
        parts = [f"{count:,} {reason} (first {first})" for reason, (count, first) in reasons[:_SHOWN]]
        rest = sum(count for _, (count, _) in reasons[_SHOWN:])
        line = f"{where}: left out {total:,} files or folders: {', '.join(parts)}" + f", {rest:,} others" * bool(rest)
        logging.getLogger("cdl_jax").warning("%s", one_line(line))


def hidden(name: str) -> str:
    """Returns why a name is left out: "hidden" or "of __MACOSX"; empty if the name is an ordinary one."""
    return "hidden" if name.startswith(".") else "of __MACOSX" if name == "__MACOSX" else ""


def entries(folder: Path, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the images in a folder, both sorted.

    left_out: counts hidden entries, `__MACOSX`, files with other endings, and what is neither a file nor a folder.
    """
    folders, images = [], []
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            if reason := hidden(entry.name):
                left_out.add(reason, entry.path)
            elif entry.is_dir():
                folders.append(entry.name)
            elif not entry.is_file():
                left_out.add("not a file, or a broken link", entry.path)
            elif entry.name.lower().endswith(EXTENSIONS):
                images.append(entry.name)
            else:
                left_out.add_file(entry.path)
    return folders, images


def pictures(folder: Path) -> tuple[str, ...]:
    """Returns the names of the image files in a folder, sorted."""
    return tuple(entries(folder, LeftOut())[1])
