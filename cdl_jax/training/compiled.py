"""Compiles the steps of an experiment, and loads their batches.

Each step is compiled once for all tasks of the run.
"""

from contextlib import nullcontext
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data import loaders, sampling
from cdl_jax.data.stream import Task
from cdl_jax.errors import UserError
from cdl_jax.methods.base import CachesQueries, HerdsMemory, Phase
from cdl_jax.runtime import operations, sharding
from cdl_jax.runtime.compilation_queue import CompilationQueue
from cdl_jax.training import steps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import State, init_optimizers, position


class CompiledSteps:
    """Holds the loaders and the jitted steps of an experiment.

    Arguments of a step are sharded as `sharding.param_sharding` has it and are gathered inside; results are replicated
    unless they are variables.
    """

    def __init__(self, experiment: Experiment):
        """Puts images where the steps read them. Training steps are compiled on first use.

        Raises:
          UserError: several seeds or learners, whose images do not fit on the device.
        """
        self.experiment = experiment
        config, method, axis = experiment.config, experiment.method, experiment.axis
        self.train_loader, self.test_loader = experiment.problem.make_loaders(experiment)
        _check_loaders(experiment, self.train_loader, self.test_loader)
        evaluation = experiment.problem.evaluation_step(method, self.test_loader, config.augment, experiment.info)
        evaluation = axis.vmap(evaluation, 0, None, axis.data_axes, axis.sequential_axes, None)
        self.evaluation_step = self._jit(evaluation, 2)
        self.logits_step = self.predict_step(lambda *inputs: method.predict(*inputs)[0], self.test_loader)
        if isinstance(method, CachesQueries):
            self.query_step = self._jit(steps.query_step(method, self.test_loader, config.augment), 1)
        shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_variables()[0])

        def boundary_step(change):
            step = steps.task_boundary_step(method, change)
            return self._jit(axis.vmap(step, 0, None, None, 0), 2, shardings)

        self._start_task, self._end_task = boundary_step(method.start_task), boundary_step(method.end_task)
        finishes = {index: phase.finish for index, phase in enumerate(method.phases)}
        self._finish_phase = {index: boundary_step(finish) for index, finish in finishes.items() if finish}
        if isinstance(method, HerdsMemory):
            update = axis.vmap(steps.update_memory_step(method), 0, None, 0)
            self.update_memory_step = self._jit(update, 2, shardings)
        self.replicate = self._jit(lambda tree: tree, 1)
        skip, read_batch = config.train.on_nonfinite == "skip", experiment.problem.read_batch
        self._train_steps = [
            steps.TrainStep(method, index, self.train_loader, config.augment, skip, read_batch)
            for index in range(len(method.phases))
        ]
        self._compiled, self._feature_steps = {}, {}
        self._queue = CompilationQueue(loaders.usable_cpus() - 1)  # one CPU traces, loads and trains

    def trace(self) -> None:
        """Traces all steps.

        Mistakes in shapes and names are found before the first step. Nothing is compiled. Of images that are decoded on
        the host, the first of each task is decoded.

        Raises:
          UserError: options that do not fit together.
        """
        experiment, method = self.experiment, self.experiment.method
        mutable, frozen = experiment.abstract_variables()
        start = position(experiment.stream.tasks[0])
        self.abstract_state  # noqa: B018 (traces the updates of all phases)
        for change in (self._start_task, self._end_task, *self._finish_phase.values()):
            jax.eval_shape(change, mutable, frozen, start, experiment.seed)
        with self.mesh_context():
            for step, inputs in self._evaluation_programs().values():
                jax.eval_shape(step, *inputs)
            for network in {phase.herding_network for phase in method.phases if phase.herding_network}:
                batch = self.abstract_sequential_batch(self.train_loader)
                jax.eval_shape(self.features_step(network), mutable, frozen, self.train_loader.data, batch, start)
        for loader, part in ((self.train_loader, "train"), (self.test_loader, "test")):
            if loader.crops_on_host:
                for task in experiment.stream.tasks:
                    loader.check_image({"train": task.train, "test": task.test}[part][0], part)

    def _evaluation_programs(self) -> dict[str, tuple]:
        """Returns the jitted steps of an evaluation by name.

        Each step comes with its arguments or their shapes.
        """
        mutable, frozen = self.experiment.abstract_variables()
        programs, data = {}, self.test_loader.data
        if isinstance(self.experiment.method, CachesQueries):
            inputs = frozen, data, self.test_loader.abstract_batch(self.experiment.config.eval.batch_size, True)
            programs["queries"] = self.query_step, inputs
            count = len(self.experiment.stream.test)
            queries = jax.eval_shape(self.query_step, *inputs)
            queries = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), queries)
            data = {**data, "queries": sharding.abstract_tree(self.experiment.mesh, queries)}
        inputs = mutable, frozen, data, self.abstract_sequential_batch(self.test_loader)
        return programs | {"evaluation": (self.evaluation_step, (*inputs, position(self.experiment.stream.tasks[0])))}

    def compile_evaluation_in_background(self) -> None:
        """Starts to compile the steps of an evaluation in threads.

        The steps are compiled in the order of their use.
        """
        if self._compiles_in_background:
            with self.mesh_context():
                for name, (step, inputs) in self._evaluation_programs().items():
                    self._queue.add(name, step.lower(*inputs))

    def compile_training_in_background(self) -> None:
        """Starts to compile the steps of all phases in threads, in the order of their use."""
        if not self._compiles_in_background:
            return
        experiment = self.experiment
        for index, phase in enumerate(experiment.method.phases):
            task = next((task for task in experiment.stream.tasks if experiment.epochs(task, phase)), None)
            key = task and self._program_key(index, max(experiment.batch_sizes(task, phase)))
            if key and key not in self._compiled:
                with self.mesh_context():
                    self._queue.add(key, self._jitted_step(index, 1).lower(*self._step_inputs(*key)))

    @property
    def _compiles_in_background(self) -> bool:
        """Returns whether threads compile.

        Several processes compile in the same order. On a single CPU the program that is needed first is compiled first.
        """
        is_alone = jax.process_count() == 1
        return is_alone and self._queue.threads > 0 and not self.experiment.config.debug_nans

    def finish_evaluation_compilation(self) -> None:
        """Waits until the steps of an evaluation are compiled, if threads compile them."""
        for name in ("queries", "evaluation"):
            self._queue.take(name)

    def cancel_compilation(self) -> None:
        """Ends the compilation of steps in threads.

        A step that is still missing is compiled at its first use.
        """
        self._queue.cancel()

    def abstract_sequential_batch(self, loader: steps.Loader) -> dict:
        """Returns shapes, types and shardings of a batch of a loader in sequential order."""
        config, axis = self.experiment.config, self.experiment.axis
        size = config.eval.batch_size if loader is self.test_loader else config.train.batch_size
        batch = loader.abstract_batch(size, True)
        if axis.per_seed_classes:
            batch["rows"] = batch["rows"].update(shape=(*batch["rows"].shape, len(self.experiment.seeds)))
        return batch

    def predict_step(self, function, loader: steps.Loader):
        """Returns a jitted `steps.predict_step`.

        Outputs have a leading axis of seeds where there are several.
        """
        axis = self.experiment.axis
        step = steps.predict_step(self.experiment.method, function, loader, self.experiment.config.augment)
        return self._jit(axis.vmap(step, 0, None, axis.data_axes, axis.sequential_axes, None), 2)

    def sampling_step(self, function):
        """Returns a jitted `(mutable, frozen, position) -> outputs`.

        Outputs have a leading axis of seeds where there are several.

        function: with the same arguments, for one seed.
        """
        return self._jit(self.experiment.axis.vmap(function, 0, None, None), 2)

    def features_step(self, network: str):
        """Returns the jitted step of the features by which a network selects a memory."""
        if network not in self._feature_steps:
            method = self.experiment.method

            def features(variables, images, context):
                return method.features(variables, images, context)[network]["features"]

            self._feature_steps[network] = self.predict_step(features, self.train_loader)
        return self._feature_steps[network]

    def start_task(self, mutable, frozen, position):
        """Returns the mutable variables with which the task at `position` begins."""
        return self._start_task(mutable, frozen, position, self.experiment.seed)

    def end_task(self, mutable, frozen, position):
        """Returns the mutable variables that are evaluated after the task at `position`."""
        return self._end_task(mutable, frozen, position, self.experiment.seed)

    def finish_phase(self, index: int, mutable, frozen, position):
        """Returns the mutable variables after `Phase.finish` of the phase `index`."""
        finish = self._finish_phase.get(index)
        return finish(mutable, frozen, position, self.experiment.seed) if finish else mutable

    @cached_property
    def abstract_state(self) -> State:
        """Returns shapes, types and shardings of the state within a task."""
        mutable, frozen = self.experiment.abstract_variables()
        opt, best = jax.eval_shape(partial(_initial_parts, self.experiment), mutable)
        opt = sharding.abstract_tree(self.experiment.mesh, opt)  # as the step has it, which then is not traced again
        sums, nonfinite = [], []
        for index in range(len(self.experiment.method.phases)):

            def updates(variables, *rest, step=self._train_steps[index]):
                return step.updates(*variables, *rest)

            inputs = (mutable, opt[index]), frozen, *self._abstract_inputs(index)
            with self.mesh_context():
                metrics = jax.eval_shape(_over_seeds(self.experiment, index, updates), *inputs)[2]
            terms = {name: value for name, value in metrics.items() if name != "steps"}
            integer = jax.ShapeDtypeStruct(metrics["steps"].shape, np.int32)
            sums.append(metrics)
            nonfinite.append({"count": integer, "epoch": integer, "step": integer, "terms": terms})
        state = State(mutable, opt, tuple(sums), tuple(nonfinite), best)
        return sharding.abstract_tree(self.experiment.mesh, state)

    def task_state(self, mutable) -> State:
        """Returns the state with which a task begins.

        The state has new optimizer states, and sums of zero.
        """
        opt, best = self._compiled_initial_parts(mutable)
        return State(mutable, opt, **self.zero_sums(), best_mutable=best)

    def zero_sums(self) -> dict:
        """Returns `metric_sums` and `nonfinite` of a state before its first step.

        The arrays are on the devices.
        """
        abstract = self.abstract_state
        sums = {"metric_sums": abstract.metric_sums, "nonfinite": abstract.nonfinite}
        return sharding.shard(self.experiment.mesh, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), sums))

    @cached_property
    def _compiled_initial_parts(self):
        shardings = jax.tree.map(lambda x: x.sharding, (self.abstract_state.opt, self.abstract_state.best_mutable))
        return jax.jit(partial(_initial_parts, self.experiment), out_shardings=shardings)

    def train_step(self, index: int, size: int = 0, num_steps: int = 1):
        """Returns the compiled step of a phase.

        The step is compiled at its first use, once for all tasks of the run.

        Args:
          index: number of the phase.
          size: number of the task's own images in a batch; 0: train.batch_size.
          num_steps: number of steps in one call, see `steps.scan_steps`.
        """
        if len(self.train_loader.canvases) > 1:
            return partial(self._step_on_canvas, index, size)
        return self.compiled_step(index, size, num_steps)

    def _step_on_canvas(self, index, size, state, frozen, data, host_batch, *position_and_seed):
        """Runs the step that is compiled for the canvas of the batch."""
        step = self.compiled_step(index, size, canvas=host_batch["images"].shape[1:3])
        return step(state, frozen, data, host_batch, *position_and_seed)

    def compiled_step(self, index: int, size: int = 0, num_steps: int = 1, canvas: tuple[int, int] | None = None):
        """Returns the compiled step for one shape of batches.

        Args:
          index, size, num_steps: as in `train_step`.
          canvas: (height, width) of the images; None: the first of the loader, or the only shape.
        """
        key = self._program_key(index, size, num_steps, canvas)
        if key not in self._compiled:
            step = self._jitted_step(index, num_steps)
            debug = self.experiment.config.debug_nans  # jax then repeats a bad step with the step's own arguments
            with self.mesh_context():
                compiled = self._queue.take(key)
                self._compiled[key] = step if debug else compiled or step.lower(*self._step_inputs(*key)).compile()
        return self._compiled[key]

    def _program_key(self, index, size=0, num_steps=1, canvas=None):
        canvases = self.train_loader.canvases
        canvas = canvas or (canvases[0] if canvases else None)
        return index, size or self.experiment.config.train.batch_size, num_steps, canvas

    def _jitted_step(self, index, num_steps):
        """Returns the jitted step of a phase, or several of its steps in one call."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        step = self._phase_step(index) if num_steps == 1 else steps.scan_steps(self._phase_step(index))
        return jax.jit(step, donate_argnums=() if self.experiment.config.debug_nans else 0, out_shardings=shardings)

    def _step_inputs(self, *key):
        """Returns the arguments of the step with this key, as shapes where they are large."""
        return self.abstract_state, self.experiment.abstract_variables()[1], *self._abstract_inputs(*key)

    def flops(self, index: int, size: int = 0) -> float | None:
        """Returns the operations of a compiled step over all devices.

        The number is the compiler's count; None: unknown. The compiler counts repeated steps of an update once, so then
        the number is that of `traced_work`.
        """
        if self.experiment.config.debug_nans:
            return None
        if any(update.repeats > 1 for update in self.experiment.method.phases[index].updates):
            return float(self.traced_work(index).flops)
        cost = self.compiled_step(index, size).cost_analysis()
        return cost["flops"] * self.experiment.mesh.size if cost and "flops" in cost else None

    def traced_work(self, index: int) -> operations.Work:
        """Returns the matrix products and convolutions of a step over all devices.

        The step is not compiled. Batches of several canvases have the first canvas.

        Args:
          index: number of the phase.
        """
        canvases, size = self.train_loader.canvases, self.experiment.config.train.batch_size
        inputs = self._abstract_inputs(index, size, canvas=canvases[0] if canvases else None)
        with self.mesh_context():
            frozen = self.experiment.abstract_variables()[1]
            return operations.count(self._phase_step(index), self.abstract_state, frozen, *inputs)

    def traceable_step(self, index: int):
        """Returns the step of a phase before jit, and shapes of its arguments.

        They serve to compile the step elsewhere.
        """
        inputs = self._abstract_inputs(index)
        return self._phase_step(index), (self.abstract_state, self.experiment.abstract_variables()[1], *inputs)

    def mesh_context(self):
        """Returns the context in which a traced method finds the mesh.

        The context has the mesh where the method divides work over the mesh.
        """
        mesh, is_divided = self.experiment.mesh, self.experiment.problem.uses_mesh
        return jax.set_mesh(mesh) if "peer" in mesh.shape or (is_divided and mesh.size > 1) else nullcontext()

    def train_batches(self, task: Task, phase: Phase, round: int, first_step: int, memories=None, lengths=()):
        """Yields a phase's batches of a round, from step `first_step` of the round on.

        Args:
          memories: rows of the herded memory of each seed; None without one.
          lengths: number of batches that each item stacks; empty: one each.
        """
        experiment = self.experiment
        rows = experiment.rows(task, phase, round, memories)
        if phase.sequential:
            weight = sampling.sequential_order(len(task.train), experiment.config.train.batch_size)[1]
            weight = np.tile(weight, (experiment.epochs(task, phase), 1))
            host_batches = self.train_loader.test_batches(rows[first_step:], weight[first_step:])
        else:
            key_parts = (experiment.seeds[0], task.index, phase.order)
            if experiment.method.rounds > 1:  # positions within `rows` begin at 0 in each round
                key_parts += (round,)
            host_batches = self.train_loader.train_batches(rows, first_step, key_parts)
        return loaders.stack_batches(host_batches, lengths) if lengths else host_batches

    def _jit(self, function, num_params: int, out_shardings=None):
        """Jits a function whose first `num_params` arguments are sharded parameters.

        The docstring of the class describes the sharding.
        """
        mesh = self.experiment.mesh

        def on_gathered(*arguments):
            return function(*sharding.unshard(mesh, arguments[:num_params]), *arguments[num_params:])

        return jax.jit(on_gathered, out_shardings=out_shardings or sharding.replicated(mesh))

    def _phase_step(self, index):
        mesh, step = self.experiment.mesh, _over_seeds(self.experiment, index, self._train_steps[index])

        def on_gathered(state, frozen, *arguments):
            mutable, frozen = sharding.unshard(mesh, (state.mutable, frozen))
            return step(state.replace(mutable=mutable), frozen, *arguments)

        return on_gathered

    def _abstract_inputs(self, index, size=0, num_steps=1, canvas=None):
        """Returns data, host batch, position and seed of a step.

        Large arguments are shapes.
        """
        experiment, phase = self.experiment, self.experiment.method.phases[index]
        images = experiment.plan.images_per_step(phase) + (size - experiment.config.train.batch_size if size else 0)
        shape = {"canvas": canvas} if canvas else {}
        batch = self.train_loader.abstract_batch(images, phase.sequential, **shape)
        axes = (len(experiment.plan.train),) if experiment.plan.multi_learner else ()
        axes += (len(experiment.seeds),) if experiment.axis.per_seed_rows(phase) else ()
        # These axes come last, because the first axis is divided over the devices.
        batch["rows"] = batch["rows"].update(shape=(*batch["rows"].shape, *axes))
        leading = (num_steps,) * (num_steps > 1)
        if leading:
            stacked = sharding.batch_sharding(experiment.mesh, stacked=True)
            batch = jax.tree.map(lambda x: x.update(shape=(*leading, *x.shape), sharding=stacked), batch)
        first = position(experiment.stream.tasks[0], step=np.zeros(leading, np.int32))
        return self.train_loader.data, batch, first, experiment.seed


def _initial_parts(experiment, mutable):
    """Returns the optimizer states and `best_mutable` with which a task begins."""
    opt = experiment.axis.vmap(lambda tree: init_optimizers(experiment.method, tree), 0)(mutable)
    patience = experiment.config.train.early_stopping.patience
    # A copy, because the steps are given the buffers of both.
    return opt, jax.tree.map(jnp.copy, mutable) if patience else {}


def _over_seeds(experiment, index, function):
    """Maps a function over the axis of seeds.

    The function takes state and frozen variables, followed by the other arguments of a step.
    """
    batch_axes = experiment.axis.batch_axes(experiment.method.phases[index])
    return experiment.axis.vmap(function, 0, None, experiment.axis.data_axes, batch_axes, None, 0)


def _check_loaders(experiment, train_loader, test_loader):
    """Refuses images on the host for several seeds or learners.

    Several seeds or learners need the images on the device.
    """
    config = experiment.config
    on_host = [train_loader.crops_on_host, test_loader.crops_on_host and experiment.axis.per_seed_classes]
    if any(on_host) and (config.seeds or experiment.plan.multi_learner):
        who = "config.seeds" if config.seeds else f"method {config.method!r}, which has several learners,"
        raise UserError(
            f"{who} needs {'training' if on_host[0] else 'test'} images on the device: raise "
            "config.device_data_limit_mb" + (", or run the seeds one by one" if config.seeds else "")
        )
