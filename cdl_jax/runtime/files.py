"""Atomic writes of files, and the folders of a run's seeds."""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: str | bytes | Iterable[str]) -> None:
    """Writes a temporary file and renames it.

    So a reader never finds an incomplete file, and a crash never leaves one. Text is in UTF-8 in any locale. Bytes of
    file names that are not UTF-8 become backslash escapes. The content is on disk before the renaming, in case the
    machine crashes.

    Args:
      path: path of the file.
      content: bytes, the complete text, or parts of a text that are generated while they are written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if isinstance(content, bytes):
            opened = temporary.open("wb")
        else:
            opened = temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        with opened as file:
            file.writelines([content] if isinstance(content, str | bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def seed_folders(workdir: Path, seeds: Sequence[int]) -> list[Path]:
    """Returns the folder of each seed's results.

    Args:
      workdir: the run's folder.
      seeds: `config.seeds`. Empty: the run has one seed, and `workdir` is its folder.

    >>> [str(path) for path in seed_folders(Path("runs/a"), (0, 1))]
    ['runs/a/seed_0', 'runs/a/seed_1']
    """
    return [workdir / f"seed_{seed}" for seed in seeds] or [workdir]
