"""Schemes on relations, attention and correlations, against loops in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from cdl_jax.distill import (
    attention_transfer,
    dist,
    kd,
    logit_standardization,
    mse_logits,
    pkt,
    prototypes,
    relational,
    similarity_preserving,
)
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.errors import UserError
from tests.support.contexts import context
from tests.support.sections import checked

CLASSES = 7
RNG = np.random.default_rng(3)
LOGITS = RNG.normal(0, 2, (2, 5, CLASSES))  # student, teacher
LABELS = np.array([2, 3, 4, 4, 2])
CONTEXT = context(2, 5, task=1)
COLUMNS = {"current": slice(2, 5), "seen": slice(0, 5)}
SPEC = {"tokens": 5, "num_classes": CLASSES, "num_tasks": 2, "head": None, "learner": None}
STUDENT, TEACHER = NetworkSpec(dim=3, depth=2, **SPEC), NetworkSpec(dim=4, depth=4, **SPEC)
FEATURES = RNG.normal(0, 1, (5, 3)), RNG.normal(0, 1, (5, 4))
FEATURE_SCHEMES = {
    relational: ("distance_weight", "angle_weight"),
    similarity_preserving: ("similarity_weight",),
    pkt: ("transfer_weight",),
    prototypes: ("prototype_weight",),
}


def scheme(module, **changes):
    return module.build(checked("distill", module.OPTIONS, **changes), TEACHER, STUDENT)


def outputs(logits=LOGITS, features=FEATURES, **more):
    return [
        {"logits": jnp.asarray(z), "class_token": jnp.asarray(f), **{k: jnp.asarray(v[i]) for k, v in more.items()}}
        for i, (z, f) in enumerate(zip(logits, features, strict=True))
    ]


def loss(module, variables=None, more=(), **changes):
    return scheme(module, **changes).loss(variables or {}, *outputs(**dict(more)), LABELS, CONTEXT)


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)


def test_relational_distances_and_angles():
    relations = []
    for x in FEATURES:
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        angles = np.zeros((5, 5, 5))
        for i, j, k in itertools.product(range(5), repeat=3):
            if i != j and k != j:
                a, b = x[i] - x[j], x[k] - x[j]
                angles[j, i, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        relations.append((d / d[d > 0].mean(), angles))
    (d_s, a_s), (d_t, a_t) = relations
    value, terms = loss(relational, alpha=0.5, distance_weight=2.0, angle_weight=3.0)
    assert float(terms["distance"]) == pytest.approx(2 * huber(d_s - d_t).mean(), rel=1e-4)
    assert float(terms["angle"]) == pytest.approx(3 * huber(a_s - a_t).mean(), rel=1e-4)
    assert float(terms["kd"]) == pytest.approx(float(loss(kd, alpha=0.5)[0]), rel=1e-5)
    assert float(value) == pytest.approx(sum(map(float, terms.values())), rel=1e-6)


def test_similarity_preserving():
    grams = [x @ x.T for x in FEATURES]
    g_s, g_t = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
    terms = loss(similarity_preserving, similarity_weight=10.0)[1]
    assert float(terms["similarity"]) == pytest.approx(10 * ((g_s - g_t) ** 2).sum() / 25, rel=1e-4)


def test_probabilistic_transfer():
    total, probabilities = 0.0, []
    for x in FEATURES:
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        kernel = (1 + unit @ unit.T) / 2
        np.fill_diagonal(kernel, 0)
        probabilities.append(kernel / kernel.sum(axis=1, keepdims=True))
    q, p = probabilities
    for i, j in itertools.permutations(range(5), 2):
        total += p[i, j] * np.log(p[i, j] / q[i, j])
    assert float(loss(pkt, transfer_weight=2.0)[1]["transfer"]) == pytest.approx(2 * total, rel=1e-3)


@pytest.mark.parametrize("kind", ["activations", "weights"])
def test_attention_transfer_compares_evenly_spaced_blocks(kind):
    if kind == "activations":
        own, other = RNG.normal(size=(2, 5, 5, 3)), RNG.normal(size=(4, 5, 5, 4))  # block, image, token, dim
        maps = [(x[:, :, 1:] ** 2).mean(axis=-1) for x in (own, other)]
        name = "block_{}/tokens"
    else:
        own, other = RNG.random((2, 5, 2, 5, 5)), RNG.random((4, 5, 3, 5, 5))  # block, image, head, query, key
        maps = [x[:, :, :, 0, 1:].mean(axis=2) for x in (own, other)]
        name = "attention_{}"
    unit = [m / np.linalg.norm(m, axis=-1, keepdims=True) for m in maps]
    expected = sum(((unit[0][i] - unit[1][j]) ** 2).mean() for i, j in ((0, 1), (1, 3)))
    more = {name.format(i): (own[i], other[i]) for i in range(2)} | {name.format(3): (own[0], other[3])}
    terms = loss(attention_transfer, more={**more}, map=kind, attention_weight=5.0)[1]
    assert float(terms["attention"]) == pytest.approx(5 * expected, rel=1e-4)
    assert scheme(attention_transfer, map=kind).needs == ("logits", name.format(1), name.format(3))
    assert scheme(attention_transfer, map=kind, blocks=1).needs == ("logits", name.format(3))
    with pytest.raises(UserError, match="the student has 2 blocks and the teacher 4: choose at most 2"):
        scheme(attention_transfer, blocks=3)


@pytest.mark.parametrize("classes", ["current", "seen"])
def test_dist_is_one_minus_correlations(classes):
    p, q = (softmax(z[:, COLUMNS[classes]] / 2, axis=1) for z in LOGITS)
    inter = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    intra = 1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    value, terms = loss(dist, inter_weight=0.5, intra_weight=3.0, temperature=2.0, classes=classes)
    assert float(terms["inter"]) == pytest.approx(0.5 * 4 * inter, rel=1e-3)
    assert float(terms["intra"]) == pytest.approx(3.0 * 4 * intra, rel=1e-3)
    assert float(value) == pytest.approx(float(terms["inter"] + terms["intra"]))
    with pytest.raises(UserError, match="inter_weight=0 and distill.intra_weight=0"):
        scheme(dist, inter_weight=0.0, intra_weight=0.0)


def test_the_correlation_does_not_depend_on_scale():
    row = np.sin(np.arange(64.0))[None]
    for first, second in ((1e-2, 1e-5), (1e-1, 1e-6)):
        assert float(dist.pearson(first * row, second * row)[0]) > 0.9
    gradient = jax.grad(lambda x: dist.pearson(x, row).sum())(np.zeros((1, 64)))
    assert not gradient.any()  # of a row without variance


def test_a_student_of_equal_logits_has_no_gradient_of_standardized_logits():
    columns = np.ones(4, bool)
    for constant in (0.0, 3.7):
        logits = np.full((2, 4), constant, np.float32)
        gradient = jax.grad(
            lambda z: (logit_standardization.standardize(z, columns) * np.arange(8.0).reshape(2, 4)).sum()
        )
        assert not gradient(logits).any() and not logit_standardization.standardize(logits, columns).any()


@pytest.mark.parametrize("classes", ["current", "seen"])
def test_mse_of_logits_over_the_named_classes(classes):
    z_s, z_t = (z[:, COLUMNS[classes]] for z in LOGITS)
    value = loss(mse_logits, alpha=0.3, classes=classes)[0]
    assert float(value) == pytest.approx(0.3 * ((z_s - z_t) ** 2).mean(), rel=1e-5)
    assert scheme(mse_logits, alpha=0.3).label_weight == 0.7


@pytest.mark.parametrize("classes", ["current", "seen"])
def test_standardized_logits_are_distilled(classes):
    columns = COLUMNS[classes]
    p, q = (
        softmax((z[:, columns] - z[:, columns].mean(axis=1, keepdims=True))
                / z[:, columns].std(axis=1, ddof=1, keepdims=True) / 3, axis=1)
        for z in LOGITS
    )  # fmt: skip
    divergence = (q * np.log(q / p)).sum(axis=1).mean()
    value = loss(logit_standardization, alpha=0.25, temperature=3.0, logit_weight=2.0, classes=classes)[0]
    assert float(value) == pytest.approx(2 * 0.25 * 9 * divergence, rel=1e-4)


def test_prototypes_are_class_means():
    own = scheme(prototypes, prototype_weight=2.0)
    variables = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), own.init(jax.random.key(0)))
    weights = variables["params"]
    cosines = []
    for label in (2, 3, 4):
        m_s, m_t = (features[label == LABELS].mean(axis=0) for features in FEATURES)
        mapped = m_s @ weights["kernel"] + weights["bias"]
        cosines.append(mapped @ m_t / np.linalg.norm(mapped) / np.linalg.norm(m_t))
    terms = own.loss(variables, *outputs(), LABELS, CONTEXT)[1]
    assert float(terms["prototype"]) == pytest.approx(2 * (1 - np.mean(cosines)), rel=1e-4)


@pytest.mark.parametrize("module", FEATURE_SCHEMES)
def test_equal_features_have_no_loss_and_finite_gradients(module):
    same = {"dim": 3, "depth": 2, **SPEC}
    options = checked("distill", module.OPTIONS, alpha=0.0)
    own = module.build(options, NetworkSpec(**same), NetworkSpec(**same))
    variables = {"params": {"kernel": jnp.eye(3), "bias": jnp.zeros(3)}} if module is prototypes else {}

    def value(features):
        student, teacher = outputs(LOGITS, (features, features))
        return own.loss(variables, student, jax.lax.stop_gradient(teacher), LABELS, CONTEXT)[0]

    repeated = jnp.asarray(FEATURES[0]).at[1].set(FEATURES[0][0])  # two equal images
    loss_value, gradient = jax.jit(jax.value_and_grad(value))(repeated)
    assert abs(float(loss_value)) < 1e-5
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("module", "weights"), FEATURE_SCHEMES.items())
def test_a_scheme_that_distills_nothing_is_refused(module, weights):
    with pytest.raises(UserError, match="nothing is distilled; raise one of them"):
        scheme(module, alpha=0.0, **dict.fromkeys(weights, 0.0))
    with pytest.raises(UserError, match="distill.student_feature='absent' is no output of the student"):
        scheme(module, student_feature="absent")
