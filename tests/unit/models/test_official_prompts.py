"""Compares the options of the authors' own L2P and DualPrompt with NumPy."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.models.learners import dualprompt, l2p
from cdl_jax.models.learners.base import batchwise_top_k
from cdl_jax.options import defaults
from tests.support.contexts import context
from tests.support.sections import checked

POOL, LENGTH, TOP, DIM, KEY, BATCH = 6, 3, 2, 5, 4, 7
QUERY = np.random.default_rng(11).normal(size=(BATCH, KEY)).astype(np.float32)
MODULES = {"l2p": l2p, "dualprompt": dualprompt}


def pool(learner, depth=12, num_tasks=POOL, **changes):
    sizes = {"l2p": {"pool": POOL, "length": LENGTH, "top_k": TOP}, "dualprompt": {"length": 2, "general_length": 2}}
    options = checked("learner", MODULES[learner].OPTIONS, **{**sizes[learner], **changes})
    return MODULES[learner].build(options, dim=DIM, key_dim=KEY, depth=depth, num_tasks=num_tasks)


def random_params(prompt_pool):
    rng = np.random.default_rng(12)
    shapes = jax.eval_shape(lambda key: prompt_pool.init(key, QUERY, context(), False), jax.random.key(0))["params"]
    return {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}


def call(prompt_pool, params, train=True, task_context=None, query=QUERY):
    return jax.jit(prompt_pool.apply, static_argnums=3)({"params": params}, query, task_context or context(), train)


def cosines(keys, query=QUERY):
    """Cosine of each query and key, `[batch, pool]`, in float64."""
    query, keys = query.astype(np.float64), keys.astype(np.float64)
    return query @ keys.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(keys, axis=1)


def most_selected(selections, count):
    """Returns the rows that most images select; of equals the lower index is first."""
    counts = {row: sum(row in selection for selection in selections) for row in range(POOL)}
    return sorted(counts, key=lambda row: (-counts[row], row))[:count]


def test_batchwise_top_k_prefers_the_lower_row_among_equally_popular_ones():
    selections = np.array([[5, 1], [4, 5], [1, 4], [5, 2], [0, 3]])
    assert most_selected(selections, 2) == [5, 1]  # selected by three images, and by two, as row 4
    np.testing.assert_array_equal(batchwise_top_k(selections, POOL, 2), [[5, 1]] * 5)
    without = batchwise_top_k(selections, POOL, 2, np.array([1.0, 0, 1, 0, 1]))
    np.testing.assert_array_equal(without, [[1, 0]] * 5)  # row 5 is selected by one image, as rows 0, 3 and 4


def test_a_batch_gets_the_prompts_that_most_of_its_images_select():
    prompt_pool = pool("l2p", prompt_form="tokens", batchwise=True, key_loss="similarity")
    params = random_params(prompt_pool)
    similarity = cosines(params["keys_0"])
    selections = np.argsort(-similarity, axis=1)[:, :TOP]
    rows = most_selected(selections, TOP)
    assert len({tuple(sorted(selection)) for selection in selections}) > 1
    selection = call(prompt_pool, params)
    expected = np.concatenate([params["prompts_0"][row] for row in rows])  # all `length` vectors of each
    assert selection.tokens.shape == (BATCH, TOP * LENGTH, DIM) and selection.prompts == {}
    for image in range(BATCH):
        np.testing.assert_array_equal(selection.tokens[image], expected)
        np.testing.assert_array_equal(selection.selected["layer_0"][image], np.bincount(rows, minlength=POOL))
    assert float(selection.loss) == pytest.approx(-similarity[:, rows].sum() / BATCH, rel=1e-5)
    weight = np.array([1, 1, 1, 0, 0, 0, 0], np.float32)
    rows = most_selected(selections[:3], TOP)
    padded = call(prompt_pool, params, train=False, task_context=context().replace(weight=weight))
    np.testing.assert_array_equal(padded.tokens[0], np.concatenate([params["prompts_0"][row] for row in rows]))


def test_the_similarity_key_loss_is_the_mean_key_loss_minus_a_constant():
    params = random_params(pool("l2p", length=2))
    pulls = {key_loss: pool("l2p", length=2, key_loss=key_loss) for key_loss in ("mean", "similarity")}
    losses = {key_loss: call(prompt_pool, params).loss for key_loss, prompt_pool in pulls.items()}
    assert float(losses["mean"] - losses["similarity"]) == pytest.approx(TOP, rel=1e-5)
    gradients = [jax.grad(lambda p, pool=pool: call(pool, p).loss)(params)["keys_0"] for pool in pulls.values()]
    np.testing.assert_allclose(*gradients, atol=1e-6)
    assert np.abs(gradients[0]).max() > 0.01


def test_layers_with_shared_keys_share_the_selection_and_one_key_loss():
    prompt_pool = pool("l2p", length=2, deep=True, shared_keys=True)
    params = random_params(prompt_pool)
    assert sorted(params) == ["keys_0", *(f"prompts_{layer}" for layer in range(5))]
    selection, similarity = call(prompt_pool, params), cosines(params["keys_0"])
    nearest = np.argsort(-similarity, axis=1)[:, :TOP]
    for layer in range(5):
        expected = params[f"prompts_{layer}"][nearest][:, :, 1]  # the second of two vectors is the value
        np.testing.assert_array_equal(selection.prompts[layer].prefix[1], expected)
    distance = 1 - np.take_along_axis(similarity, nearest, axis=1)
    assert float(selection.loss) == pytest.approx(distance.sum(axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize("learner", MODULES)
def test_full_length_prefixes_have_length_keys_and_length_values(learner):
    prompt_pool = pool(learner, length=LENGTH, full_length_kv=True)
    params = random_params(prompt_pool)
    layer = 0 if learner == "l2p" else 2
    keys, values = call(prompt_pool, params, train=False).prompts[layer].prefix
    chosen = np.argsort(-cosines(params[f"keys_{layer}"]), axis=1)[:, : TOP if learner == "l2p" else 1]
    assert params[f"prompts_{layer}"].shape == (POOL, 2 * LENGTH, DIM)
    rows = params[f"prompts_{layer}"][chosen]  # [batch, chosen, 2 length, dim]
    np.testing.assert_array_equal(keys, rows[:, :, :LENGTH].reshape(BATCH, -1, DIM))
    np.testing.assert_array_equal(values, rows[:, :, LENGTH:].reshape(BATCH, -1, DIM))


def test_dualprompt_trains_the_row_of_the_task_and_tests_a_batch_with_the_most_selected_row():
    prompt_pool = pool("dualprompt", batchwise=True, shared_keys=True, key_loss="similarity")
    params = random_params(prompt_pool)
    assert [name for name in sorted(params) if "keys" in name] == ["keys_2"]
    similarity = cosines(params["keys_2"])
    (most,) = most_selected(np.argsort(-similarity, axis=1)[:, :1], 1)
    task = (most + 1) % POOL
    task_context = context(task=task)
    trained, tested = (call(prompt_pool, params, train=train, task_context=task_context) for train in (True, False))
    for layer in (2, 3, 4):
        rows = params[f"prompts_{layer}"]
        np.testing.assert_array_equal(trained.prompts[layer].prefix[0], np.tile(rows[task, :1], (BATCH, 1, 1)))
        np.testing.assert_array_equal(tested.prompts[layer].prefix[1], np.tile(rows[most, 1:], (BATCH, 1, 1)))
    assert float(trained.loss) == pytest.approx(-similarity[:, task].mean(), rel=1e-5)
    assert float(tested.loss) == 0


def test_a_task_of_dualprompt_inherits_the_prompts_but_not_the_keys_of_the_task_before():
    inheriting, plain = pool("dualprompt", init_from_previous_task=True), pool("dualprompt")
    variables = {"params": random_params(inheriting)}
    start = jax.jit(inheriting.start_task)
    first, third = (start(variables, context(task=task), jax.random.key(0))["params"] for task in (0, 2))
    for name, rows in variables["params"].items():
        expected = rows.copy()
        if name.startswith("prompts_"):
            expected[2] = rows[1]
        np.testing.assert_array_equal(third[name], expected)
        np.testing.assert_array_equal(first[name], rows)
    assert plain.start_task(variables, context(task=2), jax.random.key(0)) is variables


@pytest.mark.parametrize("learner", MODULES)
def test_official_values_are_options_that_build_and_start_near_zero(learner):
    module = plugins.load_plugin("models.learners", learner)
    assert set(module.OFFICIAL) <= set(module.OPTIONS)
    assert {key: type(value) for key, value in module.OFFICIAL.items()} == {
        key: type(module.OPTIONS[key].default) for key in module.OFFICIAL
    }
    options = ConfigDict(defaults(module.OPTIONS, **module.OFFICIAL))
    prompt_pool = module.build(options, dim=DIM, key_dim=KEY, depth=12, num_tasks=10)
    params = jax.jit(lambda key: prompt_pool.init(key, QUERY, context(), False)["params"])(jax.random.key(0))
    values = np.concatenate([np.asarray(leaf).ravel() for leaf in params.values()])
    assert 0 <= values.min() < 1e-3 and 9e-3 < values.max() < 0.01
    head = prompt_pool.head(9).init(jax.random.key(0), np.zeros((1, DIM)))["params"]["linear"]
    assert head["kernel"].shape == (DIM, 9) and not np.any(head["kernel"]) and not np.any(head["bias"])
    default = module.build(ConfigDict(defaults(module.OPTIONS)), dim=DIM, key_dim=KEY, depth=12, num_tasks=10)
    assert np.all(default.head(9).init(jax.random.key(0), QUERY)["params"]["linear"]["bias"])


@pytest.mark.parametrize(
    ("learner", "changes", "message"),
    [
        ("l2p", {"prompt_form": "token"}, "learner.prompt_form='token': use 'prefix' or 'tokens'"),
        ("l2p", {"head_init": "one"}, "learner.head_init='one': use 'torch' or 'zeros'"),
        (
            "l2p",
            {"prompt_form": "tokens", "deep": True},
            "learner.deep has no meaning with learner.prompt_form='tokens'",
        ),
        ("l2p", {"prompt_form": "tokens", "full_length_kv": True}, "learner.full_length_kv has no meaning with"),
        ("l2p", {"prompt_form": "tokens", "length": 0}, "learner.length=0 must be at least 1"),
        ("l2p", {"length": 2, "init_scale": 0.0}, "learner.init_scale=0.0 must be above 0"),
        ("dualprompt", {"key_loss": "x"}, "learner.key_loss='x': use 'mean', 'similarity' or 'legacy_sum'"),
        ("dualprompt", {"full_length_kv": True, "general_length": 0}, "learner.general_length=0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(learner, changes, message):
    with pytest.raises(UserError, match=message):
        pool(learner, **changes)
