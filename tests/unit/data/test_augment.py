"""Image transforms: Pillow, exactness, randomness by position, device counts."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.options import defaults

TOLERANCE = 1.01 / 255  # Pillow rounds to whole numbers after each of two passes: half a level each


@pytest.fixture(scope="module")
def photos():
    """Two photographs and one of noise, uint8 [3, 427, 640, 3]."""
    from sklearn.datasets import load_sample_images

    noise = np.random.default_rng(0).integers(0, 256, (427, 640, 3), np.uint8)
    return np.stack([*load_sample_images().images, noise])


def pillow(image, box, size):
    top, left, tall, wide = (int(v) for v in box)
    crop = Image.fromarray(image).crop((left, top, left + wide, top + tall))
    return np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255


def train(images, key, options, size):
    return np.asarray(jax.jit(lambda x, k: augment.transform_train(x, k, options, size))(images, key))


def test(images, options, size):
    return np.asarray(jax.jit(lambda x: augment.transform_test(x, options, size))(images))


test.__test__ = False  # not a test


def uniforms_of(key, batch):
    return jax.jit(jax.vmap(lambda k: jax.random.uniform(k, (augment.NUM_UNIFORMS,))))(jax.random.split(key, batch))


def boxes_of(key, batch, height, width, options):
    pick = jax.vmap(lambda u: jnp.stack(augment.crop_box(u, height, width, options["scale"], options["ratio"], jnp)))
    return np.asarray(jax.jit(pick)(uniforms_of(key, batch)))


@pytest.mark.parametrize(("height", "width", "size"), [(427, 640, 64), (427, 640, 224), (32, 32, 80), (32, 32, 16)])
def test_random_resized_crop_equals_crop_then_resize_of_pillow(photos, height, width, size):
    images = np.repeat(photos[:, 100 : 100 + height, :width] if height < 427 else photos, 3, axis=0)
    options = defaults(augment.OPTIONS, train="random_resized_crop")
    key = jax.random.key(height + size)
    out = train(images, key, options, size)
    assert out.shape == (9, size, size, 3) and out.dtype == jnp.float32
    boxes = boxes_of(key, 9, height, width, options)
    assert len({tuple(box) for box in boxes}) > 5 and (boxes[:, 2] != boxes[:, 3]).any()
    for got, image, box in zip(np.asarray(out), images, boxes, strict=True):
        np.testing.assert_allclose(got, pillow(image, box, size), rtol=0, atol=TOLERANCE)


def test_crops_follow_torchvisions_rule():
    height, width, scale, ratio = 100, 160, (0.08, 1.0), (3 / 4, 4 / 3)
    uniforms = np.random.default_rng(0).random((3000, augment.NUM_UNIFORMS))
    boxes = np.array([augment.crop_box(u, height, width, scale, ratio, np) for u in uniforms])
    top, left, tall, wide = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + tall <= height).all() and (left + wide <= width).all()
    aspect, area = wide / tall, tall * wide / (height * width)
    assert aspect.min() > 0.70 and aspect.max() < 1.40
    assert area.min() < 0.09 and area.max() > 0.80
    # the reference: rejection one candidate at a time, with its own random numbers
    rng = np.random.default_rng(1)
    areas = []
    while len(areas) < 3000:
        target, r = height * width * rng.uniform(*scale), np.exp(rng.uniform(*np.log(ratio)))
        w, h = round(np.sqrt(target * r)), round(np.sqrt(target / r))
        if 0 < w <= width and 0 < h <= height:
            areas.append(h * w / (height * width))
    np.testing.assert_allclose(np.quantile(area, [0.1, 0.5, 0.9]), np.quantile(areas, [0.1, 0.5, 0.9]), atol=0.03)
    free = height - tall
    np.testing.assert_allclose((top[free > 20] / free[free > 20]).mean(), 0.5, atol=0.03)


@pytest.mark.parametrize(("shape", "box"), [((100, 300), (0, 83, 100, 133)), ((300, 100), (83, 0, 133, 100))])
def test_a_crop_that_never_fits_falls_back_to_the_center(shape, box):
    uniforms = np.full(augment.NUM_UNIFORMS, 0.999)  # all of the area, at an aspect ratio the image does not have

    def pick(u, xp):
        return augment.crop_box(u, *shape, (1.0, 1.0), (3 / 4, 4 / 3), xp)

    assert tuple(int(v) for v in pick(uniforms, np)) == box
    assert tuple(int(v) for v in jax.jit(lambda u: pick(u, jnp))(uniforms)) == box


def test_host_and_device_draw_the_same_boxes():
    uniforms = np.random.default_rng(3).random((200, augment.NUM_UNIFORMS)).astype(np.float32)
    pick = jax.vmap(lambda u: jnp.stack(augment.crop_box(u, 97, 131, (0.08, 1.0), (0.75, 4 / 3), jnp)))
    device = jax.jit(pick)(uniforms)
    host = [augment.crop_box(u, 97, 131, (0.08, 1.0), (0.75, 4 / 3), np) for u in uniforms]
    assert (np.asarray(device) == np.array(host)).all(axis=1).mean() > 0.98  # rounding may differ at a tie


def test_images_that_are_not_resized_stay_exact(photos):
    images = photos[:, :64, :64]
    want = images * np.float32(1 / 255)
    np.testing.assert_allclose(want, images / 255.0, rtol=2e-7)
    full = {"train": "random_resized_crop", "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    for options in (full, {"train": "none"}, {"train": "resize"}, {"train": "shift", "shift": 0}):
        np.testing.assert_array_equal(train(images, jax.random.key(0), options, 64), want)
    for options in ({"test": "none"}, {"test": "resize"}, {"test": "resize_center_crop", "resize": 64}):
        np.testing.assert_array_equal(test(images, options, 64), want)


@pytest.mark.parametrize("turned", [False, True])
def test_resize_of_the_shorter_side_and_center_crop_equal_pillow(photos, turned):
    images = photos.swapaxes(1, 2) if turned else photos
    height, width = images.shape[1:3]
    tall, wide = (256, 256 * 640 // 427) if width > height else (256 * 640 // 427, 256)
    out = test(images, {"test": "resize_center_crop", "resize": 256}, 224)
    top, left = round((tall - 224) / 2), round((wide - 224) / 2)
    for got, image in zip(np.asarray(out), images, strict=True):
        want = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR), np.float32) / 255
        np.testing.assert_allclose(got, want[top : top + 224, left : left + 224], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [24, 70])
def test_resize_equals_pillow(photos, size):
    images = photos[:, 50:90, 30:90]
    out = test(images, {"test": "resize"}, size)
    for got, image in zip(out, images, strict=True):
        np.testing.assert_allclose(got, pillow(image, (0, 0, 40, 60), size), rtol=0, atol=TOLERANCE)


def test_normalization_uses_mean_and_std_of_each_channel():
    images = np.full((1, 2, 2, 3), 255, np.uint8)
    out = test(images, {"mean": (0.5, 0.25, 0.0), "std": (0.5, 0.25, 2.0)}, 2)
    np.testing.assert_allclose(out[0, 0, 0], [1.0, 3.0, 0.5], rtol=1e-6)


def test_flip_mirrors_half_of_the_images():
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    out = train(np.stack([image] * 4000), jax.random.key(1), {"flip": True}, 5) * 255
    kept = np.isclose(out, image, atol=1e-3).all(axis=(1, 2, 3))
    mirrored = np.isclose(out, image[:, ::-1], atol=1e-3).all(axis=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 0.03  # four standard deviations are 0.032


@pytest.mark.parametrize("options", [{"train": "shift", "shift": 2}, {"train": "pad_crop", "pad": 2}])
def test_shifts_are_uniform_and_fill_with_zeros(options):
    image = np.random.default_rng(0).integers(1, 256, (8, 8, 3), np.uint8)
    out = train(np.stack([image] * 2500), jax.random.key(2), options, 8)
    out = np.rint(out * 255).astype(np.uint8)
    shifted = {}
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            want = np.roll(image, (dy, dx), axis=(0, 1))
            want[: max(dy, 0)] = want[8 + min(dy, 0) :] = 0
            want[:, : max(dx, 0)] = want[:, 8 + min(dx, 0) :] = 0
            shifted[dy, dx] = int((out == want).all(axis=(1, 2, 3)).sum())
    assert sum(shifted.values()) == 2500
    assert min(shifted.values()) > 60 and max(shifted.values()) < 145  # 100 each expected, +- 10


@pytest.mark.parametrize("kind", ["random_resized_crop", "shift", "pad_crop", "resize"])
def test_host_transforms_follow_the_device(photos, kind):
    """The same uniform numbers give the same image, to Pillow's rounding."""
    options = {"train": kind, "flip": True}
    image, key = photos[0, :60, :60], jax.random.key(5)
    uniforms = np.asarray(uniforms_of(key, 8))
    device = train(np.stack([image] * 8), key, options, 48)
    for got, draws in zip(device, uniforms, strict=True):
        host = augment.transform_train_image(Image.fromarray(image), draws, options, 48)
        assert host.dtype == np.uint8
        np.testing.assert_allclose(got, host / 255.0, rtol=0, atol=TOLERANCE)


def test_an_image_depends_on_its_position_alone(photos):
    options = {"train": "random_resized_crop", "flip": True}
    images, key = np.concatenate([photos[:, :60, :60]] * 3)[:8], jax.random.key(7)
    step = jax.jit(lambda x, k: augment.transform_train(x, k, options, 32))
    full = step(images, key)
    np.testing.assert_array_equal(full, step(images, key))
    np.testing.assert_allclose(full[:5], step(images[:5], key), atol=1e-6)
    assert np.abs(full - step(images, jax.random.key(8))).max() > 0.1


SHARDED = """
import jax, sys, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from cdl_jax.data.transforms import augment
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
images = np.random.default_rng(0).integers(0, 256, (16, 20, 24, 3), np.uint8)
images = jax.device_put(images, NamedSharding(mesh, P("data")))
out = {}
for kind in ("random_resized_crop", "shift", "pad_crop"):
    options = {"train": kind, "flip": True}
    step = jax.jit(lambda x, k, o=options: augment.transform_train(x, k, o, 16))
    result = step(images, jax.random.key(0))
    assert len(result.sharding.device_set) == int(sys.argv[1])
    assert jax.device_count() == 1 or result.addressable_shards[0].data.shape[0] == 2, result.sharding
    out[kind] = np.asarray(result)
np.savez(sys.argv[2], **out)
"""


def test_one_and_eight_devices_give_the_same_images(tmp_path):
    runs = [subprocess.Popen([sys.executable, "-c", SHARDED, str(n), str(tmp_path / f"{n}.npz")]) for n in (1, 8)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    one, eight = np.load(tmp_path / "1.npz"), np.load(tmp_path / "8.npz")
    for kind in ("random_resized_crop", "shift", "pad_crop"):
        assert one[kind].std() > 0.1
        np.testing.assert_allclose(one[kind], eight[kind], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        (
            "train",
            {"train": "mixup"},
            "augment.train='mixup': known: none, pad_crop, random_resized_crop, resize, shift",
        ),
        ("test", {"test": "crop"}, "augment.test='crop': use 'resize', 'resize_center_crop' or 'none'"),
        ("train", {}, "train='none' leaves 8 x 10 images, but the networks take 8 x 8"),
        ("test", {"test": "resize_center_crop", "resize": 6}, "central crop of 8 pixels does not fit"),
        ("test", {"test": "resize", "mean": (0.5,) * 3}, "augment.mean and augment.std: only one of them is set"),
    ],
)
def test_mistakes_raise_errors_of_one_line(part, options, message):
    images = np.zeros((1, 8, 10, 3), np.uint8)
    with pytest.raises(UserError, match=message) as caught:
        train(images, jax.random.key(0), options, 8) if part == "train" else test(images, options, 8)
    assert "\n" not in str(caught.value)
