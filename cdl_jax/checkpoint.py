"""Orbax checkpoints of a run: frozen weights once, trained ones after every task and at intervals within a task.

checkpoints/frozen/        what never changes
checkpoints/tasks/<t>/     live variables after task t, and the run's record until then (JSON)
checkpoints/latest/<n>/    the whole training state after step n of the run; only the newest is kept
"""

import logging
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from cdl_jax.errors import UserError


class Checkpoints:
    """Saves and restores; a step that is listed is whole, for Orbax renames a folder only once it is written."""

    def __init__(self, workdir: Path, read_only: bool = False):
        """`read_only` leaves alone what another process may be writing just now."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every option that it adjusts
        root = (workdir / "checkpoints").absolute()
        self._frozen_path, self._tasks_path, self._latest_path = (root / part for part in ("frozen", "tasks", "latest"))
        self._read_only = read_only

    # Opened when first used: a mistake found before anything was saved then meets no thread of Orbax's on its way out.
    @cached_property
    def _tasks(self):
        return _manager(self._tasks_path, None, self._read_only)

    @cached_property
    def _latest(self):
        return _manager(self._latest_path, 1, self._read_only)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for opened in {"_tasks", "_latest"} & vars(self).keys():
            getattr(self, opened).close()

    def save_frozen(self, frozen) -> None:
        """Saves what never changes, once; returns when it is on disk. Without leaves there is nothing to save."""
        if self._frozen_path.exists() or not jax.tree.leaves(frozen):
            return
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(self._frozen_path, frozen)

    def restore_frozen(self, target):
        """The frozen variables, with the shapes and shardings of `target`.

        Raises:
          UserError: they are damaged or of other shapes.
        """
        if not jax.tree.leaves(target):
            return target
        with ocp.StandardCheckpointer() as checkpointer:
            return _readable(self._frozen_path, lambda: checkpointer.restore(self._frozen_path, target))

    def save_task(self, task: int, live, record: dict) -> None:
        """Saves the end of a task; returns when it is on disk."""
        self.wait()  # two saves at once would meet at each other's barriers where there are several processes
        self._save(self._tasks, task, live, record)
        self._tasks.wait_until_finished()

    def save_latest(self, step: int, state, record: dict) -> None:
        """Saves the training state after `step` steps of the run, while training goes on."""
        self._save(self._latest, step, state, record)

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._latest.wait_until_finished()

    def finished_tasks(self) -> list[int]:
        """Tasks after which a checkpoint exists, ascending."""
        return sorted(self._tasks.all_steps()) if self._tasks_path.exists() else []

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint within a task, None where there is none."""
        return self._latest.latest_step() if self._latest_path.exists() else None

    def task_record(self, task: int) -> dict:
        """The run's record that was saved with a task.

        Raises:
          UserError: there is no such checkpoint; those that exist are named.
        """
        if task not in self.finished_tasks():
            known = ", ".join(map(str, self.finished_tasks())) or "none"
            raise UserError(f"no checkpoint after task {task} in {self._tasks_path} (there are: {known})")
        return self._record(self._tasks, task)

    def latest_record(self) -> dict:
        """The run's record that was saved with the newest checkpoint within a task."""
        return self._record(self._latest, self.latest_step())

    def restore_task(self, task: int, target):
        """Live variables after a task, with the shapes and shardings of `target`."""
        return self._restore(self._tasks, task, target)

    def restore_latest(self, target):
        """The training state of the newest checkpoint within a task, with the shapes and shardings of `target`."""
        return self._restore(self._latest, self.latest_step(), target)

    @staticmethod
    def _save(manager, step, tree, record):
        # A copy, because the step that comes next is given the state's buffers to overwrite, and on the CPU a buffer
        # that Orbax still writes from is that very memory.
        tree = jax.tree.map(jnp.copy, tree)
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), record=ocp.args.JsonSave(record))
        manager.save(step, args=items, force=True)

    @staticmethod
    def _record(manager, step):
        items = ocp.args.Composite(record=ocp.args.JsonRestore())
        return _readable(manager.directory / str(step), lambda: manager.restore(step, args=items)["record"])

    @staticmethod
    def _restore(manager, step, target):
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return _readable(manager.directory / str(step), lambda: manager.restore(step, args=items)["state"])


def _manager(path, keep, read_only):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=not read_only, create=not read_only, read_only=read_only
    )
    return ocp.CheckpointManager(path, options=options, item_names=("state", "record"))


def _readable(path, restore):
    try:
        return restore()
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint {path} cannot be restored: {reason}") from error
