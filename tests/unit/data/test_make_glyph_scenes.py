"""Scenes of characters: their appearance, and the written set as a set of COCO."""

import json

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.detection import coco_files, segmentations
from cdl_jax.data.readers import npz_files
from cdl_jax.data.tools import make_glyph_scenes as tool
from cdl_jax.errors import UserError


@pytest.fixture(scope="module")
def glyphs():
    return tool.read_glyphs(None)[1]


def scenes(glyphs, count=60):
    return [tool.make_scene(glyphs["train"], 0, "train", index) for index in range(count)]


def test_characters_are_cut_to_their_ink(glyphs):
    assert {split: len(of_split) for split, of_split in glyphs.items()} == {"train": 10, "val": 10}
    for images in glyphs["train"]:
        for image in images:
            ink = image > 64
            assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()


def test_sizes_boxes_and_overlaps_are_in_range(glyphs):
    counts, sides, longer = set(), set(), []
    for scene in scenes(glyphs):
        height, width = scene.pixels.shape[:2]
        sides |= {height, width}
        counts.add(len(scene.boxes))
        assert scene.pixels.dtype == np.uint8 and scene.boxes.shape == (len(scene.characters), 4)
        low, high = scene.boxes[:, :2], scene.boxes[:, :2] + scene.boxes[:, 2:]
        assert (low >= 0).all() and (high <= [width, height]).all()
        longer += scene.boxes[:, 2:].max(axis=1).tolist()
        for i in range(len(low)):
            for j in range(i):
                inner = np.prod(np.maximum(0, np.minimum(high[i], high[j]) - np.maximum(low[i], low[j])))
                assert inner / (np.prod(high[i] - low[i]) + np.prod(high[j] - low[j]) - inner) < 0.05
    assert sides == {96, 112, 128} and counts == {1, 2, 3, 4, 5}
    assert 20 <= min(longer) < 25 and 50 < max(longer) <= 56


def test_characters_stand_out_from_their_background(glyphs):
    """Luminances in a box differ from the median: the contrast is 80 levels or more."""
    differences = []
    for scene in scenes(glyphs):
        luminance = scene.pixels @ [0.299, 0.587, 0.114]
        for x, y, w, h in scene.boxes:
            inside = luminance[y : y + h, x : x + w]
            differences.append(np.percentile(np.abs(inside - np.median(inside)), 98))
    assert np.mean(np.array(differences) > 40) > 0.95


def test_masks_are_the_ink_that_no_later_character_covers():
    """The ink of a full square is its box, in one color.

    The ink of a square without the upper right quarter is three quarters of its box.
    """
    full, corner = np.full((8, 8), 255, np.uint8), np.full((8, 8), 255, np.uint8)
    corner[:4, 4:] = 0
    overlaps = 0
    for index in range(40):
        scene = tool.make_scene([[full], [corner]], 0, "train", index)
        free = np.ones(scene.pixels.shape[:2], bool)
        for box, character, mask in reversed([*zip(scene.boxes, scene.characters, scene.masks, strict=True)]):
            x, y, w, h = box
            expected = np.zeros_like(free)
            expected[y : y + h, x : x + w] = True
            overlaps += (expected & ~free).any()
            if character == 0:
                assert np.array_equal(mask, expected & free)
                assert (scene.pixels[mask].std(axis=0) < 8).all()  # noise of 6 levels
            else:
                expected[y : y + h // 2, x + w - w // 2 : x + w] = False
                assert not (mask & ~free).any() and (mask ^ expected & free).sum() <= w + h  # the smoothed edge
            free &= ~mask
    assert overlaps > 5


def test_a_scene_is_a_function_of_seed_split_and_index(glyphs):
    one = tool.make_scene(glyphs["train"], 0, "train", 5)
    assert one.pixels.tobytes() == tool.make_scene(glyphs["train"], 0, "train", 5).pixels.tobytes()
    others = [(1, "train", 5), (0, "val", 5), (0, "train", 6)]
    assert all(one.pixels.tobytes() != tool.make_scene(glyphs["train"], *other).pixels.tobytes() for other in others)


@pytest.mark.parametrize("image_format", ["png", "jpg"])
def test_the_command_writes_a_set_of_coco(tmp_path, capsys, image_format, glyphs):
    out = tmp_path / "scenes"
    arguments = ["--out", str(out), "--num-train", "5", "--num-val", "2", "--seed", "3", "--format", image_format]
    assert tool.main(arguments) == 0
    assert "instances_train2017.json: 5 images" in capsys.readouterr().out
    data = coco_files.read_part(out, "train2017", masks=True)
    assert tuple(data.categories) == (3, 7, 12, 13, 20, 34, 41, 50, 66, 90) and data.num_outputs == 91
    assert len(coco_files.read_part(out, "val2017")) == 2
    for index in range(5):
        scene, targets = tool.make_scene(glyphs["train"], 3, "train", index), data.targets(index)
        x, y, width, height = scene.boxes.T
        assert targets.boxes.tolist() == np.stack([x, y, x + width, y + height], axis=1).tolist()
        assert targets.labels.tolist() == [tool.CATEGORY_IDS[c] for c in scene.characters]
        masks = [segmentations.decode(runs, scene.pixels.shape[:2]) for runs in targets.masks]
        assert np.array_equal(masks, scene.masks)
        pixels = np.asarray(Image.open(data.files[index]), int)
        assert np.abs(pixels - scene.pixels).mean() <= (0 if image_format == "png" else 8)
    assert json.loads((out / "annotations" / "instances_val2017.json").read_text())["annotations"][0]["id"] == 1


def test_the_ten_characters_of_a_larger_file_are_chosen(tmp_path):
    chars = ["a", *reversed(tool.CHARACTERS), "b"]
    labels = np.repeat(np.arange(12), 2)
    images = np.zeros((24, 32, 32), np.uint8)
    images[:, 4:20, 8:12] = 200
    arrays = {"x": images, "y": labels, "chars": np.array(chars), "is_test": np.tile([False, True], 12)}
    npz_files.write(tmp_path / "glyphs.npz", arrays)
    names, glyphs = tool.read_glyphs(tmp_path / "glyphs.npz")
    assert names == tuple(tool.CHARACTERS) and [image.shape for image in glyphs["val"][3]] == [(16, 4)]


def test_mistakes_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    assert tool.main(["--out", str(tmp_path / "full")]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert tool.main(["--out", str(tmp_path / "new"), "--glyphs", str(tmp_path / "none.npz")]) == 2
    assert "no such file" in capsys.readouterr().err
    images = np.full((4, 32, 32), 200, np.uint8)
    arrays = {"x": images, "y": np.arange(4) // 2, "chars": np.array(["a", "b"]), "is_test": np.arange(4) % 2 == 0}
    npz_files.write(tmp_path / "two.npz", arrays)
    with pytest.raises(UserError, match="has 2 characters, and scenes need 10"):
        tool.read_glyphs(tmp_path / "two.npz")
    with pytest.raises(SystemExit):
        tool.main(["--out", str(tmp_path / "new"), "--num-train", "-1"])
