"""Annotation files of COCO: what is read, and refusals of mistakes in one line."""

import json
import logging

import numpy as np
import pytest

from cdl_jax.data.detection import coco_files, segmentations
from cdl_jax.errors import UserError
from tests.support import coco_sets


def test_images_are_sorted_by_id_and_keep_the_ids_of_their_categories(tmp_path):
    coco_sets.write(tmp_path)
    data = coco_files.read_part(tmp_path, "train2017")
    assert data.image_ids.tolist() == [4, 7, 9]
    assert [file.rsplit("/", 1)[1] for file in data.files] == ["0004.png", "0007.png", "0009.png"]
    assert data.sizes.tolist() == [[64, 48], [50, 50], [40, 60]]
    assert data.categories == {3: "cat", 7: "hat", 90: "ring"} and data.num_outputs == 91
    assert data.objects.ids.tolist() == [31, 17, 15, 12] and data.objects.rows.tolist() == [0, 0, 0, 2]
    assert data.objects.areas.tolist() == [150, 3000, 12, 400.5]
    assert data.objects.crowds.tolist() == [False, True, False, False]
    assert data.max_objects == 2 and data.trainable.tolist() == [True, False, True, True]


def test_targets_leave_out_crowds_and_end_at_the_image(tmp_path):
    coco_sets.write(tmp_path)
    data = coco_files.read_part(tmp_path, "train2017")
    first, empty, last = (data.targets(row) for row in range(3))
    assert first.boxes.tolist() == [[4, 8, 16, 24], [1, 2, 4, 6]] and first.labels.tolist() == [90, 7]
    assert empty.boxes.shape == (0, 4) and len(empty) == 0
    assert last.boxes.tolist() == [[50, 0, 60, 20.5]] and last.labels.tolist() == [3]
    assert first.boxes.dtype == np.float32 and first.labels.dtype == np.int32


def test_boxes_without_extent_are_no_targets_and_are_logged(tmp_path, caplog):
    records = coco_sets.content()
    records["annotations"][0]["bbox"] = [4, 8, 0, 16]
    records["annotations"][3]["bbox"] = [48.5, 8, 3, 3]  # half a pixel outside: rounding
    coco_sets.write(tmp_path, records=records)
    with caplog.at_level(logging.WARNING, "cdl_jax"):
        data = coco_files.read_part(tmp_path, "train2017")
    assert len(data.targets(0)) == 0 and data.max_objects == 1
    assert "2 boxes without an extent are no targets (first id 31)" in caplog.text


def test_a_log_line_names_flags_that_have_no_effect(tmp_path, caplog):
    records = coco_sets.content()
    records["annotations"][0]["ignore"] = records["annotations"][2]["ignore"] = 1
    coco_sets.write(tmp_path, records=records)
    with caplog.at_level(logging.WARNING, "cdl_jax"):
        coco_files.read_part(tmp_path, "train2017")
    assert "1 annotations have 'ignore'" in caplog.text  # the other is a crowd


def changed(table, index, **values):
    def change(records):
        records[table][index].update(values)

    return change


def without(table, index, key):
    def change(records):
        del records[table][index][key]

    return change


MISTAKES = {
    "box outside": (changed("annotations", 0, bbox=[90, 8, 12, 16]), "id 31: the box [90, 8, 12, 16] lies outside of"),
    "box left of the image": (changed("annotations", 0, bbox=[-30, 8, 12, 16]), "lies outside of image 4 with 48 x 64"),
    "box not finite": (changed("annotations", 1, bbox=[1, float("nan"), 2, 2]), "bbox must be 4 finite numbers"),
    "box infinite": (changed("annotations", 1, bbox=[1, 1, float("inf"), 2]), "bbox must be 4 finite numbers"),
    "box huge": (changed("annotations", 1, bbox=[1, 1, 10**400, 2]), "bbox must be 4 finite numbers"),
    "box negative": (changed("annotations", 1, bbox=[1, 1, -1, 2]), "width and height not negative"),
    "box of three": (changed("annotations", 1, bbox=[1, 1, 2]), "bbox must be 4 finite numbers"),
    "box of text": (changed("annotations", 1, bbox=["1", 1, 1, 2]), "bbox must be 4 finite numbers"),
    "box of booleans": (changed("annotations", 1, bbox=[True, 1, 1, 2]), "bbox must be 4 finite numbers"),
    "no box": (without("annotations", 1, "bbox"), "annotation with id 12: bbox is missing"),
    "area": (changed("annotations", 1, area=float("nan")), "area must be a finite number, 0 or more, not nan"),
    "crowd": (changed("annotations", 1, iscrowd="no"), "iscrowd must be 0 or 1, not 'no'"),
    "unknown category": (changed("annotations", 1, category_id=8), "id 12: the file has no category with id 8"),
    "unknown image": (changed("annotations", 1, image_id=5), "id 12: the file has no image with id 5"),
    "image after the last": (changed("annotations", 1, image_id=99), "id 12: the file has no image with id 99"),
    "text for an id": (changed("annotations", 1, image_id="4"), "image_id must be an integer, 0 or more, not '4'"),
    "fraction for an id": (changed("annotations", 1, category_id=3.0), "category_id must be an integer"),
    "annotation twice": (changed("annotations", 1, id=31), "id 31 occurs twice"),
    "image twice": (changed("images", 1, id=9), "image with id 9: id 9 occurs twice"),
    "category twice": (changed("categories", 1, id=90), "category with id 90: id 90 occurs twice"),
    "file twice": (changed("images", 1, file_name="0009.png"), "file_name '0009.png' occurs twice"),
    "missing file": (changed("images", 1, file_name="x.png"), "1 of its images are not in"),
    "other size": (changed("images", 0, height=41), "has 60 x 40 pixels, but instances_train2017.json has 60 x 41"),
    "swapped size": (changed("images", 1, height=48, width=64), "has 48 x 64 pixels"),
    "size 0": (changed("images", 1, height=0), "height must be an integer, 1 to 65535, not 0"),
    "no id": (without("annotations", 1, "id"), "annotation with number 2 of the list: id is missing"),
    "no name": (without("images", 1, "file_name"), "image with id 4: file_name is missing"),
    "name of a category": (changed("categories", 1, name=5), "name must be text, not 5"),
    "large category": (changed("categories", 1, id=10_000_000), "above 9999"),
    "not an object": (lambda records: records["images"].append(3), "must be an object with named values, not 3"),
    "no images": (lambda records: records.update(images=[], annotations=[]), "has no images"),
    "no categories": (lambda records: records.update(categories=[]), "has no categories"),
    "no annotations": (lambda records: records.pop("annotations"), "'annotations' must be a list, but is missing"),
    "no list": (lambda records: records.update(images={}), "'images' must be a list, but is a dict"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_in_one_line(tmp_path, name):
    change, message = MISTAKES[name]
    records = coco_sets.content()
    change(records)
    coco_sets.write(tmp_path, records=records)
    with pytest.raises(UserError) as caught:
        coco_files.read_part(tmp_path, "train2017")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "train2017" in str(caught.value)


def test_a_message_counts_further_mistakes(tmp_path):
    records = coco_sets.content()
    for annotation in records["annotations"][1:]:
        annotation["category_id"] = 8
    coco_sets.write(tmp_path, records=records)
    with pytest.raises(UserError, match=r"id 12: .*no category with id 8 \(2 more like this\)"):
        coco_files.read_part(tmp_path, "train2017")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", '{"images": [' + "[" * 100_000, "\x00\xff"])
def test_a_damaged_file_is_refused(tmp_path, text):
    coco_sets.write(tmp_path, records=text)
    with pytest.raises(UserError, match=r"instances_train2017\.json: (is damaged|must have images)"):
        coco_files.read_part(tmp_path, "train2017")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        coco_files.read_part(tmp_path, "train2017")
    path = coco_sets.write(tmp_path)
    with pytest.raises(UserError, match="3 of its images are not in"):
        coco_files.read(path, tmp_path / "elsewhere")


def test_a_damaged_image_is_refused_with_its_name(tmp_path):
    coco_sets.write(tmp_path)
    (tmp_path / "train2017" / "0007.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0007\.png: cannot be read as an image"):
        coco_files.read_part(tmp_path, "train2017")
    assert len(coco_files.read_part(tmp_path, "train2017", check_sizes=False)) == 3


def test_images_may_lie_in_folders_of_their_own(tmp_path):
    records = coco_sets.content()
    path = coco_sets.write(tmp_path, records=records)
    for record in records["images"]:
        record["file_name"] = f"train2017/{record['file_name']}"
    path.write_text(json.dumps(records))
    assert len(coco_files.read(path, tmp_path)) == 3


def test_selected_images_have_their_own_objects(tmp_path):
    coco_sets.write(tmp_path)
    data = coco_files.read_part(tmp_path, "train2017")
    selected = data.select(np.array([0, 2]), data.objects.labels == 3)
    assert selected.image_ids.tolist() == [4, 9] and selected.sizes.tolist() == [[64, 48], [40, 60]]
    assert selected.objects.ids.tolist() == [17, 12] and selected.objects.rows.tolist() == [0, 1]
    assert selected.targets(1).labels.tolist() == [3] and len(selected.targets(0)) == 0


def test_segmentations_are_those_of_the_file_and_follow_their_objects(tmp_path):
    coco_sets.write(tmp_path, records=coco_sets.content_with_segmentations())
    assert coco_files.read_part(tmp_path, "train2017").objects.masks is None
    data = coco_files.read_part(tmp_path, "train2017", masks=True)
    corners = {31: (4, 8, 16, 24), 17: (0, 0, 48, 64), 15: (1, 2, 4, 6), 12: (50, 0, 60, 21)}
    for number, row, runs in zip(data.objects.ids, data.objects.rows, data.objects.masks, strict=True):
        x0, y0, x1, y1 = corners[number]
        expected = np.zeros(data.sizes[row], bool)
        expected[y0:y1, x0:x1] = True
        assert np.array_equal(segmentations.decode(runs, tuple(data.sizes[row])), expected), number
    by_id = dict(zip(data.objects.ids.tolist(), data.objects.masks, strict=True))
    assert data.targets(0).masks.tolist() == [by_id[31], by_id[15]]  # without the crowd
    selected = data.select(np.array([0, 2]), data.objects.labels == 3)
    assert selected.objects.masks.tolist() == [by_id[17], by_id[12]] and data.targets(1).masks.tolist() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("annotations", 0, segmentation=[[1, 2, 3]]), "id 31: segmentation has a polygon of 3 numbers"),
        (changed("annotations", 3, segmentation={"size": [64, 48], "counts": [3]}), "id 15: segmentation has counts"),
        (changed("annotations", 2, segmentation="x"), "id 17: segmentation must be polygons or run lengths, not 'x'"),
        (changed("annotations", 1, segmentation=[]), "id 12: segmentation is missing, and data.segmentations=True"),
        (without("annotations", 0, "segmentation"), "id 31: segmentation is missing"),
    ],
)  # fmt: skip
def test_damaged_and_missing_segmentations_are_refused_in_one_line(tmp_path, change, message):
    records = coco_sets.content_with_segmentations()
    change(records)
    coco_sets.write(tmp_path, records=records)
    with pytest.raises(UserError) as caught:
        coco_files.read_part(tmp_path, "train2017", masks=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "instances_train2017.json: annotation with id" in str(caught.value)
    assert len(coco_files.read_part(tmp_path, "train2017")) == 3


def test_crowds_and_boxes_without_extent_need_no_segmentation(tmp_path):
    records = coco_sets.content_with_segmentations()
    del records["annotations"][2]["segmentation"]
    records["annotations"][0].update(bbox=[4, 8, 0, 16], segmentation=[])
    coco_sets.write(tmp_path, records=records)
    masks = coco_files.read_part(tmp_path, "train2017", masks=True).objects.masks
    assert [len(runs) > 0 for runs in masks] == [False, False, True, True]


ODD_VALUES = (
    *(None, True, -1, 2**70, 10**400, 1.5, float("nan"), float("inf"), "", "a", "\ud800", "../x", "a\x00b", "\n"),
    *([], [1], [[1]], {}, {"id": 1}, [1, 2, 3, 4], [0, 0, 1e9, 1e9], "0004.png"),
)


def places(value, place=()):
    """Yields the keys that lead to each value within nested dicts and lists."""
    yield place
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*place, key))


@pytest.mark.parametrize("masks", [False, True])
def test_any_odd_value_is_accepted_or_refused_in_one_line(tmp_path, masks):
    content = coco_sets.content_with_segmentations if masks else coco_sets.content
    path = coco_sets.write(tmp_path)
    rng, refused = np.random.default_rng(0), 0
    everywhere = [place for place in places(content()) if place]
    for _ in range(200):
        records = content()
        *parents, key = everywhere[rng.integers(len(everywhere))]
        parent = records
        for name in parents:
            parent = parent[name]
        parent[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        path.write_text(json.dumps(records))
        try:
            data = coco_files.read_part(tmp_path, "train2017", masks=masks)
            assert all(np.isfinite(data.targets(row).boxes).all() for row in range(len(data)))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000
    assert 100 < refused < 200
