"""Learners that teach each other: who hears whom and when, and what that changes in a step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.methods import dkt
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import dkt_learners, topology
from cdl_jax.training import steps as trainer
from tests.support.contexts import context
from tests.support.manual_steps import quick, train

INFO = StreamInfo(4, (2, 2))


class Tiny(dkt_learners.ConvolutionalLearner):
    """A learner of three matrices and a running mean, which takes a moment to compile."""

    def init(self, key):
        normal = lambda i, shape: 0.3 * jax.random.normal(jax.random.fold_in(key, i), shape)  # noqa: E731
        params = {"body": normal(0, (12, 5)), "cl": normal(1, (5, 4)), "student": normal(2, (5, 4))}
        return {"params": params, "batch_stats": {"mean": normal(3, (5,))}}

    def __call__(self, own, shared, images, train, context, key):
        params, running = own["params"], own["batch_stats"]["mean"]
        features = images.reshape(len(images), -1) @ params["body"]
        mean = features.mean(axis=0) if train else running
        features = jnp.tanh(features - mean)
        stats = {"batch_stats": {"mean": 0.9 * running + 0.1 * mean}} if train else {}
        return dkt_learners.LearnerOutputs(features @ params["cl"], features @ params["student"], stats)


def build(count=3, **changes):
    """A method of tiny learners that hear each other at every step."""
    config = configs.default("dkt", data="glyph_mini", network="slim_resnet18")
    config.network.image_size = 2
    config.dkt.update(num_learners=count, replay=0, copy_init=False, **changes)
    config.train.update(epochs=2, batch_size=6)
    config.optim.update(name="adam", learning_rate=0.01, schedule="constant", clip_norm=5.0)
    return replace(dkt.build(config, INFO), learner=Tiny(None, 2))


def batch(count=3, seed=0):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(count, 6, 2, 2, 3)), jnp.float32)
    return {"images": images, "labels": jnp.asarray(rng.integers(0, 4, (count, 6)), jnp.int32)}


def run(method, variables, batches, places=None):
    """(variables after the last step, what each step told)."""
    history = train(method, variables, batches, places or [context(0, 2)] * len(batches))
    return history[-1][0], [told for _, told in history]


def distance(one, other):
    """Largest difference between two trees of the same shape."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a, np.float64) - b).max()) for a, b in pairs)


@pytest.fixture(scope="module")
def begun():
    return build().init(jax.random.key(0))


@pytest.mark.parametrize("changes", [{"topology": "none"}, {"kd_rel": 0.0}])
def test_who_hears_nobody_learns_as_if_alone(begun, changes):
    together, _ = run(build(**changes), begun, [batch(), batch(seed=1)])
    for i in range(3):
        own = {"learner_0": begun[f"learner_{i}"]}
        data = [{name: x[i : i + 1] for name, x in batch(seed=seed).items()} for seed in (0, 1)]
        alone, _ = run(build(1), own, data)
        first = flatten_dict(alone["learner_0"]["params"])
        for path, leaf in flatten_dict(together[f"learner_{i}"]["params"]).items():
            if changes.get("topology") or path != ("student",):  # a weight of 0 leaves the ST head where it was
                np.testing.assert_allclose(leaf, first[path], atol=1e-6, err_msg=str(path))


def test_copies_on_the_same_stream_stay_copies(begun):
    same = {**begun, **{f"learner_{i}": begun["learner_0"] for i in range(3)}}
    data = [{name: jnp.stack([x[0]] * 3) for name, x in batch(seed=seed).items()} for seed in (0, 1)]
    after, _ = run(build(), same, data)
    assert distance(after["learner_0"], after["learner_1"]) < 1e-6 > distance(after["learner_0"], after["learner_2"])
    assert distance(after["learner_0"], begun["learner_0"]) > 1e-3


def test_learners_in_another_order_come_out_in_that_order(begun):
    order = [2, 0, 1]
    after, _ = run(build(), begun, [batch(), batch(seed=1)])
    swapped = {**begun, **{f"learner_{i}": begun[f"learner_{j}"] for i, j in enumerate(order)}}
    data = [{name: x[jnp.array(order)] for name, x in batch(seed=seed).items()} for seed in (0, 1)]
    other, _ = run(build(), swapped, data)
    for i, j in enumerate(order):
        assert distance(other[f"learner_{i}"], after[f"learner_{j}"]) < 1e-5


def test_between_exchanges_all_hear_what_was_published_last(begun):
    history = train(build(exchange_interval=3), begun, [batch()] * 4, [context(0, 2)] * 4)
    assert [int(told["messages"]) for _, told in history] == [6, 0, 0, 6]
    for i in range(3):
        published = [jax.tree.map(lambda x, i=i: x[i], after["published"]) for after, _ in history]
        assert all(distance(one, begun[f"learner_{i}"]) == 0 for one in published[:3])
        # What lies there after the fourth step was published before that step's update.
        assert distance(published[3]["params"], history[2][0][f"learner_{i}"]["params"]) == 0


def test_of_two_learners_ring_and_full_are_the_same(begun):
    two = {name: begun[name] for name in ("learner_0", "learner_1")}
    results = []
    for topology_ in ("ring", "full"):
        method = build(2, topology=topology_)
        results.append(run(method, {**method.init(jax.random.key(0)), **two}, [batch(2), batch(2, seed=1)])[0])
    assert distance(results[0], results[1]) == 0


def test_one_after_the_other_only_whose_turn_it_is_learns(begun):
    method = build(update_order="sequential")
    assert [phase.name for phase in method.phases] == ["learner_0", "learner_1", "learner_2"]
    after, told = run(method, begun, [batch()])
    assert distance(after["learner_0"], begun["learner_0"]) > 0
    assert distance(after["learner_1"], begun["learner_1"]) == 0 == distance(after["learner_2"], begun["learner_2"])
    assert "learner_0/class_loss" in told[0] and "learner_1/class_loss" not in told[0]


def test_the_target_is_the_mean_of_those_who_have_published(begun):
    method, data = build(), batch()
    place = context(0, 2)
    _, told = run(method, begun, [data])
    for i in range(3):
        answers = [
            method.learner(begun[f"learner_{j}"], None, data["images"][i], False, place, None).cl_logits
            for j in range(3)
        ]
        target = (sum(answers) - answers[i]) / 2
        st = method.learner(begun[f"learner_{i}"], None, data["images"][i], True, place, place.key).st_logits
        assert told[0][f"learner_{i}/student_loss"] == pytest.approx(float(jnp.mean((st - target) ** 2)), rel=1e-4)


def test_late_ones_join_and_those_who_left_no_longer_change(begun):
    method = build(joins=(0, 1, 0), leaves=(2, 2, 1))
    after, told = run(method, begun, [batch()])
    assert distance(after["learner_1"], begun["learner_1"]) == 0 < distance(after["learner_0"], begun["learner_0"])
    assert int(told[0]["messages"]) == 2 and after["exchange"]["announced"].tolist() == [True, False, True]
    later, told = run(method, after, [batch()], [context(2, 4, task=1)])
    assert distance(later["learner_2"], after["learner_2"]) == 0 < distance(later["learner_1"], after["learner_1"])
    assert float(told[0]["learner_1/kd_weight"]) == 0.5 and int(told[0]["messages"]) == 2
    # What the third said before it left is still heard.
    assert distance(later["published"], after["published"]) > 0
    third = jax.tree.map(lambda x: x[2], later["published"])
    assert distance(third, begun["learner_2"]) == 0


def test_who_misses_every_exchange_says_nothing_and_hears_nothing(begun):
    after, told = run(build(participation=0.0), begun, [batch()])
    assert int(told[0]["messages"]) == 0 and float(told[0]["learner_0/kd_weight"]) == 0
    assert all(np.isfinite(float(value)) for value in told[0].values())


def test_gossip_moves_weights_towards_the_mean_of_those_heard(begun):
    method = build(exchange_mode="weights", gossip_share=0.5, kd_rel=0.0)
    assert not any(name.endswith("_st") for name in method.networks)
    variables = method.init(jax.random.key(0))
    assert "published" not in variables
    exchange = method.phases[0].updates[0].loss
    outcome = quick(exchange)(variables, batch(), context(0, 2))[1]
    kernel = lambda tree: np.asarray(tree["params"]["student"])  # noqa: E731
    own = [kernel(begun[f"learner_{i}"]) for i in range(3)]
    for i in range(3):
        expected = 0.5 * own[i] + 0.25 * sum(own[j] for j in range(3) if j != i)
        np.testing.assert_allclose(kernel(outcome.variables[f"learner_{i}"]), expected, atol=1e-6)


def test_logits_of_public_pictures_travel_and_are_kept(begun):
    method = build(exchange_mode="predictions", public=8, public_batch=5, exchange_interval=2)
    variables, public = method.init(jax.random.key(0)), batch(1, seed=7)["images"][0][:5]
    data = [{**batch(seed=seed), "public": public + seed} for seed in (0, 1)]
    after, told = run(method, variables, data)
    assert [int(step["messages"]) for step in told] == [6, 0] and method.phases[0].public == 5
    np.testing.assert_allclose(after["published"]["images"], public)  # of the first step
    wanted = method.learner(variables["learner_1"], None, public, False, context(), None).cl_logits
    np.testing.assert_allclose(after["published"]["logits"][1], wanted, atol=1e-5)
    assert method.exchange.message_bytes(after) == 4 * 5 * 4
    assert float(told[0]["learner_0/student_loss"]) > 0


def test_who_misses_an_exchange_of_logits_is_not_heard_until_the_next(begun):
    """The third learner leaves after the first task: what it said was about other pictures."""
    method = build(exchange_mode="predictions", public=8, public_batch=5, leaves=(2, 2, 1))
    data = {**batch(), "public": batch(1, seed=7)["images"][0][:5]}
    history = train(method, method.init(jax.random.key(0)), [data] * 2, [context(0, 2), context(2, 4, task=1)])
    assert [after["exchange"]["announced"].tolist() for after, _ in history] == [[True] * 3, [True, True, False]]
    assert [int(told["messages"]) for _, told in history] == [6, 2]
    before, (after, told) = history[0][0], history[1]
    own = before["learner_0"]
    st = method.learner(own, None, data["public"], True, context(), None).st_logits
    expected = jnp.mean((st - after["published"]["logits"][1]) ** 2)  # the second alone
    assert float(told["learner_0/student_loss"]) == pytest.approx(float(expected), rel=1e-4)


def test_drawn_peers_are_so_many_others_and_change_at_exchanges_only(begun):
    method = build(random_peers=1, exchange_interval=2)
    places = [context(0, 2, seed=seed) for seed in range(6)]
    history = train(method, method.init(jax.random.key(0)), [batch()] * 6, places)
    seen = [np.asarray(after["exchange"]["matrix"]) for after, _ in history]
    for number, matrix in enumerate(seen):
        assert (np.diag(matrix) == 0).all() and (matrix.sum(axis=1) == 1).all() and set(matrix.ravel()) == {0, 1}
        np.testing.assert_array_equal(matrix, seen[number - number % 2])
    assert any((one != seen[0]).any() for one in seen)


def test_networks_are_evaluated_in_their_own_order():
    method = build(2, stream_order="rotated")
    assert method.streams == ((0, 1, 2, 3), (2, 3, 0, 1))
    assert method.stream_of["learner_1_st"] == 1 and "ensemble" not in method.stream_of
    np.testing.assert_array_equal(trainer.own_rank(method, "learner_1"), [2, 3, 0, 1])
    limited = build(2, stream_order="rotated", classes="current")
    np.testing.assert_array_equal(limited._class_mask(1, context(0, 2)), [False, False, True, True])
    logits = {name: jnp.eye(4)[jnp.array([0, 1, 2, 2])] for name in method.networks}
    told = method.extra_metrics(logits, jnp.arange(4), context(0, 2))
    # Learner 0 has met classes 0 and 1, the other one 2 and 3: one and two of the two others' are right.
    assert float(told["mean/accuracy_on_others_classes"].mean()) == pytest.approx((50 + 100) / 2)


def test_topologies():
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topology": "rnig"}, "did you mean 'ring'"),
        ({"exchange_mode": "models"}, "dkt.exchange_mode='models'"),
        ({"exchange_interval": 0}, "at least 1"),
        ({"joins": (0, 1)}, "give 3 tasks, one for each learner"),
        ({"random_peers": 3}, "each of 3 learners has 2 others"),
        ({"participation": 1.5}, "between 0 and 1"),
        ({"public_batch": 2000}, "more than the 1000 public images"),
        ({"st_loss": "mes"}, "did you mean 'mse'"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(changes, message):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [((0, 1),), ((1, 0), (0, 1)), ((0, 0.5), (1, 0)), ((0, -1), (1, 0)), ((0, 1), (1,))])
def test_a_matrix_that_is_none_is_refused(rows):
    with pytest.raises(UserError, match="dkt.topology: a matrix"):
        topology.mixing_matrix(rows, 2)
