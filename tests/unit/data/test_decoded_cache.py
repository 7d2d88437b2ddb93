"""The cache of decoded images: its limit, and equal batches with and without it."""

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data import image_dataset, loaders
from cdl_jax.data.decoded_cache import DecodedCache
from cdl_jax.data.readers import decoding
from cdl_jax.data.stream import Split
from cdl_jax.runtime.sharding import make_mesh

SIZE = 3 * 10 * 12  # bytes of an image


@pytest.fixture
def split(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 10, 12, 3), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    return Split(np.arange(4, dtype=np.int32), files=[tmp_path / f"{number}.png" for number in range(4)])


@pytest.fixture
def decoded(monkeypatch):
    """Counts the decoded files by their names."""
    names, decode = [], decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda file: names.append(file.stem) or decode(file))
    return names


def test_an_image_is_decoded_once_and_keeps_its_pixels_and_its_name(split, decoded):
    cache, (image, name) = DecodedCache(4 * SIZE), image_dataset.load_image(split, 2)
    for _ in range(3):
        again, its_name = cache.load(split, np.int32(2))
        np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
        assert its_name == name == str(split.files[2])
    assert decoded == ["2", "2"]


def test_a_full_cache_makes_room_for_the_rows_that_are_read_next(split, decoded):
    cache = DecodedCache(2 * SIZE)
    for row in (0, 1, 2, 0, 1, 2):
        cache.load(split, row)
    assert decoded == ["0", "1", "2", "2"]
    cache.make_room(np.array([[1, 2], [2, 3]]))
    decoded.clear()
    for row in (1, 2, 1, 2, 3):
        cache.load(split, row)
    assert decoded == ["2", "3"]


def test_a_cache_with_room_drops_nothing(split, decoded):
    cache = DecodedCache(4 * SIZE)
    cache.load(split, 0)
    cache.make_room(np.array([1]))
    cache.load(split, 0)
    assert decoded == ["0"]


def test_batches_of_several_epochs_are_equal_with_and_without_a_cache(split, decoded):
    order, options = np.array([[0, 1], [2, 3], [3, 0], [1, 2]], np.int32), {"train": "random_resized_crop"}
    epochs = {}
    for limit in (0, 1):
        loader = loaders.make_loader(split, make_mesh(1), {**options, "cache_mb": limit}, 8)
        decoded.clear()
        epochs[limit] = [np.asarray(batch["images"]) for batch in loader.train_batches(order, 0, (5,))]
        # Threads may decode an image twice that they need at the same time.
        assert len(decoded) == 8 if not limit else 4 <= len(decoded) < 8
        decoded.clear()
        list(loader.train_batches(order, 0, (6,)))
        assert len(decoded) == (0 if limit else 8)
    np.testing.assert_array_equal(epochs[0], epochs[1])
