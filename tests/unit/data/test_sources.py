"""Sources of a user's images and of packaged sets: reading, and one-line errors."""

import json

import numpy as np
import pytest

from cdl_jax import config, plugins
from cdl_jax.options import defaults
from tests.support.fake_sources import load, refusal

pytestmark = pytest.mark.usefixtures("nowhere")


def touch(root, *names_):
    for name in names_:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_a_folder_with_its_own_test_set(tmp_path, test_folder):
    touch(tmp_path, "train/b/2.PNG", "train/b/1.jpg", "train/a/x.webp", "train/a/notes.txt", "train/a/.hidden.png")
    touch(tmp_path, f"{test_folder}/a/t.bmp", f"{test_folder}/b/t.jpeg")
    data = load("folder", tmp_path)
    assert data.class_names == ("a", "b") and data.train.images is None
    assert data.train.files == tuple(str(tmp_path / "train" / name) for name in ("a/x.webp", "b/1.jpg", "b/2.PNG"))
    assert data.train.labels.tolist() == [0, 1, 1] and data.train.labels.dtype == np.int32
    assert data.test.files == tuple(str(tmp_path / test_folder / name) for name in ("a/t.bmp", "b/t.jpeg"))


def test_a_folder_of_classes_is_split_by_seed(tmp_path):
    root = tmp_path / "pets"
    touch(root, *(f"{name}/{i:02d}.png" for name in ("cat", "dog") for i in range(10)), "few/1.png", "few/2.png")
    data = load("folder", root)
    assert (data.name, data.class_names) == ("pets", ("cat", "dog", "few"))
    assert np.bincount(data.test.labels).tolist() == [2, 2, 1] and np.bincount(data.train.labels).tolist() == [8, 8, 1]
    assert not set(data.train.files) & set(data.test.files) and len(data.train.files + data.test.files) == 22
    assert load("folder", root).test.files == data.test.files
    assert load("folder", root, split_seed=1).test.files != data.test.files
    assert len(load("folder", root, test_fraction=0.5).test) == 11


def test_folders_that_cannot_be_used_raise_errors_of_one_line(tmp_path):
    assert "set data.path" in refusal("folder")
    assert "no such file or folder" in refusal("folder", tmp_path / "none")
    assert "no images" in refusal("folder", tmp_path / "home")
    touch(tmp_path, "one/a/1.png", "half/train/a/1.png", "odd/train/a/1.png", "odd/test/b/1.png")
    assert "two or more" in refusal("folder", tmp_path / "one")
    assert "neither test/ nor val/" in refusal("folder", tmp_path / "half")
    assert "no such class" in refusal("folder", tmp_path / "odd")
    assert "data.test_fraction=1.0 must lie in (0, 1)" in refusal("folder", tmp_path / "one", test_fraction=1.0)


def test_arrays_of_a_user(tmp_path):
    gray = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    color = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    arrays = {"x_train": gray, "y_train": np.asarray([[0], [2], [1], [0]]), "x_test": color}
    np.savez(tmp_path / "mine.npz", **arrays, y_test=np.asarray([1, 2], np.uint8))
    data = load("arrays", tmp_path / "mine.npz")
    assert (data.name, data.class_names) == ("mine", ("0", "1", "2"))
    assert data.train.images.shape == (4, 6, 5, 3) and all(
        np.array_equal(data.train.images[..., channel], gray) for channel in range(3)
    )
    assert data.train.labels.tolist() == [0, 2, 1, 0] and np.array_equal(data.test.images, color)
    np.savez(tmp_path / "named.npz", **arrays, y_test=np.asarray([1, 2]), class_names=np.asarray(["x", "y", "z"]))
    assert load("arrays", tmp_path / "named.npz").class_names == ("x", "y", "z")
    np.savez(tmp_path / "named.npz", **arrays, y_test=[1, 2], class_names=np.asarray(["é".encode(), b"y", b"z"]))
    assert load("arrays", tmp_path / "named.npz").class_names == ("é", "y", "z")


def test_arrays_that_cannot_be_used_raise_errors_of_one_line(tmp_path):
    good = {
        "x_train": np.zeros((2, 4, 4), np.uint8),
        "y_train": np.asarray([0, 1]),
        "x_test": np.zeros((1, 4, 4), np.uint8),
        "y_test": np.asarray([0]),
    }

    def refusal_of(**changes):
        np.savez(tmp_path / "bad.npz", **{k: v for k, v in {**good, **changes}.items() if v is not None})
        return refusal("arrays", tmp_path / "bad.npz")

    assert "float64" in refusal_of(x_train=np.zeros((2, 4)))
    assert "[2, 4, 4, 2]" in refusal_of(x_train=np.zeros((2, 4, 4, 2), np.uint8))
    assert "no array 'y_test'" in refusal_of(y_test=None)
    assert "whole numbers" in refusal_of(y_train=np.asarray([0.0, 1.0]))
    assert "-1 is negative" in refusal_of(y_train=np.asarray([0, -1]))
    assert "has Python objects, which are refused" in refusal_of(y_train=np.asarray([0, "a"], object))
    assert "label 3 among 3 images" in refusal_of(y_train=np.asarray([0, 3]))
    assert "label 2147483648 is too large" in refusal_of(y_train=np.asarray([0, 2**31]))
    assert "numbers [n], not int64 []" in refusal_of(y_train=np.asarray(0))
    assert "numbers [n], not <U1 [2]" in refusal_of(y_train=np.asarray(["0", "1"]))
    assert "not uint8 []" in refusal_of(x_train=np.asarray(0, np.uint8))
    assert "x_train: images must be" in refusal_of(x_train=np.zeros((2, 0, 0, 3), np.uint8))
    assert "not uint8 [1, 4, 0, 3]" in refusal_of(x_test=np.zeros((1, 4, 0, 3), np.uint8))
    assert "class_names must be text [classes], not float64 [2]" in refusal_of(class_names=np.zeros(2))
    assert "class_names must be text [classes], not <U1 []" in refusal_of(class_names=np.asarray("a"))
    (tmp_path / "text.npz").write_text("no zip")
    assert "cannot be read" in refusal("arrays", tmp_path / "text.npz")
    content = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refusal("arrays", tmp_path / "cut.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    assert "numpy.savez" in refusal("arrays", tmp_path / "single.npy")
    assert "no such file" in refusal("arrays", tmp_path / "none.npz")
    assert "set data.path" in refusal("arrays")


def test_digits_are_split_evenly_and_scaled_to_bytes():
    pytest.importorskip("sklearn")
    data = load("digits")
    assert data.class_names == tuple("0123456789")
    assert data.train.images.shape == (1442, 8, 8, 3) and data.test.images.shape == (355, 8, 8, 3)
    assert data.train.images.max() == 255 and data.train.images.min() == 0
    assert np.bincount(data.test.labels).min() == 34 and np.bincount(data.test.labels).max() == 36
    assert np.array_equal(data.train.images[..., 0], data.train.images[..., 2])
    assert np.array_equal(load("digits").test.images, data.test.images)


def test_glyph_mini_has_two_disjoint_parts():
    incremental, pretraining = load("glyph_mini"), load("glyph_mini", part="pretraining")
    assert (len(incremental.class_names), len(incremental.train), len(incremental.test)) == (20, 995, 400)
    assert (len(pretraining.class_names), len(pretraining.train), len(pretraining.test)) == (62, 1860, 310)
    assert incremental.class_names[:4] == ("ŏ", "ầ", "«", "ë") and pretraining.class_names[0] == "0"
    assert not set(incremental.class_names) & set(pretraining.class_names)
    assert np.bincount(incremental.test.labels).tolist() == [20] * 20
    assert incremental.train.images.shape[1:] == (32, 32, 3)
    assert "data.part='both': use 'pretraining' or 'incremental'" in refusal("glyph_mini", part="both")


def test_a_glyph_file(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)
    arrays = {"x": x, "y": np.asarray([0, 1, 0, 1, 1], np.uint8), "chars": np.asarray(["é", "ß"])}
    np.savez(tmp_path / "glyphs.npz", **arrays, is_test=np.asarray([False, False, True, True, False]))
    data = load("glyph_file", tmp_path / "glyphs.npz")
    assert (data.name, data.class_names) == ("glyphs", ("é", "ß"))
    assert data.train.labels.tolist() == [0, 1, 1] and np.array_equal(data.train.images[..., 1], x[[0, 1, 4]])
    assert data.test.labels.tolist() == [0, 1]
    np.savez(tmp_path / "bad.npz", **arrays, is_test=np.zeros(4, bool))
    assert "one length" in refusal("glyph_file", tmp_path / "bad.npz")
    assert "make_glyphs" in refusal("glyph_file")


@pytest.mark.parametrize("source", plugins.list_plugins("data.sources"))
def test_every_source_declares_options_that_a_config_can_hold(source):
    module = plugins.load_plugin("data.sources", source)
    assert not set(module.OPTIONS) & {"path", "name"}
    stored = json.loads(json.dumps(defaults(module.OPTIONS)))
    assert config.copy_with_tuples(stored) == defaults(module.OPTIONS)  # as a stored config is read
