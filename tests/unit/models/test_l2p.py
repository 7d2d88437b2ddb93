"""L2P: the selection of prompts, the key loss, and the gradients."""

import jax
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.models.learners import l2p
from tests.support.contexts import context
from tests.support.sections import checked

POOL, LENGTH, TOP, DIM, KEY = 6, 4, 2, 5, 3
RNG = np.random.default_rng(4)
QUERY = RNG.normal(size=(4, KEY)).astype(np.float32)
PARAMS = {
    "prompts_0": RNG.normal(size=(POOL, LENGTH, DIM)).astype(np.float32),
    "keys_0": RNG.normal(size=(POOL, KEY)).astype(np.float32),
}


def pool(depth=12, **changes):
    options = checked("learner", l2p.OPTIONS, **{"pool": POOL, "length": LENGTH, "top_k": TOP, **changes})
    return l2p.build(options, dim=DIM, key_dim=KEY, depth=depth, num_tasks=5)


def call(params=PARAMS, query=QUERY, train=True, **changes):
    return jax.jit(pool(**changes).apply, static_argnums=3)({"params": params}, query, context(), train)


def cosine(a, b):
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def nearest(image):
    """Returns the rows of the pool that an image selects, the nearest first."""
    return sorted(range(POOL), key=lambda row: -cosine(QUERY[image], PARAMS["keys_0"][row]))[:TOP]


CHOSEN = [nearest(image) for image in range(4)]


def test_the_nearest_prompts_become_keys_and_values_in_order():
    assert len({row for rows in CHOSEN for row in rows}) < POOL  # some rows are never selected
    selection = call()
    keys, values = selection.prompts[0].prefix
    assert keys.shape == values.shape == (4, TOP * LENGTH // 2, DIM)
    for image, rows in enumerate(CHOSEN):
        expected = np.concatenate([PARAMS["prompts_0"][row, : LENGTH // 2] for row in rows])
        np.testing.assert_array_equal(keys[image], expected)
        expected = np.concatenate([PARAMS["prompts_0"][row, LENGTH // 2 :] for row in rows])
        np.testing.assert_array_equal(values[image], expected)
        counts = np.bincount(rows, minlength=POOL)
        np.testing.assert_array_equal(selection.selected["layer_0"][image], counts)
    assert selection.prompts[0].suffix is selection.prompts[0].additive is None


def test_the_lengths_of_query_and_keys_have_no_effect():
    scaled = {**PARAMS, "keys_0": PARAMS["keys_0"] * np.array([[3], [0.1], [7], [1], [20], [0.5]], np.float32)}
    other = call(scaled, QUERY * 9)
    np.testing.assert_array_equal(other.selected["layer_0"], call().selected["layer_0"])
    assert float(other.loss) == pytest.approx(float(call().loss), rel=1e-5)
    zero = call(query=np.zeros_like(QUERY))
    assert np.isfinite(zero.loss) and float(zero.loss) == pytest.approx(TOP)


def test_the_mean_key_loss_uses_the_keys_that_each_image_selects():
    expected = 0.0
    for image, rows in enumerate(CHOSEN):
        for row in rows:
            expected += (1 - cosine(QUERY[image], PARAMS["keys_0"][row])) / len(QUERY)
    assert float(call(key_loss="mean").loss) == pytest.approx(expected, rel=1e-5)


def test_the_legacy_key_loss_sums_over_all_pairs_of_images():
    expected = 0.0
    for image in range(4):
        for rows in CHOSEN:
            for row in rows:
                expected += 1 - cosine(QUERY[image], PARAMS["keys_0"][row])
    assert float(call(key_loss="legacy_sum").loss) == pytest.approx(expected, rel=1e-5)


def test_there_is_no_loss_outside_training():
    selection = call(train=False)
    assert float(selection.loss) == 0
    np.testing.assert_array_equal(selection.prompts[0].prefix[0], call().prompts[0].prefix[0])


@pytest.mark.parametrize("key_loss", ["mean", "legacy_sum"])
def test_gradients_reach_only_the_selected_rows(key_loss):
    def total(params):
        selection = call(params, key_loss=key_loss)
        return selection.loss, sum((p**2).sum() for p in selection.prompts[0].prefix)

    selected = sorted({row for rows in CHOSEN for row in rows})
    others = [row for row in range(POOL) if row not in selected]
    keys = jax.grad(lambda p: total(p)[0])(PARAMS)
    assert np.all(np.asarray(keys["keys_0"])[others] == 0) and np.all(np.asarray(keys["prompts_0"]) == 0)
    assert np.abs(np.asarray(keys["keys_0"])[selected]).max(axis=1).min() > 1e-3
    prompts = jax.grad(lambda p: total(p)[1])(PARAMS)
    assert np.all(np.asarray(prompts["keys_0"]) == 0)
    times = np.bincount(np.concatenate(CHOSEN), minlength=POOL)
    np.testing.assert_allclose(prompts["prompts_0"], 2 * PARAMS["prompts_0"] * times[:, None, None], rtol=1e-5)


def test_deep_prompts_have_a_pool_in_each_of_five_layers():
    shapes = jax.eval_shape(lambda key: pool(deep=True).init(key, QUERY, context(), False), jax.random.key(0))["params"]
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        f"{kind}_{layer}": shape
        for layer in range(5)
        for kind, shape in (("prompts", (POOL, LENGTH, DIM)), ("keys", (POOL, KEY)))
    }
    params = {name: RNG.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    selection = call(params, deep=True)
    assert sorted(selection.prompts) == [0, 1, 2, 3, 4] and len(selection.selected) == 5
    shallow = [call({"prompts_0": params[f"prompts_{i}"], "keys_0": params[f"keys_{i}"]}) for i in range(5)]
    assert float(selection.loss) == pytest.approx(float(sum(one.loss for one in shallow)), rel=1e-5)
    for layer, one in enumerate(shallow):
        np.testing.assert_array_equal(selection.prompts[layer].prefix[1], one.prompts[0].prefix[1])


def test_prompts_and_keys_are_drawn_uniformly_from_zero_to_one():
    params = pool(pool=500, top_k=1).init(jax.random.key(0), QUERY, context(), False)["params"]
    for leaf in params.values():
        values = np.asarray(leaf)
        assert values.min() >= 0 and values.max() < 1
        assert values.mean() == pytest.approx(0.5, abs=0.03) and values.std() == pytest.approx(12**-0.5, abs=0.02)


def test_nothing_changes_between_tasks():
    prompt_pool, variables = pool(), {"params": PARAMS}
    assert prompt_pool.start_task(variables, context(), jax.random.key(0)) is variables
    assert prompt_pool.end_task(variables, context()) is variables


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 5}, "learner.length=5 must be even"),
        ({"length": 0}, "learner.length=0 must be at least 1"),
        ({"top_k": 7}, "learner.top_k=7 of a pool of 6 prompts"),
        ({"top_k": 0}, "learner.top_k=0 must be at least 1"),
        ({"key_loss": "sum"}, "learner.key_loss='sum': use 'mean', 'similarity' or 'legacy_sum'"),
        ({"deep": True, "depth": 4}, "learner.deep prompts blocks 0 to 4, the backbone has 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        pool(**changes)
