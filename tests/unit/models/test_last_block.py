"""Each learner's class token and gradients are those of a complete last block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import plugins
from cdl_jax.models.modules import families, prompted
from cdl_jax.options import Option
from cdl_jax.runtime import operations
from tests.support.contexts import context
from tests.support.sections import checked

DIM, CLASSES = 16, 4
LEARNERS = {
    "l2p": {"deep": False, "pool": 3, "top_k": 2, "length": 4},
    "dualprompt": {"general_layers": 1, "expert_layers": 1},
    "coda": {"layers": 2, "pool": 4},
    "apt": {},
    "lora": {},
    "lae": {"layers": 2},
    "os_prompt": {"layers": 2, "pool": 4},
}


def build(name):
    """Returns a small network with the learner."""
    sizes = {"dim": DIM, "depth": 2, "heads": 2, "patch_size": 4, "image_size": 8, "weights": "random"}
    section = checked("student", families.network_options("mini_student"), **sizes)
    declared = {"name": Option(name), **plugins.load_plugin("models.learners", name).OPTIONS}
    known = {key: value for key, value in LEARNERS[name].items() if key in declared}
    assert known == LEARNERS[name], f"options of {name}: {sorted(declared)}"
    return prompted.build(
        section, checked("learner", declared, **known), query_dim=DIM, num_classes=CLASSES, num_tasks=2
    )


@pytest.mark.parametrize("name", LEARNERS)
def test_class_token_equals_that_of_the_complete_last_block(name):
    network, rng = build(name), np.random.default_rng(5)
    variables = network.init(jax.random.key(0), DIM)
    variables["prompts"] = jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), variables["prompts"]
    )
    images, query = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 8, 8, 3), (3, DIM)))
    weight = rng.normal(size=(3, DIM)).astype(np.float32)

    def loss(trained, complete):
        out = network({**variables, "prompts": trained}, images, query, context(end=2), train=True)
        return ((out["tokens"][:, 0] if complete else out["class_token"]) * weight).sum()

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (value, gradients), (full, expected) = (both(variables["prompts"], complete) for complete in (False, True))
    assert float(value) == pytest.approx(float(full), rel=2e-6, abs=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-7 * max(1, np.abs(other).max()))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients)) > 1e-3
    work = [count_work(network, variables, images, query, output) for output in ("class_token", "tokens")]
    assert work[0] < 0.8 * work[1]


def count_work(network, variables, images, query, output):
    """Returns the operations of a named output."""

    def compute(variables):
        return network(variables, images, query, context(end=2), train=False)[output]

    return operations.count(compute, variables).flops
