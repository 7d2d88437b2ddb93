"""DKT: which learner receives what and when, and the effect on a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax import config as configs
from cdl_jax import optim
from cdl_jax.data.transforms import mixing
from cdl_jax.errors import UserError
from cdl_jax.methods import dkt
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import dkt_learner_loss, dkt_learners, topology
from cdl_jax.training.steps import label_ranks
from tests.support.contexts import context
from tests.support.manual_steps import quick, train

INFO = StreamInfo(4, (2, 2))


class Tiny(dkt_learners.ConvolutionalLearner):
    """A learner of three matrices and a running mean, which compiles fast."""

    def init(self, key):
        def normal(i, shape):
            return 0.3 * jax.random.normal(jax.random.fold_in(key, i), shape)

        params = {"body": normal(0, (12, 5)), "cl": normal(1, (5, 4)), "student": normal(2, (5, 4))}
        return {"params": params, "batch_stats": {"mean": normal(3, (5,))}}

    def __call__(self, variables, shared, images, train, context, key):
        params, running = variables["params"], variables["batch_stats"]["mean"]
        features = images.reshape(len(images), -1) @ params["body"]
        mean = features.mean(axis=0) if train else running
        features = jnp.tanh(features - mean)
        stats = {"batch_stats": {"mean": 0.9 * running + 0.1 * mean}} if train else {}
        return dkt_learners.LearnerOutputs(features @ params["cl"], features @ params["student"], stats)


def build(count=3, **changes):
    """A method of tiny learners that receive from each other at every step."""
    config = configs.default("dkt", data="glyph_mini", network="slim_resnet18")
    config.network.image_size = 2
    config.dkt.update(num_learners=count, replay=0, copy_init=False, **changes)
    config.train.update(epochs=2, batch_size=6)
    config.optim.update(name="adam", learning_rate=0.01, schedule="constant", clip_norm=5.0)
    configs.check(config)
    run_teachers = dkt.build(config, INFO).run_teachers
    optimizer = optim.build(config.optim, 2)
    return dkt.assemble(Tiny(None, 2), run_teachers, config.dkt, INFO, batch_size=6, epochs=2, optimizer=optimizer)


def batch(count=3, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 6, 2, 2, 3)).astype(np.float32)
    return {"images": images, "labels": rng.integers(0, 4, (count, 6)).astype(np.int32)}


def initial_variables(method):
    """Draws the variables of a method, as NumPy arrays."""
    return jax.device_get(quick(lambda key: method.init(key))(jax.random.key(0)))


def cl_and_st_logits(method, variables, images, train, step_context):
    """Computes the logits of both heads of a learner, as NumPy arrays."""

    def forward(variables, images):
        key = step_context.key if train else None
        outputs = method.learner(variables, None, images, train, step_context, key)
        return outputs.cl_logits, outputs.st_logits

    return jax.device_get(quick(forward)(variables, images))


def run(method, variables, batches, contexts=None):
    """(variables after the last step, metrics of each step)."""
    history = train(method, variables, batches, contexts or [context(0, 2)] * len(batches))
    return history[-1][0], [metrics for _, metrics in history]


def max_diff(first, second):
    """Largest absolute difference between two trees of the same shape."""
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - b).max()) for a, b in pairs)


@pytest.fixture(scope="module")
def initial():
    return initial_variables(build())


@pytest.mark.parametrize("changes", [{"topology": "none"}, {"kd_rel": 0.0}])
def test_a_learner_that_receives_nothing_trains_as_a_single_learner(initial, changes):
    three, _ = run(build(**changes), initial, [batch(), batch(seed=1)])
    for i in range(3):
        single = {"learner_0": initial[f"learner_{i}"]}
        data = [{name: x[i : i + 1] for name, x in batch(seed=seed).items()} for seed in (0, 1)]
        after, _ = run(build(1), single, data)
        expected = flatten_dict(after["learner_0"]["params"])
        for path, leaf in flatten_dict(three[f"learner_{i}"]["params"]).items():
            if changes.get("topology") or path != ("student",):  # with weight 0 the ST head keeps its initial weights
                np.testing.assert_allclose(leaf, expected[path], atol=1e-6, err_msg=str(path))


def test_equal_learners_with_equal_batches_stay_equal(initial):
    same = {**initial, **{f"learner_{i}": initial["learner_0"] for i in range(3)}}
    data = [{name: np.stack([x[0]] * 3) for name, x in batch(seed=seed).items()} for seed in (0, 1)]
    after, _ = run(build(), same, data)
    assert max_diff(after["learner_0"], after["learner_1"]) < 1e-6 > max_diff(after["learner_0"], after["learner_2"])
    assert max_diff(after["learner_0"], initial["learner_0"]) > 1e-3


def test_permuting_the_learners_permutes_the_result(initial):
    order = [2, 0, 1]
    after, _ = run(build(), initial, [batch(), batch(seed=1)])
    swapped = {**initial, **{f"learner_{i}": initial[f"learner_{j}"] for i, j in enumerate(order)}}
    data = [{name: x[order] for name, x in batch(seed=seed).items()} for seed in (0, 1)]
    other, _ = run(build(), swapped, data)
    for i, j in enumerate(order):
        assert max_diff(other[f"learner_{i}"], after[f"learner_{j}"]) < 1e-5


def test_between_exchanges_learners_use_the_last_published_state(initial):
    history = train(build(exchange_interval=3), initial, [batch()] * 4, [context(0, 2)] * 4)
    assert [int(metrics["messages"]) for _, metrics in history] == [6, 0, 0, 6]
    for i in range(3):
        published = [jax.tree.map(lambda x, i=i: x[i], after["published"]) for after, _ in history]
        assert all(max_diff(one, initial[f"learner_{i}"]) == 0 for one in published[:3])
        # The fourth step publishes before its update.
        assert max_diff(published[3]["params"], history[2][0][f"learner_{i}"]["params"]) == 0


def test_for_two_learners_ring_and_full_are_equal(initial):
    two = {name: initial[name] for name in ("learner_0", "learner_1")}
    results = []
    for topology_ in ("ring", "full"):
        method = build(2, topology=topology_)
        results.append(run(method, {**initial_variables(method), **two}, [batch(2), batch(2, seed=1)])[0])
    assert max_diff(results[0], results[1]) == 0


def test_in_sequential_order_each_phase_trains_one_learner(initial):
    method = build(update_order="sequential")
    assert [phase.name for phase in method.phases] == ["learner_0", "learner_1", "learner_2"]
    after, metrics = run(method, initial, [batch()])
    assert max_diff(after["learner_0"], initial["learner_0"]) > 0
    assert max_diff(after["learner_1"], initial["learner_1"]) == 0 == max_diff(after["learner_2"], initial["learner_2"])
    assert "learner_0/class_loss" in metrics[0] and "learner_1/class_loss" not in metrics[0]


def test_the_target_is_the_mean_of_the_published_logits(initial):
    method, data = build(), batch()
    step_context = context(0, 2)
    _, metrics = run(method, initial, [data])
    for i in range(3):
        answers = [
            cl_and_st_logits(method, initial[f"learner_{j}"], data["images"][i], False, step_context)[0]
            for j in range(3)
        ]
        target = (sum(answers) - answers[i]) / 2
        _, st = cl_and_st_logits(method, initial[f"learner_{i}"], data["images"][i], True, step_context)
        assert metrics[0][f"learner_{i}/student_loss"] == pytest.approx(np.mean((st - target) ** 2), rel=1e-4)


def test_learners_train_from_the_task_they_join_until_they_leave(initial):
    method = build(joins=(0, 1, 0), leaves=(2, 2, 1))
    after, metrics = run(method, initial, [batch()])
    assert max_diff(after["learner_1"], initial["learner_1"]) == 0 < max_diff(after["learner_0"], initial["learner_0"])
    assert int(metrics[0]["messages"]) == 2 and after["exchange"]["announced"].tolist() == [True, False, True]
    later, metrics = run(method, after, [batch()], [context(2, 4, task=1)])
    assert max_diff(later["learner_2"], after["learner_2"]) == 0 < max_diff(later["learner_1"], after["learner_1"])
    assert float(metrics[0]["learner_1/kd_weight"]) == 0.5 and int(metrics[0]["messages"]) == 2
    # The state that the third published before it left is still used.
    assert max_diff(later["published"], after["published"]) > 0
    third = jax.tree.map(lambda x: x[2], later["published"])
    assert max_diff(third, initial["learner_2"]) == 0


def test_without_participation_there_are_no_messages_and_no_targets(initial):
    after, metrics = run(build(participation=0.0), initial, [batch()])
    assert int(metrics[0]["messages"]) == 0 and float(metrics[0]["learner_0/kd_weight"]) == 0
    assert all(np.isfinite(float(value)) for value in metrics[0].values())


def test_gossip_moves_weights_towards_the_mean_of_the_peers(initial):
    method = build(exchange_mode="weights", gossip_share=0.5, kd_rel=0.0)
    assert not any(name.endswith("_st") for name in method.networks)
    variables = initial_variables(method)
    assert "published" not in variables
    exchange = method.phases[0].updates[0].loss
    outcome = quick(exchange)(variables, batch(), context(0, 2))[1]

    def kernel(tree):
        return np.asarray(tree["params"]["student"])

    old = [kernel(initial[f"learner_{i}"]) for i in range(3)]
    for i in range(3):
        expected = 0.5 * old[i] + 0.25 * sum(old[j] for j in range(3) if j != i)
        np.testing.assert_allclose(kernel(outcome.variables[f"learner_{i}"]), expected, atol=1e-6)


def test_logits_of_public_images_are_published_and_stored(initial):
    method = build(exchange_mode="predictions", public=8, public_batch=5, exchange_interval=2)
    variables, public = initial_variables(method), batch(1, seed=7)["images"][0][:5]
    data = [{**batch(seed=seed), "public": public + seed} for seed in (0, 1)]
    after, metrics = run(method, variables, data)
    assert [int(step["messages"]) for step in metrics] == [6, 0] and method.phases[0].num_public == 5
    np.testing.assert_allclose(after["published"]["images"], public)  # of the first step
    expected, _ = cl_and_st_logits(method, variables["learner_1"], public, False, context())
    np.testing.assert_allclose(after["published"]["logits"][1], expected, atol=1e-5)
    assert method.exchange.message_bytes(after) == 4 * 5 * 4
    assert float(metrics[0]["learner_0/student_loss"]) > 0


def test_logits_of_a_learner_that_skipped_an_exchange_are_unused(initial):
    """The third learner leaves after the first task: its logits are of other images."""
    method = build(exchange_mode="predictions", public=8, public_batch=5, leaves=(2, 2, 1))
    data = {**batch(), "public": batch(1, seed=7)["images"][0][:5]}
    history = train(method, initial_variables(method), [data] * 2, [context(0, 2), context(2, 4, task=1)])
    assert [after["exchange"]["announced"].tolist() for after, _ in history] == [[True] * 3, [True, True, False]]
    assert [int(metrics["messages"]) for _, metrics in history] == [6, 2]
    before, (after, metrics) = history[0][0], history[1]
    _, st = cl_and_st_logits(method, before["learner_0"], data["public"], True, context())
    expected = np.mean((st - after["published"]["logits"][1]) ** 2)  # the second learner alone
    assert float(metrics["learner_0/student_loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(("labels_of", "own_area"), [("mixed", 0.25), ("original", 1.0)])
def test_cutmix_weights_the_labels_by_their_area(initial, monkeypatch, labels_of, own_area):
    """The stand-in mixes three quarters of the image before into each image."""
    probabilities = []

    def cutmix(images, labels, key, probability):
        probabilities.append(probability)
        return 0.25 * images + 0.75 * jnp.roll(images, 1, axis=0), jnp.roll(labels, 1), 0.25

    monkeypatch.setattr(dkt_learner_loss.mixing, "cutmix", cutmix)
    method, data, step_context = build(1, cutmix=1.0, cutmix_labels=labels_of), batch(1), context(0, 2)
    _, outcome = method.loss(("learner_0",), {"learner_0": initial["learner_0"]}, data, step_context)
    images, labels = data["images"][0], data["labels"][0]
    images = 0.25 * images + 0.75 * np.roll(images, 1, axis=0)
    logits, _ = cl_and_st_logits(method, initial["learner_0"], images, True, step_context)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    own, pasted = (-log_p[np.arange(6), which].mean() for which in (labels, np.roll(labels, 1)))
    expected = own_area * own + (1 - own_area) * pasted
    assert float(outcome.metrics["learner_0/class_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(outcome.metrics["learner_0/accuracy"]) == pytest.approx(100 * (logits.argmax(axis=1) == labels).mean())
    assert probabilities == pytest.approx([mixing.cutmix_probability("linear", 1.0, 0, 2)])


def test_random_peers_are_drawn_at_exchanges_only(initial):
    method = build(random_peers=1, exchange_interval=2)
    contexts = [context(0, 2, seed=seed) for seed in range(6)]
    history = train(method, initial_variables(method), [batch()] * 6, contexts)
    matrices = [np.asarray(after["exchange"]["matrix"]) for after, _ in history]
    for number, matrix in enumerate(matrices):
        assert (np.diag(matrix) == 0).all() and (matrix.sum(axis=1) == 1).all() and set(matrix.ravel()) == {0, 1}
        np.testing.assert_array_equal(matrix, matrices[number - number % 2])
    assert any((matrix != matrices[0]).any() for matrix in matrices)


def test_networks_are_evaluated_in_their_class_orders():
    method = build(2, stream_order="rotated")
    assert method.streams == ((0, 1, 2, 3), (2, 3, 0, 1))
    assert method.stream_of["learner_1_st"] == 1 and "ensemble" not in method.stream_of
    np.testing.assert_array_equal(label_ranks(method, "learner_1"), [2, 3, 0, 1])
    limited = build(2, stream_order="rotated", classes="current")
    np.testing.assert_array_equal(limited.learner_loss.class_mask(1, context(0, 2)), [False, False, True, True])
    logits = {name: np.eye(4)[[0, 1, 2, 2]] for name in method.networks}
    metrics = quick(lambda *x: method.extra_metrics(*x))(logits, np.arange(4), context(0, 2))
    # Learner 0 has met classes 0 and 1, learner 1 classes 2 and 3; one and two of the unmet classes are right.
    assert float(metrics["mean/accuracy_on_others_classes"].mean()) == pytest.approx((50 + 100) / 2)


def test_classes_of_tasks_without_a_learner_are_not_met():
    method = build(2, stream_order="rotated", joins=(0, 1), leaves=(1, 2))
    logits = {name: np.eye(4)[[0, 1, 2, 2]] for name in method.networks}
    # Learner 0 has met classes 0 and 1 before it left, learner 1 those of its second task: 0 and 1. None is unmet.
    metrics = method.extra_metrics(logits, np.arange(4), context(2, 4, task=1))
    assert float(metrics["mean/accuracy_on_others_classes"].mean()) == 0
    metrics = method.extra_metrics(logits, np.arange(4), context(0, 2))
    assert float(metrics["mean/accuracy_on_others_classes"].mean()) == 100  # learner 1 predicts 0 and 1


@pytest.mark.parametrize(("task", "is_due"), [(0, True), (1, False), (2, True)])
def test_an_interval_of_tasks_counts_no_phases(task, is_due):
    method = build(2, update_order="sequential", exchange_unit="tasks", exchange_interval=2)
    for phase in range(2):  # of a task; each has begun
        variables = initial_variables(method)
        variables["exchange"]["begun"]["tasks"] = jnp.int32(2 * task + phase)
        at = context(0, 2, task=task)
        _, outcome = method.exchange(variables, batch(2), at)
        assert bool(outcome.variables["exchange"]["rounds"] > variables["exchange"]["rounds"]) == is_due


def test_mixing_matrices_and_class_orders():
    third = np.float32(1) / 3
    assert topology.mixing_matrix("ring", 3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert topology.mixing_matrix("full", 4)[0].tolist() == [0, third, third, third]
    assert topology.mixing_matrix("star", 3).tolist() == [[0, 0.5, 0.5], [1, 0, 0], [1, 0, 0]]
    assert topology.mixing_matrix("pairs", 3).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert topology.mixing_matrix(((0, 1), (0, 0)), 2).tolist() == [[0, 1], [0, 0]]
    independent = topology.class_orders("independent", 3, (2, 2), 5)
    assert independent[0] == (0, 1, 2, 3) and all(sorted(order) == [0, 1, 2, 3] for order in independent)
    shuffled = topology.class_orders("shuffled", 3, (2, 2), 5)
    assert shuffled[1:] == independent[1:] and shuffled[0] != independent[0] and sorted(shuffled[0]) == [0, 1, 2, 3]
    assert topology.class_orders("rotated", 2, (1, 1, 1, 1), 0)[1] == (2, 3, 0, 1)


@pytest.mark.parametrize("rows", [((0, 0.5, 0.5), (1, 0, 0), (0, 0, 0)), "[[0, 0.5, .5], [1, 0, 0], [0, 0, 0]]"])
def test_the_topology_of_a_config_may_be_a_matrix(rows):
    method = build(topology=rows)
    assert method.exchange.matrix.tolist() == [[0, 0.5, 0.5], [1, 0, 0], [0, 0, 0]]
    assert type(method.options.topology) is str  # so a resumed run reads the same value from config.json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "rnig"}, "did you mean 'ring'"),
        ({"stream_order": "rotate"}, "did you mean 'rotated'"),
        ({"exchange_mode": "models"}, "dkt.exchange_mode='models'"),
        ({"exchange_interval": 0}, "at least 1"),
        ({"joins": (0, 1)}, "give 3 tasks, one for each learner"),
        ({"joins": (0, 1, 9)}, "dkt.joins=(0, 1, 9) must be integers from 0 to 1, as there are 2 tasks"),
        ({"joins": ("a", "b", "c")}, "dkt.joins=('a', 'b', 'c') must be integers"),
        ({"joins": (None, 0, 0)}, "dkt.joins=(None, 0, 0) must be "),
        ({"joins": (0.5, 1, 0)}, "dkt.joins=(0.5, 1, 0) must be integers"),
        ({"joins": (True, 1, 0)}, "dkt.joins=(True, 1, 0) must be integers"),
        ({"joins": (1, 1, 1)}, "no learner is there in task 0, so nothing is learned in it"),
        ({"leaves": (0, 0, 0)}, "dkt.leaves=(0, 0, 0) must be at least 1"),
        ({"leaves": (1, 1, 1)}, "no learner is there in task 1"),
        ({"leaves": (1, 2, "b")}, "dkt.leaves=(1, 2, 'b') must be integers"),
        ({"joins": (0, 1, 0), "leaves": (2, 1, 2)}, "learner 1 leaves before it has learned a task"),
        ({"cutmix_ramp": "steep"}, "dkt.cutmix_ramp='steep': use 'linear' or 'as_coded'"),
        ({"cutmix": 2.0}, "dkt.cutmix=2.0 must lie in [0, 1]"),
        ({"gossip_share": 1.5}, "dkt.gossip_share=1.5 must lie in [0, 1]"),
        ({"teacher_runs": (1, 2)}, "dkt.teacher_runs=(1, 2) must be text that is not empty"),
        ({"random_peers": 3}, "each of 3 learners has 2 others"),
        ({"participation": 1.5}, "dkt.participation=1.5 must lie in [0, 1]"),
        ({"public_batch": 2000}, "more than the 1000 public images"),
        ({"st_loss": "mes"}, "did you mean 'mse'"),
    ],
)
def test_invalid_options_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_rotated_orders_need_tasks_of_one_size():
    with pytest.raises(UserError, match="dkt.stream_order='rotated' needs tasks of one size: choose 'independent'"):
        topology.class_orders("rotated", 2, (2, 1), seed=0)


@pytest.mark.parametrize(
    "rows",
    [
        ((0, 1),),
        ((None, 1), (1, 0)),
        (("a", 1), (1, 0)),
        ((1, 0), (0, 1)),
        ((0, 0.5), (1, 0)),
        ((0, -1), (1, 0)),
        ((0, 1), (1,)),
        "((0, 1), (1, 0)",
        "(0, 1)",
        "(one, two)",
    ],
)
def test_invalid_mixing_matrices_are_refused(rows):
    with pytest.raises(UserError, match="dkt.topology: a matrix"):
        topology.mixing_matrix(rows, 2)
