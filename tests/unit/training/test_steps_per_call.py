"""Several steps in one call: where calls end, and that results are equal."""

import json

import jax
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.errors import UserError
from cdl_jax.run import loop
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.runtime.signals import RunInterrupted
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from tests.support.signals import After

SIDE = 8


def build(**changes):
    """Builds an experiment of two tasks with 27 images each.

    An epoch has 7 steps, the last with 3 images.
    """
    labels = np.repeat(np.arange(4, dtype=np.int32), [14, 13, 14, 13])
    images = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 3), np.uint8)
    stream = split_into_tasks(Dataset("noise", tuple("abcd"), *[Split(labels, images)] * 2), num_tasks=2)
    config = base.default("supervised", data="glyph_mini", network="mini_student")
    config.network.update(family="tests.support.tiny_network", dim=4, image_size=SIDE, weights="random")
    config.train.update(epochs=3, batch_size=4, last_batch="keep")
    config.eval.update(batch_size=32, forward_transfer=False, every_epochs=2)
    config.augment.train = "shift"
    config.optim.update(name="adam", schedule="cosine", learning_rate=0.1)
    config.log.update(every_steps=10, to=(), report=False)
    config.checkpoint.every_steps = 0
    config.devices = 1
    config.update_from_flattened_dict(changes)
    return Experiment.build(config, stream)


def trained(own, max_length, folder, listener=None):
    """Trains; returns the lengths of calls, the lines of metrics, mutable variables."""
    experiment = own.experiment
    experiment.config.train.steps_per_call, calls = max_length, []

    def recorded(index, size=0, num_steps=1):
        step = type(own).train_step(own, index, size, num_steps)
        return lambda *arguments: calls.append(num_steps) or step(*arguments)

    own.train_step = recorded
    loop.train(experiment, folder, listener, own)
    with Checkpoints(folder, read_only=True) as checkpoints:
        live = jax.device_get(checkpoints.restore_task(1, experiment.abstract_variables()[0]))
    return calls, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()], live


@pytest.fixture(scope="module")
def own():
    """Returns compiled steps, which all runs of this file share."""
    return CompiledSteps(build())


@pytest.fixture(scope="module")
def single(own, tmp_path_factory):
    """Returns the run with one step a call."""
    return trained(own, 1, tmp_path_factory.mktemp("single"))


def test_calls_of_three_steps_equal_single_steps(own, single, tmp_path):
    calls, lines, live = trained(own, 3, tmp_path)
    # Steps 7 and 14 have incomplete batches; a log line follows step 10, an evaluation step 14.
    assert calls[:9] == [3, 3, 1, 3, 3, 1, 3, 3, 1]
    assert sum(calls) == len(single[0]) == 2 * 21 and set(single[0]) == {1}
    assert lines == single[1] and [line["step"] for line in lines][:4] == [10, 14, 20, 21]
    jax.tree.map(np.testing.assert_array_equal, live, single[2])


def test_a_run_stopped_between_calls_resumes_to_equal_weights(own, single, tmp_path):
    with pytest.raises(RunInterrupted):
        trained(own, 3, tmp_path, After(5))
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 10
    calls, lines, live = trained(own, 4, tmp_path)  # with another length
    assert sum(calls) == 42 - 13
    assert lines == single[1]
    jax.tree.map(np.testing.assert_array_equal, live, single[2])


def test_vectorized_seeds_and_a_host_loader_take_several_steps_in_a_call():
    """Stacked batches are the single batches, and a call equals the single steps."""
    for changes in ({"seeds": (0, 3)}, {"device_data_limit_mb": 0}):
        experiment = build(**{"train.last_batch": "drop", **changes})
        own = CompiledSteps(experiment)
        task, (phase,) = experiment.stream.tasks[0], experiment.method.phases
        steps = experiment.steps_per_epoch(task, phase)
        ends = []
        for lengths in ((1,) * 18, (4, 1, 4, 4, 4, 1)):
            mutable, frozen = experiment.initial_variables()
            state, number = own.task_state(mutable), 0
            items = own.train_batches(task, phase, 0, 0, None, lengths)
            for item, length in zip(items, lengths, strict=True):
                ahead = np.arange(number, number + length) if length > 1 else number
                number += length
                place = position(task, epoch=ahead // steps, step=ahead % steps, steps=steps)
                step = own.train_step(0, 0, length)
                state = step(state, frozen, own.train_loader.data, item, place, experiment.seed)
            ends.append(jax.device_get((state.mutable, state.metric_sums)))
        jax.tree.map(np.testing.assert_array_equal, *ends)
        assert np.all(ends[0][1][0]["steps"] == 18)


def test_invalid_combinations_are_refused():
    with pytest.raises(UserError, match="train.steps_per_call=0 must be at least 1"):
        build(**{"train.steps_per_call": 0})
    with pytest.raises(UserError, match="steps_per_call above 1 cannot be combined with config.fsdp_devices: .*at 1$"):
        build(**{"train.steps_per_call": 2, "fsdp_devices": 2})
