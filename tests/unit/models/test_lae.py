"""LAE: trained adapters, their moving average, and the ensemble of both."""

import math

import jax
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.methods.base import join
from cdl_jax.models.learners import lae
from cdl_jax.runtime.checkpoint import Checkpoints
from tests.support.contexts import context
from tests.support.learner_runs import DIM, build, outputs, take_steps, train

RNG = np.random.default_rng(5)
DECAY = 0.75


def random_like(tree):
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), tree)


def test_an_adapter_of_the_standardized_input_is_added_to_the_attention():
    module = lae.LAE(3, 2, DECAY, 1, DIM)
    initial = module.init_variables(jax.random.key(0), None, None)
    assert not np.any(initial["params"]["up"]) and np.all(initial["params"]["scale"] == 1)
    jax.tree.map(np.testing.assert_array_equal, initial["state"]["offline"], initial["params"])
    variables = random_like(initial)
    params = variables["params"]
    adapters = module.apply(variables, np.zeros((4, DIM)), context(), True).adapters
    assert sorted(adapters) == [0, 1] and adapters[1].mlp is None
    x, y = RNG.normal(3, 2, size=(2, 4, 5, DIM)).astype(np.float32)
    z = x - x.mean(axis=-1, keepdims=True)
    z = z / np.sqrt((z**2).mean(axis=-1, keepdims=True) + 1e-6) @ params["down"][1] + params["down_bias"][1]
    hidden = z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2
    expected = y + params["scale"][1] * (hidden @ params["up"][1] + params["up_bias"][1])
    np.testing.assert_allclose(adapters[1].attention(x, y), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("task", "epoch", "learns"), [(0, 0, True), (1, 0, False), (1, 1, False), (1, 2, True)])
def test_adapters_are_constants_in_the_first_epochs_of_later_tasks(task, epoch, learns):
    module = lae.LAE(3, 1, DECAY, 2, DIM)
    variables = random_like(module.init_variables(jax.random.key(0), None, None))
    at = context(task=task).replace(epoch=np.int32(epoch))
    x = RNG.normal(size=(2, 5, DIM)).astype(np.float32)

    def total(params):
        selection = module.apply({**variables, "params": params}, x[:, 0], at, True)
        return (selection.adapters[0].attention(x, 0 * x) ** 2).sum()

    gradients = jax.tree.leaves(jax.grad(total)(variables["params"]))
    assert [bool(np.any(g)) for g in gradients] == [learns] * 5


def test_the_average_follows_the_parameters_after_each_step_and_starts_at_the_end_of_the_first_task():
    module = lae.LAE(3, 1, DECAY, 0, DIM)
    variables = module.init_variables(jax.random.key(0), None, None)
    trained, expected = variables["params"], None
    for task in (0, 1, 2):
        for step in range(3):
            at = context(task=task).replace(step=np.int32(step))
            variables = {**variables, "state": module.update_state(variables, {}, at)}
            trained = jax.tree.map(lambda leaf, s=step: leaf + s + 1, trained)  # the optimizer's step
            variables = {**variables, "params": trained}
            if task > 0:
                expected = jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * p, expected, trained)
        variables = module.end_task(variables, context(task=task))
        expected = trained if task == 0 else expected
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), variables["state"]["offline"], expected)


def test_the_prediction_is_the_larger_probability_over_the_classes_seen(tmp_path):
    changes = {"learner.rank": 2, "learner.layers": 2, "learner.decay": DECAY, "learner.constant_epochs": 0}
    experiment = build("lae", **changes, **{"train.epochs": 1, "optim.name": "adam", "optim.learning_rate": 0.05})
    run = train(experiment, tmp_path)
    assert not run.compiles_again
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        first = jax.device_get(checkpoints.restore_task(0, experiment.abstract_variables()[0]))["student"]
    jax.tree.map(np.testing.assert_array_equal, first["state"]["prompts"]["offline"], first["prompts"])
    own = join(run.frozen, run.after)["student"]
    offline = own["state"]["prompts"]["offline"]
    assert all(np.abs(offline[name] - own["prompts"][name]).max() > 1e-5 for name in offline)
    single = [
        outputs(experiment, {**own, "prompts": params}, train=True)["logits"] for params in (own["prompts"], offline)
    ]
    probabilities = [np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True)) for z in np.float64(single)]
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-3
    logits = outputs(experiment, own)["logits"]
    np.testing.assert_allclose(np.exp(logits), np.maximum(*probabilities), rtol=1e-3, atol=1e-5)
    # After the first task two classes have been seen.
    learner = experiment.method.models.student.learner
    masked = np.exp(learner.join_logits(tuple(np.float32(single)), context(0, 2), False))
    pairs = [np.exp(z[:, :2] - np.logaddexp.reduce(z[:, :2], axis=1, keepdims=True)) for z in np.float64(single)]
    np.testing.assert_allclose(masked[:, :2], np.maximum(*pairs), rtol=1e-3, atol=1e-5)
    assert not masked[:, 2:].any()


def test_training_predicts_with_the_trained_adapters_alone():
    experiment = build("lae", **{"learner.rank": 2, "learner.layers": 2, "learner.constant_epochs": 0})
    (before, after), frozen = take_steps(experiment, 1)
    own = join(frozen, after)["student"]
    other = {**own, "state": {**own["state"], "prompts": random_like(own["state"]["prompts"])}}
    same = [outputs(experiment, variables, train=True)["logits"] for variables in (own, other)]
    np.testing.assert_array_equal(*same)
    assert np.abs(outputs(experiment, own)["logits"] - outputs(experiment, other)["logits"]).max() > 1e-4
    assert np.abs(after["student"]["prompts"]["up"] - before["student"]["prompts"]["up"]).max() > 1e-7


def test_adapters_that_are_constants_in_all_epochs_are_refused():
    build("lae", **{"learner.rank": 2, "learner.layers": 2, "learner.constant_epochs": 2, "train.epochs": 3})
    with pytest.raises(UserError, match="learner.constant_epochs=3 leaves no epoch of 3 .* set it below 3, such as 1"):
        build("lae", **{"learner.rank": 2, "learner.layers": 2, "learner.constant_epochs": 3, "train.epochs": 3})
