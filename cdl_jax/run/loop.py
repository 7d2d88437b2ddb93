"""A run: the task loop, which can be stopped anywhere and goes on with the same command."""

import itertools
import json
import logging
import time
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.models import weights
from cdl_jax.report import run_page
from cdl_jax.run import early_stopping, progress, results, workdir
from cdl_jax.run.results import Record
from cdl_jax.runtime import distributed, event_files, files
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.runtime.signals import RunInterrupted, SignalHandler
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program

REPORT_EVERY = 60.0  # seconds between the reports of a run that is not finished


def train(program: Program, folder: Path, listener: SignalHandler | None = None) -> list[dict]:
    """Trains what is not trained yet, and returns the results of each seed (see `results.collect`).

    Args:
      listener: where the run learns that it is to end; without it, nowhere.

    Raises:
      UserError: the newest checkpoint cannot be read.
      RunInterrupted: the run was asked to end; everything is saved.
    """
    folders = files.seed_folders(folder, program.config.seeds)
    stored = [results.read(own) for own in folders]
    if all(content and content["status"] == "finished" for content in stored):
        if program.config.log.report and jax.process_index() == 0:
            for own, content in zip(folders, stored, strict=True):
                if not _has_report(own):  # the process ended while it was drawn
                    _draw_report(own, content)
        return stored
    options = program.config.checkpoint
    with (
        Checkpoints(folder, keep=options.keep, keep_tasks=options.keep_tasks) as checkpoints,
        jax.debug_nans(True) if program.config.debug_nans else nullcontext(),
    ):
        try:
            return _Training(program, folder, checkpoints, listener or SignalHandler()).finish()
        except jax.errors.JaxRuntimeError:
            if jax.process_count() > 1:  # here, for the checkpoints' end waits for all processes
                distributed.abort(
                    "cdl_jax: this process of the run, or another, has failed; rerun the same command to resume"
                )
            raise


def evaluate(program: Program, folder: Path, task: int | None) -> dict:
    """Accuracies of the checkpoint after `task` (None: the last), and the row of the run's matrix that they repeat.

    Returns:
      {"task": t, "networks": {name: {"now": [percent, ...], "stored": [percent, ...]}}}; with several seeds a network's
      name is followed by its seed.

    Raises:
      UserError: there is no such checkpoint.
    """
    with Checkpoints(folder, read_only=True) as checkpoints:
        finished = checkpoints.finished_tasks()
        if task is None:
            task = finished[-1] if finished else 0
        records = results.from_json(checkpoints.task_record(task))
        program.place_data()
        live, frozen = program.abstract_variables()
        live, frozen = checkpoints.restore_task(task, live), checkpoints.restore_frozen(frozen)
    tasks = program.stream.tasks[: task + 1]
    found = program.evaluate(live, frozen, tasks, trainer.position(tasks[-1]))
    networks = {}
    for seed, record, (accuracy, *_) in zip(program.seeds, records, found, strict=True):
        for name, row in accuracy.items():
            label = f"{name}, seed {seed}," if program.config.seeds else name
            networks[label] = {"now": row, "stored": record.accuracy[name][task]}
    return {"task": task, "networks": networks}


class _Training:
    """The state of the task loop, and its traces in the working directory."""

    def __init__(self, program, folder, checkpoints, listener):
        self.program, self.folder, self.checkpoints, self.listener = program, folder, checkpoints, listener
        self.primary = jax.process_index() == 0  # the only process that writes files other than checkpoints
        program.place_data()
        program.check_steps()
        self._restore()
        self.record = self.records[0]  # its place in the run is that of all
        self.traces = []
        if self.primary:
            for own in files.seed_folders(folder, program.config.seeds):
                self.traces.append(_Traces(own, self.record.lines, program.config.log))

    def _restore(self):
        """Records (one for each seed), live and frozen variables, and the phase's state, where the run stands."""
        program, checkpoints, self.state = self.program, self.checkpoints, None
        if not checkpoints.finished_tasks() and checkpoints.latest_step() is None:
            self.records = [Record() for _ in program.seeds]
            self.live, self.frozen = program.initial_variables()
            if self.primary:  # only now: a mistake in what was read must leave the directory free for another config
                self._claim()
            checkpoints.save_frozen(self.frozen)
            return
        if not (self.folder / "config.json").exists():
            raise UserError(f"--workdir {self.folder} has checkpoints, but no config.json: bring it back")
        live, frozen = program.abstract_variables()
        self.frozen = checkpoints.restore_frozen(frozen)
        record, restored, within = checkpoints.restore_newest(live, program.abstract_state(live, frozen))
        self.records = results.from_json(record)
        if within:
            self.state = restored
        self.live = restored.live if within else restored
        if self.primary:
            self._claim()  # of a seed, where its folder was lost

    def _claim(self):
        config = self.program.config.to_dict()
        # The whole first: killed in between, the directory still refuses another config.
        workdir.claim(self.folder, config, self.program.stream)
        for seed, own in zip(self.program.seeds, files.seed_folders(self.folder, config["seeds"]), strict=True):
            own.mkdir(exist_ok=True)
            workdir.claim(own, {**config, "seed": seed, "seeds": ()}, self.program.stream)

    def finish(self):
        program, record = self.program, self.record
        self.listener.defer_stop(program.mesh)
        try:
            with self._progress() as self.bar:
                for task in program.stream.tasks[record.task :]:
                    self._learn(task)
        finally:
            for traces in self.traces:
                traces.board.close()
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
        for turn in range(record.round * phases + record.phase, program.method.rounds * phases):
            record.round, record.phase = divmod(turn, phases)
            trained = state
            if program.epochs(task, phase := program.method.phases[record.phase]):
                trained = self._train_phase(task, record.phase, state)
                state = self._remembering(task, phase, trained)
            record.epoch, record.step_in_epoch, record.watched = 0, 0, []
        self.live = program.end_task(state.live, self.frozen, place)
        scalars = []
        try:
            found = self._timed_evaluation(self.live, program.stream.tasks[: task.index + 1], place, self._end_if_asked)
        except RunInterrupted:
            record.round, record.phase = program.method.rounds - 1, phases - 1
            record.epoch, record.step_in_epoch = program.epochs(task, program.method.phases[-1]), 0
            self._save_latest(trained)  # what follows the last step is done again
            raise
        for index, (own, (accuracy, counts, measures, quality)) in enumerate(zip(self.records, found, strict=True)):
            measures |= program.method.counters(self._of_seed(self.live, index))
            for network, row in accuracy.items():
                own.accuracy.setdefault(network, []).append(row)
            scalars.append({f"{network}/accuracy": float(np.mean(row)) for network, row in accuracy.items()} | measures)
            own.measures.append(measures)
            for name, values in quality.items():
                for which, row in values.items():
                    own.quality.setdefault(name, {}).setdefault(which, []).append(row)
            own.selection = counts
        self._log(scalars, task=task.index)
        record.task, record.round, record.phase = task.index + 1, 0, 0
        if self.primary:
            # First: with the checkpoint a restarted run counts the task as done.
            self._export(jax.device_get(self.live))
        self.checkpoints.save_task(task.index, self.live, results.to_json(self.records))
        if record.task < program.stream.num_tasks:
            self._write_results()

    def _export(self, live):
        for index, traces in enumerate(self.traces):
            for name, network in self.program.method.export(self._of_seed(live, index)).items():
                weights.save(traces.folder / f"{name}.npz", network)

    def _of_seed(self, live, index):
        return jax.tree.map(lambda x: x[index], live) if self.program.config.seeds else live

    def _before_learning(self, task):
        """What forward transfer compares: accuracy on a task that was not learnt yet, over the classes up to it."""
        if task.index == 0:
            for other in self.program.stream.tasks:
                self._note_unlearnt("at_start", other)
        self._note_unlearnt("before", task)

    def _note_unlearnt(self, moment, task):
        found = self._timed_evaluation(self.live, [task], trainer.position(task), self._end_if_asked)
        for own, (accuracy, *_) in zip(self.records, found, strict=True):
            for network in set(accuracy) - set(self.program.method.external):
                getattr(own, moment).setdefault(network, []).extend(accuracy[network])

    def _timed_evaluation(self, live, tasks, place, before_batch=None):
        start = time.perf_counter()
        result = self.program.evaluate(live, self.frozen, tasks, place, before_batch=before_batch)
        self.record.add_seconds("evaluation", time.perf_counter() - start)
        return result

    def _end_if_asked(self):
        if number := self.listener.stop_requested():
            raise RunInterrupted(number, self.record.step)

    def _save_latest(self, state):
        """Saves the state within a task, and waits for it."""
        if self.checkpoints.latest_step() != self.record.step:
            self.checkpoints.save_latest(self.record.step, state, results.to_json(self.records))
        self.checkpoints.wait()

    def _train_phase(self, task, index, state):
        """The state after the rest of the phase's epochs in this round."""
        program, record, phase = self.program, self.record, self.program.method.phases[index]
        config, epochs = program.config, program.epochs(task, phase)
        start = time.perf_counter()
        sizes = program.batch_sizes(task, phase)
        lengths = self._calls(sizes, epochs)
        needed = {(size, 1) for size in sizes} | {(max(sizes), length) for length in lengths if length > 1}
        compiled = {key: program.train_step(index, state, self.frozen, *key) for key in needed}
        flops = program.flops(index, max(sizes))
        record.flops[phase.name] = flops and flops / len(program.seeds)
        begun = record.round, record.epoch, record.step_in_epoch
        items, steps, done = program.train_batches(task, phase, *begun, program.memories(state.live), lengths)
        first, stopped, number, before = None, False, done - 1, record.round * epochs
        for item, length in zip(items, lengths, strict=True):
            ahead = number + 1 if length == 1 else np.arange(number + 1, number + length + 1)
            each = 1 if phase.sequential else config.optim.accumulate
            at = {"epoch": before + ahead // steps, "step": ahead % steps}
            place = trainer.position(task, **at, steps=steps, accumulate=each)
            number += length
            epoch, at = before + number // steps, number % steps
            step = compiled[sizes[at], length]
            state = step(state, self.frozen, program.train_source.data, item, place, program.seed)
            if first is None:
                jax.block_until_ready(state.sums)
                first = (number, time.perf_counter())
            record.step += length
            record.epoch, record.step_in_epoch = divmod(number + 1, steps)
            self.bar.update(length)
            if record.step % config.log.every_steps == 0 or number + 1 == steps * epochs:
                state = self._log_training(state, task, index, epoch)
            every = config.eval.every_epochs
            if every and at + 1 == steps and ((epoch + 1) % every == 0 or number + 1 == steps * epochs):
                jax.block_until_ready(state.sums)
                since = time.perf_counter()
                self._evaluate_within(task, phase, epoch, state.live)
                state, stopped = self._judged(state)
                paused = time.perf_counter() - since
                start, first = start + paused, (first[0], first[1] + paused)
            if stopped:
                if record.step % config.log.every_steps and number + 1 < steps * epochs:
                    state = self._log_training(state, task, index, epoch)
                self.bar.total -= steps * epochs - number - 1
                break
            every, asked = config.checkpoint.every_steps, self.listener.stop_requested()
            if asked or (every and record.step % every == 0):
                record.add_seconds(phase.name, time.perf_counter() - start)
                start = time.perf_counter()
                self._refuse_nonfinite(state, task, index)
                if asked:
                    self._save_latest(state)
                    raise RunInterrupted(asked, record.step)
                self.checkpoints.save_latest(record.step, state, results.to_json(self.records))
        jax.block_until_ready(state.live)
        now = time.perf_counter()
        record.add_seconds(phase.name, now - start)
        if first is not None:
            images, seconds = record.timed.get(phase.name, (0, 0.0))
            timed = sum(sizes[n % steps] for n in range(first[0] + 1, number + 1))
            images += timed * len(program.seeds) * len(program.plan.train)
            record.timed[phase.name] = (images, seconds + now - first[1])
        return state

    def _calls(self, sizes, epochs):
        """How many steps each call takes from here to the end of the phase's turn.

        As many as `train.steps_per_call` says, but one what is left before the host looks at the state, and where a
        batch is of another size.
        """
        config, record, steps = self.program.config, self.record, len(sizes)
        number = np.arange(record.epoch * steps + record.step_in_epoch, steps * epochs)
        of_run, at, epoch = record.step + 1 + np.arange(len(number)), number % steps, number // steps
        look = of_run % config.log.every_steps == 0
        if config.checkpoint.every_steps:
            look |= of_run % config.checkpoint.every_steps == 0
        if every := config.eval.every_epochs:
            look |= (at + 1 == steps) & ((record.round * epochs + epoch + 1) % every == 0)
        odd = np.not_equal(sizes, max(sizes))[at]
        look |= odd | np.append(odd[1:], False)[: len(odd)]
        return _call_lengths(look, 1 if config.debug_nans else config.train.steps_per_call)

    def _remembering(self, task, phase, state):
        """The state once the phase's network, if it names one, has chosen what to remember of the task.

        Nothing new for a run that was killed and goes on after the phase's last step: the choice follows from weights.
        """
        if not phase.herding_network:
            return state
        start = time.perf_counter()
        live = self.program.update_memory(state.live, self.frozen, phase, task, trainer.position(task))
        self.record.add_seconds("herding", time.perf_counter() - start)
        return state.replace(live=live)

    def _judged(self, state):
        """(state, whether the task ends here with what was best) after an evaluation within it."""
        stopping, every = self.program.config.train.early_stopping, self.program.config.eval.every_epochs
        if not stopping.patience:
            return state, False
        watched = self.record.watched
        verdict = early_stopping.judge(watched, -(-stopping.patience // every), stopping.margin)
        # Copies: the steps are given the buffers of both.
        if (verdict.keep or 0) == len(watched) - 1:
            state = state.replace(kept=jax.tree.map(jnp.copy, state.live))
        elif verdict.stop:
            state = state.replace(live=jax.tree.map(jnp.copy, state.kept))
        return state, verdict.stop

    def _evaluate_within(self, task, phase, epoch, live):
        """Evaluates in the middle of a task, and keeps what is best by the method's headline."""
        tasks, scalars = self.program.stream.tasks[: task.index + 1], []
        found = self._timed_evaluation(live, tasks, trainer.position(task))
        for own, (accuracy, _, measures, _) in zip(self.records, found, strict=True):
            means = {network: float(np.mean(row)) for network, row in accuracy.items()}
            value = float(np.mean([means[network] for network in results.headline(self.program.method)]))
            scalars.append(
                {f"{network}/accuracy": mean for network, mean in means.items()} | measures | {"headline": value}
            )
            own.watched = [*own.watched, value]
            best = own.best.get(str(task.index))
            if best is None or value >= best["value"]:
                of = {"phase": phase.name, "epochs": epoch + 1, "value": value}
                own.best[str(task.index)] = {**of, "accuracy": accuracy, "measures": measures}
        self._log(scalars, task=task.index, phase=phase.name, epoch=epoch)

    def _log_training(self, state, task, index, epoch):
        """Writes the mean of each metric since the last line; returns the state with the sums at zero."""
        phase = self.program.method.phases[index]
        self._tell_nonfinite(state, task, index)
        sums = {name: np.atleast_1d(value) for name, value in jax.device_get(state.sums[index]).items()}
        steps = sums.pop("steps").clip(1)  # none where all were skipped
        means = {name: value.astype(np.float64) / steps for name, value in sums.items()}
        self._log(
            [{name: float(value[i]) for name, value in means.items()} for i in range(len(steps))],
            task=task.index, phase=phase.name, epoch=epoch,
        )  # fmt: skip
        loss = float(np.mean(means.get("loss", np.nan)))
        self.bar.set_postfix_str(f"task {task.index}, {phase.name}, loss {loss:.3f}")
        return state.replace(**jax.tree.map(jnp.zeros_like, {"sums": state.sums, "bad": state.bad}))

    def _tell_nonfinite(self, state, task, index):
        """Writes down the bad steps since the last log line, if any.

        Raises:
          UserError: there are some, and the run is to stop then.
        """
        bad = jax.tree.map(np.atleast_1d, jax.device_get(state.bad[index]))
        if not bad["count"].any():
            return
        config, phase, round = self.program.config, self.program.method.phases[index], self.record.round
        each_round = self.program.epochs(task, phase)
        for i, (own, seed) in enumerate(zip(self.records, self.program.seeds, strict=True)):
            if not bad["count"][i]:
                continue
            epoch, step = int(bad["epoch"][i]), int(bad["step"][i])
            rows = self.program.rows(task, phase, round, self.program.memories(state.live))
            rows = rows[(epoch - round * each_round) * self.program.steps(task, phase) + step]
            if self.program.axis.own_rows(phase):
                rows = rows[..., i]
            entry = {
                "seed": seed, "task": task.index, "phase": phase.name, "epoch": epoch, "step_in_epoch": step,
                "count": int(bad["count"][i]), "rows": rows.tolist(),
                "terms": {name: _json_number(value[i]) for name, value in bad["terms"].items()},
            }  # fmt: skip
            own.nonfinite = [*own.nonfinite, entry]
            if i < len(self.traces):
                path = self.traces[i].folder / "nonfinite.json"
                files.write_atomically(path, json.dumps(own.nonfinite, indent=1) + "\n")
        where = f"task {entry['task']}, {entry['phase']}, epoch {entry['epoch']}, its step {entry['step_in_epoch']}"
        if config.train.on_nonfinite == "stop":
            raise UserError(
                f"loss or weights are no longer finite after {where}: nonfinite.json in {self.folder} tells batch and "
                "loss terms; checkpoints are of before it. Go on with --config.train.on_nonfinite=skip, or look with "
                "--config.debug_nans"
            )
        logging.getLogger("cdl_jax").warning("skipped %d steps, the first: %s", bad["count"].sum(), where)

    def _refuse_nonfinite(self, state, task, index):
        """Raises UserError if the state comes from a bad step, which it does not where such steps are skipped."""
        if self.program.config.train.on_nonfinite == "stop":
            self._tell_nonfinite(state, task, index)

    def _log(self, scalars, **place):
        """A line of `scalars`, name -> float, for each seed."""
        self.record.lines += 1
        for traces, values in zip(self.traces, scalars, strict=False):  # there are none but in the first process
            traces.log(self.record.step, values, place)

    def _write_results(self):
        """Writes results.json of each seed anew, and now and then report.html; returns what the former hold."""
        records = results.from_json(results.to_json(self.records))
        contents = [
            results.collect(self.program, record, seed)
            for record, seed in zip(records, self.program.seeds, strict=True)
        ]
        for traces, content in zip(self.traces, contents, strict=False):
            traces.write_results(content)
        return contents

    def _progress(self):
        """The display of rate and time left over all steps of the run."""
        phases, tasks = self.program.method.phases, self.program.stream.tasks
        total = sum(self.program.steps(t, phase) * phase.epochs_of(t.index) for phase in phases for t in tasks)
        return progress.show(total, self.record.step, primary=self.primary)


def _call_lengths(look, most):
    """Lengths of calls that make up steps: `most`, where none but the last of these is one of `look`, else 1.

    look: bool `[steps]`.
    """
    lengths, at = [], 0
    while at < len(look):
        whole = at + most <= len(look) and not look[at : at + most - 1].any()
        lengths.append(most if whole else 1)
        at += lengths[-1]
    return lengths


def _json_number(value):
    """JSON has no numbers but finite ones."""
    return float(value) if np.isfinite(value) else str(value)


class _Traces:
    """What a run tells of one of its seeds."""

    def __init__(self, folder, lines, options):
        self.folder, self.report = folder, options.report
        self.lines = event_files.JsonLines(folder / "metrics.jsonl")
        self.lines.truncate(lines)
        self.board = event_files.tensorboard_writer(folder / "tensorboard" if options.tensorboard else None)
        self.reported = time.monotonic()

    def log(self, step, values, place):
        self.lines.write({"step": step, **place, **values})
        phase = f"{place['phase']}/" if "phase" in place else ""
        self.board.write_scalars(step, {phase + name: value for name, value in values.items()})

    def write_results(self, content):
        """Writes results.json anew, then report.html, whose plots take seconds: once a minute and at last."""
        parts = json.JSONEncoder(indent=1).iterencode(content)  # in one piece a long run's take many times their size
        files.write_atomically(self.folder / "results.json", itertools.chain(parts, "\n"))
        if self.report and (content["status"] == "finished" or time.monotonic() > self.reported + REPORT_EVERY):
            _draw_report(self.folder, content)
            self.reported = time.monotonic()


def _draw_report(folder, content):
    """Writes report.html anew; one that fails is a warning, for all that it shows is in the other files."""
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
        lines = event_files.JsonLines(folder / "metrics.jsonl").read()
        run_page.write_report(folder / "report.html", content, lines, stored)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logging.getLogger("cdl_jax").warning(
            "report.html is not drawn (%s); results.json is complete, and the same command draws it again", reason
        )


def _has_report(folder):
    """Whether report.html shows results.json; `--mode=analyze` draws it again with more in it."""
    page, of = folder / "report.html", folder / "results.json"
    if not page.exists() or (folder / "analysis.json").exists():
        return page.exists()
    return page.stat().st_mtime_ns >= of.stat().st_mtime_ns
