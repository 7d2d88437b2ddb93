"""Networks that other runs have trained, as teachers that learn no more.

The run may be of any method: what it says of a network's outputs (`Method.outputs`), or at least its predictions, is
what the teacher tells. It is given the student's pictures, resized (bilinearly) and normalised for its own run's
network. Its weights become frozen variables of the run that is taught, which needs the other's checkpoints only once.
"""

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import SingleDeviceSharding

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.data.transforms import augment, resizing
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo, join, split, stored
from cdl_jax.models import weights
from cdl_jax.runtime import paths
from cdl_jax.runtime.checkpoint import Checkpoints


@dataclass(frozen=True)
class RunTeacher:
    """A network of another run, as it was after one task or after each.

    folder: the run's working directory. config: its resolved config. info: its stream. method: its method.
    network: one of the method's networks.
    tasks: the checkpoints that are used: one for the whole stream, or one for each task.
    given: the student's `augment` section, by which the pictures that are given were normalised.
    of_batch: whether statistics of the batch normalise, in place of those that the network keeps.
    """

    folder: Path
    config: Any
    info: StreamInfo
    method: Any
    network: str
    tasks: tuple[int, ...]
    given: Any
    of_batch: bool = False

    def init(self):
        """The variables, all zero: {"frozen": the run's, "tasks": its live ones, stacked over `tasks`}."""
        live, frozen = self._shapes
        zeros = {"frozen": frozen, "tasks": jax.tree.map(lambda x: _stacked(x, len(self.tasks)), live)}
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)

    def load(self):
        """The variables as the run's checkpoints have them, as NumPy arrays.

        Raises:
          UserError: a checkpoint cannot be read.
        """
        here = SingleDeviceSharding(jax.local_devices()[0])
        live, frozen = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), self._shapes)
        with Checkpoints(self.folder, read_only=True) as checkpoints:
            tasks = [jax.device_get(checkpoints.restore_task(task, live)) for task in self.tasks]
            frozen = jax.device_get(checkpoints.restore_frozen(frozen))
        return {"frozen": frozen, "tasks": jax.tree.map(lambda *leaves: np.stack(leaves), *tasks)}

    def outputs(self, variables, images, context) -> dict:
        """What the network says of `images` after the task of `context`: `logits` `[batch, classes]` among others.

        images: float32 `[batch, size, size, 3]` of any size, as the student takes them.
        """
        images, side = augment.renormalize(images, self.given, self.config.augment), self.method.image_size
        images = resizing.resize(images, (side, side), False)
        each_task = len(self.tasks) > 1
        live = jax.tree.map(lambda x: x[context.task if each_task else 0], variables["tasks"])
        if not each_task:  # it has learnt all classes, whatever the task is here
            last = jnp.int32(self.info.num_tasks - 1)
            first = jnp.int32(self.info.num_classes - self.info.task_sizes[-1])
            context = context.replace(task=last, first=first, end=jnp.int32(self.info.num_classes))
        joined = join(variables["frozen"], live)
        if self.of_batch:
            return self.method.outputs(self.network, joined, images, context, of_batch=True)
        if hasattr(self.method, "outputs"):
            return self.method.outputs(self.network, joined, images, context)
        return {"logits": self.method.predict(joined, images, context)[0][self.network]}

    @cached_property
    def _shapes(self):
        shapes = jax.eval_shape(self.method.init, jax.random.key(0))
        live, frozen = split(shapes, lambda path: not self.method.frozen(path))
        return live, stored(frozen, self.config.get("frozen_dtype", "float32"))


def find_teacher(
    folder: str, network: str, checkpoint: str, info: StreamInfo, given, *, of_batch: bool = False
) -> RunTeacher:
    """The teacher that a config names; nothing but the run's JSON files is read.

    Args:
      folder: the working directory of a run on the same classes in the same order.
      network: name of one of its networks; "": "teacher" where it trained one, else the last that it trained.
      checkpoint: "same_task", the one after the task that is being taught, from a run with the same tasks; or "last".
      info: the stream that is taught. given: the section `augment` of the run that is taught.
      of_batch: whether statistics of the student's batch normalise in the teacher.

    Raises:
      UserError: there is no such run, it is not finished, or it does not fit.
    """
    if not isinstance(folder, str | Path):
        raise UserError(f"teachers names {folder!r}, which is no folder: name a --workdir of a finished run")
    folder = paths.resolve(folder, "the teacher's run")
    config, stream = _read(folder)
    sizes = tuple(len(task["classes"]) for task in stream["tasks"])
    known = StreamInfo(
        num_classes=sum(sizes),
        task_sizes=sizes,
        class_names=tuple(name for task in stream["tasks"] for name in task["classes"]),
        train_images=sum(task["train"] for task in stream["tasks"]),
    )
    if not info.class_names:
        raise UserError(
            f"the teacher's run {folder} learnt one order of classes, and each of config.seeds has its own "
            "(data.class_order_seed=-1): run the seeds one by one, each with a teacher of its order"
        )
    if known.class_names != info.class_names:
        raise UserError(
            f"the teacher's run {folder} learnt other classes, or in another order: choose a run of this stream"
        )
    if checkpoint == "same_task" and sizes != info.task_sizes:
        raise UserError(
            f"the teacher's run {folder} has {known.num_tasks} tasks, this one has {info.num_tasks}: say "
            "teacher_checkpoint='last', or choose a run with the same tasks"
        )
    try:
        method = plugins.load_plugin("methods", config.method).build(config, known)
    except (AttributeError, KeyError) as error:
        raise UserError(f"the teacher's run {folder} was made by another version ({error}): train it anew") from None
    own = [name for name in method.networks if name not in getattr(method, "given", ())]
    network = network or ("teacher" if "teacher" in own else own[-1])
    if network not in method.networks:
        raise UserError(
            f"the teacher's run {folder} has no network {network!r}: {plugins.did_you_mean(network, method.networks)}"
        )
    tells = getattr(method, "outputs", None)
    if of_batch and not (tells and "of_batch" in inspect.signature(tells).parameters):
        raise UserError(f"the teacher's run {folder}, of method {config.method!r}, knows running statistics only")
    with Checkpoints(folder, read_only=True) as checkpoints:
        stored = checkpoints.finished_tasks()
    learnt = stored[-1] + 1 if stored else 0
    if learnt < known.num_tasks:
        raise UserError(f"the teacher's run {folder} has learnt {learnt} of {known.num_tasks} tasks: finish it first")
    tasks = tuple(range(known.num_tasks)) if checkpoint == "same_task" else (known.num_tasks - 1,)
    if absent := sorted({*tasks} - {*stored}):
        raise UserError(
            f"the teacher's run {folder} has not kept its checkpoint after task {absent[0]}: train it with "
            "checkpoint.keep_tasks=0, or take its network as it was after the last task"
        )
    return RunTeacher(folder, config, known, method, network, tasks, given, of_batch)


def is_run(place: str) -> bool:
    """Returns whether `place` is the folder of a run; Hugging Face's folders too have a `config.json`."""
    if place in ("", "random"):
        return False
    folder = paths.resolve(place, "the teacher's run")
    return (folder / "config.json").is_file() and not any((folder / name).is_file() for name in weights.OF_HUB)


def average_outputs(outputs: Sequence[dict]) -> dict:
    """The mean of what several teachers say, of those outputs that all of them have in the same shape."""
    if len(outputs) == 1:
        return outputs[0]
    alike = [name for name, value in outputs[0].items() if all(_shape(o.get(name)) == _shape(value) for o in outputs)]
    return {name: jax.tree.map(lambda *x: sum(x) / len(x), *(o[name] for o in outputs)) for name in alike}


def _shape(tree):
    return jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)]


def _stacked(leaf, count):
    return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)


def _read(folder):
    try:
        config = ml_collections.ConfigDict(configs.copy_with_tuples(configs.read(folder)["config"]))
        several = bool(config.get("seeds")) or not (folder / "checkpoints").exists()  # the seeds' are in one place
        if not several:
            return config, json.loads((folder / "results.json").read_text(encoding="utf-8"))["stream"]
    except (OSError, TypeError, KeyError, ValueError, RecursionError):
        raise UserError(
            f"no run with results in the teacher's folder {folder}: name a --workdir of a finished run; one that was "
            "moved is the same teacher under its new path"
        ) from None
    raise UserError(
        f"the teacher's folder {folder} is of a run of several seeds, or has no checkpoints: train the seed of "
        "interest alone, with config.seed, and name that run"
    )
