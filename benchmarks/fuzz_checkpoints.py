"""Checkpoints of a run for the case `fuzz`.

Each file of a small sound checkpoint is damaged in its turn.
"""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.fuzz_inputs import Kind
from cdl_jax.errors import UserError

ROOT = Path(__file__).parents[1]
GROUP = "checkpoint of a run"
_NEWEST = "checkpoints/latest/15", "checkpoints/tasks/1", "checkpoints/frozen"
_FROZEN = {"student": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}


def _live(task):
    """Variables after a task; the large one has a file of its own."""
    draw = np.random.default_rng(task)
    return {
        "student": {"head": draw.normal(size=2).astype(np.float32)},
        "count": np.int32(task),
        "large": draw.normal(size=(30, 30)).astype(np.float32),
    }


def _state(step):
    return {"live": _live(step), "sums": {"steps": np.float32(step)}}


def _record(step, task):
    from cdl_jax.run import results

    return results.to_json([results.Record(step=step, task=task, accuracy={"student": [[90.0], [1 / 3, 0.1]][:task]})])


def save(folder: Path) -> None:
    """Writes the checkpoints of a run of two tasks.

    Each state within a task is newer than the first task.
    """
    from cdl_jax.runtime.checkpoint import Checkpoints

    with Checkpoints(folder) as checkpoints:
        checkpoints.save_frozen(_tree(_FROZEN))
        for task in (0, 1):
            checkpoints.save_task(task, _tree(_live(task)), _record(5 * (task + 1), task + 1))
        for step in (12, 15):
            checkpoints.save_latest(step, _tree(_state(step)), _record(step, 2))


def _tree(tree):
    import jax

    return jax.tree.map(jax.numpy.asarray, tree)


def _shapes(tree):
    import jax

    from cdl_jax.runtime import sharding

    return sharding.abstract_tree(sharding.make_mesh(1), jax.tree.map(np.asarray, tree))


def _check(found, expected, what):
    """Raises AssertionError unless `found` is what was saved."""
    import jax

    same = jax.tree.structure(found) == jax.tree.structure(expected)
    if not same or not jax.tree.all(jax.tree.map(np.array_equal, found, expected)):
        raise AssertionError(f"{what} is not what was saved")


def _resume(folder):
    """Restores the newest sound checkpoint, as a resumed run does.

    The function checks the record and the arrays of the checkpoint, and returns its step.
    """
    from cdl_jax.run import results
    from cdl_jax.runtime.checkpoint import Checkpoints

    with Checkpoints(folder) as checkpoints:
        _check(checkpoints.restore_frozen(_shapes(_FROZEN)), _FROZEN, "frozen")
        record, restored, within = checkpoints.restore_newest(_shapes(_live(0)), _shapes(_state(0)))
    (run,) = results.from_json(record)
    expected = _state(run.step) if within else _live(run.task - 1)
    _check(restored, expected, f"step {run.step}")
    _check(record, _record(run.step, 2 if within else run.task), "the record")
    return run.step


def _evaluate(folder):
    """Restores the last task, as `--mode eval` does.

    This mode changes nothing and uses no earlier checkpoint.
    """
    from cdl_jax.run import results
    from cdl_jax.runtime.checkpoint import Checkpoints

    with Checkpoints(folder, read_only=True) as checkpoints:
        results.from_json(checkpoints.task_record(1))
        _check(checkpoints.restore_task(1, _shapes(_live(1))), _live(1), "task 1")


def _read(sound, path, folder):
    """Evaluates and resumes a run with a damaged file at `path`.

    `file` in `folder` replaces the intact file. A refusal of either use is a refusal of both.
    """
    content, run = (folder / "file").read_bytes(), folder / "run"
    shutil.copytree(sound, run)
    (run / path).write_bytes(content)
    if "tasks" in path:
        shutil.rmtree(run / "checkpoints/latest")  # for else nobody would read a task's
    refusals = []
    for use in (_evaluate, _resume):
        try:
            use(run)
        except UserError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than one line: {error}") from None
            refusals.append(error)
    if refusals:
        raise refusals[-1]


@functools.cache
def kinds() -> dict[str, Kind]:
    """Returns a kind for each file of the newest checkpoints and the frozen weights.

    The name of a kind is "checkpoint of a run: <file>". A process of its own writes the sound ones: those that read
    damaged ones are forked off, where jax must not run yet.
    """
    _kept.append(tempfile.TemporaryDirectory())
    sound = Path(_kept[-1].name)
    command = "import pathlib, sys; from benchmarks import fuzz_checkpoints as f; f.save(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", command, sound], check=True, capture_output=True, cwd=ROOT)
    found = {}
    for path in sorted(sound.rglob("*")):
        name = str(path.relative_to(sound))
        if path.is_file() and name.startswith(_NEWEST):
            read = functools.partial(_read, sound, name)
            found[f"{GROUP}: {name}"] = Kind("file", path.read_bytes(), read)
    return found


def crafted() -> Iterator[tuple[str, str, bytes]]:
    """Yields (kind, name, file) of files made to do harm.

    Each replaces a JSON file of a checkpoint.
    """
    deep = [("lists nested a million deep", b"[" * 10**6), ("a number of ten million digits", b"9" * 10**7)]
    plain = [(what, what.encode()) for what in ("", "[]", "null", "{}", "NaN", '"text"', "\ufeff{}")]
    for name, kind in kinds().items():
        if not kind.content.startswith(b"{"):
            continue
        for what, content in (*deep, *plain):
            yield name, what, content
        words = sorted(set(re.findall(rb'"([^"]*)"', kind.content)))
        for word in words:
            yield name, f"another module for {word!r}", kind.content.replace(b'"%b"' % word, b'"os.system"')
            yield name, f"another folder for {word!r}", kind.content.replace(b'"%b"' % word, b'"../../../escaped"')
        for number in (b"-1", b"4611686018427387904", b"1e400", b"[]", b"null"):
            yield name, f"{number!r} for every number", re.sub(rb"\b\d+\b", number, kind.content)


_kept = []  # folders, as long as this process lives
