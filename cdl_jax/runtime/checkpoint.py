"""Orbax checkpoints of a run.

Frozen weights are saved once. Trained weights are saved after every task, and at intervals within a task.

checkpoints/frozen/        variables that never change; frozen.json beside the folder has their checksum
checkpoints/tasks/<t>/     mutable variables after task t, and the run's record until then (JSON)
checkpoints/latest/<n>/    the complete training state after step n of the run; only the newest are retained
checkpoints/damaged/       corrupt checkpoints, in spite of which a run was resumed from an older one

Orbax detects a checkpoint that was not written completely, but not every bit that changed later. Each record therefore
has its own checksum and the checksum of the arrays beside it.
"""

import glob
import json
import logging
import os
import sys
import time
import zlib
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from cdl_jax import schema
from cdl_jax.errors import UserError
from cdl_jax.runtime import tensorstore_leak

# Seconds for unfinished writes when one write fails. Once the interpreter exits, no hook catches their errors.
_LATE_WRITE_SECONDS = 1.0


@epath.register_path_cls
class _LocalPath(epath.gpath.PosixGPath):
    """A local path, whatever characters it contains.

    Orbax merges arrays by `path.glob(...)`. epath makes the path itself a part of the pattern, so that "[", "*" and "?"
    in the path select other files or none. epath also treats /gs, /s3, /az and /hf as remote.
    """

    _uri_scheme = None

    def glob(self, pattern):
        return (self / name for name in glob.glob(pattern, root_dir=str(self), include_hidden=True))


class CorruptCheckpointError(UserError):
    """A checkpoint cannot be read, has other shapes, or differs from what was saved."""


class Checkpoints:
    """Saves and restores checkpoints.

    A listed step is complete, because Orbax renames a folder only after it has been written. Saving raises UserError
    where nothing can be written, and restoring raises `CorruptCheckpointError`. The first save of each kind is read
    back, so that a file system that loses checkpoints ends the run at its start.
    """

    def __init__(self, workdir: Path, read_only: bool = False, keep: int = 2, keep_tasks: int = 0):
        """Prepares the checkpoints of a run.

        Args:
          workdir: the run's folder; checkpoints are in its subfolder `checkpoints`.
          read_only: whether files that another process may be writing stay untouched.
          keep: maximum number of checkpoints within a task; the newest are retained.
          keep_tasks: maximum number of checkpoints after a task; the newest are retained. 0: all.

        Raises:
          UserError: TensorStore cannot represent the path.
        """
        if "\\" in str(workdir.absolute()):
            raise UserError(f"--workdir {workdir}: TensorStore reads a backslash as a slash: choose a name without one")
        if os.fsencode(workdir.absolute()) != str(workdir.absolute()).encode("utf-8", "replace"):
            raise UserError(
                f"--workdir {workdir}: TensorStore needs paths in UTF-8, and this path is not (locale: "
                f"{sys.getfilesystemencoding()}): set PYTHONUTF8=1, or choose a name of ASCII characters"
            )
        # Orbax logs every option that it adjusts, and the full text of errors before it raises them.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        tensorstore_leak.memoize_spec_json()
        _drop_late_callbacks()
        root = _LocalPath((workdir / "checkpoints").absolute())
        self._frozen_path, self._tasks_path, self._latest_path = (root / part for part in ("frozen", "tasks", "latest"))
        self._read_only, self._keep, self._keep_tasks = read_only, keep, keep_tasks or None
        self._read_back = set()  # folders whose first save was readable

    # Opened at first use: if a mistake ends the run before anything was saved, no thread of Orbax delays the exit.
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
            # After an exception in the block, that first error is reported.
            with _writing(self._tasks_path.parent) if kind is None else suppress(Exception):
                getattr(self, opened).close()

    def save_frozen(self, frozen: Any) -> None:
        """Saves the frozen variables, unless they have been saved.

        The method returns when the variables are on disk.

        Args:
          frozen: a tree of arrays; one without leaves is not saved.
        """
        if self._frozen_path.exists() or not jax.tree.leaves(frozen):
            return
        with _writing(self._frozen_path):
            if jax.process_index() == 0:
                self._frozen_path.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._frozen_path.with_suffix(".new")
                temporary.write_text(json.dumps({"crc32": _checksum(frozen)}), encoding="utf-8")
                os.replace(temporary, self._frozen_path.with_suffix(".json"))
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(self._frozen_path, frozen)
        self._check_once(self._frozen_path, self._frozen_path, frozen)

    def restore_frozen(self, target: Any) -> Any:
        """Returns the frozen variables.

        Args:
          target: their shapes, dtypes and shardings.

        Raises:
          CorruptCheckpointError: they cannot be restored.
        """
        if not jax.tree.leaves(target):
            return target
        with _reading(self._frozen_path), ocp.StandardCheckpointer() as checkpointer:
            frozen = checkpointer.restore(self._frozen_path, target)
            content = json.loads(self._frozen_path.with_suffix(".json").read_text(encoding="utf-8"))
            _check_equal(_checksum(frozen), content["crc32"], "the arrays")
        return frozen

    def save_task(self, task: int, variables: Any, record: dict) -> None:
        """Saves the state at the end of a task, and returns when it is on disk.

        Args:
          task: number of the task.
          variables: the mutable variables.
          record: the run's record until now, as JSON values.
        """
        self.wait()  # with several processes, two saves at once would wait at each other's barriers
        _save(self._tasks, task, variables, record)
        with _writing(self._tasks_path):
            self._tasks.wait_until_finished()
        self._check_once(self._tasks_path, self._tasks_path / str(task) / "state", variables)

    def save_latest(self, step: int, state: Any, record: dict) -> None:
        """Saves the training state within a task, while training continues.

        Args:
          step: number of steps since the start of the run.
          state: the complete training state.
          record: the run's record until now, as JSON values.
        """
        _save(self._latest, step, state, record)
        if self._latest_path not in self._read_back:
            self.wait()
            self._check_once(self._latest_path, self._latest_path / str(step) / "state", state)

    def _check_once(self, kind, path, tree):
        """Reads the smallest array of the first checkpoint of a kind back.

        Args:
          kind: folder for this kind of checkpoint; later checkpoints in it are not read back.
          path: folder of the arrays.
          tree: the arrays that were saved.

        Raises:
          UserError: the array cannot be read, or differs from the saved one.
        """
        if kind in self._read_back or not jax.tree.leaves(tree):
            return
        leaves, structure = jax.tree.flatten(tree)
        smallest = min(range(len(leaves)), key=lambda i: np.size(leaves[i]))
        selected = structure.unflatten([x if i == smallest else ocp.PLACEHOLDER for i, x in enumerate(leaves)])
        target = ocp.args.PyTreeRestore(selected, ocp.checkpoint_utils.construct_restore_args(selected))
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = jax.tree.leaves(checkpointer.restore(path, target))[smallest]
            _check_equal(_checksum(restored), _checksum(leaves[smallest]), "the arrays")
        except Exception as error:  # its type depends on what is missing
            raise UserError(
                f"checkpoint {path} was saved, but cannot be read back: {_one_line(error)}; choose a --workdir on "
                "another file system"
            ) from error
        self._read_back.add(kind)

    def wait(self) -> None:
        """Waits until all checkpoints within a task are on disk."""
        with _writing(self._latest_path):
            self._latest.wait_until_finished()

    def finished_tasks(self) -> list[int]:
        """Returns the tasks after which there is a checkpoint, in ascending order."""
        return sorted(self._tasks.all_steps()) if self._tasks_path.exists() else []

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint within a task, None if there is none."""
        return self._latest.latest_step() if self._latest_path.exists() else None

    def restore_newest(
        self, variables: Any, state: Any, former_states: Mapping[int, Any] = MappingProxyType({})
    ) -> tuple[dict, Any, bool] | None:
        """Restores the newest checkpoint that is intact.

        Newer corrupt checkpoints are moved to `checkpoints/damaged`, with a log line for each.

        Args:
          variables: shapes, dtypes and shardings of the variables after a task.
          state: shapes, dtypes and shardings of the training state within a task.
          former_states: schema number -> the same for checkpoints of that schema, see `cdl_jax.schema`.

        Returns:
          (record, variables or state, whether it is a state within a task), or None if nothing was saved.

        Raises:
          CorruptCheckpointError: there are checkpoints, but none is intact. They stay where they are.
          UserError: a later version of this program saved the newest checkpoint.
        """
        tasks = self.finished_tasks()
        latest = sorted(self._latest.all_steps()) if self._latest_path.exists() else []
        damaged = []
        while tasks or latest:
            manager, steps = (self._tasks, tasks) if tasks else (self._latest, latest)
            try:
                record = _record(manager, steps[-1])
                if steps is tasks and latest and latest[-1] > record["step"]:
                    manager, steps = self._latest, latest
                    record = _record(manager, steps[-1])
                state_target = former_states.get(schema.number(record), state)
                restored = _restore(manager, steps[-1], variables if steps is tasks else state_target)
            except CorruptCheckpointError as error:
                damaged.append((manager, steps.pop(), error))
            else:
                self._set_aside(damaged)
                return record, restored, steps is latest
        if damaged:
            raise CorruptCheckpointError(
                f"{damaged[0][-1]}; no other checkpoint in {self._tasks_path.parent} is intact: restore one, or "
                "choose another --workdir"
            )
        return None

    def _set_aside(self, damaged):
        for manager, step, error in damaged:
            path = manager.directory / str(step)
            if jax.process_index() == 0:
                folder = path.parents[1] / "damaged"
                folder.mkdir(exist_ok=True)
                names = (f"{path.parent.name}-{step}{more}" for more in ("", *(f"-{n}" for n in range(1, 1000))))
                path.rename(next(folder / name for name in names if not (folder / name).exists()))
                logging.getLogger("cdl_jax").warning("%s; moved to %s, an older checkpoint is used", error, folder)
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("corrupt checkpoints are moved")
            # Reopened later: the managers cache the folder's content.
            for name in {"_tasks", "_latest"} & vars(self).keys():
                vars(self).pop(name).close()

    def task_record(self, task: int) -> dict:
        """Returns the run's record that was saved after a task.

        Raises:
          UserError: there is no such checkpoint. The message lists those that exist.
        """
        if task not in self.finished_tasks():
            tasks = ", ".join(map(str, self.finished_tasks())) or "none"
            raise UserError(f"no checkpoint after task {task} in {self._tasks_path} (there are: {tasks})")
        return _record(self._tasks, task)

    def restore_task(self, task: int, target: Any) -> Any:
        """Returns the mutable variables after a task.

        Args:
          task: number of the task.
          target: shapes, dtypes and shardings of the variables.

        Raises:
          CorruptCheckpointError: the checkpoint cannot be restored.
        """
        return _restore(self._tasks, task, target)


def _manager(path, keep, read_only):
    # Lightweight, because save times are not needed, and Orbax fails if their file has other content.
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        lightweight_initialize=True,
    )
    return ocp.CheckpointManager(path, options=options, item_names=("state", "record"))


def _save(manager, step, tree, record):
    # A copy, because the next step overwrites the donated buffers of the state, and on the CPU Orbax still reads
    # from these buffers.
    tree = jax.tree.map(jnp.copy, tree)
    content = {**record, "crc32": {"record": _checksum_of_json(record), "state": _checksum(tree)}}
    items = ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(content))
    with _writing(manager.directory / str(step)):
        manager.save(step, args=items, force=True)


def _restore(manager, step, target):
    items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    sums, _ = _checksums_and_record(manager, step)
    with _reading(manager.directory / str(step)):
        state = manager.restore(step, args=items)["state"]
        _check_equal(_checksum(state), sums["state"], "the arrays")
    return state


def _record(manager, step):
    return _checksums_and_record(manager, step)[1]


def _checksums_and_record(manager, step):
    """Returns the checksums of a checkpoint and its record."""
    with _reading(manager.directory / str(step)):
        record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        if "crc32" not in record:
            raise ValueError("its record has no checksum")
        sums = record.pop("crc32")
        _check_equal(_checksum_of_json(record), sums["record"], "the values of the record")
    schema.check(record, f"checkpoint {manager.directory / str(step)}")
    return sums, record


def _checksum_of_json(content) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksum(tree) -> int:
    """Returns the CRC-32 of names, dtypes, shapes and values of all leaves.

    The checksum is the same in every process.
    """
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        value = np.asarray(leaf)
        total = zlib.crc32(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8), total)
    return total


def _check_equal(checksum, saved, what):
    if checksum != saved:
        raise ValueError(f"{what} differ from what was saved (checksum {checksum}, not {saved})")


@contextmanager
def _reading(path):
    try:
        yield
    except jax.errors.JaxRuntimeError:  # an error of the device or of another process
        raise
    except Exception as error:  # its type depends on the damage
        cause = error.__cause__ if type(error) is Exception and error.__cause__ else error
        raise CorruptCheckpointError(f"checkpoint {path} cannot be restored: {_one_line(cause)}") from error


@contextmanager
def _writing(path):
    try:
        yield
    except (ValueError, OSError) as error:
        time.sleep(_LATE_WRITE_SECONDS)
        raise UserError(
            f"checkpoint {path} cannot be written: {_one_line(error)}; earlier checkpoints are intact: make room, then "
            "rerun the same command to resume"
        ) from error


def _drop_late_callbacks() -> None:
    """Suppresses the tracebacks of writes that end after another write has failed.

    Threads of TensorStore print these tracebacks. The first failure closes the event loop of Orbax. A later write then
    reports to a closed loop, from a thread without a caller, so that Python passes the error to `sys.unraisablehook`. A
    write that failed beside the first one ends as a task whose error nobody retrieves, which asyncio logs. The failure
    itself is raised where the checkpoint is saved.
    """
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "drops_late_callbacks", False):
        return
    previous_hook = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous_hook(unraisable)

    hook.drops_late_callbacks = True
    sys.unraisablehook = hook


def _one_line(error):
    words = " ".join(str(error).split())
    return words if len(words) < 300 else f"{words[:100]} ... {words[-190:]}"  # the reason comes last
