"""Starts runs from a task of another run, their parent.

A branch has other options, or further tasks. It begins with the parent's checkpoints and records until that task, so
the branch is a complete run by itself. If its stream has more classes or tasks than the parent's, variables with an
axis of classes or tasks grow: the parent's rows keep their bits, and the new rows have the initial values of the
method.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import HerdsMemory, Variables
from cdl_jax.run import api, fingerprints, results, start, workdir
from cdl_jax.runtime import files, sharding
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.runtime.signals import SignalHandler
from cdl_jax.training.experiment import Experiment

_NEW = ".branch"  # folder of checkpoints that are being written

# Options that a branch keeps. Networks and weights come from the parent's checkpoint, and so do initial values.
# Numbers of earlier and of later tasks would not be comparable with other preprocessing of test images.
_KEPT = frozenset({"method", "seeds", "frozen_dtype", "eval.forward_transfer", "data.name", "learner.name"})
_KEPT_NAMES = ("teacher_runs", "teacher_network", "teacher_checkpoint", "init_scale", "head_init", "token_init")
_KEPT_OF_TESTS = ("test", "resize", "interpolation", "mean", "std", "eval_size", "eval_max_size")


@dataclass(frozen=True)
class Parent:
    """The run and the task from which a run branched.

    config.json and results.json record it.

    Attributes:
      path: the parent's folder, as the command named it.
      task: index of the last task that the branch has from its parent.
      fingerprint: SHA-256 of the parent's config, frozen variables and checkpoint after the task.
      changes: option -> (value of the parent, value of the branch).
    """

    path: str
    task: int
    fingerprint: str
    changes: Mapping[str, tuple[Any, Any]]

    def to_json(self) -> dict[str, Any]:
        """Returns the parent as config.json has it."""
        return json.loads(json.dumps(asdict(self)))


def train(
    config: ConfigDict,
    folder: Path,
    parent: Path,
    task: int | None = None,
    signals: SignalHandler | None = None,
    *,
    must_grow: bool = False,
) -> list[dict]:
    """Trains a branch of a run, or resumes the branch.

    Args:
      config: of the branch, resolved.
      folder: the working directory of the branch.
      parent: folder of the run from which it branches; the run stays as it is.
      task: index of the last task that the branch has from its parent. None: the last one with a checkpoint.
      signals: see `start.train`.
      must_grow: whether the branch has all tasks of a finished parent, and further ones.

    Returns:
      The results of each seed, see `results.collect`.

    Raises:
      UserError: an option differs that a branch keeps, the variables do not fit, no task follows, or the folder has
        another run.
    """
    if jax.process_count() > 1:
        raise UserError("--from starts in one process: omit --distributed, and add it when you resume the branch")
    if folder.resolve() == parent.resolve():
        raise UserError(f"--from={parent} is the --workdir itself: choose another --workdir")
    run = api.load(parent)
    task = last_task(run) if task is None else task
    if must_grow and (run.results["status"] != "finished" or task != len(run.tasks) - 1):
        raise UserError(
            f"--mode=continue: {parent} has trained {len(run.finished_tasks)} of {len(run.tasks)} tasks: finish it, or "
            "branch from it by --from and --task without --mode=continue"
        )
    return start.train(config, folder, signals, partial(_prepare, folder, run, task, must_grow))


def last_task(run: api.Run) -> int:
    """Returns the last task of a run with a checkpoint.

    Raises:
      UserError: there is none.
    """
    if not run.finished_tasks:
        raise UserError(f"--from={run.folder} has no checkpoint of a finished task yet: wait for the first")
    return run.finished_tasks[-1]


def _prepare(folder, run, task, must_grow, experiment):
    """Writes the files with which a branch begins, unless they exist.

    They are config.json, metrics.jsonl and the checkpoints.

    Raises:
      UserError: see `train`.
    """
    changes = find_changes(run, experiment.config)
    parent = Parent(str(run.folder), task, fingerprint(run.folder, task), changes)
    if _has_begun(folder, parent):
        return
    check_options(parent)
    _check_blurry_options(parent, experiment.config)
    check_stream(run, task, experiment, must_grow)
    _check_plugins(run, experiment)
    mutable, frozen = run.stored_variables(task)
    growth = Growth.between(run, experiment)
    if growth.shifts_rows and isinstance(experiment.method, HerdsMemory):
        raise UserError(
            f"method {experiment.config.method!r} remembers images by their rows, which these further classes would "
            "change: add classes by --tasks FOLDER, whose images follow all others"
        )
    growth.check(mutable, frozen, experiment, changes)
    workdir.write_configs(folder, experiment.config.to_dict(), experiment.stream, parent.to_json())
    _copy_log_lines(run, task, folder, experiment.config.seeds)
    _write_checkpoints(folder, run, parent, experiment, growth)


def _has_begun(folder, parent) -> bool:
    """Returns whether a folder has the branch already, with its checkpoints.

    Raises:
      UserError: the folder has another run, or a branch of another checkpoint.
    """
    content = configs.read(folder)
    if content is None:
        return False
    recorded = content.get("parent")
    if recorded is None:
        raise UserError(f"--workdir {folder} holds a run that is no branch: omit --from, or choose another --workdir")
    if (recorded["task"], recorded["fingerprint"]) != (parent.task, parent.fingerprint):
        raise UserError(
            f"--workdir {folder} holds a branch of another checkpoint, {recorded['path']} after task "
            f"{recorded['task']}: choose another --workdir"
        )
    return (folder / "checkpoints").exists()


def find_changes(run: api.Run, config: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Returns the options that a branch changes.

    The result is option -> (value of the parent, value of the branch).

    Files of equal content are equal, wherever they are.
    """
    stored = {**configs.read(run.folder), "config": run.config.to_dict()}
    return configs.changes(*fingerprints.align_configs(stored, config.to_dict()))


def check_options(parent: Parent) -> None:
    """Checks that a branch changes no option that binds it to its parent.

    Such options determine networks, initial values and evaluation.

    Raises:
      UserError: it changes one of them.
    """
    for key, (old, new) in parent.changes.items():
        if _is_kept(key):
            raise UserError(
                f"config.{key}: {old!r} -> {new!r}: a branch keeps this option of its parent {parent.path}, because "
                "its weights and its numbers of earlier tasks depend on it: leave it, or train without --from"
            )


def _check_blurry_options(parent, config):
    """Raises UserError if options change that select the images of blurry tasks."""
    keys = ["disjoint_share", "blurry_share", "blurry_sizes", "class_order_seed"]
    keys = [f"data.{key}" for key in keys] + ["seed"] * (config.data.get("class_order_seed") == -1)
    if config.data.get("kind") == "blurry" and (changed := [key for key in keys if key in parent.changes]):
        old, new = parent.changes[changed[0]]
        raise UserError(
            f"config.{changed[0]}: {old!r} -> {new!r}: tasks of a blurry stream that the parent {parent.path} has "
            "learned would have other images: leave it, or train without --from"
        )


def _is_kept(key) -> bool:
    section, _, name = key.rpartition(".")
    is_network = section.split(".")[0] in ("teacher", "student", "network") or name in ("weights", "weights_key")
    return key in _KEPT or is_network or name in _KEPT_NAMES or section == "augment" and name in _KEPT_OF_TESTS


def check_stream(run: api.Run, task: int, experiment: Experiment, must_grow: bool) -> None:
    """Checks that the stream of a branch has the parent's tasks, and a task to train.

    Raises:
      UserError: a task until `task` has other classes or images, or no task follows.
    """
    flag = f"--from={run.folder}"
    for stream, recorded in zip(experiment.streams, recorded_tasks(run), strict=True):
        _check_tasks(run, task, stream, recorded, must_grow)
    if task + 1 == experiment.stream.num_tasks:
        raise UserError(
            f"{flag}: task {task} is the last of the stream, so nothing would be trained: name an earlier --task, or "
            "add tasks by --mode=continue --tasks FOLDER"
        )
    _check_images(run, experiment.stream)
    _check_class_orders(run, task, experiment)


def recorded_tasks(run: api.Run) -> list[list[dict]]:
    """Returns the tasks in the results of each seed of a run, see `results.tasks_of`."""
    folders = files.seed_folders(run.folder, run.config.seeds)
    return [results.read(folder)["stream"]["tasks"] for folder in folders]


def _check_tasks(run, task, stream, recorded, must_grow):
    """Raises UserError if a stream has other classes or images until a task."""
    flag = f"--from={run.folder}"
    required = len(recorded) if must_grow or stream.num_classes != len(run.class_names) else task + 1
    if stream.num_tasks < required:
        raise UserError(f"{flag} has {required} tasks, and the branch {stream.num_tasks}: keep data.num_tasks")
    for task_entry, parent_entry in zip(results.tasks_of(stream), recorded[:required], strict=False):
        if task_entry != {**task_entry, **parent_entry}:
            raise UserError(
                f"{flag}: a branch keeps the tasks of its parent, but the classes or images of task "
                f"{recorded.index(parent_entry)} differ: keep data.class_order, data.num_tasks and the limits of images"
            )


def _check_images(run, stream):
    """Raises UserError if images or places of the parent's classes differ."""
    recorded = configs.read(run.folder).get("data")
    if not isinstance(recorded, dict):
        return
    current = fingerprints.fingerprint_data(stream)
    grows = stream.num_classes > len(run.class_names)
    changed = fingerprints.changed_data(
        recorded, {key: current[key] for key in current if key in recorded or not grows}
    )
    if changed:
        raise UserError(
            f"--from={run.folder}: the branch has other images than its parent in {', '.join(changed[:3])}: keep the "
            "data of the parent's classes"
        )


def _check_class_orders(run, task, experiment):
    """Raises UserError if a learner's own stream differs until `task`."""
    end = sum(run.info.task_sizes[: task + 1])
    if experiment.stream.num_classes != len(run.class_names):
        end = len(run.class_names)
    streams, parent_streams = experiment.method.streams, run.method.streams
    if [order[:end] for order in streams] != [order[:end] for order in parent_streams]:
        raise UserError(
            f"--from={run.folder}: its learners have class orders of their own, which the branch would change in "
            "tasks that they have learned: further tasks are not defined for them"
        )


def _check_plugins(run, experiment):
    """Raises UserError if a learner or a scheme cannot fit a longer stream.

    Some learners and schemes divide their variables by the number of tasks.
    """
    config, parent, num_tasks = experiment.config, run.config, experiment.info.num_tasks
    if num_tasks == run.info.num_tasks:
        return
    name = config.get("learner", {}).get("name", "")
    is_plugin = "." in name or name in plugins.list_plugins("models.learners")  # dkt has learners without prompts too
    if is_plugin and (check := plugins.optional_part("models.learners", name, "check_growth")):
        check(parent.learner, run.info.num_tasks, config.learner, num_tasks)
    if config.method == "cdl" and config.distill.name == parent.distill.name:
        if check := plugins.optional_part("distill", config.distill.name, "check_growth"):
            check(parent, run.info.num_tasks, config, num_tasks)


@dataclass(frozen=True)
class Growth:
    """The lengths of axes of classes and tasks, before and after.

    Attributes:
      sizes: (old, new) numbers of classes, and of tasks.
      shifts_rows: whether training images of the parent have other rows in the branch.
    """

    sizes: tuple[tuple[int, int], ...]
    shifts_rows: bool = False

    @classmethod
    def between(cls, run: api.Run, experiment: Experiment) -> "Growth":
        """Compares the stream of a run with that of an experiment."""
        old, new = run.info, experiment.info
        sizes = (old.num_classes, new.num_classes), (old.num_tasks, new.num_tasks)
        if old.num_classes == new.num_classes:
            return cls(sizes)
        rows = np.flatnonzero(experiment.stream.train.labels < old.num_classes)
        return cls(sizes, not np.array_equal(rows, np.arange(len(rows))))

    @property
    def is_none(self) -> bool:
        """Whether no axis may grow."""
        return all(old == new for old, new in self.sizes)

    def check(
        self, mutable: Variables, frozen: Variables, experiment: Experiment, changes: Mapping[str, tuple[Any, Any]]
    ) -> None:
        """Checks that stored variables fit an experiment, the mutable ones after growth.

        Args:
          mutable: mutable variables of the parent.
          frozen: frozen variables of the parent.
          experiment: of the branch.
          changes: options that the branch changes.

        Raises:
          UserError: a variable has another shape that no growth of classes or tasks explains.
        """
        options = ", ".join(f"config.{key}" for key in changes) or "this version of the program"
        expected = experiment.abstract_variables()
        for growth, stored, shapes_of_branch in zip((self, Growth(())), (mutable, frozen), expected, strict=True):
            for name, old, new in _pairs(stored, shapes_of_branch):
                if old is None or new is None or not growth._explains(old, new):
                    shapes = " -> ".join("absent" if x is None else f"{x.dtype} {list(x.shape)}" for x in (old, new))
                    raise UserError(
                        f"the variable {name} of the parent does not fit the branch ({shapes}): {options} may have "
                        "changed it; leave the option that did, or train without --from"
                    )

    def _explains(self, old, new) -> bool:
        if old.dtype != new.dtype or len(old.shape) != len(new.shape):
            return False
        return all(map(self._explains_axis, old.shape, new.shape))

    def _explains_axis(self, old, new) -> bool:
        """Returns whether an axis is unchanged, or grows with classes or tasks.

        A growing axis has the same number of entries for each class or task.
        """
        grown = (old % before == 0 and old // before * after == new > old for before, after in self.sizes if before)
        return old == new or any(grown)

    def apply(self, stored: Variables, initial: Variables) -> Variables:
        """Returns initial variables with stored ones in the leading entries.

        >>> Growth(((2, 3), (1, 2))).apply({"kernel": np.ones((1, 2))}, {"kernel": np.zeros((1, 3))})
        {'kernel': array([[1., 1., 0.]])}
        """

        def paste(old, new):
            grown = np.array(new)
            grown[tuple(slice(n) for n in old.shape)] = old
            return grown

        return jax.tree.map(paste, jax.device_get(stored), jax.device_get(initial))


def _pairs(stored, expected) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, leaf, leaf) of two trees; None where a leaf is absent."""
    old, new = (traverse_util.flatten_dict(tree, sep="/") for tree in (stored, expected))
    yield from ((name, old.get(name), new.get(name)) for name in sorted({*old, *new}))


def _copy_log_lines(run, task, folder, seeds):
    """Copies the lines of metrics.jsonl up to the end of the parent's task."""
    with Checkpoints(run.folder, read_only=True) as checkpoints:
        count = results.from_json(checkpoints.task_record(task))[0].num_log_lines
    for source, target in zip(files.seed_folders(run.folder, seeds), files.seed_folders(folder, seeds), strict=True):
        if (lines := source / "metrics.jsonl").exists():
            text = lines.read_text(encoding="utf-8", errors="backslashreplace").splitlines(keepends=True)
            files.write_atomically(target / "metrics.jsonl", "".join(text[:count]))


def _write_checkpoints(folder, run, parent, experiment, growth):
    """Writes the parent's checkpoints until the task.

    A killed process leaves none of them.
    """
    new = folder / _NEW
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    initial = None if growth.is_none else experiment.initial_variables()[0]
    tasks, tasks_of_seeds = [task for task in run.finished_tasks if task <= parent.task], recorded_tasks(run)
    with (
        Checkpoints(run.folder, read_only=True) as source,
        Checkpoints(new, keep_tasks=experiment.config.checkpoint.keep_tasks) as target,
    ):
        for task in tasks:
            records = results.from_json(source.task_record(task))
            for record, stream, recorded in zip(records, experiment.streams, tasks_of_seeds, strict=True):
                record.parent = parent.to_json()
                _forget_other_tasks(record, stream, recorded)
            mutable, frozen = run.stored_variables(task)
            if task == tasks[0]:
                target.save_frozen(sharding.shard(experiment.mesh, frozen))
            if initial is not None:
                mutable = growth.apply(mutable, initial)
            target.save_task(task, sharding.shard(experiment.mesh, mutable), results.to_json(records))
    os.replace(new / "checkpoints", folder / "checkpoints")
    new.rmdir()


def _forget_other_tasks(record, stream, recorded):
    """Removes initial accuracies of tasks that the branch has otherwise.

    They are those from the first task on with other classes or images.
    """
    pairs = zip(results.tasks_of(stream), recorded, strict=False)
    changed = [number for number, (entry, own) in enumerate(pairs) if entry != {**entry, **own}]
    if changed:
        record.initial_accuracy = {name: row[: changed[0]] for name, row in record.initial_accuracy.items()}


def fingerprint(folder: Path, task: int) -> str:
    """Returns the SHA-256 of a run after a task.

    It is computed from the config, the frozen variables and the checkpoint.

    Raises:
      UserError: there is no such checkpoint.
    """
    with Checkpoints(folder, read_only=True) as checkpoints:
        checkpoints.task_record(task)  # names the checkpoints that exist
    digest = hashlib.sha256(json.dumps(configs.read(folder, as_stored=True)["config"], sort_keys=True).encode())
    root = folder / "checkpoints"
    for path in sorted([*(root / "frozen").rglob("*"), *(root / "tasks" / str(task)).rglob("*")]):
        if path.is_file():
            digest.update(f"{path.relative_to(root)} {fingerprints.file_digest(path)}\n".encode(errors="replace"))
    return digest.hexdigest()
