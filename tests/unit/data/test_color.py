"""Changes of color, bicubic resizing, RandAugment's scales, erased rectangles.

Colors and resizing on the device are compared with Pillow's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from cdl_jax.data.sources import glyph_mini
from cdl_jax.data.transforms import augment, color, erasing, rand_augment
from cdl_jax.errors import UserError
from cdl_jax.options import check, defaults

THREE = {"three_augment": True, "jitter": 0.0}


@pytest.fixture(scope="module")
def photo():
    """Returns a photograph, uint8 [40, 48, 3]."""
    from sklearn.datasets import load_sample_images

    return np.ascontiguousarray(load_sample_images().images[0][100:140, 60:108])


def on_device(images, uniforms, options):
    changed = jax.jit(lambda x, u: color.apply(x, u, options))(jnp.float32(images), jnp.float32(uniforms))
    return np.asarray(changed)


def on_host(image, uniforms, options):
    return np.asarray(color.apply_to_image(Image.fromarray(image), uniforms, options), np.float32)


def test_three_augment_is_gray_solarize_and_blur(photo):
    pil_image, uniforms = Image.fromarray(photo), np.zeros((3, color.NUM_UNIFORMS))
    uniforms[:, 0], uniforms[:, 1] = (0.1, 0.5, 0.9), 0.5  # a third each; radius 1.05
    wanted = [
        pil_image.convert("L").convert("RGB"),
        ImageOps.solarize(pil_image, 128),
        pil_image.filter(ImageFilter.GaussianBlur(1.05)),
    ]
    found = on_device(np.stack([photo] * 3), uniforms, THREE)
    for i in range(3):
        np.testing.assert_array_equal(on_host(photo, uniforms[i], THREE), wanted[i])
        np.testing.assert_allclose(found[i], wanted[i], rtol=0, atol=1 if i == 2 else 0)
        assert np.abs(found[i] - photo).mean() > 2
    assert (found[2] == np.asarray(wanted[2])).mean() > 0.999


def test_every_radius_blurs_as_pillow(photo):
    radii = np.linspace(0.1, 1.98, 24)  # at 2 sums are ties of fifteenths
    found = jax.jit(jax.vmap(lambda r: color.blur(jnp.float32(photo), r)))(radii)
    for radius, got in zip(radii, np.asarray(found), strict=True):
        want = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(float(radius))), np.float32)
        assert np.abs(got - want).max() <= 1 and (got == want).mean() > 0.999, radius


def test_jitter_equals_pillow_in_every_order(photo):
    options, uniforms = (
        {"three_augment": False, "jitter": 0.3},
        np.random.default_rng(0).random((60, color.NUM_UNIFORMS)),
    )
    uniforms = uniforms.astype(np.float32)
    found = on_device(np.stack([photo] * 60), uniforms, options)
    wanted = np.stack([on_host(photo, u, options) for u in uniforms])
    assert np.abs(found - wanted).max() <= 1 and (found == wanted).mean() > 0.999
    alone = np.array([0, 0, 0.9, 0.5, 0.5, 0.0])  # brightness by 1.24, the others by 1
    want = ImageEnhance.Brightness(Image.fromarray(photo)).enhance(1.24)
    np.testing.assert_array_equal(on_host(photo, alone, options), np.asarray(want))
    orders = {tuple(color._ORDERS[int(u[5] * 6)]) for u in uniforms}
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("kind", "interpolation"),
    [("random_resized_crop", "bicubic"), ("random_resized_crop", "random"), ("shift", "random")],
)
def test_complete_transforms_follow_pillow(photo, kind, interpolation):
    options = {"train": kind, "interpolation": interpolation, "flip": True}
    key = jax.random.key(2)
    device = np.asarray(jax.jit(lambda x: augment.transform_train(x, key, options, 32))(np.stack([photo] * 12)))
    uniforms = jax.vmap(lambda k: jax.random.uniform(k, (augment.NUM_UNIFORMS,)))(jax.random.split(key, 12))
    for got, draws in zip(device, np.asarray(uniforms), strict=True):
        want = augment.transform_train_image(Image.fromarray(photo), draws, options, 32)
        np.testing.assert_allclose(got, want / 255.0, rtol=0, atol=1.01 / 255)
        assert np.mean(np.abs(got - want / 255.0) > 1e-6) < 0.12  # where Pillow resizes the rows first
    bilinear = [augment.transform_train_image(Image.fromarray(photo), u, {**options, "interpolation": "bilinear"}, 32)
                for u in np.asarray(uniforms)]  # fmt: skip
    same = np.mean([np.abs(got - b / 255.0).max() < 2.01 / 255 for got, b in zip(device, bilinear, strict=True)])
    assert same < 0.2 if interpolation == "bicubic" else 0.2 < same < 0.9  # of an even sky both filters make the same


def test_bicubic_test_images_equal_pillow(photo):
    options = {"test": "resize_center_crop", "resize": 30, "interpolation": "random"}
    device = np.asarray(jax.jit(lambda x: augment.transform_test(x, options, 24))(photo[None]))[0]
    want = Image.fromarray(photo).resize((36, 30), Image.Resampling.BICUBIC).crop((6, 3, 30, 27))
    np.testing.assert_array_equal(augment.transform_test_image(Image.fromarray(photo), options, 24), np.asarray(want))
    assert np.abs(device * 255 - np.asarray(want)).max() < 1.01
    assert np.mean(np.abs(device * 255 - np.asarray(want)) > 1e-3) < 0.12


def test_device_colors_equal_host_colors():
    images = np.repeat(glyph_mini.load({"part": "incremental"}).train.images[:4], 4, axis=0)
    options = {"train": "shift", "flip": True, "three_augment": True, "jitter": 0.3}
    key = jax.random.key(7)
    device = np.asarray(jax.jit(lambda x: augment.transform_train(x, key, options, 32))(images)) * 255
    uniforms = jax.vmap(lambda k: jax.random.uniform(k, (augment.NUM_UNIFORMS,)))(jax.random.split(key, 16))
    host = [
        augment.transform_train_image(Image.fromarray(x), u, options, 32)
        for x, u in zip(images, np.asarray(uniforms), strict=True)
    ]
    assert np.abs(device - np.stack(host)).max() < 2.01
    assert np.mean(np.abs(device - np.stack(host)) > 1e-2) < 0.01


def test_more_numbers_are_drawn_without_changing_the_first():
    keys = jax.random.split(jax.random.key(3), 4)
    few, many = (jax.vmap(lambda k, n=n: jax.random.uniform(k, (n,)))(keys) for n in (23, augment.NUM_UNIFORMS))
    np.testing.assert_array_equal(few, many[:, :23])
    assert augment.num_uniforms({"rand_augment": ""}) == 30
    assert augment.num_uniforms({"rand_augment": "rand-m9-n3"}) == 45


def test_the_text_of_a_policy_is_timms():
    wanted = rand_augment.Policy(9.0, std=0.5, layers=2, increasing=True)
    assert rand_augment.parse("rand-m9-mstd0.5-inc1") == wanted
    assert rand_augment.parse("rand-m7-n3-p0.25") == rand_augment.Policy(7.0, layers=3, probability=0.25)


@pytest.mark.parametrize("text", ["rand", "rand-m11", "augmix-m3", "rand-m9-w0", "rand-m9-n1.5", "rand-m9-mstd"])
def test_another_policy_is_refused(text):
    with pytest.raises(UserError, match="^[^\n]*write rand-m<0 to 10>[^\n]*$"):
        rand_augment.parse(text)


def apply(photo, operation, level, sign=1, increasing=True):
    resampling = {"resample": Image.Resampling.BILINEAR, "fillcolor": (9, 8, 7)}
    return np.asarray(rand_augment.apply(Image.fromarray(photo), operation, level, sign, increasing, resampling))


def test_operations_are_at_timms_magnitudes(photo):
    pil_image = Image.fromarray(photo)
    np.testing.assert_array_equal(apply(photo, "posterize", 0.9), photo & 0x80)  # 4 - int(3.6) = 1 bit
    np.testing.assert_array_equal(apply(photo, "posterize", 0.9, increasing=False), photo & 0xE0)
    np.testing.assert_array_equal(apply(photo, "solarize", 0.5), np.where(photo < 128, photo, 255 - photo))
    added = np.where(photo < 128, np.minimum(255, photo.astype(int) + 99), photo)  # 110 * 0.9
    np.testing.assert_array_equal(apply(photo, "solarize_add", 0.9), added)
    for operation in ("color", "contrast", "brightness", "sharpness"):
        enhance = getattr(ImageEnhance, operation.capitalize())(pil_image).enhance
        np.testing.assert_array_equal(apply(photo, operation, 0.5, -1), np.asarray(enhance(0.55)))
        np.testing.assert_array_equal(apply(photo, operation, 0.5, increasing=False), np.asarray(enhance(1.0)))
    turned = pil_image.rotate(-27, resample=Image.Resampling.BILINEAR, fillcolor=(9, 8, 7))
    np.testing.assert_array_equal(apply(photo, "rotate", 0.9, -1), np.asarray(turned))
    np.testing.assert_array_equal(apply(photo, "invert", 0.1), 255 - photo)


def test_translations_and_shears_move_the_image_and_fill_the_rest(photo):
    moved = apply(photo, "translate_x", 1 / 3, 1)  # 0.15 of 48 pixels: 7.2 to the left
    assert (moved[:, -7:] == (9, 8, 7)).all() and (moved[:, :40] != (9, 8, 7)).any()
    assert (
        np.abs(moved[:, :40].astype(int) - photo[:, 7:47]).mean()
        < np.abs(photo[:, :40].astype(int) - photo[:, 7:47]).mean()
    )
    moved = apply(photo, "translate_y", 1 / 3, -1)  # 6 of 40 pixels down
    np.testing.assert_array_equal(moved[6:], photo[:-6])
    sheared = apply(photo, "shear_x", 1.0, 1)  # 0.3 of a pixel more to the left each row
    assert (sheared[0, -1] == photo[0, -1]).all() and (sheared[-1, -11:] == (9, 8, 7)).all()
    assert (apply(photo, "shear_y", 1.0, -1)[:14, -1] == (9, 8, 7)).all()


def test_a_policy_draws_operations_evenly_and_by_its_numbers(photo):
    policy, pil_image = rand_augment.parse("rand-m9-mstd0.5-inc1"), Image.fromarray(photo)
    filters = [Image.Resampling.BILINEAR]

    def changed(u):
        return np.asarray(rand_augment.augment(pil_image, np.asarray(u, float), policy, (9, 8, 7), filters))

    still = [0.5, 0.9, 0.5, 0.5, 0.5]  # its second number is not below the probability
    np.testing.assert_array_equal(changed([*still, *still]), photo)
    brighter = [9.5 / 15, 0.1, 0.5, 0.9, 0.0]  # the tenth operation, magnitude 9 + 0.5 * 0, upwards
    want = np.asarray(ImageEnhance.Brightness(pil_image).enhance(1.81))
    np.testing.assert_array_equal(changed([*still, *brighter]), want)
    less = [9.5 / 15, 0.1, 0.15865525393145707, 0.9, 0.0]  # one standard deviation less: 8.5
    want = np.asarray(ImageEnhance.Brightness(pil_image).enhance(1.765))
    np.testing.assert_array_equal(changed([*less, *still]), want)
    uniforms = np.random.default_rng(0).random((200, 10))
    same = np.mean([np.array_equal(changed(u), photo) for u in uniforms])
    assert 0.2 < same < 0.36  # neither layer acts on a quarter; autocontrast may do nothing
    np.testing.assert_array_equal(changed(uniforms[0]), changed(uniforms[0]))


def test_rand_augment_changes_images_on_the_host_and_is_refused_on_the_device(photo):
    options = {"train": "resize", "rand_augment": "rand-m9-inc1", "mean": (0.5,) * 3, "std": (1.0,) * 3}
    uniforms = np.random.default_rng(1).random((20, augment.num_uniforms(options)))
    plain = augment.transform_train_image(Image.fromarray(photo), uniforms[0], {"train": "resize"}, 32)
    found = [augment.transform_train_image(Image.fromarray(photo), u, options, 32) for u in uniforms]
    assert {x.shape for x in found} == {(32, 32, 3)}
    assert 0.4 < np.mean([(x != plain).any() for x in found]) < 1
    with pytest.raises(UserError, match="^augment.rand_augment [^\n]* set config.device_data_limit_mb=0[^\n]*$"):
        augment.transform_train(jnp.zeros((1, 8, 8, 3), jnp.uint8), jax.random.key(0), options, 8)


def test_erased_rectangles_are_noise_of_timms_sizes():
    images = jnp.full((600, 24, 32, 3), 9.0)
    erase = jax.jit(lambda key: erasing.erase(images, key, {"erase": 0.25}))
    found = np.asarray(erase(jax.random.key(0)))
    np.testing.assert_array_equal(found, erase(jax.random.key(0)))
    gone = (found != 9.0).all(axis=-1)
    np.testing.assert_array_equal(gone, (found != 9.0).any(axis=-1))
    hit = gone.any(axis=(1, 2))
    assert hit.mean() == pytest.approx(0.25, abs=0.07)
    tall, wide = gone[hit].any(axis=2).sum(axis=1), gone[hit].any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(gone[hit].sum(axis=(1, 2)), tall * wide)  # one rectangle without holes
    share = tall * wide / (24 * 32)
    assert 0.012 < share.min() < 0.05 and 0.25 < share.max() < 0.37
    assert (tall / wide).min() < 0.5 and (tall / wide).max() > 2 and (tall < 24).all() and (wide < 32).all()
    noise = found[gone]
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(1, abs=0.02)
    assert erasing.erase(images, jax.random.key(0), {"erase": 0.0}) is images


def test_a_rectangle_that_never_fits_leaves_the_image():
    uniforms = jnp.full(22, 0.999)  # a third of the area, 3.3 times as high as wide: 21 rows of 20
    assert [int(v) for v in erasing.sample_rectangle(uniforms, 20, 20)][2:] == [0, 0]
    assert [int(v) for v in erasing.sample_rectangle(uniforms.at[3].set(0.0), 20, 20)] == [15, 18, 5, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "lanczos"}, "augment.interpolation='lanczos': use 'bilinear', 'bicubic' or 'random'"),
        ({"jitter": 1.5}, "augment.jitter=1.5 must lie in [0, 1]"),
        ({"erase": -0.1}, "augment.erase=-0.1 must lie in [0, 1]"),
        ({"repeats": 0}, "augment.repeats=0 must be at least 1"),
        ({"rand_augment": "m9"}, "augment.rand_augment='m9'"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        check(augment.OPTIONS, changes, "augment")
        augment.check(defaults(augment.OPTIONS, **changes))
    assert str(error.value).removeprefix("config.").startswith(message)
