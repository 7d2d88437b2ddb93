"""Lists of picture files in folders."""

import os
from pathlib import Path

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def subfolders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in `folder`, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")))


def pictures(folder: Path) -> tuple[str, ...]:
    """Names of the picture files in `folder`, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return tuple(
            sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
            )
        )
