"""The JAX side of every case: a run's program in its first task, step by step."""

import dataclasses

import jax
import numpy as np

from benchmarks import timing
from cdl_jax.data import stream
from cdl_jax.methods.base import join
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position


class TrainingState:
    """A program at the start of its first task, with its state.

    Args:
        config: config of the run.
        data: stream that replaces the stream of the config. Default: None.
        change: function that replaces the method. Default: None.
    """

    def __init__(self, config, data=None, change=None):
        experiment = Experiment.build(config, data or stream.load(config.data, config.seed))
        if change is not None:
            experiment = dataclasses.replace(experiment, method=change(experiment.method))
        self.experiment, self.steps = experiment, CompiledSteps(experiment)
        self.evaluator, self.task = experiment.problem.make_evaluator(self.steps), experiment.stream.tasks[0]
        mutable, self.frozen = experiment.initial_variables()
        self.state = self.steps.task_state(self.steps.start_task(mutable, self.frozen, position(self.task)))
        self._next = [0] * len(self.phases)

    @property
    def phases(self):
        return self.experiment.method.phases

    def variables(self):
        """Returns the current variables as NumPy arrays."""
        return jax.device_get(join(self.frozen, self.state.mutable))

    def compile(self, index: int):
        """Returns the compiled step of a phase."""
        return self.steps.train_step(index)

    def batches(self, index: int, count: int) -> list:
        """Puts the next `count` batches of a phase on the device.

        Returns:
            `(item, position)` of each batch. The batches repeat after the last one.
        """
        phase, items = self.phases[index], []
        each = self.experiment.steps_per_epoch(self.task, phase)
        total = each * self.experiment.epochs(self.task, phase)
        while len(items) < count:
            for item in self.steps.train_batches(self.task, phase, 0, self._next[index] % total):
                epoch, step = divmod(self._next[index] % total, each)
                items.append((item, position(self.task, epoch=epoch, step=step, steps=each)))
                self._next[index] += 1
                if len(items) == count:
                    break
        return jax.block_until_ready(items)

    def seconds(self, index: int, batches) -> float:
        """Trains on batches and updates the state; returns the seconds.

        batches: result of `batches`, or the number of the next batches.
        """
        if isinstance(batches, int):
            batches = self.batches(index, batches)
        step, data, seed = self.compile(index), self.steps.train_loader.data, self.experiment.seed
        start = timing.now()
        for item, place in batches:
            self.state = step(self.state, self.frozen, data, item, place, seed)
        jax.block_until_ready(self.state.mutable)
        return timing.now() - start

    def loss(self, index: int):
        """Returns the mean loss of all steps of a phase; with several seeds `[seeds]`."""
        sums = jax.device_get(self.state.metric_sums[index])
        return np.asarray(sums["loss"] / sums["steps"])
