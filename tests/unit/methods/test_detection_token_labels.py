"""Token labels against pooling by loops, and their losses against NumPy.

Positions outside the extent have no effect.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import detection_token_labels as token_labels
from cdl_jax.options import check, defaults

RNG = np.random.default_rng(5)


def options(**changes):
    return ConfigDict(defaults(token_labels.OPTIONS, **changes))


def pooled(labels, classes, size, out):
    """Adaptive average pooling of the classes of one image, by loops."""
    shares = np.zeros((*out, classes))
    for i, j in np.ndindex(out):
        rows = slice(i * size[0] // out[0], -(-(i + 1) * size[0] // out[0]))
        columns = slice(j * size[1] // out[1], -(-(j + 1) * size[1] // out[1]))
        for c in range(classes):
            window = labels[rows, columns]
            shares[i, j, c] = (window > 0).mean() if c == 0 else (window == c).mean()
    return shares


def test_shares_are_the_adaptive_average_of_each_class():
    sizes, outs = [(11, 8), (9, 12)], [(4, 3), (3, 5)]
    labels = np.zeros((2, 12, 16), np.int32)
    for i, size in enumerate(sizes):
        labels[i, : size[0], : size[1]] = RNG.integers(0, 4, size)
    found = token_labels.class_shares(jnp.array(labels), 4, jnp.array(sizes), jnp.array(outs), (5, 6))
    for i, (size, out) in enumerate(zip(sizes, outs, strict=True)):
        np.testing.assert_allclose(found[i, : out[0], : out[1]], pooled(labels[i], 4, size, out), atol=1e-6)
        assert not found[i, out[0] :].any() and not found[i, :, out[1] :].any()


def test_losses_are_the_published_formulas_over_positions_inside():
    shapes, classes, normalizer = [(4, 3), (2, 2)], 3, 5.0
    logits = [jnp.float32(RNG.normal(0, 1, (2, *shape, classes))) for shape in shapes]
    shares = [jnp.float32(RNG.uniform(0, 1, z.shape)) for z in logits]
    inside = [np.ones(z.shape[:3], bool) for z in logits]
    inside[0][1, 3:] = inside[0][1, :, 2:] = False
    focal = dice = 0.0
    for z, y, counts in zip(logits, shares, inside, strict=True):
        for i in range(2):
            p, t = 1 / (1 + np.exp(-np.float64(z[i][counts[i]]))), np.float64(y[i][counts[i]])
            p_t, alpha = p * t + (1 - p) * (1 - t), 0.25 * t + 0.75 * (1 - t)
            terms = -alpha * (1 - p_t) ** 2 * (t * np.log(p) + (1 - t) * np.log(1 - p))
            focal += terms.mean(axis=0).sum() / normalizer
            dice += (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)) / normalizer
    loss, terms = token_labels.token_losses(options(focal_weight=3.0), logits, shares, inside, normalizer)
    assert terms["loss_token_focal"] == pytest.approx(focal, rel=1e-5)
    assert terms["loss_token_dice"] == pytest.approx(dice, rel=1e-5)
    assert loss == pytest.approx(3 * focal + 2 * dice, rel=1e-5)
    gradient = jax.grad(lambda z: token_labels.token_losses(options(), z, shares, inside, normalizer)[0])(logits)
    assert not gradient[0][~inside[0]].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dice_weight": -1.0}, "must not be negative"), ({"focal_alpha": -0.1}, r"must lie in \[0, 1\]")],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(token_labels.OPTIONS, options(**changes), "token_labels")
