"""Networks of finished runs as teachers that are no longer trained.

The run may be of any method. The teacher's outputs are the method's `teacher_outputs`, by default its logits. A teacher
gets the student's images, resized (bilinearly) and normalized for the network of its own run. Its weights become frozen
variables of the student's run, which reads the teacher's checkpoints only once.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.data.transforms import augment, resizing
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import StreamInfo, Variables, cast_frozen_kernels, join, split
from cdl_jax.models import weights
from cdl_jax.runtime import paths
from cdl_jax.runtime.checkpoint import Checkpoints

Records = Mapping[str, Any]  # folder of a teacher's run, as the config names it -> its record, see `record_teachers`

_NO_FILE = {"weights": "random", "weights_key": ""}
_RECORDS: ContextVar[Records] = ContextVar("records of teachers' runs")


@dataclass(frozen=True)
class FinishedRun:
    """A run of which every task is trained.

    Attributes:
      folder: the run's working directory.
      config: its resolved config.
      info: its stream.
      finished_tasks: the tasks that have a checkpoint; None: those in the folder.
      records: of the teachers of the run's own config.
    """

    folder: Path
    config: ConfigDict
    info: StreamInfo
    finished_tasks: tuple[int, ...] | None = None
    records: Records = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> "FinishedRun":
        """Reads the JSON files of a run.

        Args:
          folder: working directory of the run, absolute or relative to the current directory. Within `use_records` a
            recorded run is not read from its folder.

        Raises:
          UserError: the folder has no run with results, or a run of several seeds.
        """
        if not isinstance(folder, str | Path):
            raise UserError(f"teachers names {folder!r}, which is not a folder: name a --workdir of a finished run")
        if record := _record_of(folder):
            tasks, finished, records = record["tasks"], tuple(record["finished_tasks"]), record["teachers"]
            with use_records(records):
                config = without_files(_to_config(record["config"]))
            return cls(Path(folder), config, stream_info(tasks), finished, records)
        folder = paths.resolve(folder, "the teacher's run")
        config, tasks, records = _read_json_files(folder)
        return cls(folder, config, stream_info(tasks), None, records)

    @cached_property
    def method(self) -> Any:
        """The run's method.

        Raises:
          UserError: the config is of another version of this package.
        """
        try:
            with use_records(self.records):
                return plugins.load_plugin("methods", self.config.method).build(self.config, self.info)
        except (AttributeError, KeyError) as error:
            raise UserError(
                f"the teacher's run {self.folder} was made by another version ({error}): train it anew"
            ) from None


def stream_info(tasks: Sequence[Mapping[str, Any]]) -> StreamInfo:
    """Returns the stream of a run as methods see it.

    Args:
      tasks: `stream.tasks` of results.json. Files of earlier versions have no `class_ids` or no `first`.
    """
    sizes = tuple(len(task["classes"]) for task in tasks)
    firsts = tuple(task["first"] for task in tasks if "first" in task)
    names, ids = {}, {}  # by label, as tasks may share classes
    for index, task in enumerate(tasks):
        first = firsts[index] if firsts else len(names)
        names |= dict(enumerate(task["classes"], first))
        ids |= dict(enumerate(task.get("class_ids", ()), first))
    images = sum(task["train"] for task in tasks)
    domains = tuple(task["domain"] for task in tasks if task.get("domain"))
    return StreamInfo(len(names), sizes, tuple(names.values()), images, tuple(ids.values()), firsts, domains)


def record_teachers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a method's `build` reads of the teachers' runs that a config names.

    With the record, a run can be opened where the folders of its teachers do not exist. Weights of the teachers are
    among the frozen variables of the run itself.

    Args:
      config: the resolved config as nested dicts.

    Returns:
      Folder -> its `config`, `tasks`, `finished_tasks`, and the records of its own teachers, `teachers`; JSON values.
      Folders without results are left out: the method does not read them.
    """
    records = {}
    for folder in _teacher_folders(config):
        with suppress(UserError):
            run, tasks = FinishedRun.read(folder), _read_json_files(paths.resolve(folder, "the teacher's run"))[1]
            records[folder] = {
                "config": run.config.to_dict(),
                "tasks": tasks,
                "finished_tasks": list(_finished_tasks(run)),
                "teachers": run.records or record_teachers(run.config.to_dict()),
            }
    return records


@contextmanager
def use_records(records: Records) -> Iterator[None]:
    """Replaces the folders of teachers' runs by their records within the block.

    See `record_teachers`.
    """
    token = _RECORDS.set(records)
    try:
        yield
    finally:
        _RECORDS.reset(token)


def without_files(config: ConfigDict) -> ConfigDict:
    """Returns a config whose networks need no files of weights.

    The checkpoints of the config's run have the weights. Folders of teachers' runs stay.
    """
    config = copy.deepcopy(config)
    for section in config.values():
        weights_of = section.get("weights") if isinstance(section, ConfigDict) else None
        if isinstance(weights_of, str) and (weights_of.startswith("package:") or not is_run(weights_of)):
            section.update({key: value for key, value in _NO_FILE.items() if key in section})
    return config


def _record_of(folder):
    return _RECORDS.get({}).get(str(folder))


def _teacher_folders(config) -> list[str]:
    """Returns the folders of teachers' runs that a config names."""
    flat = configs.flatten(config)
    run_folders = [folder for key, value in flat.items() if key.endswith(".teacher_runs") for folder in value]
    weight_files = [value for key, value in flat.items() if key.endswith(".weights") and isinstance(value, str)]
    return run_folders + [folder for folder in weight_files if not folder.startswith("package:") and is_run(folder)]


def _to_config(stored) -> ConfigDict:
    return ConfigDict(configs.copy_with_tuples(stored))


def check_same_stream(run: FinishedRun, info: StreamInfo, checkpoint: str) -> None:
    """Checks that a run was trained on the student's stream.

    Args:
      run: the teacher's run.
      info: the student's stream.
      checkpoint: "same_task" requires the same tasks, "last" only the same classes in the same order.

    Raises:
      UserError: the streams differ.
    """
    if not info.class_names:
        raise UserError(
            f"the teacher's run {run.folder} has one class order, and each of config.seeds has its own "
            "(data.class_order_seed=-1): run the seeds one by one, each with a teacher of its class order"
        )
    if run.info.class_names != info.class_names:
        raise UserError(
            f"the teacher's run {run.folder} has other classes, or in another order: choose a run of this stream"
        )
    if checkpoint == "same_task" and run.info.label_ranges != info.label_ranges:
        raise UserError(
            f"the teacher's run {run.folder} has {run.info.num_tasks} tasks, this one has {info.num_tasks}: set "
            "teacher_checkpoint='last', or choose a run with the same tasks"
        )
    if checkpoint == "same_task" and run.info.domains != info.domains:
        raise UserError(
            f"the teacher's run {run.folder} has the domains {', '.join(run.info.domains)!r} in this order: set "
            "teacher_checkpoint='last', or choose a run with the same domains"
        )


def pick_network(run: FinishedRun, name: str) -> str:
    """Returns the network of a run that is the teacher.

    Args:
      run: the teacher's run.
      name: of the network. "": "teacher" if the run trained a network of that name, else the last one that it trained.

    Raises:
      UserError: the run has no network of this name.
    """
    networks = run.method.networks
    trained = [network for network in networks if network not in run.method.external]
    name = name or ("teacher" if "teacher" in trained else trained[-1])
    if name not in networks:
        raise UserError(
            f"the teacher's run {run.folder} has no network {name!r}: {plugins.did_you_mean(name, networks)}"
        )
    return name


def pick_tasks(run: FinishedRun, checkpoint: str) -> tuple[int, ...]:
    """Returns the tasks after which the teacher's weights are taken.

    Args:
      run: the teacher's run.
      checkpoint: "same_task": all tasks. "last": the last task.

    Raises:
      UserError: the run is not finished, or a checkpoint is missing.
    """
    num_tasks, finished = run.info.num_tasks, _finished_tasks(run)
    num_trained = finished[-1] + 1 if finished else 0
    if num_trained < num_tasks:
        raise UserError(f"the teacher's run {run.folder} has finished {num_trained} of {num_tasks} tasks: resume it")
    tasks = tuple(range(num_tasks)) if checkpoint == "same_task" else (num_tasks - 1,)
    if missing := sorted({*tasks} - {*finished}):
        raise UserError(
            f"the teacher's run {run.folder} has deleted its checkpoint after task {missing[0]}: train it with "
            "checkpoint.keep_tasks=0, or set teacher_checkpoint='last'"
        )
    return tasks


def _finished_tasks(run) -> Sequence[int]:
    if run.finished_tasks is not None:
        return run.finished_tasks
    with Checkpoints(run.folder, read_only=True) as checkpoints:
        return checkpoints.finished_tasks()


@dataclass(frozen=True)
class RunTeacher:
    """A network of a finished run, with its weights after the last or each task.

    Attributes:
      folder: the run's working directory.
      config: its resolved config.
      info: its stream.
      method: its method.
      network: one of the method's networks.
      tasks: tasks of the checkpoints in use, one for all tasks or one for each task.
      input_augment: the student's config section `augment`, whose normalization the input images have.
      use_batch_statistics: whether batch norm uses statistics of the batch, instead of running statistics.
    """

    folder: Path
    config: ConfigDict
    info: StreamInfo
    method: Any
    network: str
    tasks: tuple[int, ...]
    input_augment: Mapping[str, Any]
    use_batch_statistics: bool = False

    def init(self, key: jax.Array | None = None) -> Variables:
        """Returns variables of zeros.

        Args:
          key: unused, as the weights are those of the run.

        Returns:
          {"frozen": the run's frozen variables, "tasks": its other variables, stacked over `tasks`}.
        """
        mutable, frozen = self._shapes
        zeros = {"frozen": frozen, "tasks": jax.tree.map(lambda x: _stacked(x, len(self.tasks)), mutable)}
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)

    def load_pretrained(self, variables: Variables | None = None) -> Variables:
        """Returns the variables of the run's checkpoints, as NumPy arrays.

        Args:
          variables: unused, as the checkpoints have all of them.

        Raises:
          UserError: a checkpoint cannot be read.
        """
        sharding = SingleDeviceSharding(jax.local_devices()[0])
        mutable, frozen = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), self._shapes
        )
        with Checkpoints(self.folder, read_only=True) as checkpoints:
            tasks = [jax.device_get(checkpoints.restore_task(task, mutable)) for task in self.tasks]
            frozen = jax.device_get(checkpoints.restore_frozen(frozen))
        return {"frozen": frozen, "tasks": jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)}

    def outputs(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, Any]:
        """Returns the network's named outputs, with its weights for the task of `context`.

        Args:
          variables: as `init` returns them.
          images: float32 `[batch, size, size, 3]`, the student's input of any size.
          context: position in the student's stream.

        Returns:
          `logits` float32 `[batch, classes]`, and what else the method names.
        """
        images, side = augment.renormalize(images, self.input_augment, self.config.augment), self.method.image_size
        images = resizing.resize(images, (side, side), False)
        joined, context = self.at_task(variables, context)
        return self.method.teacher_outputs(self.network, joined, images, context, self.use_batch_statistics)

    def at_task(self, variables: Variables, context: Context) -> tuple[Variables, Context]:
        """Returns the method's variables for the task of `context`.

        Args:
          variables: as `init` returns them.
          context: position in the student's stream.

        Returns:
          The variables, and the position for which they were trained.
        """
        each_task = len(self.tasks) > 1
        mutable = jax.tree.map(lambda x: x[context.task if each_task else 0], variables["tasks"])
        if not each_task:  # the teacher has learned all classes, whatever the student's task is
            last = jnp.int32(self.info.num_tasks - 1)
            first, end = map(jnp.int32, self.info.label_ranges[-1])
            context = context.replace(task=last, first=first, end=end)
        # Cached queries are those of the student's networks.
        return join(variables["frozen"], mutable), context.replace(queries={})

    @cached_property
    def _shapes(self):
        """Shapes of the run's mutable and frozen variables, as its checkpoints have them."""
        shapes = jax.eval_shape(self.method.init, jax.random.key(0))
        mutable, frozen = split(shapes, lambda path: not self.method.is_frozen(path))
        return mutable, cast_frozen_kernels(frozen, self.config.get("frozen_dtype", "float32"))


def find_teacher(
    folder: str | Path,
    network: str,
    checkpoint: str,
    info: StreamInfo,
    input_augment: Mapping[str, Any],
    *,
    use_batch_statistics: bool = False,
) -> RunTeacher:
    """Returns the teacher that a config names.

    Reads only the run's JSON files, not its weights.

    Args:
      folder: working directory of a run on the same classes in the same order.
      network: name of one of its networks; "" as in `pick_network`.
      checkpoint: "same_task", the weights after the task that the student is training; or "last".
      info: the student's stream.
      input_augment: the student's config section `augment`.
      use_batch_statistics: whether the teacher's batch norm uses statistics of the student's batch.

    Raises:
      UserError: there is no such run, it is not finished, or it does not fit.
    """
    run = FinishedRun.read(folder)
    check_same_stream(run, info, checkpoint)
    run = replace(run, info=replace(run.info, class_ids=info.class_ids))  # earlier versions stored names alone
    network = pick_network(run, network)
    method = run.method
    if use_batch_statistics and not method.supports_batch_statistics:
        raise UserError(
            f"the teacher's run {run.folder}, of method {run.config.method!r}, supports running statistics only"
        )
    tasks = pick_tasks(run, checkpoint)
    return RunTeacher(run.folder, run.config, run.info, method, network, tasks, input_augment, use_batch_statistics)


def is_run(path: str) -> bool:
    """Returns whether `path` is the folder of a run.

    A folder from Hugging Face has a `config.json` too; its weights distinguish it from a run.
    """
    if path in ("", "random"):
        return False
    if _record_of(path):
        return True
    folder = paths.resolve(path, "the teacher's run")
    return (folder / "config.json").is_file() and not any((folder / name).is_file() for name in weights.OF_HUB)


def average_outputs(outputs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Averages the named outputs of several teachers.

    >>> first, second = {"logits": jnp.array([1.0, 3.0])}, {"logits": jnp.array([2.0, 5.0]), "features": jnp.ones(4)}
    >>> {name: value.tolist() for name, value in average_outputs([first, second]).items()}
    {'logits': [1.5, 4.0]}

    Args:
      outputs: named outputs of each teacher; pytrees of arrays.

    Returns:
      The means of the outputs that all teachers have in one shape.
    """
    if len(outputs) == 1:
        return outputs[0]
    shapes = [{name: _shape(value) for name, value in out.items()} for out in outputs]
    common = [name for name, shape in shapes[0].items() if all(other.get(name) == shape for other in shapes)]
    return {name: jax.tree.map(lambda *x: sum(x) / len(x), *(out[name] for out in outputs)) for name in common}


def _shape(tree):
    return jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)]


def _stacked(leaf, count):
    return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)


def _read_json_files(folder):
    """Reads the JSON files in the folder of a run.

    Returns:
      The run's config, the tasks of its stream as results.json has them, and the records of its teachers.
    """
    try:
        content = configs.read(folder)
        config, records = _to_config(content["config"]), content.get("teachers", {})
        if not config.get("seeds") and not (folder / "results.json").exists():
            raise UserError(
                f"the teacher's folder {folder} has a config.json but no results.json: its run has not trained a task; "
                "rerun its command to finish it, or name a --workdir of a finished run"
            )
        # The checkpoints of a run of several seeds are not in the folders of the seeds.
        if not config.get("seeds") and (folder / "checkpoints").exists():
            tasks = json.loads((folder / "results.json").read_text(encoding="utf-8"))["stream"]["tasks"]
            return config, tasks, records
    except (OSError, TypeError, KeyError, ValueError, RecursionError):
        raise UserError(
            f"no run with results in the teacher's folder {folder}: name a --workdir of a finished run; a run that was "
            "moved is the same teacher under its new path"
        ) from None
    raise UserError(
        f"the teacher's folder {folder} is of a run of several seeds, or has no checkpoints: train the seed of "
        "interest alone, with config.seed, and name that run"
    )
