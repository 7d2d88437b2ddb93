"""Builds an experiment from a config.

An experiment has task streams, a method, a device mesh and batch plans. Nothing is compiled.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.data import sampling
from cdl_jax.data import stream as streams_of
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.data.stream import Stream, Task
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Method, Phase, StreamInfo, cast_frozen_kernels, split
from cdl_jax.methods.shared import user_method
from cdl_jax.runtime import sharding
from cdl_jax.training import compatibility, dtypes, problems
from cdl_jax.training.seeds import SeedAxis
from cdl_jax.training.state import init_key


@dataclass(frozen=True, eq=False)
class Experiment:
    """Holds everything that a config determines.

    Attributes:
      config: resolved.
      seeds: of the run; one without `config.seeds`.
      streams: of each seed.
      info: the stream as methods see it.
      method: what is trained.
      problem: what the method learns, as functions around the steps.
      mesh: devices.
      plans: of each seed, which images form each batch.
      axis: the axis of seeds.
    """

    config: Any
    seeds: tuple[int, ...]
    streams: tuple[Stream, ...]
    info: StreamInfo
    method: Method
    problem: problems.Problem
    mesh: jax.sharding.Mesh
    plans: tuple[BatchPlan, ...]
    axis: SeedAxis

    @classmethod
    def build(cls, config, data: Stream) -> "Experiment":
        """Builds an experiment and checks that its parts fit together. No image is read.

        Args:
          config: a resolved config.
          data: the stream of the first seed. The streams of other seeds may have their own class order, see
            `streams_for_seeds`; all have as many tasks, classes and images in each.

        Raises:
          UserError: options that do not fit together.
        """
        configs.check(config)
        config = dtypes.resolve(config)
        seeds = tuple(configs.seeds_of(config))
        streams = streams_of.streams_for_seeds(data, config.data, seeds)
        axis = SeedAxis(streams, bool(config.seeds))
        info = StreamInfo(
            data.num_classes,
            tuple(len(task.classes) for task in data.tasks),
            () if axis.per_seed_classes else tuple(streams[0].class_names),
            len(data.train),
            () if axis.per_seed_classes else tuple(streams[0].class_order),
            tuple(task.first for task in data.tasks),
            tuple(task.domain for task in data.tasks if task.domain),
        )
        module = plugins.load_plugin("methods", config.method)
        problem = problems.PROBLEMS[problems.name_of(config.method)]
        compatibility.check_problem(config, problem.samples, problems.PROBLEMS[data.problem].samples)
        problem.check(config)
        method = module.build(config, info)
        if "." in config.method:
            user_method.check_method(method, module)
        mesh = sharding.make_mesh(config.devices, config.peer_devices, config.fsdp_devices)
        compatibility.check_method(config, method, info, streams[0].class_names)
        plan_options = {
            "batch_size": config.train.batch_size,
            "learner_orders": method.streams,
            "num_public": method.num_public,
            "last_batch": config.train.last_batch,
            "accumulate": config.optim.accumulate,
            **problem.plan_options(config),
        }
        plans = {stream: BatchPlan.build(stream, **plan_options) for stream in streams}
        plans = tuple(plans[stream] for stream in streams)
        compatibility.check_batches(config, method, mesh, plans, seeds)
        return cls(config, seeds, streams, info, method, problem, mesh, plans, axis)

    @property
    def stream(self) -> Stream:
        """Returns the stream of the first seed."""
        return self.streams[0]

    @property
    def metric(self) -> str:
        """Returns the name of the numbers of the accuracy matrix."""
        return self.method.metric or self.problem.metric

    @property
    def plan(self) -> BatchPlan:
        """Returns the batch plan of the first seed."""
        return self.plans[0]

    @property
    def seed(self) -> np.ndarray:
        """Returns the last argument of a step, int32; `[seeds]` with several seeds."""
        return np.array(self.seeds, np.int32) if self.config.seeds else np.int32(self.config.seed)

    def epochs(self, task: Task, phase: Phase) -> int:
        """Returns the epochs of a phase in each round of a task."""
        return phase.epochs_of(task.index) // self.method.rounds

    def steps_per_epoch(self, task: Task, phase: Phase) -> int:
        """Returns the number of batches of an epoch."""
        return self.plan.steps_per_epoch(task.index, phase)

    def batch_sizes(self, task: Task, phase: Phase) -> list[int]:
        """Returns the number of the task's own images in each batch of an epoch.

        See `BatchPlan.batch_sizes`.
        """
        return self.plan.batch_sizes(task.index, phase)

    def rows(self, task: Task, phase: Phase, round: int, memories: list | None = None) -> np.ndarray:
        """Returns the training images of each step of a phase in a round.

        Args:
          memories: rows of the herded memory of each seed; None without one.

        Returns:
          int32 `[steps, images]`. An axis of learners and an axis of seeds follow where there are several (see
          `BatchPlan.order`).
        """
        epochs = self.epochs(task, phase)
        if phase.sequential:
            order, _ = sampling.sequential_order(len(task.train), self.config.train.batch_size)
            return np.concatenate([self.axis.rows([task], "train")[order]] * epochs)
        epochs = range(round * epochs, (round + 1) * epochs)
        orders = [
            plan.order(task.index, phase, epochs, seed, memory)
            for plan, seed, memory in zip(self.plans, self.seeds, memories or [None] * len(self.seeds), strict=True)
        ]
        return np.stack(orders, axis=-1) if self.config.seeds else orders[0]

    def initial_variables(self):
        """Returns mutable and frozen variables before the first task.

        The variables are on the devices of the mesh.

        Raises:
          UserError: a file of pretrained weights is missing or does not fit, or several seeds need random frozen
            weights.
        """
        # Leaves without pretrained weights stay shapes.
        loaded = self.method.load_pretrained(self.variable_shapes)
        if "." in self.config.method:
            user_method.check_loaded(self.method, loaded, self.variable_shapes)
        mutable, frozen = split(loaded, self._is_mutable)
        if self.config.seeds and not _is_loaded(frozen):
            raise UserError(
                "config.seeds shares one frozen backbone, and random weights would differ between seeds: name files of "
                "pretrained weights, or run the seeds one by one"
            )
        mutable = _fill_shapes(mutable, jax.jit(self._random_mutable)(self.seed))
        if not _is_loaded(frozen):
            key = init_key(self.seeds[0])
            random = jax.jit(lambda: split(self._init(key), self._is_mutable)[1])()
            frozen = _fill_shapes(frozen, random)
        frozen = cast_frozen_kernels(frozen, self.config.frozen_dtype)
        return sharding.shard(self.mesh, mutable), sharding.shard(self.mesh, frozen)

    def abstract_variables(self):
        """Returns shapes, types and shardings of the mutable and of the frozen variables."""
        mutable, frozen = split(self.variable_shapes, self._is_mutable)
        frozen = cast_frozen_kernels(frozen, self.config.frozen_dtype)
        if self.config.seeds:
            mutable = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.seeds), *x.shape), x.dtype), mutable)
        return sharding.abstract_tree(self.mesh, mutable), sharding.abstract_tree(self.mesh, frozen)

    @cached_property
    def variable_shapes(self):
        """Returns shapes and types of all variables of one seed."""
        return jax.eval_shape(self._init, init_key(self.seeds[0]))

    @cached_property
    def _init(self):
        """Returns the jitted `method.init`.

        The function is traced once for the shapes and for the variables.
        """
        return jax.jit(self.method.init)

    def _random_mutable(self, seed):
        def of_one(seed):
            return split(self._init(init_key(seed)), self._is_mutable)[0]

        return self.axis.vmap(of_one, 0)(seed)

    def _is_mutable(self, path):
        return not self.method.is_frozen(path)


def _is_loaded(tree) -> bool:
    return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _fill_shapes(loaded, random):
    """Returns `loaded` with `random` arrays for its shapes.

    Loaded arrays are repeated along an axis of seeds.
    """
    return jax.tree.map(
        lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else np.broadcast_to(new, old.shape),
        loaded,
        jax.device_get(random),
    )
