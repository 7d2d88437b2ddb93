"""What frozen networks say of a task's batches is asked once for both phases of CDL, and changes nothing."""

import json

import jax
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.run import loop
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.runtime.signals import RunInterrupted
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program
from tests.end_to_end import tiny
from tests.support.stopping import After


def config_of(**changes):
    config = tiny.get_config("learner=l2p")
    for section in (config.teacher, config.student):
        section.depth = 1
    config.data.update(num_tasks=1, max_train_per_class=4, class_order="0,1,2,3,4,5,6,7")
    config.train.update(epochs=2, batch_size=8)  # 4 steps an epoch
    config.eval.forward_transfer = False
    config.log.update(every_steps=1, report=False, tensorboard=False)
    config.checkpoint.every_steps = 0
    config.cdl.same_batches = True
    config.update_from_flattened_dict(changes)
    return config


def made(**changes):
    program = Program(config_of(**changes), stream.load(config_of().data))
    program.place_data()
    program.place_data = lambda: None  # another run finds all compiled
    return program


def trained(program, folder, listener=None):
    """(phase of each time that queries were asked, lines of metrics, live variables, operations of each phase)."""
    asked, ask = [], type(program).constants
    program.constants = lambda index, *batch: asked.append(index) or ask(program, index, *batch)
    (content,) = loop.train(program, folder, listener)
    with Checkpoints(folder, read_only=True) as checkpoints:
        live = jax.device_get(checkpoints.restore_task(0, program.abstract_variables()[0]))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return asked, lines, live, content["cost"]["flops_per_step"]


@pytest.fixture(scope="module")
def program():
    return made()


@pytest.fixture(scope="module")
def kept(program, tmp_path_factory):
    """A run that asks once."""
    return trained(program, tmp_path_factory.mktemp("kept"))


def test_the_student_asks_nothing_and_learns_what_it_learns_when_each_step_asks(kept, tmp_path, monkeypatch):
    asked, lines, live, flops = kept
    assert asked == [0] * 8
    monkeypatch.setattr("cdl_jax.methods.cdl.CDL._asks_once", False)
    asked, alone, same, own_flops = trained(made(), tmp_path)
    assert not asked and len(alone) == len(lines) == 17
    for line, wanted in zip(alone, lines, strict=True):
        assert line.get("phase") == wanted.get("phase") and line.keys() == wanted.keys()
        assert {**line, "phase": 0} == pytest.approx({**wanted, "phase": 0}, rel=1e-5, abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), live, same)
    # Of 8 pictures, 5 tokens each: what of the query's block is not the student's own as well, proj and the MLP.
    query = 2 * 8 * 5 * (1 + 8) * 16**2
    assert query < own_flops["student"] - flops["student"] < 1.5 * query
    assert own_flops["teacher"] == pytest.approx(flops["teacher"], rel=0.02)


def test_what_was_not_kept_is_asked_again_and_keeps_every_bit(program, kept, tmp_path):
    """For want of room, and by a run that was stopped."""
    program.config.cdl.kept_queries_mb = 0
    with pytest.raises(RunInterrupted):
        trained(program, tmp_path, After(11))
    asked, lines, live, _ = trained(program, tmp_path)
    assert asked == [1] * 5
    assert lines == kept[1]
    jax.tree.map(np.testing.assert_array_equal, live, kept[2])


def test_seeds_with_orders_of_their_own_are_told_the_queries_of_their_own_batches():
    several = {"data.num_tasks": 2, "data.class_order": "shuffle", "data.class_order_seed": -1}

    def first_batch(**changes):
        config = config_of(**several, **changes)
        program = Program(config, stream.load(config.data, base.seeds_of(config)[0]))
        program.place_data()
        task, phase = program.stream.tasks[1], program.method.phases[0]
        items, steps, _ = program.train_batches(task, phase, 0, 0, 0)
        item = next(iter(items))
        frozen = jax.tree.map(drawn, program.abstract_variables()[1])
        told = program.constants(0, frozen, item, trainer.position(task, steps=steps))
        return program, item["rows"], told["student"]

    drawn = lambda leaf: np.random.default_rng(1).normal(0, 0.2, leaf.shape).astype(np.float32)  # noqa: E731
    together, rows, told = first_batch(seeds=(3, 0))
    assert together.axis.own_orders and told.shape == (8, 16, 2)
    for index, seed in enumerate((3, 0)):
        _, own_rows, alone = first_batch(seed=seed)
        np.testing.assert_array_equal(rows[:, index], own_rows)
        np.testing.assert_allclose(told[..., index], alone, atol=1e-5)
    assert np.abs(told[..., 0] - told[..., 1]).max() > 0.01


def test_what_has_no_meaning_is_refused_in_one_line():
    def refusal(**changes):
        with pytest.raises(UserError) as caught:
            Program(config_of(**changes), stream.load(config_of().data))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "share each batch and its queries as it is: leave it at False" in refusal(**{"cdl.schedule": "interleaved"})
    assert "train.steps_per_call above 1 does not go with cdl.same_batches" in refusal(**{"train.steps_per_call": 2})
