"""Corruptions: names, random numbers by image, the package, one line without it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from cdl_jax.data import corruptions
from cdl_jax.errors import UserError

IMAGES = [np.full((32, 40, 3), value, np.uint8) for value in (0, 100)]


@pytest.fixture
def package(monkeypatch):
    """A package that returns NumPy's global random numbers, or the given seed."""

    def corrupt(image, severity, corruption_name, seed=None):
        value = np.random.randint(256) if seed is None else seed % 256  # noqa: NPY002
        return np.full(image.shape, value, float)

    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corrupt=corrupt))


@pytest.mark.parametrize("name", ["fog", "glass_blur"])
def test_each_image_has_its_own_numbers_which_follow_from_its_position(name, package):
    np.random.seed(3)  # noqa: NPY002
    wanted = np.random.randint(1000)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    found = [corruptions.corrupt(IMAGES * 3, name, 2) for _ in range(2)]
    assert np.random.randint(1000) == wanted  # noqa: NPY002 (the global generator is as it was)
    values = [int(image[0, 0, 0]) for image in found[0]]
    assert values == [int(image[0, 0, 0]) for image in found[1]] and len(set(values)) > 1
    assert found[0][0].dtype == np.uint8 and found[0][0].shape == (32, 40, 3)
    later = corruptions.corrupt(IMAGES, name, 2, first=4)
    assert [int(image[0, 0, 0]) for image in later] == values[4:]
    other = corruptions.corrupt(IMAGES * 3, name, 3)
    assert [int(image[0, 0, 0]) for image in other] != values


def test_small_images_and_unknown_names_are_refused(package):
    with pytest.raises(UserError, match="32 x 32 pixels or more, and one has 40 x 31"):
        corruptions.corrupt([np.zeros((31, 40, 3), np.uint8)], "fog", 1)
    with pytest.raises(UserError, match="corruption 'fogg': did you mean 'fog'"):
        corruptions.parse_names("snow,fogg")
    assert corruptions.parse_names("all") == corruptions.NAMES and len(set(corruptions.NAMES)) == 15


def test_without_the_package_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match=r"need the package imagecorruptions-imaug .* pip install"):
        corruptions.load_package()


def test_all_corruptions_of_the_package_change_images_and_repeat():
    package = pytest.importorskip("imagecorruptions")
    assert tuple(package.get_corruption_names("common")) == corruptions.NAMES
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for name in corruptions.NAMES:
        first, again = (corruptions.corrupt([image], name, 3)[0] for _ in range(2))
        assert first.shape == image.shape and (first != image).any(), name
        np.testing.assert_array_equal(first, again, err_msg=name)
