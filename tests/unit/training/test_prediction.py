"""Predictions equal those of evaluation: transforms, queries, classes, order."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.image_dataset import ArrayImage
from cdl_jax.data.loaders import make_loader
from cdl_jax.data.stream import Split, Task
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.methods.base import CachesQueries, StreamInfo
from cdl_jax.options import defaults
from cdl_jax.runtime import sharding
from cdl_jax.training import steps
from cdl_jax.training.prediction import Classifier
from cdl_jax.training.state import position
from tests.support.methods import FixedMethod

SIDE, INFO = 8, StreamInfo(4, (2, 2), tuple("abcd"))
AT = position(Task(0, (0, 1), 0, np.arange(0), np.arange(0)))
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(SIDE * SIDE * 3, 4)).astype(np.float32)
SMALL, LARGE = (RNG.integers(0, 256, (5, *size, 3), np.uint8) for size in ((6, 10), (20, 12)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Queried(FixedMethod, CachesQueries):
    """Adds the query, which the frozen variables determine, to the logits."""

    def queries(self, frozen, images):
        return {"mean": images.mean(axis=(1, 2, 3)) * frozen["scale"]}

    def features(self, variables, images, context):
        return {"student": {"pixels": images, "mean": context.queries["mean"]}} if context.queries else {}


def predict(variables, images, context):
    logits = images.reshape(len(images), -1) @ variables["kernel"]
    return {"student": logits + context.queries["mean"][:, None] if context.queries else logits}, {}


def classifier(device_size=None, method=FixedMethod, batch_size=4, **options):
    method = method(networks=("student",), image_size=SIDE, prediction=predict, frozen="scale")
    options = defaults(augment.OPTIONS, mean=(0.5,) * 3, std=(0.25,) * 3, **options)
    arguments = {"kernel": KERNEL}, {"scale": np.float32(100)}, AT, INFO, options, batch_size
    return Classifier(method, "student", *arguments, device_size)


def logits_of_evaluation(images, predictor, device_data_limit_mb):
    """Returns the logits that the loader and the step of evaluation give."""
    limit = {"device_data_limit_mb": device_data_limit_mb}
    split = Split(np.zeros(len(images), np.int32), images=images)
    loader = make_loader(split, sharding.make_mesh(1), {**predictor.augment, **limit}, SIDE)
    method = predictor.method
    step = jax.jit(steps.predict_step(method, lambda *inputs: method.predict(*inputs)[0], loader, predictor.augment))
    (batch,) = loader.test_batches(np.arange(len(images))[None], np.ones((1, len(images)), np.float32))
    return np.asarray(step(predictor.mutable, predictor.frozen, loader.data, batch, AT)["student"])


def as_images(pixels):
    return [ArrayImage(one, f"image {i}") for i, one in enumerate(pixels)]


@pytest.mark.parametrize("test", ["resize", "resize_center_crop"])
def test_images_are_transformed_where_evaluation_transforms_them(test):
    options = {"test": test, "resize": 9, "interpolation": "bilinear"}
    on_device, on_host = classifier((20, 12), **options), classifier(None, **options)
    wanted = [logits_of_evaluation(LARGE, on_device, limit) for limit in (64, 0)]
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-4  # Pillow rounds between its passes
    for ours, logits in zip((on_device, on_host), wanted, strict=True):
        found = ours.logits(as_images(LARGE))
        np.testing.assert_allclose(found[:, :2], logits[:, :2], rtol=0, atol=1e-5)
        assert np.isneginf(found[:, 2:]).all()


def test_images_of_several_sizes_keep_their_order():
    ours = classifier((20, 12), test="resize")
    mixed = [image for pair in zip(as_images(SMALL), as_images(LARGE), strict=True) for image in pair]
    found = ours.logits(mixed)
    np.testing.assert_allclose(found[::2], ours.logits(as_images(SMALL)), atol=1e-5)
    np.testing.assert_allclose(found[1::2], ours.logits(as_images(LARGE)), atol=1e-5)
    np.testing.assert_allclose(ours.logits(mixed[3:4]), found[3:4], atol=1e-5)


def test_without_a_transform_images_of_the_right_size_are_exact_and_others_are_resized():
    ours = classifier((SIDE, SIDE), test="none")
    exact = RNG.integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    expected = (exact.reshape(3, -1) / np.float32(255) - 0.5) / 0.25 @ KERNEL
    np.testing.assert_allclose(ours.logits(as_images(exact))[:, :2], expected[:, :2], atol=1e-4)
    resized = classifier(None, test="resize").logits(as_images(SMALL))
    np.testing.assert_array_equal(ours.logits(as_images(SMALL)), resized)


def test_queries_come_from_a_step_of_their_own():
    plain, queried = classifier(test="resize"), classifier(method=Queried, test="resize")
    found = queried.logits(as_images(SMALL))
    pixels = np.stack([augment.transform_test_image(Image.fromarray(x), plain.augment, SIDE) for x in SMALL])
    mean = ((pixels / 255.0 - 0.5) / 0.25).mean(axis=(1, 2, 3)) * 100
    np.testing.assert_allclose(found[:, :2], plain.logits(as_images(SMALL))[:, :2] + mean[:, None], rtol=1e-4)
    assert plain.features(as_images(SMALL)) == {} and plain.feature_names == ()


def test_one_program_serves_any_number_of_images(monkeypatch):
    ours, traced = classifier(test="resize"), []
    monkeypatch.setattr(
        Classifier, "_logits", lambda self, v, x, c: traced.append(len(x)) or predict(v, x, c)[0]["student"]
    )
    monkeypatch.setattr(Classifier._logits, "__name__", "_logits")
    for count in (1, 4, 5):
        ours.logits(as_images(np.concatenate([SMALL, SMALL])[:count]))
    assert traced == [4]


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for size in (None, (20, 12)):
        with pytest.raises(UserError, match=r"a\.png: cannot be read as an image"):
            classifier(size, test="resize").logits([tmp_path / "a.png"])
