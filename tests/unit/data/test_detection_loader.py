"""Batches of images with boxes: layout, determinism, and mistakes at decoding."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.detection import canvases, coco_files, segmentations, transforms
from cdl_jax.data.detection.loader import DetectionLoader, StreamLoader
from cdl_jax.errors import UserError
from cdl_jax.runtime import sharding
from tests.support import coco_sets

OPTIONS = {
    "scales": (32, 48, 64),
    "max_size": 96,
    "first_scales": (48, 64),
    "crop_range": (40, 60),
    "eval_size": 32,
    "canvases": ((64, 64), (64, 128), (128, 64), (128, 128)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    coco_sets.write(root)
    return coco_files.read_part(root, "train2017")


def build(data, training=True, group_size=2, label_maps=False, **changes):
    mesh, options = sharding.make_mesh(1), {**OPTIONS, **changes}
    return DetectionLoader.build(data, mesh, options, group_size=group_size, training=training, label_maps=label_maps)


def test_a_training_batch_has_the_transformed_images_at_the_top_left(data):
    loader = build(data)
    rows, purposes = np.array([[0, 2, 1, 0], [2, 2, 1, 1]], np.int32), np.array([[7, 0], [7, 1]])
    batches = list(loader.host_train_batches(rows, purposes, seed=3))
    assert len(batches) == 2
    for step, batch in enumerate(batches):
        height, width = batch["images"].shape[1:3]
        assert (height, width) in OPTIONS["canvases"]
        assert np.array_equal(batch["extents"], canvases.group_extents(batch["sizes"], 2))
        assert batch["rows"].tolist() == rows[step].tolist()
        for i, row in enumerate(rows[step].tolist()):
            image = Image.open(data.files[row]).convert("RGB")
            draws = canvases.draw(3, (7, step), row, image.size[::-1], loader.options)
            image, targets = transforms.transform_train(image, data.targets(row), draws, loader.options)
            h, w = batch["sizes"][i]
            assert np.array_equal(batch["images"][i, :h, :w], np.asarray(image))
            assert not batch["images"][i, h:].any() and not batch["images"][i, :, w:].any()
            count = len(targets)
            assert batch["valid"][i].tolist() == [j < count for j in range(2)]
            relative = transforms.relative_boxes(targets.boxes, (h, w))
            assert np.array_equal(batch["boxes"][i, :count], relative)
            assert batch["labels"][i, :count].tolist() == targets.labels.tolist()
            assert batch["boxes"][i, count:].tolist() == [[0.5, 0.5, 1, 1]] * (2 - count)
            assert not batch["labels"][i, count:].any()
    names = ("images", "sizes", "extents", "boxes", "labels", "valid", "original_sizes", "rows")
    types = ("uint8", "int32", "int32", "float32", "int32", "bool", "int32", "int32")
    assert {name: str(array.dtype) for name, array in batches[0].items()} == dict(zip(names, types, strict=True))


@pytest.fixture(scope="module")
def with_masks(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    coco_sets.write(root, records=coco_sets.content_with_segmentations())
    return coco_files.read_part(root, "train2017", masks=True)


def test_label_maps_have_the_labels_of_the_objects_that_the_transform_keeps(with_masks):
    """Finds overlaps and lost objects in another way: each object is drawn alone."""
    loader = build(with_masks, label_maps=True)
    rows, purposes = np.tile(np.int32([0, 2, 1, 0]), (5, 1)), np.arange(5)[:, None]
    found = set()
    for step, batch in enumerate(loader.host_train_batches(rows, purposes, seed=2)):
        assert batch["label_maps"].dtype == np.uint8 and batch["label_maps"].shape == batch["images"].shape[:3]
        for i, row in enumerate(rows[step].tolist()):
            height, width = batch["sizes"][i]
            expected = np.zeros(batch["images"].shape[1:3], int)
            draws = loader.draws(row, (2, (step,)))
            own = [i for i in np.flatnonzero(with_masks.objects.rows == row) if with_masks.trainable[i]]
            for obj in reversed(own):
                mask = segmentations.decode(with_masks.objects.masks[obj], tuple(with_masks.sizes[row]))
                covered = transforms.transform_label_map(mask, draws, loader.options)
                expected[:height, :width][covered] = with_masks.objects.labels[obj]
            assert np.array_equal(batch["label_maps"][i], expected)
            found |= set(np.unique(expected))
            assert set(np.unique(expected)) - {0} <= set(batch["labels"][i].tolist())
    assert found == {0, 3, 7, 90}


def test_label_maps_of_a_task_have_its_labels_alone(with_masks):
    mesh, rows = sharding.make_mesh(devices=1), np.arange(3)
    options = {**OPTIONS, "flip": 0.0, "crop": 0.0}
    for ids in ((3,), (7, 90)):
        part = with_masks.select(rows, np.isin(with_masks.objects.labels, ids))
        loader = DetectionLoader.build(part, mesh, options, group_size=1, training=True, n_max=2, label_maps=True)
        (batch,) = loader.host_train_batches(rows[None].astype(np.int32), np.zeros((1, 1), int), seed=0)
        assert set(np.unique(batch["label_maps"])) == {0, *ids}


def test_label_maps_are_wide_enough_for_their_labels_and_known_before(with_masks):
    data = dataclasses.replace(with_masks, categories={**with_masks.categories, 256: "wide"})
    loader = build(data, label_maps=True)
    assert loader.arrays(2, (64, 64))["label_maps"].dtype == np.uint16
    abstract = StreamLoader((loader,)).abstract_batch(4)["label_maps"]
    assert (abstract.shape, abstract.dtype) == ((4, 64, 64), np.uint16)
    assert "label_maps" not in build(data).arrays(2, (64, 64))


def test_label_maps_need_segmentations_and_ids_above_0(data, with_masks):
    with pytest.raises(UserError, match=r"instances_train2017\.json: token labels need .*set data\.segmentations=True"):
        build(data, label_maps=True)
    background = dataclasses.replace(with_masks, categories={0: "sky", **with_masks.categories})
    with pytest.raises(UserError, match=r"category id 0 \('sky'\) stands for no object"):
        build(background, label_maps=True)


def test_equal_images_of_two_epochs_differ_and_a_restart_repeats_them(data):
    loader = build(data)
    rows, purposes = np.tile(np.int32([0, 1, 2, 0]), (6, 1)), np.arange(6)[:, None]
    batches = list(loader.host_train_batches(rows, purposes, seed=0))
    assert len({batch["images"].tobytes() for batch in batches}) == 6
    again = list(loader.train_batches(rows, purposes, 0, start_step=4))
    assert len(again) == 2
    for first, second in zip(batches[4:], again, strict=True):
        assert all(np.array_equal(first[name], second[name]) for name in first)
        assert all(isinstance(array, jax.Array) for array in second.values())


def test_parts_of_a_batch_are_those_of_the_complete_batch(data):
    """Two processes decode two columns each.

    Extents and canvases are those of all four images.
    """
    loader = build(data)
    rows = canvases.epoch_rows(3, groups=2, group_size=1, seed=1, purpose=(0,)).repeat(2, axis=1)
    purposes = np.zeros((len(rows), 1), int)
    complete = list(loader.host_train_batches(rows, purposes, 1))
    parts = [list(loader.host_train_batches(rows, purposes, 1, slice(low, low + 2))) for low in (0, 2)]
    for batch, first, second in zip(complete, *parts, strict=True):
        for name in batch:
            assert np.array_equal(batch[name], np.concatenate([first[name], second[name]])), name


def test_test_batches_pad_with_empty_images(data):
    loader = build(data, training=False)
    rows, weight = canvases.evaluation_rows(3, groups=3, group_size=2)
    (batch,) = loader.test_batches(rows, weight)
    # Files of 64 x 48, 50 x 50 and 40 x 60 pixels: shorter side 32, longer 32 * 64 / 48 = 42, rounded down to 32 ...
    assert batch["sizes"][:3].tolist() == [[32, 32], [32, 32], [32, 48]]
    assert batch["extents"].tolist() == [[32, 32], [32, 32], [32, 48], [32, 48], [64, 64], [64, 64]]
    assert batch["sizes"][3:].tolist() == batch["extents"][3:].tolist()  # no side is 0, so nothing is divided by 0
    assert batch["original_sizes"][:3].tolist() == [[64, 48], [50, 50], [40, 60]]
    assert batch["weight"].tolist() == [1, 1, 1, 0, 0, 0] and batch["rows"].tolist() == [0, 1, 2, -1, -1, -1]
    assert not np.asarray(batch["images"][3:]).any() and not np.asarray(batch["valid"][3:]).any()
    assert batch["images"].shape == (6, 64, 64, 3)
    np.testing.assert_allclose(batch["boxes"][2, 0], [55 / 60, 10.25 / 40, 10 / 60, 20.5 / 40], rtol=1e-6)


def test_stopping_half_way_ends_the_threads(data):
    loader = build(data)
    rows, purposes = np.zeros((50, 2), np.int32), np.zeros((50, 1), int)
    batches = loader.train_batches(rows, purposes, 0)
    assert len(list(itertools.islice(batches, 2))) == 2
    batches.close()


def test_the_number_of_objects_can_be_larger_but_not_smaller(data):
    mesh = sharding.make_mesh(1)
    loader = DetectionLoader.build(data, mesh, OPTIONS, group_size=1, training=True, n_max=5)
    batch = next(loader.host_train_batches(np.array([[0]]), np.array([[0]]), 0))
    assert batch["boxes"].shape == (1, 5, 4)
    with pytest.raises(UserError, match="an image has 2 objects, but n_max is 1"):
        DetectionLoader.build(data, mesh, OPTIONS, group_size=1, training=True, n_max=1)


def test_options_are_checked_before_images_are_decoded(data):
    with pytest.raises(UserError, match=r"config\.augment\.flip=2"):
        build(data, flip=2)
    with pytest.raises(UserError, match=r"config\.augment\.canvases has none that holds"):
        build(data, canvases=((64, 64),))


@pytest.mark.parametrize("training", [True, False])
def test_a_file_that_changed_is_refused_when_it_is_decoded(tmp_path, training):
    coco_sets.write(tmp_path)
    loader = build(coco_files.read_part(tmp_path, "train2017"), training)
    rows = np.array([[0, 1]], np.int32)

    def first_batch():
        if training:
            return next(loader.train_batches(rows, np.array([[0]]), 0))
        return next(loader.test_batches(rows, np.ones((1, 2), np.float32)))

    Image.new("RGB", (47, 64)).save(tmp_path / "train2017" / "0004.png")
    with pytest.raises(UserError, match=r"0004\.png: has 47 x 64 pixels, but instances_train2017\.json has 48 x 64"):
        first_batch()
    (tmp_path / "train2017" / "0004.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"0004\.png: cannot be read as an image"):
        first_batch()
    (tmp_path / "train2017" / "0004.png").unlink()
    with pytest.raises(UserError, match=r"0004\.png: .*No such file"):
        first_batch()


def stream_loader(data):
    sets = [data.select(np.arange(len(data)), np.isin(data.objects.labels, ids)) for ids in ((3,), (7, 90))]
    mesh = sharding.make_mesh(devices=1)
    options = {"options": {**OPTIONS, "flip": 0.0}, "group_size": 1, "training": True, "n_max": data.max_objects}
    return StreamLoader(tuple(DetectionLoader.build(part, mesh, **options) for part in sets))


def test_a_loader_of_a_stream_has_the_objects_of_the_task_and_restarts_at_any_step(data):
    loader, order = stream_loader(data), np.array([[0, 2], [2, 0], [0, 1]], np.int32)
    batches = {task: list(loader.train_batches(order, 0, (5, task, 0))) for task in (0, 1)}
    for task, ids in ((0, {0, 3}), (1, {0, 7, 90})):
        assert {label for batch in batches[task] for label in np.asarray(batch["labels"]).ravel().tolist()} <= ids
    (last,) = loader.train_batches(order, 2, (5, 1, 0))
    for name, value in last.items():
        np.testing.assert_array_equal(value, batches[1][2][name], err_msg=name)
    # The transform of an image depends on the step.
    assert any(
        not np.array_equal(batches[1][0]["sizes"][column], batches[1][1]["sizes"][1 - column]) for column in (0, 1)
    )


def test_the_shapes_of_a_batch_are_known_before(data):
    loader, order = stream_loader(data), np.array([[0, 2]], np.int32)
    (batch,) = loader.train_batches(order, 0, (0, 0, 0))
    abstract = loader.abstract_batch(2, canvas=batch["images"].shape[1:3])
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in abstract.items()
    }
    assert loader.abstract_batch(2)["images"].shape == (2, 64, 64, 3)
    (batch,) = loader.test_batches(order, np.ones((1, 2), np.float32))
    assert set(batch) == set(loader.abstract_batch(2, True))
    inputs = loader.read({}, batch)
    height, width = inputs["sizes"][0]
    assert inputs["images"].dtype == np.float32 and not np.any(inputs["images"][0, height:])


def test_a_damaged_image_is_found_before_the_first_step(data, tmp_path):
    loader = stream_loader(data)
    loader.check_image(0, "train")
    (tmp_path / "a.png").write_bytes(b"no image")
    damaged = dataclasses.replace(data, files=(str(tmp_path / "a.png"), *data.files[1:]))
    with pytest.raises(UserError, match="a.png"):
        stream_loader(damaged).check_image(0, "test")
    stream_loader(dataclasses.replace(data, files=("",) * 3)).check_image(0, "test")  # a placeholder
