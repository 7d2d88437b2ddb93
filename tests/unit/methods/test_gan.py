"""Terms of a teacher and the average of the generator, by hand.

tests/parity compares the networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import config, optim
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods import gan
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import gan_options, gan_terms
from cdl_jax.models.biggan import DiscriminatorOutput
from cdl_jax.models.modules import feature_norms
from cdl_jax.options import defaults

WIDTH = 2
KEY = jax.random.key(0)


class Pixels:
    """A teacher whose vector of an image is its first two pixels."""

    def outputs(self, variables, images, context):
        return {"features": images.reshape(len(images), -1)[:, :WIDTH]}


def terms_of(**changes):
    return gan_terms.TeacherTerms(Pixels(), WIDTH, ConfigDict(defaults(gan_options.OPTIONS, **changes)), 1)


def images_of(vectors):
    return jnp.asarray(vectors, jnp.float32).reshape(len(vectors), 1, 1, WIDTH)


def inputs(terms):
    """Returns variables, images, discriminator outputs, and arrays, fake rows first."""
    rng = np.random.default_rng(0)
    c, f, h = (rng.normal(size=(6, WIDTH)).astype(np.float32) for _ in range(3))
    kernel = np.array([[1.0, 2.0], [0.0, -1.0]], np.float32)
    variables = {"teacher": {"network": {}}, "distill": {"params": {"projector": {"kernel": kernel}}}}
    return (
        variables,
        images_of(c),
        DiscriminatorOutput(jnp.zeros(6), jnp.asarray(h), jnp.asarray(f)),
        (c, f, h @ kernel),
    )


def distances(c, f):
    return np.linalg.norm(c - f, axis=1).mean()


def test_the_literal_reading_adds_the_projected_distance_to_the_aggregated_term():
    terms = terms_of(vkd="literal", vkd_norm="none", vkd_projector="linear", kd_weight=3.0, vkd_weight=5.0)
    variables, images, out, (c, f, p) = inputs(terms)
    total, metrics = terms.loss(variables, images, out, KEY, Context.dummy())
    (c_fake, c_real), (f_fake, f_real) = np.split(c, 2), np.split(f, 2)
    real_term = distances(c_real, f_real) + distances(c_real, f_fake)
    fake_term = distances(c_fake, f_fake) + distances(c_fake, f_real)
    gap = np.abs(p - c)
    vkd = 2 * np.where(gap < 1, gap**2 / 2, gap - 0.5).mean()  # the sum of the means of two halves of one size
    np.testing.assert_allclose(metrics["kd_real"], real_term, rtol=1e-5)
    np.testing.assert_allclose(metrics["kd_fake"], fake_term, rtol=1e-5)
    np.testing.assert_allclose(metrics["vkd"], vkd, rtol=1e-5)
    np.testing.assert_allclose(total, 3 * (real_term + fake_term) + 5 * vkd, rtol=1e-5)


def test_the_replaced_reading_has_the_projected_distance_alone():
    terms = terms_of(vkd="replaced", vkd_norm="none", vkd_projector="linear", vkd_distance="norm", vkd_weight=2.0)
    variables, images, out, (c, _, p) = inputs(terms)
    total, metrics = terms.loss(variables, images, out.replace(features=None), KEY, Context.dummy())
    assert metrics.keys() == {"vkd"}
    np.testing.assert_allclose(total, 2 * (distances(c[:3], p[:3]) + distances(c[3:], p[3:])), rtol=1e-5)


def test_a_shuffled_teacher_has_the_same_vectors_in_each_half_for_other_images():
    plain, shuffled = (
        terms_of(vkd="replaced", vkd_norm="none", vkd_projector="linear", teacher_shuffled=on) for on in (False, True)
    )
    variables, images, out, (c, _, p) = inputs(plain)
    found = [
        float(shuffled.loss(variables, images, out, jax.random.key(i), Context.dummy())[1]["vkd"]) for i in range(8)
    ]
    assert len(set(found)) > 1 and float(plain.loss(variables, images, out, KEY, Context.dummy())[1]["vkd"]) > 0
    # Equal rows in a half have nothing to shuffle.
    same = images_of(np.repeat(c[[0, 3]], 3, axis=0))
    pair = [terms.loss(variables, same, out, KEY, Context.dummy())[0] for terms in (plain, shuffled)]
    np.testing.assert_allclose(*pair, rtol=1e-6)


@pytest.mark.parametrize("root", ["cholesky", "zca"])
def test_moments_of_the_data_are_those_of_all_images_without_padding(root):
    terms = terms_of(vkd="replaced", vkd_scope="data", vkd_root=root, vkd_epsilon=0.1)
    vectors = np.random.default_rng(1).normal(size=(7, WIDTH)).astype(np.float32) @ np.array([[2, 1], [0, 1]]) + 3
    distill = terms.init(KEY, 4)
    for rows, weight in ((vectors[:4], [1, 1, 1, 1]), (np.concatenate([vectors[4:], 9 * vectors[:1]]), [1, 1, 1, 0])):
        context = Context.dummy().replace(weight=jnp.asarray(weight, jnp.float32))
        variables = {"teacher": {"network": {}}, "distill": distill}
        distill = {**distill, "moments": terms.add_moments(variables, images_of(rows), context)}
    finished = terms.finish_moments(distill)
    wanted = feature_norms.Whitening.from_features(jnp.asarray(vectors, jnp.float32), 0.1, root)
    np.testing.assert_allclose(finished["whitening"]["mean"], wanted.mean, rtol=1e-5)
    np.testing.assert_allclose(finished["whitening"]["matrix"], wanted.matrix, rtol=1e-4, atol=1e-5)
    assert float(finished["moments"]["count"]) == 0 and jax.tree.structure(finished) == jax.tree.structure(distill)


def test_the_average_is_a_copy_until_its_start_and_then_moves():
    options = ConfigDict(defaults(gan.OPTIONS, ema_decay=0.75, ema_start=3))
    method = gan.GAN(options, StreamInfo(2, (2,)), None, None, "net", 1, optim.NO_STEP, optim.NO_STEP)
    variables = {
        "generator": {"params": jnp.float32(8.0), "spectral": jnp.float32(4.0)},
        "generator_ema": {"params": jnp.float32(0.0), "spectral": jnp.float32(0.0)},
    }
    for finished, wanted in ((1, (8.0, 4.0)), (2, (2.0, 1.0))):  # the next iterations are 2 and 3
        now = {**variables, "progress": {"iterations": jnp.int32(finished)}}
        changed = method.finish_iteration(now, {}, Context.dummy())[1].variables
        assert tuple(float(changed["generator_ema"][name]) for name in ("params", "spectral")) == wanted
        assert int(changed["progress"]["iterations"]) == finished + 1


def test_each_step_draws_other_numbers_and_labels_of_the_task():
    options = ConfigDict(defaults(gan.OPTIONS, z_dim=2, image_size=8))
    method = gan.GAN(options, StreamInfo(5, (5,)), None, None, "net", 1, optim.NO_STEP, optim.NO_STEP)
    context = Context.dummy().replace(first=jnp.int32(2), end=jnp.int32(4))
    first, second = (method.draw(context, purpose, 64, 64) for purpose in (0, 1))
    assert set(first.labels.tolist()) == {2, 3} and (first.z != second.z).all()
    assert first.augmentation.keys() == {"translation_rows", "translation_columns", "cutout_rows", "cutout_columns"}


def test_a_discriminator_may_have_a_rate_of_its_own():
    options = config.default("gan", data="glyph_mini", teacher="mini_teacher", measuring="mini_student")
    options.augment.update(mean=(0.5,) * 3, std=(0.5,) * 3)
    options.data.num_tasks, options.train.batch_size = 1, 16
    options.measuring.weights, options.gan.discriminator_rate = "random", 4e-4
    options.optim.update(learning_rate=2e-4, name="sgd", momentum=0.0, schedule="constant")
    method = gan.build(options, StreamInfo(4, (4,), train_images=64))
    directions = [
        float(
            update.optimizer.transform.update({"w": jnp.float32(1)}, update.optimizer.transform.init({"w": 0.0}))[0][
                "w"
            ]
        )
        for update in method.phases[0].updates[:2]
    ]
    assert directions == [2.0, 1.0]


def test_texts_need_two_axes_of_finite_floats(tmp_path):
    path = tmp_path / "texts.npy"
    for array in (np.zeros(3), np.full((2, 3), np.nan), np.zeros((2, 3), int)):
        np.save(path, array)
        with pytest.raises(UserError, match="must be finite floats"):
            gan_terms.read_texts(str(path))
    np.save(path, np.ones((2, 3)))
    assert gan_terms.read_texts(str(path)).dtype == np.float32
