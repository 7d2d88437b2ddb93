"""Steps of a method with two numbers, whose updates are computed by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import optim
from cdl_jax.data.stream import Task
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Outcome, Phase, StreamInfo, Update, join, split
from cdl_jax.options import defaults
from cdl_jax.training import steps
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.state import State, init_optimizers, key_at, position
from cdl_jax.training.steps import TrainStep, evaluation_step, task_boundary_step
from tests.support.methods import FixedMethod

TREE = {"a": {"x": 1, "y": {"z": 2}}, "b": {"x": 3}, "none": {}}


def test_split_and_join_are_a_round_trip():
    inside, outside = split(TREE, lambda path: path[-1] == "x")
    assert inside == {"a": {"x": 1}, "b": {"x": 3}}
    assert outside == {"a": {"y": {"z": 2}}, "none": {}}
    assert join(inside, outside) == join(outside, inside) == TREE
    assert split(TREE, lambda path: True) == (TREE, {})
    assert join(TREE, {"a": {"y": {"z": 9}}, "new": 5}) == {**TREE, "a": {"x": 1, "y": {"z": 9}}, "new": 5}
    assert TREE["a"]["y"] == {"z": 2}


@pytest.mark.parametrize(("rounds", "keys"), [(1, [(7, 2, 1)]), (2, [(7, 2, 1, 0), (7, 2, 1, 1)])])
def test_each_round_of_a_task_has_its_own_crops_on_the_host(rounds, keys):
    loader = SimpleNamespace(train_batches=lambda rows, first_step, key_parts: key_parts)
    experiment = SimpleNamespace(seeds=(7,), method=SimpleNamespace(rounds=rounds), rows=lambda *arguments: None)
    own = SimpleNamespace(experiment=experiment, train_loader=loader)
    task, phase = SimpleNamespace(index=2), SimpleNamespace(sequential=False, order=1)
    assert [CompiledSteps.train_batches(own, task, phase, round, 0) for round in range(rounds)] == keys


def test_public_images_are_the_last_of_a_batch_and_equal_for_all_learners():
    images = np.arange(5 * 2, dtype=np.float32).reshape(5, 2, 1, 1, 1)  # five images of two learners
    labels, rows = np.arange(10).reshape(5, 2), np.arange(20, 30).reshape(5, 2)
    images[3:] = images[3:, :1]  # the last two are public
    batch = steps._make_batch(jnp.asarray(images), labels, rows, num_public=2)
    assert batch["images"].ravel().tolist() == [0, 2, 4, 1, 3, 5] and batch["images"].shape == (2, 3, 1, 1, 1)
    assert batch["labels"].tolist() == [[0, 2, 4], [1, 3, 5]] and batch["rows"].tolist() == [[20, 22, 24], [21, 23, 25]]
    assert batch["public"].shape == (2, 1, 1, 1) and batch["public"].ravel().tolist() == [6, 8]
    alone = steps._make_batch(jnp.asarray(images[:, 0]), labels[:, 0], rows[:, 0], num_public=2)
    assert alone["public"].ravel().tolist() == [6, 8] and alone["labels"].tolist() == [0, 2, 4]


def test_every_position_has_its_own_key():
    positions = [(seed, *p) for seed in (0, 1) for p in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (2, 3, 4))]
    keys = {tuple(jax.random.key_data(key_at(*position)).tolist()) for position in positions}
    assert len(keys) == len(positions)
    again = key_at(1, 2, 3, 4)
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(key_at(1, 2, 3, 4)))
    in_step = jax.jit(lambda task: key_at(1, 2, task, 4))(np.int32(3))
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(in_step))


TASK = Task(1, (7, 8), 2, np.arange(4), np.arange(2))


def test_a_position_holds_arrays_of_fixed_types():
    at = position(TASK, epoch=3, step=1, steps=4)
    assert {name: (value.dtype.name, float(value)) for name, value in at.items()} == {
        "task": ("int32", 1), "first": ("int32", 2), "end": ("int32", 4), "epoch": ("int32", 3), "step": ("int32", 1),
        "progress": ("float32", 3.25),
    }  # fmt: skip
    third = position(TASK, epoch=3, step=7, steps=8, accumulate=4)  # all four have the progress of the first
    assert (int(third["step"]), float(third["progress"])) == (7, 3.5)


class Source:
    """Loads four cropped 1 x 1 images, whose labels are numbers in the losses."""

    crops_on_host = True
    data = {"images": jnp.full((4, 1, 1, 3), 255, jnp.uint8), "labels": jnp.array([0, 1, 2, 3])}

    @staticmethod
    def read(data, item):
        return data["images"][item["rows"]], data["labels"][item["rows"]]


ITEM = {"rows": jnp.array([2, 3])}
MUTABLE = {
    "one": {"w": jnp.float32(2.0)},
    "two": {"w": jnp.float32(-1.0)},
    "idle": jnp.float32(7.0),
    "mean": jnp.float32(0),
}
FROZEN = {"base": {"scale": jnp.float32(3.0)}}


def halving(learning_rate=0.5):
    """Plain gradient descent whose rate halves in every epoch."""
    options = SimpleNamespace(**defaults(optim.OPTIONS, name="sgd", momentum=0.0, learning_rate=learning_rate))
    return optim.Optimizer(optim.build(options, 1).transform, lambda progress: learning_rate * 0.5**progress)


def first_loss(variables, batch, context):
    """Returns scale/2 (w - mean label)^2; sets `mean`.

    The label mean and w are passed to the second update.
    """
    label = batch["labels"].mean()
    value = variables["base"]["scale"] / 2 * (variables["one"]["w"] - label) ** 2
    passed = {"label": label, "w": variables["one"]["w"]}
    return value, Outcome({"loss": value, "first": value}, {"mean": 0.9 * variables["mean"] + 0.1 * label}, passed)


def second_loss(variables, batch, context):
    """Returns w_two (w_one before its update + 10 w_one now + 100 mean now).

    The gradient with respect to w_two is the sum in parentheses.
    """
    factor = batch["w"] + 10 * variables["one"]["w"] + 100 * variables["mean"]
    value = variables["two"]["w"] * factor
    return value, Outcome({"loss": value, "label": batch["label"], "pixel": batch["images"].mean()})


def chain_method():
    updates = (
        Update(lambda path: path[0] == "one", halving(), first_loss),
        Update(lambda path: path[0] == "two", halving(), second_loss),
    )
    return FixedMethod(phases=(Phase("both", 1, updates),))


def start(method, skip=False):
    """Returns the step of the only phase, and the state with which a task begins."""
    step = TrainStep(method, 0, Source, defaults(augment.OPTIONS), skip)
    opt = init_optimizers(method, MUTABLE)
    metrics = jax.eval_shape(step.updates, MUTABLE, opt[0], FROZEN, Source.data, ITEM, position(TASK), 0)[2]
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)
    terms = {name: value for name, value in sums.items() if name != "steps"}
    nonfinite = {"count": jnp.int32(0), "epoch": jnp.int32(0), "step": jnp.int32(0), "terms": terms}
    return jax.jit(step), State(MUTABLE, opt, (sums,), (nonfinite,))


def run_step(step, state, **at):
    return step(state, FROZEN, Source.data, ITEM, position(TASK, **at), 0)


def test_updates_run_in_order_and_pass_values_on():
    state = run_step(*start(chain_method()))
    # Labels 2 and 3, mean 2.5. First: 2 - 0.5 * 3 * (2 - 2.5) = 2.75; mean becomes 0.25.
    assert float(state.mutable["one"]["w"]) == pytest.approx(2.75)
    assert float(state.mutable["mean"]) == pytest.approx(0.25)
    # Second: gradient 2 + 27.5 + 25 = 54.5.
    assert float(state.mutable["two"]["w"]) == pytest.approx(-1 - 0.5 * 54.5)
    expected = {"steps": 1, "loss": -54.5, "first": 0.375, "label": 2.5, "learning_rate": 0.5, "pixel": 1.0}
    assert {name: float(value) for name, value in state.metric_sums[0].items()} == pytest.approx(expected)


def test_untrained_leaves_are_unchanged_and_frozen_ones_are_not_in_the_state():
    state = run_step(*start(chain_method()))
    assert float(state.mutable["idle"]) == 7.0
    assert jax.tree.structure(state.mutable) == jax.tree.structure(MUTABLE)
    assert float(FROZEN["base"]["scale"]) == 3.0 and "base" not in state.mutable
    assert len(state.opt[0]) == 2


def test_the_learning_rate_follows_the_epoch_and_sums_add_up():
    step, state = start(chain_method())
    for epoch in (0, 1):
        state = run_step(step, state, epoch=epoch)
    # Second step at rate 0.25: 2.75 - 0.25 * 3 * 0.25 = 2.5625.
    assert float(state.mutable["one"]["w"]) == pytest.approx(2.5625)
    assert float(state.metric_sums[0]["learning_rate"]) == pytest.approx(0.75)
    assert (float(state.metric_sums[0]["steps"]), float(state.metric_sums[0]["label"])) == (2.0, 5.0)
    assert float(state.metric_sums[0]["first"]) == pytest.approx(0.375 + 1.5 * 0.25**2)


def test_an_optimizer_state_has_only_the_trained_leaves():
    update = Update(
        lambda path: path[0] == "one", optim.build(SimpleNamespace(**defaults(optim.OPTIONS)), 1), first_loss
    )
    ((opt,),) = init_optimizers(FixedMethod(phases=(Phase("one", 1, (update,)),)), MUTABLE)
    assert [leaf.shape for leaf in jax.tree.leaves(opt)] == [(), (), ()]  # count, and the two moments of one number


def test_evaluation_counts_by_task_over_the_classes_seen_without_padding():
    # Labels 0..3 in two tasks of two classes; logits favor class 3, then 1 for all images.
    def predict(variables, images, context):
        logits = jnp.tile(jnp.array([0.0, 1.0, 0.5, variables["top"]]), (len(images), 1))
        return {"net": logits}, {"net": {"layer_0": jnp.ones((len(images), 2), jnp.int32) * jnp.array([1, 2])}}

    method = FixedMethod(prediction=predict)
    step = jax.jit(evaluation_step(method, Source, defaults(augment.OPTIONS), StreamInfo(4, (2, 2))))
    item = {"rows": jnp.array([0, 1, 3, 3, 3]), "weight": jnp.array([1.0, 1, 1, 1, 0])}
    both = step({}, {"top": jnp.float32(2)}, Source.data, item, position(TASK))
    np.testing.assert_array_equal(both["images"], [2, 2])
    np.testing.assert_array_equal(both["net"]["correct"], [0, 2])
    np.testing.assert_array_equal(both["net"]["layer_0"], [[2, 4], [2, 4]])
    assert both["pairs"] == {}
    first = Task(0, (5, 6), 0, np.arange(2), np.arange(2))
    seen = step({"top": jnp.float32(2)}, {}, Source.data, item, position(first))
    np.testing.assert_array_equal(seen["net"]["correct"], [1, 0])  # class 1 is the best of classes 0 and 1


def test_a_task_boundary_returns_the_mutable_variables():
    def change(variables, context):
        noise = jax.random.uniform(context.key)
        return {**variables, "idle": variables["idle"] + context.end, "mean": noise}

    changed = jax.jit(task_boundary_step(FixedMethod(frozen="base"), change))
    mutable = changed(MUTABLE, FROZEN, position(TASK), 4)
    assert jax.tree.structure(mutable) == jax.tree.structure(MUTABLE)
    assert (float(mutable["idle"]), float(mutable["one"]["w"])) == (11.0, 2.0)
    other = changed(MUTABLE, FROZEN, position(Task(0, (0, 1), 0, np.arange(2), np.arange(2))), 4)
    assert float(mutable["mean"]) != float(other["mean"])


def test_a_nonfinite_step_is_counted_and_can_be_skipped():
    method = chain_method()
    started = {skip: start(method, skip) for skip in (False, True)}

    def after(skip, *scales):
        step, state = started[skip]
        for number, scale in enumerate(scales):
            at = position(TASK, epoch=2, step=number, steps=9)
            state = step(state, {"base": {"scale": jnp.float32(scale)}}, Source.data, ITEM, at, 0)
        return state

    nan, inf = float("nan"), float("inf")
    (nonfinite,) = after(False, 3.0).nonfinite
    assert int(nonfinite["count"]) == 0
    reference, skipping = after(True, 3.0, 3.0), after(True, nan, 3.0, inf, 3.0, nan)
    (nonfinite,), (sums,) = skipping.nonfinite, skipping.metric_sums
    assert (int(nonfinite["count"]), int(nonfinite["epoch"]), int(nonfinite["step"])) == (3, 2, 0)
    assert np.isnan(nonfinite["terms"]["first"]) and float(nonfinite["terms"]["label"]) == 2.5
    assert "steps" not in nonfinite["terms"] and float(sums["steps"]) == 2 and float(sums["label"]) == 5.0
    assert float(skipping.mutable["mean"]) == float(reference.mutable["mean"])  # also a leaf that no optimizer changes
    stopped = after(False, 3.0, inf, 3.0)
    assert not np.isfinite(float(stopped.mutable["one"]["w"]))
    assert int(stopped.nonfinite[0]["count"]) == 2 and int(stopped.nonfinite[0]["step"]) == 1


def test_repeated_steps_share_one_optimizer_state_and_divide_the_batch():
    def loss(variables, batch, context):
        value = (variables["one"]["w"] - batch["labels"].mean()) ** 2 / 2
        noise = jax.random.uniform(context.key)
        return value, Outcome({"loss": value, "images": jnp.float32(len(batch["labels"])), "noise": noise},
                              {"mean": variables["mean"] + batch["labels"].sum()})  # fmt: skip

    options = SimpleNamespace(**defaults(optim.OPTIONS, name="sgd", momentum=0.9))
    optimizer = optim.Optimizer(optim.build(options, 1).transform, lambda progress: 0.5)
    update = Update(lambda path: path[0] == "one", optimizer, loss, repeats=2)
    state = run_step(*start(FixedMethod(phases=(Phase("both", 1, (update,)),))))
    # w = 2; label 2: gradient 0. Then label 3: gradient -1, and w = 2 + 0.5.
    assert (float(state.mutable["one"]["w"]), float(state.mutable["mean"])) == (2.5, 5.0)
    assert float(jax.tree.leaves(state.opt)[0]) == -1.0  # one momentum for both
    state = run_step(*start(FixedMethod(phases=(Phase("both", 1, (update,)),)))[:1], state)
    # Label 2: gradient 0.5, momentum -0.4, w = 2.7. Label 3: gradient -0.3, momentum -0.66, w = 3.03.
    assert float(state.mutable["one"]["w"]) == pytest.approx(3.03)
    assert float(state.metric_sums[0]["loss"]) == pytest.approx(0.5 + 0.045)  # of the last steps
    assert float(state.metric_sums[0]["images"]) == 2 * 1
    key = jax.random.fold_in(key_at(0, 1, 0, 1, 0, 0), 1)  # of the second step
    assert float(state.metric_sums[0]["noise"]) == pytest.approx(2 * float(jax.random.uniform(key)))


def test_repeated_steps_pass_nothing_on():
    update = Update(lambda path: path[0] == "one", halving(), first_loss, repeats=2)
    with pytest.raises(UserError, match="batch"):
        start(FixedMethod(phases=(Phase("both", 1, (update,)),)))
