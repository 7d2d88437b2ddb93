"""A NaN loss ends a run before a checkpoint holds it, or its step is skipped."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.methods.supervised import Supervised
from cdl_jax.run import loop
from cdl_jax.runtime.checkpoint import Checkpoints
from tests.end_to_end.command import last_weights
from tests.end_to_end.test_early_stopping import STEPS, program

AT = {"task": 0, "epoch": 1, "step": 3}
BAD = 2 * STEPS + AT["step"] + 1  # the run's steps until then, with it; here one task has the images of two


def short(**changes):
    quick = {"data.num_tasks": 1, "train.epochs": 2, "train.early_stopping.patience": 0, "eval.every_epochs": 0}
    return program(**quick, **changes)


@pytest.fixture
def bad_batch(monkeypatch):
    """The loss of one step of a run is NaN."""
    loss = Supervised.loss

    def sometimes_bad(self, variables, batch, context):
        value, outcome = loss(self, variables, batch, context)
        here = jnp.all(jnp.array([getattr(context, name) == number for name, number in AT.items()]))
        value = jnp.where(here, jnp.nan, value)
        outcome.metrics["loss"] = value
        return value, outcome

    monkeypatch.setattr(Supervised, "loss", sometimes_bad)


def test_it_stops_and_goes_on_where_such_steps_may_be_skipped(bad_batch, tmp_path, capsys):
    stopping = short()
    with pytest.raises(UserError) as error:
        loop.train(stopping, tmp_path)
    assert "after task 0, network, epoch 1, its step 3: nonfinite.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err.splitlines()[-1].endswith("; task 0, network")  # without a loss
    (entry,) = json.loads((tmp_path / "nonfinite.json").read_text())
    task, (phase,) = stopping.stream.tasks[0], stopping.method.phases
    assert entry.pop("rows") == stopping.rows(task, phase, 0)[BAD - 1].tolist()
    assert entry.pop("terms") == {"loss": "nan", "learning_rate": pytest.approx(0.01)}
    place = {"task": 0, "phase": "network", "epoch": 1, "step_in_epoch": 3}
    assert entry.pop("count") >= 1 and entry == {"seed": 0, **place}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.finished_tasks() == [] and 0 < checkpoints.latest_step() < BAD
    assert all(np.isfinite(json.loads(line)["loss"]) for line in (tmp_path / "metrics.jsonl").open())

    skipping = short(**{"train.on_nonfinite": "skip"})
    (results,) = loop.train(skipping, tmp_path)
    assert results["skipped_steps"] == 1
    assert json.loads((tmp_path / "nonfinite.json").read_text())[-1]["count"] == 1
    assert all(np.isfinite(value).all() for value in last_weights(tmp_path, 0).values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines[-2]["step"] == 4 * STEPS and all(np.isfinite(line["loss"]) for line in lines[:-1])


def test_a_log_line_whose_step_was_skipped_has_no_loss(bad_batch, tmp_path):
    loop.train(short(**{"train.on_nonfinite": "skip", "log.every_steps": 1}), tmp_path)
    lines = {line["step"]: line for line in map(json.loads, (tmp_path / "metrics.jsonl").open()) if "phase" in line}
    assert [step for step, line in lines.items() if "loss" not in line] == [BAD]
    assert lines[BAD] == {"step": BAD, "task": 0, "phase": "network", "epoch": 1}


def test_a_debugged_run_names_the_operation(bad_batch, tmp_path):
    with pytest.raises(FloatingPointError, match="nan"):
        loop.train(short(debug_nans=True), tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() < BAD
