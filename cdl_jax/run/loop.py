"""Runs the task loop, which can be stopped at any step.

The same command resumes the loop. `TaskLoop.run` trains task after task, `_train_task` the phases of a task, and
`_train_phase` the steps of a phase.
"""

import json
import logging
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.models import weights
from cdl_jax.run import detections, early_stopping, memory, progress, results, workdir
from cdl_jax.run.logger import RunLogger, draw_report, report_is_current
from cdl_jax.run.loggers.base import RunInfo
from cdl_jax.run.results import Record
from cdl_jax.run.schedule import Schedule
from cdl_jax.runtime import distributed, files
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.runtime.signals import RunInterrupted, SignalHandler
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import State, position


def train(
    experiment: Experiment, folder: Path, signals: SignalHandler | None = None, steps: CompiledSteps | None = None
) -> list[dict]:
    """Trains the tasks that are not trained yet.

    Args:
      experiment: what to train.
      folder: the working directory.
      signals: source of stop requests. None: the run cannot be interrupted.
      steps: the experiment's compiled steps; None: they are compiled here.

    Returns:
      The results of each seed, see `results.collect`.

    Raises:
      UserError: the newest checkpoint cannot be read.
      RunInterrupted: a stop was requested; everything is saved.
    """
    folders = files.seed_folders(folder, experiment.config.seeds)
    stored = [results.read(seed_folder) for seed_folder in folders]
    if all(content and content["status"] == "finished" for content in stored):
        if experiment.config.log.report and jax.process_index() == 0:
            for seed_folder, content in zip(folders, stored, strict=True):
                if not report_is_current(seed_folder):  # the process ended while the report was drawn
                    draw_report(seed_folder, content)
        return stored
    options = experiment.config.checkpoint
    with (
        Checkpoints(folder, keep=options.keep, keep_tasks=options.keep_tasks) as checkpoints,
        jax.debug_nans(True) if experiment.config.debug_nans else nullcontext(),
    ):
        try:
            steps = steps or CompiledSteps(experiment)
            return TaskLoop(steps, folder, checkpoints, signals or SignalHandler()).run()
        except jax.errors.JaxRuntimeError:
            if jax.process_count() > 1:  # here, because the end of the checkpoints waits for all processes
                distributed.abort(
                    "cdl_jax: this process of the run, or another, has failed; rerun the same command to resume"
                )
            raise
        finally:
            if steps is not None:
                steps.cancel_compilation()


def evaluate(experiment: Experiment, folder: Path, task: int | None) -> dict:
    """Evaluates the checkpoint after a task.

    Args:
      task: index; None: the last finished task.

    Returns:
      {"task": t, "metric": name of the numbers, "networks": {name: {"now": [percent, ...], "stored": [percent, ...]}}},
      where "stored" is the row of the run's accuracy matrix. With several seeds a network's name is followed by its
      seed. Detectors also have "numbers", those of COCO, and "class_ap": (name, percent or None) of each class.
      Generators also have "extra_metrics".

    Raises:
      UserError: there is no such checkpoint.
    """
    with Checkpoints(folder, read_only=True) as checkpoints:
        finished = checkpoints.finished_tasks()
        if task is None:
            task = finished[-1] if finished else 0
        records = results.from_json(checkpoints.task_record(task))
        steps = CompiledSteps(experiment)
        mutable, frozen = experiment.abstract_variables()
        mutable, frozen = checkpoints.restore_task(task, mutable), checkpoints.restore_frozen(frozen)
    tasks = experiment.stream.tasks[: task + 1]
    evaluations = experiment.problem.make_evaluator(steps).evaluate(mutable, frozen, tasks, position(tasks[-1]))
    networks = {}
    for seed, record, found in zip(experiment.seeds, records, evaluations, strict=True):
        for name, row in found.accuracy.items():
            label = f"{name}, seed {seed}," if experiment.config.seeds else name
            networks[label] = {"now": row, "stored": record.accuracy[name][task]}
        if found.sheet is not None:
            networks[label]["extra_metrics"] = found.extra_metrics
        for name, details in found.detection.items():
            class_aps = zip(experiment.stream.class_names, details["class_ap"], strict=False)
            networks[name] |= {"numbers": found.extra_metrics, "class_ap": list(class_aps)}
    return {"task": task, "metric": experiment.metric, "networks": networks}


class TaskLoop:
    """Trains the tasks of an experiment in order.

    A checkpoint, results and a report follow each task.
    """

    def __init__(self, steps: CompiledSteps, folder: Path, checkpoints: Checkpoints, signals: SignalHandler):
        """Restores the newest checkpoint, or begins a run.

        A new run initializes the variables and claims the working directory.
        """
        self.steps, self.experiment = steps, steps.experiment
        self.evaluator = self.experiment.problem.make_evaluator(steps)
        self.folder, self.checkpoints, self.signals = folder, checkpoints, signals
        self.is_primary = jax.process_index() == 0  # the only process that writes files other than checkpoints
        steps.trace()
        steps.compile_evaluation_in_background()
        self.records, self.mutable, self.frozen, self.state = self._restore()
        steps.compile_training_in_background()
        self.record = self.records[0]  # the position in the run is that of all seeds
        self.loggers, self.bar = [], None
        if self.is_primary:
            folders = files.seed_folders(folder, self.experiment.config.seeds)
            for seed, seed_folder, record in zip(self.experiment.seeds, folders, self.records, strict=True):
                self.loggers.append(self._open_logger(seed, seed_folder, record))

    def run(self) -> list[dict]:
        """Trains the remaining tasks; returns the results of each seed."""
        experiment, tasks = self.experiment, self.experiment.stream.tasks
        self.signals.defer_stop(experiment.mesh)
        total = sum(
            experiment.steps_per_epoch(task, phase) * phase.epochs_of(task.index)
            for phase in experiment.method.phases
            for task in tasks
        )
        try:
            with progress.show(total, self.record.step, primary=self.is_primary) as self.bar:
                for task in tasks[self.record.task :]:
                    self._train_task(task)
            return self._write_results()
        finally:
            for logger in self.loggers:
                logger.close()

    def _open_logger(self, seed, seed_folder, record):
        """Returns the logger of a seed, with the lines and tasks that its record has."""
        config = self.experiment.config
        info = RunInfo(seed_folder.absolute(), self.folder.absolute(), _config_of_seed(config.to_dict(), seed))
        scalars = [
            results.task_scalars(self.experiment, record, self.record.costs, task) for task in range(self.record.task)
        ]
        return RunLogger(info, record.num_log_lines, config.log, scalars)

    def _restore(self):
        """Restores the newest checkpoint, or initializes records and variables.

        Returns:
          Records (one a seed), mutable variables, frozen variables, and the state within a task or None.
        """
        experiment, checkpoints = self.experiment, self.checkpoints
        if not checkpoints.finished_tasks() and checkpoints.latest_step() is None:
            records = [Record() for _ in experiment.seeds]
            mutable, frozen = experiment.initial_variables()
            if self.is_primary:  # only now: after an unreadable file the directory is free for another config
                workdir.write_configs(self.folder, experiment.config.to_dict(), experiment.stream)
            checkpoints.save_frozen(frozen)
            return records, mutable, frozen, None
        if not (self.folder / "config.json").exists():
            raise UserError(f"--workdir {self.folder} has checkpoints, but no config.json: bring it back")
        mutable, frozen = experiment.abstract_variables()
        frozen = checkpoints.restore_frozen(frozen)
        target = self.steps.abstract_state
        record, restored, is_within_task = checkpoints.restore_newest(mutable, target, {1: target.to_schema_1()})
        state = State.from_saved(restored) if is_within_task else None
        records = results.from_json(record)
        if self.is_primary:  # of a seed whose folder was lost
            workdir.write_configs(self.folder, experiment.config.to_dict(), experiment.stream, records[0].parent)
        return records, state.mutable if state else restored, frozen, state

    def _train_task(self, task):
        experiment, record, method = self.experiment, self.record, self.experiment.method
        start, num_phases = position(task), len(method.phases)
        if not record.within_task():
            if experiment.config.eval.forward_transfer and experiment.info.num_tasks > 1:
                self._evaluate_before(task)
            self.mutable = self.steps.start_task(self.mutable, self.frozen, start)
        state, self.state = self.state or self.steps.task_state(self.mutable), None
        self.mutable = None  # its buffers are donated to the steps
        for turn in range(record.round * num_phases + record.phase, method.rounds * num_phases):
            record.round, record.phase = divmod(turn, num_phases)
            trained = state
            if experiment.epochs(task, method.phases[record.phase]):
                trained = self._train_phase(task, record.phase, state)
                state = self._finish_phase(task, record.phase, trained)
            record.epoch, record.step_in_epoch, record.stopping_history = 0, 0, []
        self.mutable = self.steps.end_task(state.mutable, self.frozen, start)
        try:
            tasks = experiment.stream.tasks[: task.index + 1]
            evaluations = self._evaluate(self.mutable, tasks, start, self._stop_if_requested)
        except RunInterrupted:
            record.round, record.phase = method.rounds - 1, num_phases - 1
            record.epoch, record.step_in_epoch = experiment.epochs(task, method.phases[-1]), 0
            self._save_latest(trained)  # what follows the last step is repeated
            raise
        scalars = self._record_evaluations(evaluations)
        record.costs = {**record.costs, str(task.index): results.measured_cost(record)}  # of all seeds together
        task_scalars = [results.task_scalars(experiment, own, record.costs, task.index) for own in self.records]
        self._log(scalars, task_scalars, task=task.index)
        record.task, record.round, record.phase = task.index + 1, 0, 0
        if self.is_primary:
            # First, because after the checkpoint a restarted run counts the task as done.
            self._export_weights()
        self.checkpoints.save_task(task.index, self.mutable, results.to_json(self.records))
        if record.task < experiment.stream.num_tasks:
            self._write_results()

    def _train_phase(self, task, index, state):
        """Returns the state after the remaining steps of a phase in this round."""
        experiment, record, phase = self.experiment, self.record, self.experiment.method.phases[index]
        epochs, sizes = experiment.epochs(task, phase), experiment.batch_sizes(task, phase)
        watch = _Stopwatch()
        schedule = Schedule.build(experiment.config, record, sizes, epochs, experiment.method.rounds)
        steps_per_epoch, epochs_before = schedule.steps_per_epoch, record.round * epochs
        scanned = {(max(sizes), length) for length in schedule.lengths if length > 1}
        compiled = {key: self.steps.train_step(index, *key) for key in {(size, 1) for size in sizes} | scanned}
        flops = self.steps.flops(index, max(sizes))
        record.flops[phase.name] = flops and flops / len(experiment.seeds)
        first_step = record.epoch * steps_per_epoch + record.step_in_epoch
        host_batches = self.steps.train_batches(
            task, phase, record.round, first_step, memory.read_rows(self.steps, state.mutable), schedule.lengths
        )
        accumulate = 1 if phase.sequential else experiment.config.optim.accumulate
        for host_batch, call in zip(host_batches, schedule, strict=True):
            numbers = call.first if call.length == 1 else np.arange(call.first, call.first + call.length)
            at = {"epoch": epochs_before + numbers // steps_per_epoch, "step": numbers % steps_per_epoch}
            at = position(task, **at, steps=steps_per_epoch, accumulate=accumulate)
            step = compiled[call.size, call.length]
            state = step(state, self.frozen, self.steps.train_loader.data, host_batch, at, experiment.seed)
            if not watch.images_from:  # the first call compiles
                jax.block_until_ready(state.metric_sums)
                watch.start_counting()
            else:
                watch.images += sum(sizes[n % steps_per_epoch] for n in range(call.first, call.last + 1))
            record.step += call.length
            record.steps[phase.name] = record.steps.get(phase.name, 0) + call.length
            record.epoch, record.step_in_epoch = divmod(call.last + 1, steps_per_epoch)
            self.bar.update(call.length)
            epoch, is_stopped = epochs_before + call.last // steps_per_epoch, False
            if call.log:
                state = self._log_training(state, task, index, epoch)
            if call.evaluate:
                jax.block_until_ready(state.metric_sums)
                with watch.paused():
                    self._evaluate_within(task, phase, epoch, state.mutable)
                    state, is_stopped = self._apply_early_stopping(state)
            if is_stopped:
                if not call.log:
                    state = self._log_training(state, task, index, epoch)
                self.bar.total -= steps_per_epoch * epochs - call.last - 1
                break
            stop_request = self.signals.stop_requested()
            if stop_request or call.save:
                record.add_seconds(phase.name, watch.restart())
                if experiment.config.train.on_nonfinite == "stop":  # a skipped step leaves no trace in the state
                    self._report_nonfinite(state, task, index)
                if stop_request:
                    self._save_latest(state)
                    raise RunInterrupted(stop_request, record.step)
                self.checkpoints.save_latest(record.step, state, results.to_json(self.records))
        jax.block_until_ready(state.mutable)
        if watch.images_from:
            images, seconds = record.throughput.get(phase.name, (0, 0.0))
            images += watch.images * len(experiment.seeds) * len(experiment.plan.train)
            record.throughput[phase.name] = (images, seconds + watch.counted_seconds())
        record.add_seconds(phase.name, watch.restart())
        return state

    def _finish_phase(self, task, index, state):
        """Returns the state after `Phase.finish` and the herding of a memory.

        Both come after the last step of a phase. Nothing is saved for a restart after this step, because both follow
        from the weights.
        """
        phase = self.experiment.method.phases[index]
        mutable = self.steps.finish_phase(index, state.mutable, self.frozen, position(task))
        if phase.herding_network:
            start = time.perf_counter()
            mutable = memory.select(self.evaluator, mutable, self.frozen, phase, task)
            self.record.add_seconds("herding", time.perf_counter() - start)
        return state.replace(mutable=mutable)

    def _record_evaluations(self, evaluations):
        """Adds the evaluation after a task to the record of each seed.

        Returns:
          The scalars of each seed to log.
        """
        method, scalars = self.experiment.method, []
        self._write_sheets(evaluations)
        for record, mutable, evaluation in zip(
            self.records, self.experiment.axis.unstack(self.mutable), evaluations, strict=True
        ):
            accuracy, counts, extra_metrics, calibration, detection, classification, _ = evaluation
            extra_metrics |= method.counters(mutable)
            for network, row in accuracy.items():
                record.accuracy.setdefault(network, []).append(row)
            accuracies = self._named({network: float(np.mean(row)) for network, row in accuracy.items()})
            scalars.append(accuracies | extra_metrics)
            record.extra_metrics.append(extra_metrics)
            for name, values in calibration.items():
                for which, row in values.items():
                    record.calibration.setdefault(name, {}).setdefault(which, []).append(row)
            record.selection = counts
            for network, details in classification.items():
                record.task_incremental.setdefault(network, []).append(details["task_incremental"])
                record.class_accuracy.setdefault(network, []).append(details["class_accuracy"])
                record.confusion[network] = details["confusion"]
            for network, details in detection.items():
                record.class_ap.setdefault(network, []).append(details["class_ap"])
                record.detections[network] = {name: details[name] for name in ("curves", "examples")}
        return scalars

    def _evaluate_before(self, task):
        """Records the accuracy on tasks before they are trained, for forward transfer.

        The accuracy on a task is over the classes up to this task. The networks are those after the last trained task,
        whose index the context has.
        """
        trained = {"task": np.int32(max(task.index - 1, 0))}
        moments = [("pretask", [task])]
        if task.index == 0:
            moments.insert(0, ("initial", self.experiment.stream.tasks))
        for moment, tasks in moments:
            for other in tasks:
                evaluations = self._evaluate(self.mutable, [other], position(other) | trained, self._stop_if_requested)
                for record, evaluation in zip(self.records, evaluations, strict=True):
                    rows = {"initial": record.initial_accuracy, "pretask": record.pretask_accuracy}[moment]
                    for network in set(evaluation.accuracy) - set(self.experiment.method.external):
                        rows.setdefault(network, []).extend(evaluation.accuracy[network])

    def _evaluate_within(self, task, phase, epoch, mutable):
        """Evaluates the networks as if the task ended here.

        The best evaluation by the headline is recorded.
        """
        tasks, scalars, at = self.experiment.stream.tasks[: task.index + 1], [], position(task)
        evaluations = self._evaluate(self.steps.end_task(mutable, self.frozen, at), tasks, at)
        self._write_sheets(evaluations)
        for record, evaluation in zip(self.records, evaluations, strict=True):
            accuracy, extra_metrics = evaluation.accuracy, evaluation.extra_metrics
            means = {network: float(np.mean(row)) for network, row in accuracy.items()}
            value = float(np.mean([means[network] for network in results.headline(self.experiment.method)]))
            scalars.append(self._named(means) | extra_metrics | {"headline": value})
            best, sign = record.best.get(str(task.index)), -1 if self.experiment.problem.lower_is_better else 1
            if best is None or sign * value >= sign * best["value"]:
                best = {"phase": phase.name, "epochs": epoch + 1, "value": value}
                record.best[str(task.index)] = {**best, "accuracy": accuracy, "extra_metrics": extra_metrics}
            record.stopping_history = [*record.stopping_history, sign * value]
        self._log(scalars, task=task.index, phase=phase.name, epoch=epoch)

    def _write_sheets(self, evaluations):
        """Writes the samples of each seed's generator."""
        for logger, evaluation in zip(self.loggers, evaluations, strict=False):  # of the first process alone
            if evaluation.sheet is not None:
                logger.write_sheet(self.record.step, evaluation.sheet)

    def _named(self, means):
        """Returns the means of networks as scalars to log.

        Callers replace the AP of a detector by that over all classes.
        """
        return {f"{network}/{self.experiment.metric}": mean for network, mean in means.items()}

    def _evaluate(self, mutable, tasks, at, before_batch=None):
        start = time.perf_counter()
        self.steps.finish_evaluation_compilation()
        evaluations = self.evaluator.evaluate(mutable, self.frozen, tasks, at, before_batch=before_batch)
        self.record.add_seconds("evaluation", time.perf_counter() - start)
        return evaluations

    def _apply_early_stopping(self, state):
        """Decides whether a task ends after an evaluation within it.

        Returns:
          The state after the evaluation, and whether the task ends with its best weights.
        """
        config, history = self.experiment.config, self.record.stopping_history
        stopping = config.train.early_stopping
        if not stopping.patience:
            return state, False
        decision = early_stopping.decide(history, -(-stopping.patience // config.eval.every_epochs), stopping.margin)
        # Copies, because the buffers of both are donated to the steps.
        if (decision.keep or 0) == len(history) - 1:
            state = state.replace(best_mutable=jax.tree.map(jnp.copy, state.mutable))
        elif decision.stop:
            state = state.replace(mutable=jax.tree.map(jnp.copy, state.best_mutable))
        return state, decision.stop

    def _log_training(self, state, task, index, epoch):
        """Writes the mean of each metric since the last log line.

        Returns:
          The state with sums of zero.
        """
        phase = self.experiment.method.phases[index]
        self._report_nonfinite(state, task, index)
        sums = {name: np.atleast_1d(value) for name, value in jax.device_get(state.metric_sums[index]).items()}
        steps = sums.pop("steps").astype(np.float64)
        steps[steps == 0] = np.nan  # all were skipped, so there is no mean
        means = {name: value / steps for name, value in sums.items()}
        lines = [{name: float(value[i]) for name, value in means.items() if steps[i] > 0} for i in range(len(steps))]
        self._log(lines, task=task.index, phase=phase.name, epoch=epoch)
        self.bar.set_postfix_str(progress.position_text(task.index, phase.name, means))
        return state.replace(**self.steps.zero_sums())

    def _report_nonfinite(self, state, task, index):
        """Writes nonfinite.json if there were steps with NaN or infinity.

        Steps count since the last log line.

        Raises:
          UserError: there were such steps, and the run is configured to stop.
        """
        found = jax.tree.map(np.atleast_1d, jax.device_get(state.nonfinite[index]))
        if not found["count"].any():
            return
        experiment, phase, round = self.experiment, self.experiment.method.phases[index], self.record.round
        epochs = experiment.epochs(task, phase)
        for i, (record, seed) in enumerate(zip(self.records, experiment.seeds, strict=True)):
            if not found["count"][i]:
                continue
            epoch, step = int(found["epoch"][i]), int(found["step"][i])
            rows = experiment.rows(task, phase, round, memory.read_rows(self.steps, state.mutable))
            rows = rows[(epoch - round * epochs) * experiment.steps_per_epoch(task, phase) + step]
            if experiment.axis.per_seed_rows(phase):
                rows = rows[..., i]
            entry = {
                "seed": seed, "task": task.index, "phase": phase.name, "epoch": epoch, "step_in_epoch": step,
                "count": int(found["count"][i]), "rows": rows.tolist(),
                "terms": {name: _json_number(value[i]) for name, value in found["terms"].items()},
            }  # fmt: skip
            record.nonfinite = [*record.nonfinite, entry]
            if i < len(self.loggers):
                path = self.loggers[i].folder / "nonfinite.json"
                files.write_atomically(path, json.dumps(record.nonfinite, indent=1) + "\n")
        where = f"task {entry['task']}, {entry['phase']}, epoch {entry['epoch']}, its step {entry['step_in_epoch']}"
        if experiment.config.train.on_nonfinite == "stop":
            self.bar.set_postfix_str(progress.position_text(task.index, phase.name, {}))  # its last loss was finite
            raise UserError(
                f"loss or weights are no longer finite after {where}: nonfinite.json in {self.folder} has batch and "
                "loss terms; checkpoints are of before it. Go on with --config.train.on_nonfinite=skip, or look with "
                "--config.debug_nans"
            )
        logging.getLogger("cdl_jax").warning("skipped %d steps, the first: %s", found["count"].sum(), where)

    def _stop_if_requested(self):
        if number := self.signals.stop_requested():
            raise RunInterrupted(number, self.record.step)

    def _save_latest(self, state):
        """Saves the state within a task, and waits until it is on disk."""
        if self.checkpoints.latest_step() != self.record.step:
            self.checkpoints.save_latest(self.record.step, state, results.to_json(self.records))
        self.checkpoints.wait()

    def _log(self, scalars, task_scalars=None, **place):
        """Writes a line of `scalars`, name -> float, for each seed.

        After a task loggers get further scalars.
        """
        self.record.num_log_lines += 1
        task_scalars = task_scalars or [{}] * len(scalars)
        for logger, *values in zip(self.loggers, scalars, task_scalars, strict=False):  # of the first process alone
            logger.log(self.record.step, values[0], place, values[1])

    def _export_weights(self):
        mutable = self.experiment.axis.unstack(jax.device_get(self.mutable))
        for logger, variables in zip(self.loggers, mutable, strict=True):
            for name, network in self.experiment.method.export(variables).items():
                weights.save(logger.folder / f"{name}.npz", network)

    def _write_results(self):
        """Writes results.json of each seed, and the report if it is due.

        Returns:
          The contents of results.json.
        """
        records = results.from_json(results.to_json(self.records))
        contents = [
            results.collect(self.experiment, record, seed)
            for record, seed in zip(records, self.experiment.seeds, strict=True)
        ]
        for logger, record, content in zip(self.loggers, records, contents, strict=False):
            logger.write_results(content, detections.collect(self.experiment, record) if record.detections else None)
        return contents


def _config_of_seed(config: dict, seed: int) -> dict:
    """Returns the config of one seed of a run."""
    return {**config, "seed": seed, "seeds": ()}


class _Stopwatch:
    """Measures the seconds of a phase without pauses.

    The stopwatch also measures images and seconds after the first call.
    """

    def __init__(self):
        self._start, self.images_from, self.images = time.perf_counter(), 0.0, 0

    def start_counting(self) -> None:
        """Starts to count images, at the end of the first call."""
        self.images_from = time.perf_counter()

    def counted_seconds(self) -> float:
        """Returns the seconds since `start_counting` without pauses."""
        return time.perf_counter() - self.images_from

    def restart(self) -> float:
        """Returns the seconds since the last restart without pauses."""
        now = time.perf_counter()
        seconds, self._start = now - self._start, now
        return seconds

    @contextmanager
    def paused(self):
        """Leaves out the time of the block."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._start, self.images_from = self._start + seconds, self.images_from + seconds


def _json_number(value):
    """Returns a float, or a string where JSON has no such number (NaN, infinity)."""
    return float(value) if np.isfinite(value) else str(value)
