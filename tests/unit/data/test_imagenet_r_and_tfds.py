"""Published ImageNet-R and TensorFlow Datasets: what is read, one-line refusals."""

import builtins
import gzip
import io
import json
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cdl_jax.data import stream
from tests.support.fake_sources import load, refusal
from tests.unit.run.test_optional_packages import run_without

pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture(scope="module")
def imagenet_r(tmp_path_factory):
    """Makes all 30,000 files of ImageNet-R, empty; returns their folder and the lists.

    Test names are those of the real list. Training names are made up.
    """
    from cdl_jax.data.sources import imagenet_r as source

    lists = json.loads(gzip.decompress(source._LISTS.read_bytes()))
    root = tmp_path_factory.mktemp("r") / "imagenet-r"
    for wnid in lists["label_of_wnid"]:
        (root / wnid).mkdir(parents=True)
    for name in lists["test"]:
        (root / name).touch()
    for wnid in lists["label_of_wnid"]:
        for number in range(120):
            (root / wnid / f"drawn_{number}.jpg").touch()
    (root / "README.txt").write_text("ImageNet-R\n\nn02165456 ladybug\nn01443537 goldfish\nn03594945  jeep_or_so\n")
    return root, lists


def test_imagenet_r_follows_the_published_lists(imagenet_r):
    root, lists = imagenet_r
    for path in (root, root.parent):
        data = load("imagenet_r", path)
        assert (len(data.train), len(data.test), len(data.class_names)) == (24_000, 6_000, 200)
    # Class ids are not in the order of the WordNet ids.
    assert data.class_names[:2] == ("ladybug", "jeep or so") and data.class_names[2] == "n02325366"
    assert {os.path.relpath(file, root) for file in data.test.files} == set(lists["test"])
    assert not set(data.test.files) & set(data.train.files)
    for split in (data.train, data.test):
        wnids = [file.split("/")[-2] for file in split.files]
        assert split.labels.tolist() == [lists["label_of_wnid"][wnid] for wnid in wnids]
    s = stream.split_into_tasks(data, num_tasks=10)
    assert [len(task.test) for task in s.tasks] == [543, 716, 553, 686, 620, 631, 557, 636, 587, 471]


def test_images_missing_from_imagenet_r_are_counted(imagenet_r, tmp_path):
    root, lists = imagenet_r
    first, second = lists["test"][0], lists["test"][5]
    moved = [(root / name, tmp_path / name.replace("/", "_")) for name in (first, second)]
    moved.append((root / "n01443537" / "drawn_7.jpg", tmp_path / "train.jpg"))
    for source, target in moved:
        source.rename(target)
    try:
        assert f"3 of 30,000 images are missing, first {first}" in refusal("imagenet_r", root)
    finally:
        for source, target in moved:
            target.rename(source)
    extra = root / "n01443537" / "mine.jpg"
    extra.touch()
    try:
        assert "1 images too many" in refusal("imagenet_r", root)
    finally:
        extra.unlink()


def test_imagenet_r_without_its_folder_raises_an_error_with_its_address(tmp_path):
    assert "python -m cdl_jax.fetch imagenet_r" in refusal("imagenet_r")
    (tmp_path / "imagenet-r.tar").touch()
    assert "unpack it" in refusal("imagenet_r", tmp_path / "imagenet-r.tar")
    assert "data.split='tfds': use 'coda' or 'tfds80'" in refusal("imagenet_r", split="tfds")


def prepare_tfds(data_dir, name, version, features, splits):
    """Prepares a tfds folder as array_record; returns the folder.

    splits: name -> list of {feature: int or bytes}.
    """
    from array_record.python import array_record_module as array_record
    from tensorflow_datasets.proto import tf_example_pb2

    folder = data_dir / name / version
    folder.mkdir(parents=True)
    infos = []
    for split, examples in splits.items():
        writer = array_record.ArrayRecordWriter(f"{folder}/{name}-{split}.array_record-00000-of-00001", "group_size:1")
        for example in examples:
            record = tf_example_pb2.Example()
            for key, value in example.items():
                feature = record.features.feature[key]
                (feature.bytes_list if isinstance(value, bytes) else feature.int64_list).value.append(value)
            writer.write(record.SerializeToString())
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=[len(examples)], num_bytes=1, filename_template=template)
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=tfds.features.FeaturesDict(features), split_infos=infos, check_data=False
    )
    return folder


def png_of(image):
    """Returns the bytes of a PNG file. image: uint8 `[height, width, 3]`."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "PNG")
    return file.getvalue()


def png(value, shape=(8, 8, 3)):
    return png_of(np.full(shape, value, np.uint8))


def test_a_prepared_tfds_folder_is_read_in_the_order_of_its_ids(tmp_path):
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    splits = {
        split: [
            {"id": f"{split}_{9 - i:05d}".encode(), "image": png(i * 10), "label": int(i >= n - 2)} for i in range(n)
        ]
        for split, n in (("train", 5), ("test", 3))
    }
    folder = prepare_tfds(tmp_path, "tiny", "1.0.0", features, splits)
    data = load("tfds", folder, dataset="tiny")
    assert (data.name, data.class_names) == ("tiny", ("cat", "dog"))
    assert data.train.images[:, 0, 0, 0].tolist() == [40, 30, 20, 10, 0] and data.train.images.shape == (5, 8, 8, 3)
    assert data.train.labels.tolist() == [1, 1, 0, 0, 0] and data.test.labels.tolist() == [1, 1, 0]
    assert "data.label" in refusal("tfds", folder, dataset="tiny", label="class")
    assert "split 'val'" in refusal("tfds", folder, dataset="tiny", test_split="val")


@pytest.mark.parametrize("raised", ["TypeError('Descriptors cannot be created directly.')", "ImportError('libcudart')"])
def test_a_prepared_tfds_folder_is_read_beside_a_tensorflow_that_is_broken(tmp_path, raised):
    package = tmp_path / "site" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"print('tensorflow is imported')\nraise {raised}\n")
    features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
    examples = [{"image": png(value), "label": value // 20} for value in (10, 20, 30)]
    folder = prepare_tfds(tmp_path, "tiny", "1.0.0", features, {"train": examples, "test": examples})
    code = """
        from cdl_jax.data.sources import tfds
        from cdl_jax.options import defaults
        data = tfds.load(defaults(tfds.OPTIONS, dataset="tiny", path=sys.argv[1]))
        print(data.train.images[:, 0, 0, 0].tolist(), data.train.labels.tolist())
    """
    done = run_without([], code, folder, path=[package.parent])
    assert (done.returncode, done.stdout) == (0, "[10, 20, 30] [0, 1, 1]\n"), done.stderr


def test_tfds_images_of_different_sizes_raise_an_error_with_the_folder_source(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["a"]),
    }
    examples = [{"image": png(0), "label": 0}, {"image": png(0, (9, 8, 3)), "label": 0}]
    folder = prepare_tfds(tmp_path, "sizes", "1.0.0", features, {"train": examples, "test": examples})
    assert "data.side=256" in refusal("tfds", folder, dataset="sizes")


def test_tfds_images_of_different_sizes_are_resized_and_center_cropped_to_one(tmp_path):
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=[f"class{i}" for i in range(5)]),
    }

    def striped(height, width):  # one third of the longer side each in 0, 100 and 200
        levels = np.repeat([0, 100, 200], max(height, width) // 3).astype(np.uint8)
        image = np.broadcast_to(levels[:, None, None] if height > width else levels[None, :, None], (height, width, 3))
        return png_of(image)

    examples = [{"image": striped(24, 8), "label": 1}, {"image": striped(8, 24), "label": 3}]
    folder = prepare_tfds(tmp_path, "sizes", "1.0.0", features, {"test": examples * 5})
    split = {"train_split": "test[:80%]", "test_split": "test[80%:]"}
    data = load("tfds", folder, dataset="sizes", side=8, skip_empty_classes=True, **split)
    assert data.train.images.shape == (8, 8, 8, 3) and len(data.test.labels) == 2
    assert (data.train.images == 100).all()  # the middle third, of tall and of wide images
    assert load("tfds", folder, dataset="sizes", side=4, **split).train.images.shape == (8, 4, 4, 3)
    assert data.class_names == ("class1", "class3")  # no other class has an image
    assert data.train.labels.tolist() == [0, 1] * 4


def test_tfds_by_its_own_mock(tmp_path):
    with tfds.testing.mock_data(num_examples=7):
        data = load("tfds", tmp_path, dataset="cifar100")
    assert data.train.images.shape == (7, 32, 32, 3) and data.train.images.dtype == np.uint8
    assert len(data.class_names) == 100


def test_a_tfds_set_that_is_not_prepared_raises_an_error_with_the_command(tmp_path):
    message = refusal("tfds", tmp_path)
    assert f"tfds.builder('cifar100', data_dir='{tmp_path}', file_format='array_record')" in message
    assert "not found" in refusal("tfds", tmp_path, dataset="no_such_set")


@pytest.mark.parametrize("source", ["tfds", "imagenet_r"])
def test_a_missing_tensorflow_datasets_ends_with_how_to_install_it(imagenet_r, monkeypatch, source):

    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "tensorflow_datasets":
            raise ModuleNotFoundError("No module named 'tensorflow_datasets'", name="tensorflow_datasets")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    options = {"split": "tfds80"} if source == "imagenet_r" else {}
    assert "pip install tensorflow-datasets" in refusal(source, imagenet_r[0], **options)


def test_tfds80_takes_the_order_from_tfds_and_the_images_from_the_folder(imagenet_r, tmp_path):
    root, lists = imagenet_r
    chosen = [lists["test"][(i * 577) % 6000] for i in range(10)]
    features = {
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
    }
    examples = [{"file_name": name.encode(), "image": b"not decoded", "label": 0} for name in chosen]
    prepare_tfds(tmp_path, "imagenet_r", "0.2.0", features, {"test": examples})
    data = load("imagenet_r", root, split="tfds80", tfds_dir=str(tmp_path))
    assert [os.path.relpath(file, root) for file in data.train.files + data.test.files] == chosen
    assert (len(data.train), len(data.test)) == (8, 2)
    by_wnid = sorted(lists["label_of_wnid"])
    assert data.train.labels.tolist() == [by_wnid.index(name.split("/")[0]) for name in chosen[:8]]
    assert data.class_names[by_wnid.index("n02165456")] == "ladybug"
    message = refusal("imagenet_r", root, split="tfds80", tfds_dir=str(tmp_path / "none"))
    assert "download_and_prepare" in message
