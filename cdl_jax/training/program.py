"""The compiled programs of a run: what a config, its stream and its method come to on a mesh of devices."""

from contextlib import nullcontext
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.data import herding, loaders, sampling, stream
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.evaluation import calibration
from cdl_jax.methods.base import CachesQueries, HerdsMemory, StreamInfo, cast_frozen_kernels
from cdl_jax.runtime import sharding
from cdl_jax.training import steps as trainer
from cdl_jax.training.seeds import SeedAxis


class Program:
    """Stream, method, mesh and compiled steps of a config."""

    def __init__(self, config, data: stream.Stream):
        """Checks that everything fits together; nothing is read, placed or compiled yet.

        Args:
          data: the stream of the first seed; the others may have orders of their own, see `streams_for_seeds` of
            `data.stream`. All have as many tasks, classes and pictures in each.

        Raises:
          UserError: options that do not fit together.
        """
        configs.check(config)
        augment.check(config.augment)
        self.config, self.seeds = config, configs.seeds_of(config)
        self.streams = stream.streams_for_seeds(data, config.data, self.seeds)
        self.stream, self.axis = self.streams[0], SeedAxis(self.streams, bool(config.seeds))
        self.info = StreamInfo(
            data.num_classes,
            tuple(len(task.classes) for task in data.tasks),
            () if self.axis.own_orders else tuple(self.stream.class_names),
            len(data.train),
        )
        self.method = plugins.load_plugin("methods", config.method).build(config, self.info)
        self._check_labels()
        self.mesh = sharding.make_mesh(config.devices, config.peer_devices, config.fsdp_devices)
        if (whole := self.method.num_parallel_networks) % config.peer_devices:
            raise UserError(
                f"config.peer_devices={config.peer_devices}: {config.method} has {whole} whole networks to spread, "
                "choose a divisor of that"
            )
        turns = sum(phase.tasks != "later" for phase in self.method.phases) * self.method.rounds
        if config.train.early_stopping.patience and turns > 1:
            raise UserError(
                f"config.train.early_stopping: method {config.method!r} has {turns} phases a task here, which end by "
                "their epochs alone: leave patience at 0"
            )
        if config.seeds and config.peer_devices > 1:
            raise UserError("config.seeds and config.peer_devices cannot be combined: run the seeds one by one")
        sharding.check_batch(self.mesh, config.train.batch_size, "train.batch_size")
        sharding.check_batch(self.mesh, config.eval.batch_size, "eval.batch_size")
        plan_options = {
            "batch_size": config.train.batch_size,
            "learner_orders": self.method.streams,
            "num_public": self.method.num_public,
            "last_batch": config.train.last_batch,
            "accumulate": config.optim.accumulate,
            "repeats": config.augment.repeats,
        }
        plans = {one: BatchPlan.build(one, **plan_options) for one in self.streams}
        self.plans, self.plan = tuple(plans[one] for one in self.streams), plans[self.stream]
        for phase in self.method.phases:
            self.plan.check(phase)
            sharding.check_batch(self.mesh, self.plan.images_per_step(phase), "train.batch_size, and what joins it:")
            self._check_last_batches(phase)
        for own, seed in zip(self.plans, self.seeds, strict=True):
            if (found := self.plan.first_mismatch(own, self.method.phases)) is not None:
                raise UserError(
                    f"data.class_order_seed=-1: task {found} has other numbers of pictures in the order of seed {seed} "
                    f"than in that of seed {self.seeds[0]}, but config.seeds takes the same steps for all: run them "
                    "one by one, or make classes equal with data.max_train_per_class and data.max_test_per_class"
                )

    def _check_labels(self):
        """Refuses streams for which the labels' loss is 0 whatever the weights: its softmax spans one class."""
        name, sizes = self.config.method, self.info.task_sizes
        spans = self.method.loss_classes
        if spans == "current" and 1 in sizes:
            other = f"say config.{name}.classes='seen', or " if "classes" in self.config.get(name, {}) else ""
            raise UserError(
                f"task {sizes.index(1)} has one class, and the softmax of method {name!r} spans the classes of the "
                f"current task: the loss is 0 whatever the weights, and nothing is learned; {other}choose "
                "data.num_tasks or data.task_sizes for at least two classes a task"
            )
        if spans in ("seen", "all") and self.info.num_classes == 1:
            raise UserError(
                f"the stream has one class, {self.stream.class_names[0]!r}: the softmax over it is 1 whatever the "
                "weights, and nothing is learned; choose data.class_order or data of at least two classes"
            )

    def _check_last_batches(self, phase):
        shares = sharding.num_batch_shards(self.mesh)
        for task in self.stream.tasks:
            last = self.batch_sizes(task, phase)[-1]
            if last < self.config.train.batch_size and last % shares:
                raise UserError(
                    f"config.train.last_batch='keep': the last batch of task {task.index} has {last} images, which "
                    f"cannot be split evenly over {shares} devices: say 'drop', or choose another train.batch_size or "
                    "fewer devices"
                )

    def place_data(self) -> None:
        """Puts the pictures where the steps read them and builds the steps."""
        config, method = self.config, self.method
        options = {**config.augment, "workers": config.workers, "resident_limit_mb": config.resident_limit_mb}
        self.train_source, self.test_source = (
            loaders.make_loader(
                getattr(self.stream, part), self.mesh, options, method.image_size, self.axis.labels(part)
            )
            for part in ("train", "test")
        )
        streamed = self.train_source.crops_on_host, self.test_source.crops_on_host and self.axis.own_orders
        if any(streamed) and (config.seeds or self.plan.multi_learner):
            several = "config.seeds" if config.seeds else f"method {config.method!r}, of several learners,"
            raise UserError(
                f"{several} needs {'training' if streamed[0] else 'test'} pictures that live on the device: raise "
                "config.resident_limit_mb" + (", or run the seeds one by one" if config.seeds else "")
            )
        self._compiled, self._abstract = {}, None
        self._steps = [self._step(index) for index in range(len(method.phases))]
        evaluation = trainer.evaluation_step(method, self.test_source, config.augment, self.info)
        constants = trainer.constants_step(method, self.test_source, config.augment)
        on_test = self.axis.mapped(evaluation, 0, None, self.axis.of_data, self.axis.of_plain, None)
        self.evaluation_step = self._jitted(on_test, 2)
        self.prediction_step = self.telling(lambda *at: method.predict(*at)[0], self.test_source)
        self._constants_step = self._jitted(constants, 1)
        self._constants, self._asked, self._test_data = {}, set(), self.test_source.data
        start, end = (trainer.between_tasks(method, change) for change in (method.start_task, method.end_task))
        as_stored = jax.tree.map(lambda x: x.sharding, self.abstract_variables()[0])
        self._start_task = self._jitted(self.axis.mapped(start, 0, None, None, 0), 2, as_stored)
        self._end_task = self._jitted(self.axis.mapped(end, 0, None, None, 0), 2, as_stored)
        self._herding_steps = {}
        if isinstance(method, HerdsMemory):
            self._remember = self._jitted(self.axis.mapped(trainer.remembering(method), 0, None, 0), 2, as_stored)
        self._whole = self._jitted(lambda tree: tree, 1)

    def check_steps(self) -> None:
        """Traces all steps of the run, so that mistakes in shapes and names come before the first one.

        Nothing is compiled; of streamed pictures the first of each task are decoded.

        Raises:
          UserError: options that do not fit together.
        """
        live, frozen = self.abstract_variables()
        place, item = trainer.position(self.stream.tasks[0]), self._test_item(self.test_source, "test")
        self.abstract_state(live, frozen)
        for change in (self._start_task, self._end_task):
            jax.eval_shape(change, live, frozen, place, self.seed)
        with self._named_axes():
            data = self.test_source.data
            if isinstance(self.method, CachesQueries):
                plain = self.test_source.abstract_batch(self.config.eval.batch_size, True)
                told = jax.eval_shape(self._constants_step, frozen, data, plain)
                every = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct((len(self.stream.test), *x.shape[1:]), x.dtype), told
                )
                data = {**data, "constants": sharding.abstract_tree(self.mesh, every)}
            jax.eval_shape(self.evaluation_step, live, frozen, data, item, place)
            for network in {phase.herding_network for phase in self.method.phases if phase.herding_network}:
                shown = self._test_item(self.train_source, "train")
                jax.eval_shape(self._herding_step(network), live, frozen, self.train_source.data, shown, place)
        for part, source in (("train", self.train_source), ("test", self.test_source)):
            if source.crops_on_host:
                for task in self.stream.tasks:
                    source.check_image(getattr(task, part)[0], part)

    def _test_item(self, source, part):
        """Shapes, types and shardings of a batch of tested pictures."""
        size = self.config.eval.batch_size if part == "test" else self.config.train.batch_size
        item = source.abstract_batch(size, True)
        if self.axis.own_orders:
            item["rows"] = item["rows"].update(shape=(*item["rows"].shape, len(self.seeds)))
        return item

    def telling(self, tell, source):
        """A compiled `trainer.telling_step` for pictures of a source; with several seeds it tells for each."""
        step = trainer.telling_step(self.method, tell, source, self.config.augment)
        return self._jitted(self.axis.mapped(step, 0, None, self.axis.of_data, self.axis.of_plain, None), 2)

    def _jitted(self, function, stored, out_shardings=None):
        """`function`, to be compiled, with its first `stored` arguments in parts; results are whole unless told."""

        def on_whole(*arguments):
            return function(*sharding.unshard(self.mesh, arguments[:stored]), *arguments[stored:])

        return jax.jit(on_whole, out_shardings=out_shardings or sharding.replicated(self.mesh))

    @property
    def seed(self):
        """int32, `[seeds]` where there are several: the last argument of a step, for which nothing is compiled anew."""
        return np.array(self.seeds, np.int32) if self.config.seeds else np.int32(self.config.seed)

    def start_task(self, live, frozen, place):
        """The live variables with which the task at `place` begins."""
        return self._start_task(live, frozen, place, self.seed)

    def end_task(self, live, frozen, place):
        """The live variables that are evaluated after the task at `place`."""
        return self._end_task(live, frozen, place, self.seed)

    def memories(self, live) -> list:
        """For each seed the rows that its network has chosen to remember, see `data.herding`; None where none does."""
        if not isinstance(self.method, HerdsMemory):
            return [None] * len(self.seeds)
        rows = jax.device_get(self._whole(self.method.memory_rows(live)))
        return list(rows) if self.config.seeds else [rows]

    def update_memory(self, live, frozen, phase, task, place):
        """The live variables once the network that the phase names has chosen what to remember of a task's classes."""
        # Every process fetches all of it, and chooses the same. Not in batches of evaluation: their size may change
        # while a run goes on, and with it the last bits.
        at = self.train_source, self.axis.rows([task], "train"), place, self.config.train.batch_size
        features = self._told(self._herding_step(phase.herding_network), live, frozen, *at)
        of_seeds = list(features) if self.config.seeds else [features]
        learnt = [(own.tasks[task.index].train, own.train.labels) for own in self.streams]
        rows = [
            herding.update_memory(memory, shown, labels[shown], own)
            for memory, (shown, labels), own in zip(self.memories(live), learnt, of_seeds, strict=True)
        ]
        rows = np.stack(rows) if self.config.seeds else rows[0]
        return self._remember(live, frozen, sharding.shard(self.mesh, rows))

    def _herding_step(self, network):
        """The compiled step that tells by which features a network chooses what to remember."""
        if network not in self._herding_steps:
            tell = lambda *at: self.method.features(*at)[network]["features"]  # noqa: E731
            self._herding_steps[network] = self.telling(tell, self.train_source)
        return self._herding_steps[network]

    def initial_variables(self):
        """Live and frozen variables before the first task, on every device of the mesh.

        Raises:
          UserError: a file of pretrained weights is missing or does not fit, or several seeds ask for random ones.
        """
        key = trainer.init_key(self.seeds[0])
        # Shapes stay where nothing is loaded.
        live, frozen = trainer.split(self.method.load_pretrained(self._shapes), self._is_live)
        if self.config.seeds and not _all_loaded(frozen):
            raise UserError(
                "config.seeds shares one frozen backbone, and random weights would differ between seeds: name files of "
                "pretrained weights, or run the seeds one by one"
            )
        live = _fill(live, jax.jit(self._fresh_live)(self.seed))
        if not _all_loaded(frozen):
            frozen = _fill(frozen, jax.jit(lambda: trainer.split(self.method.init(key), self._is_live)[1])())
        frozen = cast_frozen_kernels(frozen, self.config.frozen_dtype)
        return sharding.shard(self.mesh, live), sharding.shard(self.mesh, frozen)

    def _fresh_live(self, seed):
        def fresh(seed):
            return trainer.split(self.method.init(trainer.init_key(seed)), self._is_live)[0]

        return self.axis.mapped(fresh, 0)(seed)

    def abstract_variables(self):
        """Shapes, types and shardings of the live and the frozen variables."""
        live, frozen = trainer.split(self._shapes, self._is_live)
        frozen = cast_frozen_kernels(frozen, self.config.frozen_dtype)
        if self.config.seeds:
            live = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(self.seeds), *x.shape), x.dtype), live)
        return sharding.abstract_tree(self.mesh, live), sharding.abstract_tree(self.mesh, frozen)

    @cached_property
    def _shapes(self):
        """Shapes and types of all variables of one seed."""
        return jax.eval_shape(self.method.init, trainer.init_key(self.seeds[0]))

    def _is_live(self, path):
        return not self.method.is_frozen(path)

    def abstract_state(self, live, frozen) -> trainer.State:
        """Shapes, types and shardings of the state within a task."""
        if self._abstract is None:
            state = sharding.abstract_tree(self.mesh, jax.eval_shape(self._fresh_state, live))
            for index in range(len(self.method.phases)):
                after = jax.eval_shape(self._steps[index], state, frozen, *self._example(index))
                state = sharding.abstract_tree(self.mesh, after)
            self._abstract = state
        return self._abstract

    def task_state(self, live, frozen) -> trainer.State:
        """The state in which a task begins: fresh optimizers, nothing summed up."""
        wanted = self.abstract_state(live, frozen)
        opt, kept = self._fresh_parts(live)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), {"sums": wanted.sums, "bad": wanted.bad})
        return trainer.State(live=live, opt=opt, kept=kept, **sharding.shard(self.mesh, zeros))

    @cached_property
    def _fresh_parts(self):
        """live -> what else of the state at the start of a task is no sum; compiled, with `abstract_state` known."""

        def parts(live):
            state = self._fresh_state(live)
            return state.opt, state.kept

        stored = jax.tree.map(lambda x: x.sharding, (self._abstract.opt, self._abstract.kept))
        return jax.jit(parts, out_shardings=stored)

    def _fresh_state(self, live):
        state = self.axis.mapped(lambda live: trainer.task_state(self.method, live), 0)(live)
        # A copy: the steps are given the buffers of both.
        return state.replace(kept=jax.tree.map(jnp.copy, live)) if self.config.train.early_stopping.patience else state

    def train_step(self, index: int, state, frozen, size: int = 0, steps: int = 1):
        """The compiled step of phase number `index` for batches of `size` images (0: train.batch_size), or several.

        Compiled at its first use, once for all tasks of the run.
        """
        key = index, size or self.config.train.batch_size, steps
        if key not in self._compiled:
            everywhere = jax.tree.map(lambda x: x.sharding, self.abstract_state(state.live, frozen))
            debug = self.config.debug_nans  # jax then repeats a bad step, for which it needs what the step was given
            step = self._steps[index] if steps == 1 else trainer.several(self._steps[index])
            step = jax.jit(step, donate_argnums=() if debug else 0, out_shardings=everywhere)
            with self._named_axes():
                example = (state, frozen, *self._example(*key))
                self._compiled[key] = step if debug else step.lower(*example).compile()
        return self._compiled[key]

    def _named_axes(self):
        """Where a traced method finds the mesh, if networks are to be spread over it."""
        return jax.set_mesh(self.mesh) if "peer" in self.mesh.shape else nullcontext()

    def flops(self, index: int, size: int = 0) -> float | None:
        """Operations of a step that `train_step` has compiled, over all devices, by the compiler's count, if any."""
        if self.config.debug_nans:
            return None
        cost = self._compiled[index, size or self.config.train.batch_size, 1].cost_analysis()
        return cost["flops"] * self.mesh.size if cost and "flops" in cost else None

    def _step(self, index):
        skip = self.config.train.on_nonfinite == "skip"
        step = trainer.train_step(self.method, index, self.train_source, self.config.augment, skip)
        item = self.axis.of_item(self.method.phases[index])
        of_seeds = self.axis.mapped(step, 0, None, self.axis.of_data, item, None, 0)

        def on_whole(state, frozen, *arguments):
            live, frozen = sharding.unshard(self.mesh, (state.live, frozen))
            return of_seeds(state.replace(live=live), frozen, *arguments)

        return on_whole

    def _example(self, index, size=0, steps=1):
        phase = self.method.phases[index]
        pictures = self.plan.images_per_step(phase) + (size - self.config.train.batch_size if size else 0)
        item = self.train_source.abstract_batch(pictures, phase.sequential)
        axes = (len(self.plan.train),) if self.plan.multi_learner else ()
        axes += (len(self.seeds),) if self.axis.own_rows(phase) else ()
        # These axes come last, for the first is spread over the devices.
        item["rows"], ahead = item["rows"].update(shape=(*item["rows"].shape, *axes)), (steps,) * (steps > 1)
        if ahead:
            spread = sharding.batch_sharding(self.mesh, stacked=True)
            item = jax.tree.map(lambda x: x.update(shape=(steps, *x.shape), sharding=spread), item)
        place = trainer.position(self.stream.tasks[0], step=np.zeros(ahead, np.int32))
        return self.train_source.data, item, place, self.seed

    def epochs(self, task, phase) -> int:
        """Epochs of a phase in each of a task's rounds."""
        return phase.epochs_of(task.index) // self.method.rounds

    def steps(self, task, phase) -> int:
        """Batches of an epoch."""
        return self.plan.steps_per_epoch(task.index, phase)

    def batch_sizes(self, task, phase) -> list[int]:
        """Of a task's own images in each batch of an epoch, see `BatchPlan.batch_sizes`."""
        return self.plan.batch_sizes(task.index, phase)

    def train_batches(self, task, phase, round: int, epoch: int, step: int, memories=None, lengths=()):
        """A phase's batches of a round from a place on, the number of batches in an epoch, and of those passed over.

        memories: for each seed what `memories` gives; None where nothing herds.
        lengths: number of batches in each item, see `data.loaders.stack_batches`; (): one each.
        """
        steps, rows = self.steps(task, phase), self.rows(task, phase, round, memories)
        done = epoch * steps + step
        if phase.sequential:
            weight = sampling.sequential_order(len(task.train), self.config.train.batch_size)[1]
            weight = np.tile(weight, (self.epochs(task, phase), 1))
            items = self.train_source.test_batches(rows[done:], weight[done:])
        else:
            items = self.train_source.train_batches(rows, done, (self.seeds[0], task.index, phase.order))
        return loaders.stack_batches(items, lengths) if lengths else items, steps, done

    def rows(self, task, phase, round: int, memories=None) -> np.ndarray:
        """Which training pictures make up each step of a phase in a round, int32 `[steps, pictures, ...]`.

        Behind the images there is an axis of learners and one of seeds, if there are several (see `BatchPlan.order`).
        memories: as in `train_batches`.
        """
        epochs = self.epochs(task, phase)
        if phase.sequential:
            order, _ = sampling.sequential_order(len(task.train), self.config.train.batch_size)
            return np.concatenate([self.axis.rows([task], "train")[order]] * epochs)
        epochs = range(round * epochs, (round + 1) * epochs)
        orders = [
            own.order(task.index, phase, epochs, seed, memory)
            for own, seed, memory in zip(self.plans, self.seeds, memories or [None] * len(self.seeds), strict=True)
        ]
        return np.stack(orders, axis=-1) if self.config.seeds else orders[0]

    def evaluate(self, live, frozen, tasks, place, step=None, before_batch=None):
        """Returns for each seed accuracy in percent on each of `tasks`, counts, measures and `calibration.ratios`.

        Where learners have streams of their own, the last has `stream`, the accuracy on each task, learned or not.

        Accuracy is `{network: [percent, ...]}`, counts are `{network: {name: [numbers of each task]}}`. Measures are
        the method's, averaged over the pictures (of all tasks, where learners have streams of their own), and each
        network's accuracy as the mean over batches, which counts the pictures of an incomplete last batch for more: so
        do some published programs.

        Args:
          place: the position whose `end` says which classes predictions may name.
          step: a compiled step in place of the method's own (see `trainer.evaluation_step`).
          before_batch: called before each batch, with no more than two ahead of what the devices have done, so that an
            exception of it ends the evaluation soon.
        """
        step = step or self.evaluation_step
        whole = self.stream.tasks if self.plan.multi_learner else tasks  # what is seen differs between learners
        rows = self.axis.rows(whole, "test")
        order, weight = sampling.sequential_order(len(rows), self.config.eval.batch_size)
        items = self.test_source.test_batches(rows[order], weight)
        with self._named_axes():
            data, parts = self._with_constants(frozen, whole), []
            for item in items:
                if before_batch:
                    jax.block_until_ready(parts[-2:-1])
                    before_batch()
                parts.append(step(live, frozen, data, item, place))
        parts = jax.device_get(parts)
        if not self.config.seeds:
            return [calibration.summed(parts, tasks, self.plan.multi_learner)]
        each = [jax.tree.map(lambda x, i=i: x[i], parts) for i in range(len(self.seeds))]
        return [calibration.summed(own, tasks, self.plan.multi_learner) for own in each]

    def logits(self, live, frozen, task, place) -> dict:
        """Network -> logits `[test images of the task, classes]` as NumPy arrays; in a run of one seed and process."""
        data = self._with_constants(frozen, [task])
        return self._told(self.prediction_step, live, frozen, self.test_source, task.test, place, data=data)

    def each_batch(self, step, live, frozen, source, rows, place, size=0, data=None):
        """For each batch of a source's pictures at `rows` what a compiled `trainer.telling_step` says, as NumPy arrays,
        behind an axis of seeds where there are several.

        size: of a batch; 0: eval.batch_size. data: what the step reads in place of the source's.
        """
        size, data = size or self.config.eval.batch_size, source.data if data is None else data
        order, weight = sampling.sequential_order(len(rows), size)
        for number, item in enumerate(source.test_batches(rows[order], weight)):
            with self._named_axes():
                told = jax.device_get(step(live, frozen, data, item, place))
            count = min(size, len(rows) - number * size)  # without what fills the last batch up
            yield jax.tree.map(lambda x, n=count: x[:, :n] if self.config.seeds else x[:n], told)

    def _told(self, *of, **options):
        """What `each_batch` gives, in one piece."""
        axis = 1 if self.config.seeds else 0
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=axis), *self.each_batch(*of, **options))

    def _with_constants(self, frozen, tasks):
        """What evaluation reads: the test pictures and, where the method has any, their `constants`.

        Those are asked task by task, so that a picture's are the same whichever tasks are evaluated together; all at
        once where tasks are of other pictures for each seed.
        """
        wanted = {task.index: task.test for task in tasks}
        if self.axis.own_orders:
            wanted = {0: np.arange(len(self.stream.test), dtype=np.int32)}
        new = {index: rows for index, rows in wanted.items() if index not in self._asked}
        if not isinstance(self.method, CachesQueries) or not new:
            return self._test_data
        for rows in new.values():
            order, weight = sampling.sequential_order(len(rows), self.config.eval.batch_size)
            items = self.test_source.test_batches(rows[order], weight)
            parts = [self._constants_step(frozen, self.test_source.data, item) for item in items]
            told = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))
            for name, values in told.items():
                shape = len(self.stream.test), *values.shape[1:]
                self._constants.setdefault(name, np.zeros(shape, values.dtype))[rows] = values[: len(rows)]
        self._asked |= set(new)
        whole = {name: values.copy() for name, values in self._constants.items()}  # these will change
        self._test_data = {**self.test_source.data, "constants": sharding.shard(self.mesh, whole)}
        return self._test_data


def _all_loaded(tree) -> bool:
    return not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _fill(loaded, fresh):
    """`loaded`, with `fresh` in place of shapes; what was loaded is repeated where `fresh` has an axis of seeds."""
    return jax.tree.map(
        lambda new, old: old if isinstance(new, jax.ShapeDtypeStruct) else np.broadcast_to(new, old.shape),
        loaded,
        jax.device_get(fresh),
    )
