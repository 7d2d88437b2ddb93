"""The JAX side of every case: the program of a run in its first task, one step at a time."""

import jax
import numpy as np

from benchmarks import timing
from cdl_jax.data import stream
from cdl_jax.methods.base import join
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program


class TrainingState:
    """A program at the start of its first task, with its state.

    Args:
        config: config of the run.
        data: stream that replaces the stream of the config. Default: None.
        change: function that replaces the method. Default: None.
    """

    def __init__(self, config, data=None, change=None):
        self.program = Program(config, data or stream.load(config.data, config.seed))
        if change is not None:
            self.program.method = change(self.program.method)
        self.program.place_data()
        self.task = self.program.stream.tasks[0]
        live, self.frozen = self.program.initial_variables()
        live = self.program.start_task(live, self.frozen, trainer.position(self.task))
        self.state = self.program.task_state(live, self.frozen)
        self._next = [0] * len(self.phases)

    @property
    def phases(self):
        return self.program.method.phases

    def variables(self):
        """Returns the current variables as NumPy arrays."""
        return jax.device_get(join(self.frozen, self.state.live))

    def compile(self, index: int):
        """Returns the compiled step of a phase."""
        return self.program.train_step(index, self.state, self.frozen)

    def batches(self, index: int, steps: int) -> list:
        """Puts the next `steps` batches of a phase on the device, as `(item, position)`; repeats after the last."""
        phase, items = self.phases[index], []
        each = self.program.steps(self.task, phase)
        while len(items) < steps:
            epoch, step = divmod(self._next[index] % (each * self.program.epochs(self.task, phase)), each)
            for item in self.program.train_batches(self.task, phase, 0, epoch, step)[0]:
                epoch, step = divmod(self._next[index] % (each * self.program.epochs(self.task, phase)), each)
                items.append((item, trainer.position(self.task, epoch=epoch, step=step, steps=each)))
                self._next[index] += 1
                if len(items) == steps:
                    break
        return jax.block_until_ready(items)

    def seconds(self, index: int, batches) -> float:
        """Trains on `batches`, or on as many as an integer gives; returns the seconds and updates the state."""
        if isinstance(batches, int):
            batches = self.batches(index, batches)
        step, data, seed = self.compile(index), self.program.train_source.data, self.program.seed
        start = timing.now()
        for item, place in batches:
            self.state = step(self.state, self.frozen, data, item, place, seed)
        jax.block_until_ready(self.state.live)
        return timing.now() - start

    def loss(self, index: int):
        """Returns the mean loss of all steps of a phase; with several seeds `[seeds]`."""
        sums = jax.device_get(self.state.sums[index])
        return np.asarray(sums["loss"] / sums["steps"])
