"""Order of batches; loaders with images on the device, or decoded on the host."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from cdl_jax.data import loaders, sampling
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError

CROP = {"train": "random_resized_crop", "flip": True}


@pytest.fixture
def mesh():
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])


def arrays(n=13, size=20):
    rng = np.random.default_rng(0)
    return Split(labels=np.arange(n, dtype=np.int32) % 5, images=rng.integers(0, 256, (n, size, size, 3), np.uint8))


def files(folder, split):
    paths = [folder / f"{i}.png" for i in range(len(split.labels))]
    for path, image in zip(paths, split.images, strict=True):
        Image.fromarray(image).save(path)
    return Split(labels=split.labels, files=tuple(str(path) for path in paths))


def read(loader, host_batches):
    """Reads each batch in a compiled step."""
    step = jax.jit(loader.read)
    return [tuple(np.asarray(a) for a in step(loader.data, host_batch)) for host_batch in host_batches]


def assert_equal(got, want):
    assert len(got) == len(want) > 0
    for (images, labels), (images_, labels_) in zip(got, want, strict=True):
        np.testing.assert_array_equal(images, images_)
        np.testing.assert_array_equal(labels, labels_)


def test_the_order_is_a_pure_function_of_its_counters():
    order = sampling.epoch_order(103, 10, seed=1, purpose=(0, 1, 2))
    assert order.shape == (10, 10) and order.dtype == np.int32
    assert len(set(order.ravel())) == 100 and order.max() <= 102 and order.min() >= 0
    assert (order.ravel() != np.arange(100)).sum() > 80
    np.testing.assert_array_equal(order, sampling.epoch_order(103, 10, seed=1, purpose=(0, 1, 2)))
    for seed, purpose in ((2, (0, 1, 2)), (1, (0, 1, 3)), (1, (1, 0, 2)), (1, (0, 1)), (1, (0, 1, 2, 0))):
        assert (order != sampling.epoch_order(103, 10, seed=seed, purpose=purpose)).mean() > 0.8
    assert (
        sampling.epoch_order(9, 3, seed=0, purpose=(1,)) != sampling.epoch_order(9, 3, seed=0, purpose=(1, 0))
    ).any()


def test_without_shuffling_rows_come_in_order_and_the_last_batch_is_dropped():
    order = sampling.epoch_order(11, 4, seed=0, purpose=(), shuffle=False)
    np.testing.assert_array_equal(order, [[0, 1, 2, 3], [4, 5, 6, 7]])
    with pytest.raises(UserError, match="batch_size=12: a task has only 11"):
        sampling.epoch_order(11, 12, seed=0, purpose=())


def test_an_incomplete_last_batch_can_be_kept(mesh):
    kept = sampling.epoch_order(11, 4, seed=5, purpose=(2,), last_batch="keep")
    assert kept.shape == (3, 4) and kept.dtype == np.int32
    assert sorted(kept.ravel()) == [-1, *range(11)] and kept[-1, -1] == -1
    np.testing.assert_array_equal(kept[:2], sampling.epoch_order(11, 4, seed=5, purpose=(2,)))
    all_batches = sampling.epoch_order(8, 4, seed=5, purpose=(2,), last_batch="keep")
    np.testing.assert_array_equal(all_batches, sampling.epoch_order(8, 4, seed=5, purpose=(2,)))
    assert sorted(sampling.epoch_order(3, 4, seed=0, purpose=(), last_batch="keep")[0]) == [-1, 0, 1, 2]


@pytest.mark.parametrize("limit", [4096, 0])
def test_an_incomplete_batch_in_the_middle_of_an_order_keeps_its_size(mesh, limit):
    split = arrays()
    loader = loaders.make_loader(split, mesh, {"device_data_limit_mb": limit}, 20)
    epochs = [sampling.epoch_order(13, 4, seed=3, purpose=(e,), last_batch="keep") for e in range(2)]
    order = np.concatenate(epochs)
    got = read(loader, loader.train_batches(order, 0, (3, 0)))
    assert [len(labels) for _, labels in got] == [4, 4, 4, 1, 4, 4, 4, 1]
    assert_equal(got, [(split.images[rows[rows >= 0]], split.labels[rows[rows >= 0]]) for rows in order])
    for start in (3, 5):
        assert_equal(read(loader, loader.train_batches(order, start, (3, 0))), got[start:])


def test_repeated_images_are_in_a_row_in_an_epoch_of_the_same_length():
    once = sampling.epoch_order(11, 3, seed=1, purpose=(4,))
    thrice = sampling.epoch_order(11, 3, seed=1, purpose=(4,), repeats=3)
    assert once.shape == thrice.shape == (3, 3)
    np.testing.assert_array_equal(thrice, np.repeat(once.ravel()[:3, None], 3, axis=1))
    np.testing.assert_array_equal(
        sampling.epoch_order(10, 5, seed=1, purpose=(4,), repeats=4).ravel(),
        np.repeat(sampling.epoch_order(10, 10, seed=1, purpose=(4,)).ravel()[:3], 4)[:10],
    )


def test_repeated_images_are_transformed_differently(mesh):
    options = {**CROP, "rand_augment": "rand-m9-mstd0.5-inc1", "three_augment": True, "jitter": 0.3}
    loader = loaders.make_loader(arrays(), mesh, {**options, "device_data_limit_mb": 0}, 12)
    order = sampling.epoch_order(13, 3, seed=3, purpose=(0,), repeats=3)
    all_batches = read(loader, loader.train_batches(order, 0, (3, 0)))
    assert all((images[0] != images[1]).any() and (images[1] != images[2]).any() for images, _ in all_batches)
    assert_equal(read(loader, loader.train_batches(order, 2, (3, 0))), all_batches[2:])


def test_evaluation_covers_each_row_once_and_pads_with_weight_zero():
    rows, weight = sampling.sequential_order(7, 3)
    np.testing.assert_array_equal(rows, [[0, 1, 2], [3, 4, 5], [6, 0, 0]])
    np.testing.assert_array_equal(weight, [[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    assert rows.dtype == np.int32 and weight.dtype == np.float32
    rows, weight = sampling.sequential_order(6, 3)
    assert rows.shape == (2, 3) and weight.sum() == 6


def test_the_size_of_the_array_chooses_the_loader(mesh, tmp_path):
    split = arrays()
    assert not loaders.make_loader(split, mesh, {}, 20).crops_on_host
    assert loaders.make_loader(split, mesh, {"device_data_limit_mb": 0.01}, 20).crops_on_host
    assert loaders.make_loader(files(tmp_path, split), mesh, {}, 20).crops_on_host


def test_device_loader_returns_the_rows_of_the_order(mesh):
    split = arrays()
    loader = loaders.make_loader(split, mesh, {}, 20)
    order = sampling.epoch_order(13, 4, seed=3, purpose=(0,))
    got = read(loader, loader.train_batches(order, 0, (3, 0)))
    assert_equal(got, [(split.images[rows], split.labels[rows]) for rows in order])
    rows, weight = sampling.sequential_order(13, 4)
    host_batches = list(loader.test_batches(rows, weight))
    assert_equal(read(loader, host_batches), [(split.images[r], split.labels[r]) for r in rows])
    np.testing.assert_array_equal([host_batch["weight"] for host_batch in host_batches], weight)


def test_both_loaders_return_equal_pixels(mesh, tmp_path):
    split = arrays()
    order = sampling.epoch_order(13, 4, seed=3, purpose=(0,))
    rows, weight = sampling.sequential_order(13, 4)
    device_loader = loaders.make_loader(split, mesh, {}, 20)
    for host_loader in (
        loaders.make_loader(files(tmp_path, split), mesh, {}, 20),
        loaders.make_loader(split, mesh, {"device_data_limit_mb": 0}, 20),
    ):
        assert_equal(
            read(host_loader, host_loader.train_batches(order, 0, (3, 0))),
            read(device_loader, device_loader.train_batches(order)),
        )
        host_batches = list(host_loader.test_batches(rows, weight))
        assert_equal(read(host_loader, host_batches), read(device_loader, device_loader.test_batches(rows, weight)))
        np.testing.assert_array_equal([host_batch["weight"] for host_batch in host_batches], weight)


@pytest.mark.parametrize("limit", [4096, 0])
def test_a_restart_continues_with_the_same_batches(mesh, limit):
    loader = loaders.make_loader(arrays(), mesh, {**CROP, "device_data_limit_mb": limit}, 12)
    order = sampling.epoch_order(13, 3, seed=3, purpose=(0,))
    all_batches = read(loader, loader.train_batches(order, 0, (3, 0)))
    assert len(all_batches) == 4
    for start in (1, 3):
        assert_equal(read(loader, loader.train_batches(order, start, (3, 0))), all_batches[start:])
    assert list(loader.train_batches(order, 4, (3, 0))) == []


def test_host_crops_depend_on_key_and_position(mesh):
    loader = loaders.make_loader(arrays(), mesh, {**CROP, "device_data_limit_mb": 0}, 12)
    order = np.array([[0, 0], [0, 1]], np.int32)
    (first, _), (second, _) = read(loader, loader.train_batches(order, 0, (3, 0)))
    assert (first[0] != first[1]).any() and (first[0] != second[0]).any()  # one image, three crops
    (other, _), _ = read(loader, loader.train_batches(order, 0, (3, 1)))
    assert (first != other).any()


def test_host_loader_resizes_and_crops_test_images_by_pillow(mesh, tmp_path):
    image = Image.fromarray(arrays(1, 60).images[0]).crop((0, 0, 60, 45))
    image.convert("L").save(tmp_path / "gray.png")
    split = Split(labels=np.zeros(1, np.int32), files=(str(tmp_path / "gray.png"),))
    loader = loaders.make_loader(split, mesh, {"test": "resize_center_crop", "resize": 30}, 24)
    ((images, _),) = read(loader, loader.test_batches(*sampling.sequential_order(1, 1)))
    want = np.asarray(image.convert("L").convert("RGB").resize((40, 30), Image.Resampling.BILINEAR))[3:27, 8:32]
    np.testing.assert_array_equal(images[0], want)


def test_two_worker_processes_give_the_same_bytes_as_none(mesh, tmp_path):
    split = files(tmp_path, arrays())
    order = sampling.epoch_order(13, 2, seed=3, purpose=(0,))
    threads, workers_loader = (loaders.make_loader(split, mesh, {**CROP, "num_workers": n}, 12) for n in (0, 2))
    want = read(threads, threads.train_batches(order, 1, (3, 0)))
    assert_equal(read(workers_loader, workers_loader.train_batches(order, 1, (3, 0))), want)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(mesh, tmp_path, workers):
    split = files(tmp_path, arrays(5))
    damaged = tmp_path / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    loader = loaders.make_loader(split, mesh, {"num_workers": workers}, 20)
    with pytest.raises(UserError, match=r"3\.png: cannot be read as an image") as caught:
        list(loader.train_batches(np.arange(4)[:, None], 0, (0,)))
    assert "\n" not in str(caught.value)


def test_a_missing_image_is_named(mesh, tmp_path):
    loader = loaders.make_loader(files(tmp_path, arrays(5)), mesh, {}, 20)
    (tmp_path / "4.png").unlink()
    with pytest.raises(UserError, match=r"4\.png: cannot be read as an image .*No such file"):
        list(loader.test_batches(np.array([[4]]), np.ones((1, 1), np.float32)))


def test_an_image_of_another_size_is_named_with_the_option_to_set(mesh, tmp_path):
    loader = loaders.make_loader(files(tmp_path, arrays(2)), mesh, {}, 24)
    with pytest.raises(
        UserError, match=r"\.png: augment.train='none' leaves 20 x 20 images.* set augment.train='resize'"
    ):
        list(loader.train_batches(np.array([[0, 1]]), 0, (0,)))


TWO_PROCESSES = """
import os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy as np
port, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + port, num_processes=2, process_id=index)
from jax.experimental import multihost_utils
from jax.sharding import AxisType
from cdl_jax.data import loaders, sampling
from cdl_jax.data.stream import Split
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
saved = np.load(folder + "/split.npz")
out = {}
for limit in (4096, 0):
    split = Split(labels=saved["labels"], images=saved["images"])
    options = {"train": "random_resized_crop", "flip": True, "device_data_limit_mb": limit}
    source = loaders.make_loader(split, mesh, options, 12)
    step = jax.jit(source.read)
    read = [step(source.data, item) for item in source.train_batches(saved["order"], 1, (3, 0))]
    assert read[0][0].addressable_shards[0].data.shape[0] == 2
    read = [multihost_utils.process_allgather(images, tiled=True) for images, _ in read]
    assert [len(images) for images in read] == [8, 8, 4]
    out[str(limit)] = np.concatenate(read)
if index == 0:
    np.savez(folder + "/out.npz", **out)
jax.distributed.shutdown()
"""


def test_two_processes_deliver_the_batches_of_one(mesh, tmp_path):
    import socket

    split, order = arrays(), sampling.epoch_order(28, 8, seed=0, purpose=(0,), last_batch="keep")
    order = np.where(order < 0, order, order % 13)
    np.savez(tmp_path / "split.npz", labels=split.labels, images=split.images, order=order)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", TWO_PROCESSES, port]
    runs = [subprocess.Popen([*command, str(i), str(tmp_path)]) for i in range(2)]
    try:
        assert [run.wait(timeout=120) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.kill()
    got = np.load(tmp_path / "out.npz")
    for limit in (4096, 0):
        loader = loaders.make_loader(split, mesh, {**CROP, "device_data_limit_mb": limit}, 12)
        want = [images for images, _ in read(loader, loader.train_batches(order, 1, (3, 0)))]
        np.testing.assert_array_equal(got[str(limit)], np.concatenate(want))


def test_a_batch_that_does_not_divide_is_refused(mesh, tmp_path):
    script = (
        "import jax; jax.config.update('jax_platforms', 'cpu'); jax.config.update('jax_num_cpu_devices', 4)\n"
        "import numpy as np\n"
        "from cdl_jax.data import loaders, sampling\n"
        "mesh = jax.make_mesh((4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))\n"
        "next(loaders.DeviceLoader({}, mesh).train_batches(np.zeros((1, 6), np.int32)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "UserError: batch_size=6: does not divide among the 4 devices" in run.stderr


def test_device_and_host_normalize_equally(mesh):
    split = arrays()
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "test": "resize"}
    results = []
    for limit in (4096, 0):
        loader = loaders.make_loader(split, mesh, {**options, "device_data_limit_mb": limit}, 20)
        ((images, _),) = read(loader, loader.test_batches(*sampling.sequential_order(13, 13)))
        finish = augment.normalize if loader.crops_on_host else lambda x, o: augment.transform_test(x, o, 20)
        results.append(finish(images, options))
    np.testing.assert_array_equal(*results)
