"""Losses of peers against NumPy; ramp-up and diversity at hand-computed values."""

from itertools import combinations
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.special import log_softmax, softmax

from cdl_jax.errors import UserError
from cdl_jax.methods import cl_ilr, dml, kd, okddip, one
from cdl_jax.methods.shared import peer_losses
from cdl_jax.models.peers.networks import PeerOutputs, divide_gradient
from cdl_jax.options import check

RNG = np.random.default_rng(7)
Z = [RNG.normal(0, 2, (5, 6)).astype(np.float32) for _ in range(4)]
LABELS = jnp.array([0, 1, 2, 3, 1])
ALL, SOME = jnp.ones(6, bool), jnp.arange(6) < 4
OPTIONS = ConfigDict(
    {"loss": "KL", "temperature": 3.0, "alpha": 0.5, "detach_targets": False, "en": False, "aggregate": "logits"}
)
OUTPUTS = PeerOutputs(tuple(map(jnp.asarray, Z)), ())


def options(**changes):
    return ConfigDict({**OPTIONS, **changes})


def kl(z, target, temperature=3.0):
    p = target + 1e-7
    terms = p * (np.log(p) - log_softmax(z.astype(np.float64) / temperature, axis=1))
    return temperature**2 * terms.sum(1).mean()


def ce(z):
    return -log_softmax(z.astype(np.float64), axis=1)[np.arange(len(z)), LABELS].mean()


def soft(z):
    return softmax(z.astype(np.float64) / 3, axis=1)


def test_the_distillation_loss_is_the_published_formula():
    target = soft(Z[1])
    assert peer_losses.distillation_loss(Z[0], target, ALL, OPTIONS) == pytest.approx(kl(Z[0], target), rel=1e-5)
    cross = -9 * (target * log_softmax(Z[0].astype(np.float64) / 3, axis=1)).sum(1).mean()
    assert peer_losses.distillation_loss(Z[0], target, ALL, options(loss="CE")) == pytest.approx(cross, rel=1e-5)


@pytest.mark.parametrize("loss", ["KL", "CE"])
def test_masked_classes_have_no_effect(loss):
    def value(logits, mask):
        return cl_ilr.loss_and_metrics(options(loss=loss), PeerOutputs(logits, ()), LABELS, mask, 0.7)[0]

    masked, gradients = jax.value_and_grad(value)(OUTPUTS.logits, SOME)
    unmasked, expected = jax.value_and_grad(value)(tuple(z[:, :4] for z in OUTPUTS.logits), jnp.ones(4, bool))
    assert masked == pytest.approx(float(unmasked), rel=1e-6)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient[:, :4], other, atol=1e-6)
        assert not gradient[:, 4:].any()


def test_losses_of_all_methods_equal_numpy():
    others = [np.mean([z for k, z in enumerate(Z) if k != j], axis=0) for j in range(4)]
    labels, group = sum(map(ce, Z)), sum(kl(z, soft(o)) for z, o in zip(Z, others, strict=True))
    assert cl_ilr.loss_and_metrics(OPTIONS, OUTPUTS, LABELS, ALL, 0.3)[0] == pytest.approx(
        labels + 0.3 * group, rel=1e-5
    )
    chosen = options(pairwise=False)
    assert dml.loss_and_metrics(chosen, OUTPUTS, LABELS, ALL)[0] == pytest.approx(labels + 0.5 * group, rel=1e-5)
    pairs = sum(kl(a, soft(b)) for i, a in enumerate(Z) for j, b in enumerate(Z) if i != j) / 3
    assert dml.loss_and_metrics(options(pairwise=True), OUTPUTS, LABELS, ALL)[0] == pytest.approx(
        labels + 0.5 * pairs, rel=1e-5
    )

    weights = softmax(RNG.normal(size=(5, 4)), axis=1).astype(np.float32)
    gated = sum(weights[:, i, None] * z for i, z in enumerate(Z))
    expected = labels + ce(gated) + 0.3 * sum(kl(z, soft(gated)) for z in Z)
    assert one.loss_and_metrics(OPTIONS, OUTPUTS, weights, LABELS, ALL, 0.3)[0] == pytest.approx(expected, rel=1e-5)

    total, terms = kd.loss_and_metrics(OPTIONS, Z[0], Z[1], LABELS, ALL)
    assert total == pytest.approx(ce(Z[0]) + 0.5 * kl(Z[0], soft(Z[1])), rel=1e-5)
    assert terms["teacher_loss"] == pytest.approx(kl(Z[0], soft(Z[1])), rel=1e-5)


@pytest.mark.parametrize("aggregate", ["logits", "probs"])
def test_okddip_mixes_logits_or_softened_probabilities(aggregate):
    attention = softmax(RNG.normal(size=(5, 3, 3)), axis=2).astype(np.float32)
    mixed = np.einsum("bac,cbn->ban", attention, np.stack(Z[:3] if aggregate == "logits" else [soft(z) for z in Z[:3]]))
    targets = [soft(mixed[:, a]) if aggregate == "logits" else mixed[:, a] for a in range(3)]
    mean = soft(np.mean(Z[:3], axis=0)) if aggregate == "logits" else np.mean([soft(z) for z in Z[:3]], axis=0)
    group = sum(kl(z, t) for z, t in zip(Z, targets, strict=False))
    total, terms = okddip.loss_and_metrics(options(aggregate=aggregate), OUTPUTS, attention, LABELS, ALL, 0.4)
    assert terms["group_loss"] == pytest.approx(group, rel=1e-5)
    assert terms["leader_group_loss"] == pytest.approx(kl(Z[3], mean), rel=1e-5)
    assert total == pytest.approx(sum(map(ce, Z)) + 0.4 * (group + kl(Z[3], mean)), rel=1e-5)


def test_the_attention_is_trained_through_targets_only():
    def loss(attention, chosen):
        return okddip.loss_and_metrics(chosen, OUTPUTS, attention, LABELS, ALL, 1.0)[0]

    attention = jnp.asarray(softmax(RNG.normal(size=(5, 3, 3)), axis=2))
    assert abs(jax.grad(loss)(attention, OPTIONS)).max() > 1e-3
    assert not jax.grad(loss)(attention, options(detach_targets=True)).any()


def test_the_leaders_loss_has_gradients_for_peers_unless_targets_are_detached():
    def leader_loss(logits, chosen):
        return okddip.loss_and_metrics(chosen, PeerOutputs(logits, ()), jnp.full((5, 3, 3), 1 / 3), LABELS, ALL, 1.0)[
            1
        ]["leader_group_loss"]

    assert all(g.any() for g in jax.grad(leader_loss)(OUTPUTS.logits, OPTIONS))
    *peer_gradients, leader_gradient = jax.grad(leader_loss)(OUTPUTS.logits, options(detach_targets=True))
    assert leader_gradient.any() and not any(g.any() for g in peer_gradients)


def test_ramp_up_at_published_epochs():
    default = SimpleNamespace(length=80, start_consistency=0.0)
    weights = [float(peer_losses.ramp_up_weight(epoch, default, 300)) for epoch in (0, 10, 40, 79, 80, 299)]
    assert weights == pytest.approx([0.0067379, 0.0217504, 0.2865048, 0.999219, 1, 1], rel=1e-4)
    late = SimpleNamespace(length=80, start_consistency=0.1)
    weights = [float(peer_losses.ramp_up_weight(epoch, late, 300)) for epoch in (0, 29, 30, 70, 110)]
    assert weights == pytest.approx([1, 1, 0.0067379, 0.2865048, 1], rel=1e-4)
    assert float(peer_losses.ramp_up_weight(0, SimpleNamespace(length=0, start_consistency=0.0), 300)) == 1


def test_diversity_divides_the_sum_over_pairs_by_their_number_or_by_three():
    p = [softmax(z.astype(np.float64), axis=1) for z in Z]
    total = sum(np.linalg.norm(a - b + 1e-6, axis=1) for a, b in combinations(p, 2))
    np.testing.assert_allclose(peer_losses.diversity(Z, ALL, "pairs"), total / 6, rtol=1e-5)
    np.testing.assert_allclose(peer_losses.diversity(Z, ALL, "reference"), total / 3, rtol=1e-5)


def test_top_k_counts_only_classes_of_the_mask():
    logits = jnp.array([[9.0, 3, 2, 1, 8], [5, 4, 3, 2, 1]])
    labels, mask = jnp.array([2, 3]), jnp.array([False, True, True, True, True])
    assert peer_losses.top_k_correct(logits, labels, 2, jnp.ones(5, bool)).tolist() == [0, 0]
    assert peer_losses.top_k_correct(logits, labels, 3, mask).tolist() == [1, 1]


def test_divide_gradient_keeps_the_value():
    value, gradient = jax.value_and_grad(lambda x: (divide_gradient(x, 4) ** 2).sum())(jnp.array([1.0, -3.0]))
    assert value == 10 and gradient.tolist() == [0.5, -1.5]


@pytest.mark.parametrize("change", [{"loss": "MSE"}, {"temperature": 0.0}, {"alpha": -1.0}, {"start_consistency": 2.0}])
def test_values_out_of_range_are_refused(change):
    name, value = next(iter(change.items()))
    with pytest.raises(UserError, match=f"dml.{name}={value!r}"):
        check({**peer_losses.OPTIONS, **peer_losses.RAMP_OPTIONS}, change, "dml")
