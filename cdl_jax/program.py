"""The compiled programs of a run: what a config, its stream and its method come to on a mesh of devices."""

from contextlib import nullcontext

import jax
import numpy as np

from cdl_jax import config as configs
from cdl_jax import names, quality, sharding, trainer
from cdl_jax.data import batches, stream
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo


class Program:
    """Stream, method, mesh and compiled steps of a config."""

    def __init__(self, config, data: stream.Stream):
        """Checks that everything fits together; nothing is read, placed or compiled yet.

        Raises:
          UserError: options that do not fit together.
        """
        configs.check(config)
        self.config, self.stream = config, data
        self.info = StreamInfo(
            data.num_classes, tuple(len(task.classes) for task in data.tasks), tuple(data.class_names)
        )
        self.method = names.load("methods", config.method).build(config, self.info)
        self.mesh = sharding.make_mesh(config.devices, config.peer_devices)
        if (whole := getattr(self.method, "spreadable", 1)) % config.peer_devices:
            raise UserError(
                f"config.peer_devices={config.peer_devices}: {config.method} has {whole} whole networks to spread, "
                "choose a divisor of that"
            )
        size = config.train.batch_size
        sharding.check_batch(self.mesh, size, "train.batch_size")
        sharding.check_batch(self.mesh, config.eval.batch_size, "eval.batch_size")
        smallest = min(data.tasks, key=lambda task: len(task.train))
        if len(smallest.train) < size:
            raise UserError(
                f"config.train.batch_size={size} is larger than the {len(smallest.train)} training images of task "
                f"{smallest.index}: choose a smaller batch"
            )

    def place_data(self) -> None:
        """Puts the pictures where the steps read them and builds the steps."""
        config, method = self.config, self.method
        options = {**config.augment, "workers": config.workers, "resident_limit_mb": config.resident_limit_mb}
        self.train_source = batches.place(self.stream.train, self.mesh, options, method.image_size)
        self.test_source = batches.place(self.stream.test, self.mesh, options, method.image_size)
        self._compiled, self._abstract = {}, None
        self.evaluation_step = jax.jit(
            trainer.evaluation_step(method, self.test_source, config.augment, self.info.task_sizes)
        )
        self.prediction_step = jax.jit(trainer.prediction_step(method, self.test_source, config.augment))
        self.start_task = jax.jit(trainer.between_tasks(method, method.start_task, config.seed))
        self.end_task = jax.jit(trainer.between_tasks(method, method.end_task, config.seed))

    def initial_variables(self):
        """Live and frozen variables before the first task, on every device of the mesh.

        Raises:
          UserError: a file of pretrained weights is missing or does not fit.
        """
        key = trainer.init_key(self.config.seed)
        loaded = self.method.load(jax.eval_shape(self.method.init, key))  # shapes stay where nothing is loaded
        fresh = jax.device_get(jax.jit(self.method.init)(key))
        variables = jax.tree.map(lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else new, loaded, fresh)
        live, frozen = trainer.split(variables, self._is_live)
        return sharding.replicate(self.mesh, live), sharding.replicate(self.mesh, frozen)

    def abstract_variables(self):
        """Shapes, types and shardings of the live and the frozen variables."""
        variables = jax.eval_shape(self.method.init, trainer.init_key(self.config.seed))
        return trainer.split(sharding.abstract(self.mesh, variables), self._is_live)

    def _is_live(self, path):
        return not self.method.frozen(path)

    def abstract_state(self, live, frozen) -> trainer.State:
        """Shapes, types and shardings of the state within a task."""
        if self._abstract is None:
            state = jax.eval_shape(lambda live: trainer.task_state(self.method, live), live)
            for index in range(len(self.method.phases)):
                state = jax.eval_shape(self._step(index), state, frozen, *self._example())
            self._abstract = sharding.abstract(self.mesh, state)
        return self._abstract

    def task_state(self, live, frozen) -> trainer.State:
        """The state in which a task begins: fresh optimizers, nothing summed up."""
        state = trainer.task_state(self.method, live)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.abstract_state(live, frozen).sums)
        return state.replace(opt=sharding.replicate(self.mesh, state.opt), sums=sharding.replicate(self.mesh, zeros))

    def train_step(self, index: int, state, frozen):
        """The compiled step of phase number `index`; compiled at its first use, once for all tasks of the run."""
        if index not in self._compiled:
            everywhere = jax.tree.map(lambda x: x.sharding, self.abstract_state(state.live, frozen))
            step = jax.jit(self._step(index), donate_argnums=0, out_shardings=everywhere)
            with self._named_axes():
                self._compiled[index] = step.lower(state, frozen, *self._example()).compile()
        return self._compiled[index]

    def _named_axes(self):
        """Where a traced method finds the mesh, if networks are to be spread over it."""
        return jax.set_mesh(self.mesh) if "peer" in self.mesh.shape else nullcontext()

    def flops(self, index: int) -> float | None:
        """Operations of one training step over all devices, by the compiler's count; None where it gives none."""
        cost = self._compiled[index].cost_analysis()
        return cost["flops"] * self.mesh.size if cost and "flops" in cost else None

    def _step(self, index):
        return trainer.train_step(self.method, index, self.train_source, self.config.augment, self.config.seed)

    def _example(self):
        item = self.train_source.example(self.config.train.batch_size)
        return self.train_source.data, item, trainer.position(self.stream.tasks[0])

    def epochs(self, phase) -> int:
        """Epochs of a phase in each of a task's rounds."""
        return phase.epochs // getattr(self.method, "rounds", 1)

    def train_batches(self, task, phase, round: int, epoch: int, step: int):
        """A phase's batches of a round from a place on, the number of batches in an epoch, and of those passed over."""
        size, seed, place = self.config.train.batch_size, self.config.seed, (task.index, phase.order)
        first = round * self.epochs(phase)
        epochs = [
            batches.epoch_order(len(task.train), size, seed=seed, purpose=(*place, first + e))
            for e in range(self.epochs(phase))
        ]
        done = epoch * len(epochs[0]) + step
        items = self.train_source.train_batches(task.train[np.concatenate(epochs)], done, (seed, *place))
        return items, len(epochs[0]), done

    def evaluate(self, live, frozen, tasks, place, step=None):
        """Accuracy in percent on each of `tasks` as `{network: [percent, ...]}`, the counts of `predict`, measures, and
        `quality.ratios`.

        Measures are the method's, averaged over the pictures, and each network's accuracy as the mean over batches,
        which counts the pictures of an incomplete last batch for more: so do some published programs.

        Args:
          place: the position whose `end` says which classes predictions may name.
          step: a compiled step in place of the method's own (see `trainer.evaluation_step`).
        """
        step = step or self.evaluation_step
        rows = np.concatenate([task.test for task in tasks])
        order, weight = batches.evaluation_order(len(rows), self.config.eval.batch_size)
        items = self.test_source.test_batches(rows[order], weight)
        with self._named_axes():
            parts = [step(live, frozen, self.test_source.data, item, place) for item in items]
        parts = jax.device_get(parts)
        sums = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=np.float64), *parts)
        images, pairs, asked = sums.pop("images"), sums.pop("pairs"), [task.index for task in tasks]
        measures = {name: float(value.sum() / images.sum()) for name, value in sums.pop("measures").items()}
        for network in sums:
            of_batches = [100 * part[network]["correct"].sum() / part["images"].sum() for part in parts]
            measures[f"{network}/accuracy_batch_mean"] = float(np.mean(of_batches))
        accuracy = {network: (100 * s["correct"][asked] / images[asked]).tolist() for network, s in sums.items()}
        own = ("correct", "calibration")
        counts = {
            network: {name: value[asked].tolist() for name, value in s.items() if name not in own}
            for network, s in sums.items()
        }
        return accuracy, counts, measures, quality.ratios(sums, pairs, images, asked)

    def logits(self, live, frozen, task, place) -> dict:
        """Network -> logits `[test images of the task, classes]` as NumPy arrays; in a run of one process."""
        order, weight = batches.evaluation_order(len(task.test), self.config.eval.batch_size)
        items = self.test_source.test_batches(task.test[order], weight)
        with self._named_axes():
            parts = [self.prediction_step(live, frozen, self.test_source.data, item, place) for item in items]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(task.test)], *jax.device_get(parts))
