"""Files that are never half-written, and the folders of a run's seeds."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Writes a file aside and renames it, so that a reader or a crash, of the machine even, never sees half of it.

    The file is in UTF-8 whatever the locale. Bytes of file names that are not UTF-8 become backslash escapes.

    text: all of it, or parts that are made as they are written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise


def seed_folders(workdir: Path, seeds) -> list[Path]:
    """Where each seed's results lie: `workdir` itself, or its folders `seed_<s>` where `config.seeds` lists several."""
    return [workdir / f"seed_{seed}" for seed in seeds] or [workdir]
