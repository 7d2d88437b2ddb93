"""Orbax checkpoints of a run: frozen weights once, trained ones after every task and at intervals within a task.

checkpoints/frozen/        what never changes; its checksum is in frozen.json beside it
checkpoints/tasks/<t>/     live variables after task t, and the run's record until then (JSON)
checkpoints/latest/<n>/    the whole training state after step n of the run; only the newest are kept
checkpoints/damaged/       what was found damaged, for which a run went on from an older checkpoint

Orbax tells a checkpoint that was not written to its end, but not every bit that changed later: each record has its own
checksum and that of the arrays beside it.
"""

import glob
import json
import logging
import os
import sys
import time
import zlib
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from cdl_jax.errors import UserError
from cdl_jax.runtime import tensorstore_leak

# Seconds for the writes that are under way when one fails. Once the interpreter ends, no hook catches their errors.
_LATE = 1.0


@epath.register_path_cls
class _LocalPath(epath.gpath.PosixGPath):
    """A path of the local file system whatever it contains.

    Orbax merges arrays by `path.glob(...)`. epath has the path itself as a part of the pattern, so that "[", "*" and
    "?" in it select other files or none; it also takes /gs, /s3, /az and /hf for remote places.
    """

    _uri_scheme = None

    def glob(self, pattern):
        return (self / found for found in glob.glob(pattern, root_dir=str(self), include_hidden=True))


class CorruptCheckpointError(UserError):
    """A checkpoint cannot be read, is of other shapes, or is not what was saved."""


class Checkpoints:
    """Saves and restores checkpoints.

    A listed step is complete, because Orbax renames a folder only after it has been written. Saving raises UserError
    where nothing can be written, and restoring raises `CorruptCheckpointError`. The first save of each kind is read
    back, so that a file system that loses checkpoints ends the run at its start.
    """

    def __init__(self, workdir: Path, read_only: bool = False, keep: int = 2, keep_tasks: int = 0):
        """
        Args:
          read_only: leaves alone what another process may be writing just now.
          keep: how many checkpoints within a task there are at most.
          keep_tasks: how many of those after a task, the newest; 0: all.
        """
        if "\\" in str(workdir.absolute()):
            raise UserError(f"--workdir {workdir}: TensorStore reads a backslash as a slash: choose a name without one")
        if os.fsencode(workdir.absolute()) != str(workdir.absolute()).encode("utf-8", "replace"):
            raise UserError(
                f"--workdir {workdir}: TensorStore needs paths in UTF-8, and this one is not in it (locale: "
                f"{sys.getfilesystemencoding()}): set PYTHONUTF8=1, or choose a name of ASCII characters"
            )
        # Orbax tells of every option that it adjusts, and of errors in full length before it raises them.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        tensorstore_leak.memoize_spec_json()
        _drop_late_callbacks()
        root = _LocalPath((workdir / "checkpoints").absolute())
        self._frozen_path, self._tasks_path, self._latest_path = (root / part for part in ("frozen", "tasks", "latest"))
        self._read_only, self._keep, self._keep_tasks = read_only, keep, keep_tasks or None
        self._read_back = set()  # folders whose first save was readable

    # Opened when first used: a mistake found before anything was saved then meets no thread of Orbax's on its way out.
    @cached_property
    def _tasks(self):
        return _manager(self._tasks_path, self._keep_tasks, self._read_only)

    @cached_property
    def _latest(self):
        return _manager(self._latest_path, self._keep, self._read_only)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for opened in {"_tasks", "_latest"} & vars(self).keys():
            with _writing(self._tasks_path.parent) if kind is None else suppress(Exception):  # the first error is told
                getattr(self, opened).close()

    def save_frozen(self, frozen) -> None:
        """Saves what never changes, once; returns when it is on disk. Without leaves there is nothing to save."""
        if self._frozen_path.exists() or not jax.tree.leaves(frozen):
            return
        with _writing(self._frozen_path):
            if jax.process_index() == 0:
                self._frozen_path.parent.mkdir(parents=True, exist_ok=True)
                aside = self._frozen_path.with_suffix(".new")
                aside.write_text(json.dumps({"crc32": _checksum(frozen)}), encoding="utf-8")
                os.replace(aside, self._frozen_path.with_suffix(".json"))
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self._frozen_path, frozen)
        self._check_once(self._frozen_path, self._frozen_path, frozen)

    def restore_frozen(self, target):
        """The frozen variables, with the shapes and shardings of `target`."""
        if not jax.tree.leaves(target):
            return target
        with _reading(self._frozen_path), ocp.StandardCheckpointer() as checkpointer:
            frozen, sums = checkpointer.restore(self._frozen_path, target), self._frozen_path.with_suffix(".json")
            _compare(_checksum(frozen), json.loads(sums.read_text(encoding="utf-8"))["crc32"], "the arrays")
        return frozen

    def save_task(self, task: int, live, record: dict) -> None:
        """Saves the end of a task; returns when it is on disk."""
        self.wait()  # two saves at once would meet at each other's barriers where there are several processes
        self._save(self._tasks, task, live, record)
        with _writing(self._tasks_path):
            self._tasks.wait_until_finished()
        self._check_once(self._tasks_path, self._tasks_path / str(task) / "state", live)

    def save_latest(self, step: int, state, record: dict) -> None:
        """Saves the training state after `step` steps of the run, while training goes on."""
        self._save(self._latest, step, state, record)
        if self._latest_path not in self._read_back:
            self.wait()
            self._check_once(self._latest_path, self._latest_path / str(step) / "state", state)

    def _check_once(self, kind, path, tree):
        """Reads the smallest array of a first checkpoint back.

        Args:
          kind: folder of the checkpoint's kind; later checkpoints of it are not read back.
          path: folder of the arrays.
          tree: the arrays that were saved.

        Raises:
          UserError: the array cannot be read, or is another one.
        """
        if kind in self._read_back or not jax.tree.leaves(tree):
            return
        leaves, structure = jax.tree.flatten(tree)
        smallest = min(range(len(leaves)), key=lambda i: np.size(leaves[i]))
        wanted = structure.unflatten([x if i == smallest else ocp.PLACEHOLDER for i, x in enumerate(leaves)])
        target = ocp.args.PyTreeRestore(wanted, ocp.checkpoint_utils.construct_restore_args(wanted))
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                found = jax.tree.leaves(checkpointer.restore(path, target))[smallest]
            _compare(_checksum(found), _checksum(leaves[smallest]), "the arrays")
        except Exception as error:  # of many kinds, by what is missing
            raise UserError(
                f"checkpoint {path} was saved, but cannot be read back: {_one_line(error)}; choose a --workdir on "
                "another file system"
            ) from error
        self._read_back.add(kind)

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        with _writing(self._latest_path):
            self._latest.wait_until_finished()

    def finished_tasks(self) -> list[int]:
        """Tasks after which a checkpoint exists, ascending."""
        return sorted(self._tasks.all_steps()) if self._tasks_path.exists() else []

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint within a task, None where there is none."""
        return self._latest.latest_step() if self._latest_path.exists() else None

    def restore_newest(self, live, state):
        """What was saved last and is sound: (record, variables or state, whether it is a state within a task).

        None where nothing was saved. What is newer and damaged is put aside, with a line that says so.

        Args:
          live, state: what to restore after a task and within one, by shapes, types and shardings.

        Raises:
          CorruptCheckpointError: there are checkpoints, and none is sound; they are left where they are.
        """
        tasks = self.finished_tasks()
        latest = sorted(self._latest.all_steps()) if self._latest_path.exists() else []
        damaged = []
        while tasks or latest:
            manager, steps = (self._tasks, tasks) if tasks else (self._latest, latest)
            try:
                record = self._record(manager, steps[-1])
                if steps is tasks and latest and latest[-1] > record["step"]:
                    manager, steps = self._latest, latest
                    record = self._record(manager, steps[-1])
                restored = self._restore(manager, steps[-1], live if steps is tasks else state)
            except CorruptCheckpointError as error:
                damaged.append((manager, steps.pop(), error))
            else:
                self._put_aside(damaged)
                return record, restored, steps is latest
        if damaged:
            raise CorruptCheckpointError(
                f"{damaged[0][-1]}; no other checkpoint in {self._tasks_path.parent} is sound: bring one back, or "
                "choose another --workdir"
            )
        return None

    def _put_aside(self, damaged):
        for manager, step, error in damaged:
            path = manager.directory / str(step)
            if jax.process_index() == 0:
                folder = path.parents[1] / "damaged"
                folder.mkdir(exist_ok=True)
                names = (f"{path.parent.name}-{step}{more}" for more in ("", *(f"-{n}" for n in range(1, 1000))))
                path.rename(next(folder / name for name in names if not (folder / name).exists()))
                logging.getLogger("cdl_jax").warning("%s; put aside in %s, an older one is taken", error, folder)
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints are put aside")
            for name in {"_tasks", "_latest"} & vars(self).keys():  # opened anew, for they know what was there
                vars(self).pop(name).close()

    def task_record(self, task: int) -> dict:
        """The run's record that was saved with a task.

        Raises:
          UserError: there is no such checkpoint; those that exist are named.
        """
        if task not in self.finished_tasks():
            known = ", ".join(map(str, self.finished_tasks())) or "none"
            raise UserError(f"no checkpoint after task {task} in {self._tasks_path} (there are: {known})")
        return self._record(self._tasks, task)

    def restore_task(self, task: int, target):
        """Live variables after a task, with the shapes and shardings of `target`."""
        return self._restore(self._tasks, task, target)

    @staticmethod
    def _save(manager, step, tree, record):
        # A copy, because the step that comes next is given the state's buffers to overwrite, and on the CPU a buffer
        # that Orbax still writes from is that very memory.
        tree = jax.tree.map(jnp.copy, tree)
        stored = {**record, "crc32": {"record": _checksum_of_json(record), "state": _checksum(tree)}}
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(stored))
        with _writing(manager.directory / str(step)):
            manager.save(step, args=items, force=True)

    @staticmethod
    def _record(manager, step):
        return _checksums_and_record(manager, step)[1]

    @staticmethod
    def _restore(manager, step, target):
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        sums, _ = _checksums_and_record(manager, step)
        with _reading(manager.directory / str(step)):
            state = manager.restore(step, args=items)["state"]
            _compare(_checksum(state), sums["state"], "the arrays")
        return state


def _manager(path, keep, read_only):
    # Lightly: times of saving are needed for nothing, and Orbax ends where it finds something else in their place.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        lightweight_initialize=True,
    )
    return ocp.CheckpointManager(path, options=options, item_names=("state", "record"))


def _checksums_and_record(manager, step):
    """Checksums of a checkpoint, and its record."""
    with _reading(manager.directory / str(step)):
        record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        if "crc32" not in record:
            raise ValueError("its record has no checksum")
        sums = record.pop("crc32")
        _compare(_checksum_of_json(record), sums["record"], "the record")
    return sums, record


def _checksum_of_json(content) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksum(tree) -> int:
    """CRC-32 of names, types, shapes and values of all leaves, the same in every process."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.asarray(leaf)
        total = zlib.crc32(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8), total)
    return total


def _compare(found, stored, what):
    if found != stored:
        raise ValueError(f"{what} are not those that were saved (checksum {found}, not {stored})")


@contextmanager
def _reading(path):
    try:
        yield
    except jax.errors.JaxRuntimeError:  # of the device or of another process
        raise
    except Exception as error:  # of many kinds, by what is damaged
        told = error.__cause__ if type(error) is Exception and error.__cause__ else error
        raise CorruptCheckpointError(f"checkpoint {path} cannot be restored: {_one_line(told)}") from error


@contextmanager
def _writing(path):
    try:
        yield
    except (ValueError, OSError) as error:
        time.sleep(_LATE)
        raise UserError(
            f"checkpoint {path} cannot be written: {_one_line(error)}; what was saved before is whole, and the same "
            "command goes on from it once there is room"
        ) from error


def _drop_late_callbacks() -> None:
    """Keeps TensorStore's threads from printing a traceback for each write that ends after another one has failed.

    The first failure ends Orbax's event loop. A later write then reports to a closed loop, from a thread without a
    caller, so that Python hands the error to `sys.unraisablehook`. The failure itself is raised where the checkpoint is
    saved.
    """
    if getattr(sys.unraisablehook, "drops_late_callbacks", False):
        return
    before = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            before(unraisable)

    hook.drops_late_callbacks = True
    sys.unraisablehook = hook


def _one_line(error):
    words = " ".join(str(error).split())
    return words if len(words) < 300 else f"{words[:100]} ... {words[-190:]}"  # the reason comes last
