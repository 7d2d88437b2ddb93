"""Mixup, cutmix and soft targets against NumPy; which of them a batch gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data.transforms import mixing
from cdl_jax.errors import UserError
from cdl_jax.options import check

IMAGES = np.random.default_rng(0).random((4, 8, 6, 3), np.float32)
LABELS = jnp.array([0, 2, 1, 2])
ALLOWED = jnp.array([True, True, True, False])
mix = jax.jit(
    lambda key, **options: mixing.mixup_or_cutmix(IMAGES, LABELS, ALLOWED, key, options), static_argnames=mixing.OPTIONS
)


def test_smoothing_stays_within_the_class_mask():
    targets = mixing.soft_labels(LABELS, ALLOWED, 0.3)
    assert np.allclose(targets[1], [0.1, 0.1, 0.8, 0.0])
    assert np.allclose(targets.sum(1), 1)


def test_a_box_is_clipped_at_the_border_and_the_weight_follows():
    box = [int(edge) for edge in mixing.cutmix_box(0.75, (0, 3), 8, 6)]
    assert box == [0, 2, 2, 4]
    assert mixing.kept_area(box, 8, 6) == pytest.approx(1 - 4 / 48)
    wanted = IMAGES.copy()
    wanted[:, 0:2, 2:4] = IMAGES[::-1, 0:2, 2:4]
    assert np.array_equal(mixing.cutmix_images(IMAGES, box), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_targets_have_the_weight_of_the_images(seed):
    images, targets = mix(jax.random.key(seed), cutmix=0.0, smoothing=0.0)
    weight = float(targets[0, 0])
    assert np.allclose(images, weight * IMAGES + (1 - weight) * IMAGES[::-1], atol=1e-6)
    assert np.allclose(targets[1], [0, 1 - weight, weight, 0])
    images, targets = mix(jax.random.key(seed), mixup=0.0, smoothing=0.0)
    other = np.any(np.asarray(images) != IMAGES, axis=-1)
    assert np.allclose(targets[0, 0], 1 - other[0].mean(), atol=1e-6)
    assert np.array_equal(images[0][other[0]], IMAGES[3][other[0]])


def test_probabilities_choose_mixup_cutmix_or_none():
    many = jax.random.split(jax.random.key(0), 400)

    def shares(**options):
        images, _ = jax.jit(jax.vmap(lambda key: mixing.mixup_or_cutmix(IMAGES, LABELS, ALLOWED, key, options)))(many)
        pasted = np.all((np.asarray(images) == IMAGES) | (np.asarray(images) == IMAGES[::-1]), axis=(1, 2, 3, 4))
        plain = np.all(np.asarray(images) == IMAGES, axis=(1, 2, 3, 4))
        return pasted.mean(), plain.mean()

    assert shares(switch=0.3)[0] == pytest.approx(0.3, abs=0.08)
    assert shares(cutmix=0.0, probability=0.6)[1] == pytest.approx(0.4, abs=0.08)
    assert shares(cutmix=0.0, mixup=0.0) == (1.0, 1.0)


def test_the_result_depends_on_the_key():
    first, second, other = (mix(jax.random.key(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(("name", "value"), [("mixup", -1.0), ("switch", 1.5), ("smoothing", -0.1)])
def test_values_out_of_range_are_refused(name, value):
    with pytest.raises(UserError, match=f"mixing.{name}={value}"):
        check(mixing.OPTIONS, {name: value}, "mixing")


cut = jax.jit(lambda key, p: mixing.cutmix(IMAGES, jnp.arange(4), key, p))


@pytest.mark.parametrize("seed", range(3))
def test_cutmix_takes_the_box_from_the_permuted_image(seed):
    images, others, weight = cut(jax.random.key(seed), 1.0)
    assert sorted(np.asarray(others)) == [0, 1, 2, 3]
    changed = np.any(np.asarray(images) != IMAGES, axis=-1)
    for i, other in enumerate(others):
        assert np.array_equal(images[i][changed[i]], IMAGES[other][changed[i]])
        if other != i:
            assert weight == pytest.approx(1 - changed[i].mean())


def test_the_fraction_of_mixed_batches_is_the_probability():
    many, plain = jax.random.split(jax.random.key(0), 1000), jnp.zeros((2, 32, 32, 1))  # where few boxes are empty
    weights = jax.jit(jax.vmap(lambda key: mixing.cutmix(plain, jnp.arange(2), key, 0.3)[2]))(many)
    assert np.mean(weights < 1) == pytest.approx(0.3, abs=0.05)
    images, _, weight = cut(many[0], 0.0)
    assert np.array_equal(images, IMAGES) and weight == 1


def test_the_probability_of_cutmix_grows_with_the_epochs():
    assert mixing.cutmix_probability("linear", 0.5, 150, 300) == pytest.approx(0.3)
    assert mixing.cutmix_probability("as_coded", 0.5, 2, 300) == pytest.approx(0.1 + 2 * (0.5 - 0.1 / 300))
    assert jax.jit(lambda e: mixing.cutmix_probability("linear", 0.5, e, 300))(0) == pytest.approx(0.1)
