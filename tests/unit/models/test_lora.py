"""LoRA: one set of updates for all tasks, a sum of sets, or their mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.methods.base import join
from cdl_jax.models.learners import lora
from cdl_jax.runtime.checkpoint import Checkpoints
from tests.support.contexts import context
from tests.support.learner_runs import DIM, build, linear, outputs, plain_features, train

RNG = np.random.default_rng(4)


def learner(**changes):
    options = {"rank": 2, "alpha": 6.0, "matrices": "qv", "per_task": "sum", "dim": 4, "depth": 2, "num_tasks": 3}
    return lora.LoRA(**{**options, **changes})


def kernels(depth=2, dim=4):
    """Returns a backbone with nothing but kernels of queries, keys and values."""
    return {
        f"block_{i}": {"attn": {"qkv": {"kernel": RNG.normal(size=(dim, 3 * dim)).astype(np.float32)}}}
        for i in range(depth)
    }


def random_like(tree):
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), tree)


def updates(adapted, backbone):
    """Returns what was added to the kernels, `[depth, dim, 3, dim]`."""
    added = [
        np.asarray(adapted[block]["attn"]["qkv"]["kernel"]) - layer["attn"]["qkv"]["kernel"]
        for block, layer in backbone.items()
    ]
    return np.stack(added).reshape(2, 4, 3, 4)


@pytest.mark.parametrize("matrices", ["q", "qv", "kv", "qkv"])
def test_the_update_of_each_matrix_is_alpha_over_rank_times_its_product(matrices):
    module, backbone = learner(matrices=matrices, per_task="one"), kernels()
    variables = module.init_variables(jax.random.key(0), None, backbone)
    assert set(variables) == {"params"} and not np.any(variables["params"]["b"])
    a = np.asarray(variables["params"]["a"])
    assert a.shape == (2, len(matrices), 4, 2) and 0.3 < np.abs(a).max() <= 0.5
    assert len(np.unique(a)) == a.size
    variables = {"params": random_like(variables["params"])}
    added = updates(module.adapt_backbone(backbone, variables, context(), True), backbone)
    for column, letter in enumerate("qkv"):
        expected = np.zeros((2, 4, 4))
        if letter in matrices:
            i = matrices.index(letter)
            expected = 3 * (np.float64(variables["params"]["a"][:, i]) @ variables["params"]["b"][:, i])
        np.testing.assert_allclose(added[:, :, column], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("per_task", ["sum", "mean"])
def test_sets_of_earlier_tasks_are_added_or_averaged(per_task, train):
    module, backbone = learner(per_task=per_task), kernels()
    variables = jax.tree.map(jnp.asarray, random_like(module.init_variables(jax.random.key(0), None, backbone)))
    at = context(task=1)
    a, b = (np.concatenate([variables["state"][n][:1], variables["params"][n][None]]) for n in "ab")
    products = 3 * (np.float64(a) @ b)  # of tasks 0 and 1; the set of task 2 does not count
    expected = products.sum(axis=0) if per_task == "sum" else products[1] if train else products.mean(axis=0)
    added = updates(module.adapt_backbone(backbone, variables, at, train), backbone)
    np.testing.assert_allclose(added[:, :, [0, 2]].swapaxes(1, 2), expected, rtol=1e-4, atol=1e-5)
    assert not added[:, :, 1].any()
    ended = module.end_task(variables, at)
    np.testing.assert_array_equal(ended["state"]["a"][1], variables["params"]["a"])
    new, old = (np.asarray(tree["state"]["b"]) for tree in (ended, variables))
    np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])


def test_a_task_starts_with_a_new_set():
    module = learner()
    variables = random_like(module.init_variables(jax.random.key(0), None, None))
    first, second = (module.start_task(variables, context(task=task), jax.random.key(1)) for task in (0, 1))
    np.testing.assert_array_equal(first["params"]["a"], variables["params"]["a"])
    assert not np.any(second["params"]["b"]) and np.abs(second["params"]["a"] - variables["params"]["a"]).max() > 0.1
    shared = learner(per_task="one").start_task({"params": variables["params"]}, context(task=1), jax.random.key(1))
    assert shared == {"params": variables["params"]}


def test_each_task_of_a_run_trains_its_own_set(tmp_path):
    experiment = build("lora", **{"learner.per_task": "sum", "learner.rank": 2, "train.epochs": 1})
    run = train(experiment, tmp_path)
    assert not run.compiles_again
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        first = jax.device_get(checkpoints.restore_task(0, experiment.abstract_variables()[0]))
    sets = run.after["student"]["state"]["prompts"]
    for name in "ab":
        np.testing.assert_array_equal(sets[name][0], first["student"]["prompts"][name])
        np.testing.assert_array_equal(sets[name][1], run.after["student"]["prompts"][name])
        assert all(np.abs(rows).max() > 1e-6 for rows in sets[name])
    own = join(run.frozen, run.after)["student"]
    weights = jax.tree.map(np.array, own["backbone"])
    for i in range(2):
        for j, column in enumerate((0, 2)):
            product = 8 / 2 * (np.float64(sets["a"][:, i, j]) @ sets["b"][:, i, j]).sum(axis=0)
            weights[f"block_{i}"]["attn"]["qkv"]["kernel"][:, column * DIM : (column + 1) * DIM] += product
    features, _ = plain_features(experiment, weights)
    np.testing.assert_allclose(outputs(experiment, own)["logits"], linear(own["head"], features), rtol=1e-4, atol=1e-4)
