"""A sum of schemes has the losses, the needs and the variables of its terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.distill import fitnets, kd, kd_token, relational, weighted_sum
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.errors import UserError
from tests.support.contexts import context
from tests.support.sections import checked

RNG = np.random.default_rng(3)
LABELS, CONTEXT = np.array([2, 3, 4, 4, 2]), context(2, 5, task=1)
SPEC = NetworkSpec(dim=3, depth=2, tokens=4, num_classes=7, num_tasks=2, head=None, learner=None)


def outputs():
    shapes = {"logits": (5, 7), "class_token": (5, 3), "block_1/tokens": (5, 4, 3)}
    return [{name: jnp.float32(RNG.normal(size=shape)) for name, shape in shapes.items()} for _ in range(2)]


def scheme(*terms, module=weighted_sum, weights=None, **changes):
    if terms:
        changes |= {"terms": terms, "weights": weights or (1.0,) * len(terms)}
    return module.build(checked("distill", module.OPTIONS, **changes), SPEC, SPEC)


def test_the_loss_is_the_weighted_sum_of_the_terms():
    own = scheme(
        "kd:alpha=0.25,classes=seen", "fitnets:feature_weight=3", "relational:alpha=0", weights=(2.0, 0.5, 4.0)
    )
    variables = own.init(jax.random.key(0))
    assert variables["params"].keys() == {"1_fitnets"}
    student, teacher = outputs()
    value, terms = own.loss(variables, student, teacher, LABELS, CONTEXT)
    parts = [
        (2.0, scheme(module=kd, alpha=0.25, classes="seen"), {}),
        (0.5, scheme(module=fitnets, feature_weight=3.0), {"params": variables["params"]["1_fitnets"]}),
        (4.0, scheme(module=relational, alpha=0.0), {}),
    ]
    expected = sum(w * part.loss(tree, student, teacher, LABELS, CONTEXT)[0] for w, part, tree in parts)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    assert {"0_kd/kd", "1_fitnets/feature", "2_relational/angle"} <= terms.keys()
    assert own.needs == ("logits", "block_1/tokens", "class_token")
    assert own.label_weight == 0.5 and not own.keeps_past and not own.changes_prediction
    assert own.start_task(variables, CONTEXT, jax.random.key(1)) == variables


def test_a_term_may_read_the_past():
    assert scheme("kd", "past:alpha=0").keeps_past


@pytest.mark.parametrize(
    ("terms", "changes", "message"),
    [
        (("kd", "kdd"), {}, "'kdd'"),
        (("kd:alfa=1",), {}, "kd has no option 'alfa': .*alpha"),
        (("kd:alpha=2",), {}, r"terms kd.alpha=2.0 must lie in \[0, 1\]"),
        (("kd:alpha=high",), {}, "kd:alpha='high' must be of the type of its default, 0.5"),
        (("kd:alpha",), {}, "'alpha' has no value"),
        (("kd", "none"), {}, "'none' is no term of a sum"),
        (("kd", "pkt"), {"weights": (1.0,)}, "2 schemes and distill.weights 1 numbers"),
        (("kd",), {"weights": (0.0,)}, "distill.weights are all 0"),
    ],
)
def test_mistakes_are_one_line(terms, changes, message):
    with pytest.raises(UserError, match=message):
        scheme(*terms, **changes)


def test_one_term_may_change_the_student():
    from flax import linen as nn

    spec = NetworkSpec(dim=3, depth=2, tokens=4, num_classes=7, num_tasks=2, head=nn.Dense(7), learner=None)

    def build(*terms):
        section = checked("distill", weighted_sum.OPTIONS, terms=terms, weights=(1.0,) * len(terms))
        return weighted_sum.build(section, spec, spec)

    own = build("relational:alpha=0", "kd_token:length=2")
    alone = kd_token.build(checked("distill", kd_token.OPTIONS, length=2), spec, spec)
    variables = own.init(jax.random.key(0))
    tree = {name: part["1_kd_token"] for name, part in variables.items()}
    assert jax.tree.structure(tree) == jax.tree.structure(alone.init(jax.random.key(0)))
    inputs, expected = (s.student_inputs(v, {}, 5, CONTEXT, True) for s, v in ((own, variables), (alone, tree)))
    jax.tree.map(np.testing.assert_array_equal, inputs.last_tokens, expected.last_tokens)
    assert own.changes_prediction and own.second_weight == alone.second_weight
    with pytest.raises(UserError, match="kd_token and prompt_mapping|kd_token and kd_token"):
        build("kd_token:length=2", "kd_token:length=4")
    with pytest.raises(UserError, match="kd_token changes the student itself, and past compares with the student"):
        build("past", "kd_token:length=2")
