"""A run: the task loop, which can be stopped anywhere and goes on with the same command."""

import dataclasses
import json
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cdl_jax import report, results, trainer, workdir, writers
from cdl_jax.checkpoint import Checkpoints
from cdl_jax.models import weights
from cdl_jax.program import Program
from cdl_jax.results import Record


def train(program: Program, folder: Path) -> dict:
    """Trains what is not trained yet, and returns the results (see `results.collect`).

    Raises:
      UserError: the newest checkpoint cannot be read.
      Interrupted: the process was asked to end; everything is saved.
    """
    stored = results.read(folder)
    if stored and stored["status"] == "finished":
        return stored
    with Checkpoints(folder) as checkpoints:
        return _Training(program, folder, checkpoints).finish()


def evaluate(program: Program, folder: Path, task: int | None) -> dict:
    """Accuracies of the checkpoint after `task` (None: the last), and the row of the run's matrix that they repeat.

    Returns:
      {"task": t, "networks": {name: {"now": [percent, ...], "stored": [percent, ...]}}}

    Raises:
      UserError: there is no such checkpoint.
    """
    with Checkpoints(folder, read_only=True) as checkpoints:
        finished = checkpoints.finished_tasks()
        if task is None:
            task = finished[-1] if finished else 0
        record = Record(**checkpoints.task_record(task))
        program.place_data()
        live, frozen = program.abstract_variables()
        live, frozen = checkpoints.restore_task(task, live), checkpoints.restore_frozen(frozen)
    tasks = program.stream.tasks[: task + 1]
    accuracy, *_ = program.evaluate(live, frozen, tasks, trainer.position(tasks[-1]))
    networks = {name: {"now": row, "stored": record.accuracy[name][task]} for name, row in accuracy.items()}
    return {"task": task, "networks": networks}


class Interrupted(Exception):
    """The process was asked to end by the signal `number`, and saved its state first."""

    def __init__(self, number: signal.Signals, step: int):
        super().__init__(f"{number.name}: saved after step {step}; the same command goes on from there")
        self.number = number


class _Training:
    """The state of the task loop, and its traces in the working directory."""

    def __init__(self, program, folder, checkpoints):
        self.program, self.folder, self.checkpoints = program, folder, checkpoints
        self.primary = jax.process_index() == 0  # the only process that writes files other than checkpoints
        self.signal = None
        self.state = None
        self.record = self._newest_record()
        program.place_data()
        self._restore()
        if self.primary:
            self.lines = writers.JsonLines(folder / "metrics.jsonl")
            self.lines.keep(self.record.lines)
            self.board = writers.tensorboard_writer(folder / "tensorboard" if program.config.log.tensorboard else None)

    def _newest_record(self):
        finished, step = self.checkpoints.finished_tasks(), self.checkpoints.latest_step()
        record = Record(**self.checkpoints.task_record(finished[-1])) if finished else Record()
        self.from_latest = step is not None and step > record.step
        return Record(**self.checkpoints.latest_record()) if self.from_latest else record

    def _restore(self):
        """Live and frozen variables (and the phase's state) where the record says the run stands."""
        program, finished = self.program, self.checkpoints.finished_tasks()
        if not self.from_latest and not finished:
            self.live, self.frozen = program.initial_variables()
            if self.primary:  # only now: a mistake in what was read must leave the directory free for another config
                workdir.claim(self.folder, program.config.to_dict())
            self.checkpoints.save_frozen(self.frozen)
            return
        live, frozen = program.abstract_variables()
        self.frozen = self.checkpoints.restore_frozen(frozen)
        if self.from_latest:
            self.state = self.checkpoints.restore_latest(program.abstract_state(live, frozen))
            self.live = self.state.live
        else:
            self.live = self.checkpoints.restore_task(finished[-1], live)

    def finish(self):
        program, record = self.program, self.record
        # Processes of one run get a signal at different steps, and a checkpoint needs them all at the same one.
        heard = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            with self._progress() as self.bar:
                for task in program.stream.tasks[record.task :]:
                    self._learn(task)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self.primary:
                self.board.close()
        return self._write_results()

    def _learn(self, task):
        program, record = self.program, self.record
        place = trainer.position(task)
        if not record.within_task():
            if program.config.eval.forward_transfer and program.info.num_tasks > 1:
                self._before_learning(task)
            self.live = program.start_task(self.live, self.frozen, place)
        state, self.state = self.state or program.task_state(self.live, self.frozen), None
        self.live = None  # the steps are given its buffers
        phases = len(program.method.phases)
        for turn in range(record.round * phases + record.phase, getattr(program.method, "rounds", 1) * phases):
            record.round, record.phase = divmod(turn, phases)
            state = self._train_phase(task, record.phase, state)
            record.epoch, record.step_in_epoch = 0, 0
        self.live = program.end_task(state.live, self.frozen, place)
        tasks = program.stream.tasks[: task.index + 1]
        accuracy, counts, measures, quality = self._timed_evaluation(self.live, tasks, place)
        for network, row in accuracy.items():
            record.accuracy.setdefault(network, []).append(row)
            self._log({f"{network}/accuracy": float(np.mean(row))}, task=task.index)
        self._log(measures, task=task.index)
        record.measures.append(measures)
        for name, values in quality.items():
            for which, row in values.items():
                record.quality.setdefault(name, {}).setdefault(which, []).append(row)
        record.selection = counts
        record.task, record.round, record.phase = task.index + 1, 0, 0
        self.checkpoints.save_task(task.index, self.live, dataclasses.asdict(record))
        if self.primary and hasattr(program.method, "export"):
            for name, network in program.method.export(jax.device_get(self.live)).items():
                weights.save(self.folder / f"{name}.npz", network)
        self._write_results()

    def _before_learning(self, task):
        """What forward transfer compares: accuracy on a task that was not learnt yet, over the classes up to it."""
        if task.index == 0:
            for other in self.program.stream.tasks:
                self._note_unlearnt(self.record.at_start, other)
        self._note_unlearnt(self.record.before, task)

    def _note_unlearnt(self, rows, task):
        accuracy, *_ = self._timed_evaluation(self.live, [task], trainer.position(task))
        for network in set(accuracy) - set(getattr(self.program.method, "given", ())):
            rows.setdefault(network, []).extend(accuracy[network])

    def _timed_evaluation(self, live, tasks, place):
        start = time.perf_counter()
        result = self.program.evaluate(live, self.frozen, tasks, place)
        self.record.add_seconds("evaluation", time.perf_counter() - start)
        return result

    def _train_phase(self, task, index, state):
        """The state after the rest of the phase's epochs in this round."""
        program, record, phase = self.program, self.record, self.program.method.phases[index]
        config, epochs = program.config, program.epochs(phase)
        start = time.perf_counter()
        step = program.train_step(index, state, self.frozen)
        record.flops[phase.name] = program.flops(index)
        items, steps, done = program.train_batches(task, phase, record.round, record.epoch, record.step_in_epoch)
        first = None
        for number, item in enumerate(items, done):
            epoch, at = divmod(number, steps)
            epoch += record.round * epochs
            place = trainer.position(task, epoch=epoch, step=at, steps=steps)
            state = step(state, self.frozen, program.train_source.data, item, place)
            if first is None:
                jax.block_until_ready(state.sums)
                first = (number, time.perf_counter())
            record.step += 1
            record.epoch, record.step_in_epoch = divmod(number + 1, steps)
            self.bar.update()
            if record.step % config.log.every_steps == 0 or number + 1 == steps * epochs:
                state = self._log_training(state, task, index, epoch)
            every = config.eval.every_epochs
            if every and at + 1 == steps and ((epoch + 1) % every == 0 or number + 1 == steps * epochs):
                jax.block_until_ready(state.sums)
                since = time.perf_counter()
                self._evaluate_within(task, phase, epoch, state.live)
                paused = time.perf_counter() - since
                start, first = start + paused, (first[0], first[1] + paused)
            every = config.checkpoint.every_steps
            if self.signal or (every and record.step % every == 0):
                record.add_seconds(phase.name, time.perf_counter() - start)
                start = time.perf_counter()
                self.checkpoints.save_latest(record.step, state, dataclasses.asdict(record))
                if self.signal:
                    self.checkpoints.wait()
                    raise Interrupted(self.signal, record.step)
        jax.block_until_ready(state.live)
        now = time.perf_counter()
        record.add_seconds(phase.name, now - start)
        if first is not None:
            images, seconds = record.timed.get(phase.name, (0, 0.0))
            images += (steps * epochs - first[0] - 1) * config.train.batch_size
            record.timed[phase.name] = (images, seconds + now - first[1])
        return state

    def _evaluate_within(self, task, phase, epoch, live):
        """Evaluates in the middle of a task, and keeps what is best by the method's headline."""
        tasks, done = self.program.stream.tasks[: task.index + 1], epoch + 1
        accuracy, _, measures, _ = self._timed_evaluation(live, tasks, trainer.position(task))
        means = {network: float(np.mean(row)) for network, row in accuracy.items()}
        value = float(np.mean([means[network] for network in results.headline(self.program.method)]))
        scalars = {f"{network}/accuracy": mean for network, mean in means.items()}
        self._log({**scalars, **measures, "headline": value}, task=task.index, phase=phase.name, epoch=epoch)
        best = self.record.best.get(str(task.index))
        if best is None or value >= best["value"]:
            found = {"phase": phase.name, "epochs": done, "value": value, "accuracy": accuracy, "measures": measures}
            self.record.best[str(task.index)] = found

    def _log_training(self, state, task, index, epoch):
        """Writes the mean of each metric since the last line; returns the state with the sums at zero."""
        phase = self.program.method.phases[index]
        sums = {name: float(value) for name, value in jax.device_get(state.sums[index]).items()}
        steps = sums.pop("steps")
        means = {name: value / steps for name, value in sums.items()}
        self._log(means, task=task.index, phase=phase.name, epoch=epoch)
        self.bar.set_postfix_str(f"task {task.index}, {phase.name}, loss {means.get('loss', float('nan')):.3f}")
        return state.replace(sums=jax.tree.map(jnp.zeros_like, state.sums))

    def _log(self, values, **place):
        self.record.lines += 1
        if self.primary:
            self.lines.write({"step": self.record.step, **place, **values})
            phase = f"{place['phase']}/" if "phase" in place else ""
            self.board.write_scalars(self.record.step, {phase + name: value for name, value in values.items()})

    def _write_results(self):
        """Writes results.json and report.html anew, and returns what the former holds."""
        content = results.collect(self.program, self.record)
        if self.primary:
            workdir.write(self.folder / "results.json", json.dumps(content, indent=1) + "\n")
            stored = json.loads((self.folder / "config.json").read_text())["config"]
            report.write_report(self.folder / "report.html", content, self.lines.read(), stored)
        return content

    def _progress(self):
        """A bar with rate and time left over all steps of the run; nothing where the output is no terminal."""
        steps = [len(t.train) // self.program.config.train.batch_size for t in self.program.stream.tasks]
        total = sum(steps) * sum(phase.epochs for phase in self.program.method.phases)
        return tqdm(total=total, initial=self.record.step, unit="step", disable=None if self.primary else True)

    def _on_signal(self, number, frame):
        del frame
        self.signal = signal.Signals(number)
