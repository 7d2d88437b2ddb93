"""Incomplete last batches: sizes, steps, seeds in one program, impossible options."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.errors import UserError
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position

SIDE, BATCH = 8, 4


def stream():
    """Two tasks of two classes with 7 and 9 training images."""
    labels = np.array([0, 1, 0, 1, 1, 0, 0, *[2] * 4, *[3] * 5], np.int32)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 3), np.uint8)
    return split_into_tasks(Dataset("noise", tuple("abcd"), *[Split(labels, images)] * 2), num_tasks=2)


def program(**changes):
    config = base.default("supervised", data="glyph_mini", network="mini_student")
    config.network.update(dim=8, depth=1, heads=2, patch_size=4, image_size=SIDE)
    config.train.update(epochs=2, batch_size=BATCH, last_batch="keep")
    config.optim.update(name="sgd", schedule="steps", milestones=(1,), learning_rate=0.1)
    config.devices = 1
    config.update_from_flattened_dict(changes)
    return Experiment.build(config, stream())


def train_first_task(own):
    """Live variables after both epochs of the first task."""
    compiled = CompiledSteps(own)
    task, (phase,) = own.stream.tasks[0], own.method.phases

    def drawn(leaf):  # the same for all seeds, whose axis comes first; to draw by key would compile
        numbers = np.random.default_rng(1).normal(0, 0.1, leaf.shape[1:] if own.config.seeds else leaf.shape)
        return np.broadcast_to(numbers, leaf.shape).astype(np.float32)

    live, frozen = jax.tree.map(drawn, own.abstract_variables())
    state, sizes, count = compiled.task_state(live), own.batch_sizes(task, phase), own.steps_per_epoch(task, phase)
    steps = {size: compiled.train_step(0, size) for size in sizes}
    for number, item in enumerate(compiled.train_batches(task, phase, 0, 0)):
        epoch, at = divmod(number, count)
        place = position(task, epoch=epoch, step=at, steps=count)
        state = steps[sizes[at]](state, frozen, compiled.train_loader.data, item, place, own.seed)
    return jax.device_get(state.mutable)


def test_steps_count_the_incomplete_batch():
    own = program()
    (phase,) = own.method.phases
    assert [own.batch_sizes(task, phase) for task in own.stream.tasks] == [[4, 3], [4, 4, 1]]
    assert [own.steps_per_epoch(task, phase) for task in own.stream.tasks] == [2, 3]
    dropped = program(**{"train.last_batch": "drop"})
    assert [dropped.batch_sizes(task, phase) for task in own.stream.tasks] == [[4], [4, 4]]
    assert program(**{"train.batch_size": 16}).batch_sizes(own.stream.tasks[0], phase) == [7]


def test_seeds_in_one_program_equal_single_runs():
    together, alone = train_first_task(program(seeds=(0, 3))), train_first_task(program(seed=3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-5, atol=1e-6), together, alone)
    assert max(np.abs(a[0] - b).max() for a, b in zip(*map(jax.tree.leaves, (together, alone)), strict=True)) > 1e-3


def test_an_order_can_be_entered_in_the_middle_of_an_epoch():
    own = program(seeds=(0, 3))
    steps = CompiledSteps(own)
    task, (phase,) = own.stream.tasks[0], own.method.phases
    row_batches = [np.asarray(item["rows"]) for item in steps.train_batches(task, phase, 0, 0)]
    assert [rows.shape for rows in row_batches] == [(4, 2), (3, 2)] * 2
    for seed in (0, 1):
        assert sorted(np.concatenate([rows[:, seed] for rows in row_batches[:2]])) == sorted(task.train)
    for item, rows in zip(steps.train_batches(task, phase, 0, 1), row_batches[1:], strict=True):
        np.testing.assert_array_equal(item["rows"], rows)


def test_impossible_options_raise_errors_of_one_line(monkeypatch):
    def refusal(**changes):
        with pytest.raises(UserError) as caught:
            program(**changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "train.last_batch='keeep': use 'drop' or 'keep'" in refusal(**{"train.last_batch": "keeep"})
    assert "larger than the 7 training images of task 0" in refusal(
        **{"train.last_batch": "drop", "train.batch_size": 8}
    )
    own = program()
    multi_learner_plan = BatchPlan.build(own.stream, BATCH, [(0, 1, 2, 3), (3, 2, 1, 0)], last_batch="keep")
    with pytest.raises(UserError, match="streams for each learner, nor with replay or public images in a batch"):
        multi_learner_plan.check(own.method.phases[0])
    two = SimpleNamespace(shape={"data": 2})
    monkeypatch.setattr("cdl_jax.runtime.sharding.make_mesh", lambda devices, *_: two)
    assert "the last batch of task 0 has 3 images, which cannot be split evenly over 2 devices: use 'drop'" in refusal()
    assert program(**{"train.last_batch": "drop"}).mesh is two
