"""Data sources on small files in the official layouts: what is read, and what is refused in one line."""

import gzip
import io
import json
import os
import pickle
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from cdl_jax import names
from cdl_jax.data import cifar_files, stream
from cdl_jax.errors import UserError


def load(source, path="", **options):
    module = names.load("data.sources", source)
    return module.load({"path": str(path), **module.OPTIONS, **options})


def refusal(source, path="", **options):
    """The one-line message with which a source answers."""
    with pytest.raises(UserError) as error:
        load(source, path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """Usual places that hold nothing."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CDL_DATA", raising=False)
    monkeypatch.chdir(tmp_path / "home")


# CIFAR


def planes(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def python2_array(values):
    """The pickle opcodes that Python 2 and NumPy 1 wrote for a uint8 array, as in the official files."""
    raw = values.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I%d\nI%d\nt" % values.shape
        + b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\nT"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )


def python2_batch(data, label_key, labels):
    key = label_key.encode()
    listed = b"(" + b"".join(b"I%d\n" % label for label in labels) + b"l"
    return b"\x80\x02(U\x04data" + python2_array(data) + b"U" + bytes([len(key)]) + key + listed + b"d."


def cifar100_files(binary=False):
    train, test, class_names = planes(6, 0), planes(3, 1), [f"class {i}" for i in range(100)]
    train_labels, test_labels = [5, 99, 0, 1, 5, 7], [0, 1, 99]
    if binary:
        records = {
            name: b"".join(bytes([19, label]) + pixels.tobytes() for label, pixels in zip(labels, data, strict=True))
            for name, labels, data in (("train.bin", train_labels, train), ("test.bin", test_labels, test))
        }
        text = "\n".join(class_names) + "\n"
        folder, files = "cifar-100-binary", {**records, "fine_label_names.txt": text.encode(), "unused.txt": b"x"}
    else:
        folder, files = (
            "cifar-100-python",
            {
                "train": python2_batch(train, "fine_labels", train_labels),
                "test": python2_batch(test, "fine_labels", test_labels),
                "meta": pickle.dumps({b"fine_label_names": [name.encode() for name in class_names]}, protocol=2),
            },
        )
    return folder, files, (train, train_labels), (test, test_labels)


def cifar10_files(binary=False):
    train, test, labels = planes(10, 2), planes(2, 3), list(range(10))
    class_names = [f"thing{i}" for i in range(10)]
    if binary:
        files = {
            f"data_batch_{b + 1}.bin": b"".join(bytes([i]) + train[i].tobytes() for i in (2 * b, 2 * b + 1))
            for b in range(5)
        }
        files["test_batch.bin"] = b"".join(bytes([9 - i]) + test[i].tobytes() for i in range(2))
        files["batches.meta.txt"] = ("\n".join(class_names) + "\n\n").encode()
        return "cifar-10-batches-bin", files, (train, labels), (test, [9, 8])
    files = {
        f"data_batch_{b + 1}": pickle.dumps(
            {b"data": train[2 * b : 2 * b + 2], b"labels": [2 * b, 2 * b + 1]}, protocol=2
        )
        for b in range(5)
    }
    files["test_batch"] = python2_batch(test, "labels", [9, 8])
    files["batches.meta"] = pickle.dumps({"label_names": class_names}, protocol=2)
    return "cifar-10-batches-py", files, (train, labels), (test, [9, 8])


def write_folder(where, folder, files):
    (where / folder).mkdir(parents=True)
    for name, content in files.items():
        (where / folder / name).write_bytes(content)
    return where / folder


def write_tar(path, folder, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


ARCHIVES = {
    "cifar-100-python": "cifar-100-python.tar.gz",
    "cifar-100-binary": "cifar-100-binary.tar.gz",
    "cifar-10-batches-py": "cifar-10-python.tar.gz",
    "cifar-10-batches-bin": "cifar-10-binary.tar.gz",
}


@pytest.mark.parametrize("binary", [False, True], ids=["python", "binary"])
@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
@pytest.mark.parametrize(
    "form", ["archive", "renamed archive", "folder", "renamed folder", "parent", "parent of archive"]
)
def test_cifar_is_read_from_every_official_form(tmp_path, source, binary, form):
    folder, files, train, test = (cifar100_files if source == "cifar100" else cifar10_files)(binary)
    if "archive" in form:
        path = write_tar(tmp_path / ("mine.tgz" if "renamed" in form else ARCHIVES[folder]), folder, files)
    else:
        path = write_folder(tmp_path, folder, files)
        if "renamed" in form:
            path = path.rename(tmp_path / "mine")
    data = load(source, tmp_path if "parent" in form else path)
    for split, (pixels, labels) in ((data.train, train), (data.test, test)):
        assert split.labels.tolist() == labels and split.labels.dtype == np.int32
        assert split.images.dtype == np.uint8 and split.images.flags.c_contiguous
        assert np.array_equal(split.images[:, 3, 4, 1], pixels[:, 1024 + 3 * 32 + 4])  # row 3, column 4, green
        assert np.array_equal(split.images.transpose(0, 3, 1, 2).reshape(len(labels), -1), pixels)
    assert len(data.class_names) == (100 if source == "cifar100" else 10)
    assert data.class_names[7] == ("class 7" if source == "cifar100" else "thing7")


def test_an_archive_that_is_not_compressed_is_read_too(tmp_path):
    folder, files, (pixels, _), _ = cifar100_files()
    data = load("cifar100", write_tar(tmp_path / "plain.tar", f"./{folder}", files, mode="w"))
    assert data.train.images[:, 0, 0, 0].tolist() == pixels[:, 0].tolist()


@pytest.mark.parametrize("place", ["CDL_DATA", "cache", "data"])
def test_cifar_is_found_in_the_usual_places(tmp_path, monkeypatch, place):
    home = tmp_path / "home"
    where = {"CDL_DATA": tmp_path / "named", "cache": home / ".cache" / "cdl_jax", "data": home / "data"}[place]
    folder, files, _, _ = cifar100_files()
    write_folder(where, folder, files)
    if place == "CDL_DATA":
        monkeypatch.setenv("CDL_DATA", str(where))
    assert len(load("cifar100").train) == 6


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_missing_cifar_is_answered_at_once_with_the_places_and_the_command(tmp_path, monkeypatch, source):
    monkeypatch.setenv("CDL_DATA", str(tmp_path / "named"))
    start = time.monotonic()
    message = refusal(source)
    assert time.monotonic() - start < 2
    for part in (str(tmp_path / "named"), ".cache/cdl_jax", "data", f"python -m cdl_jax.fetch {source}"):
        assert part in message
    assert "does not exist" in refusal(source, tmp_path / "nothing")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_would_run_code_is_refused_and_its_code_does_not_run(tmp_path):
    proof = tmp_path / "it_ran"
    content = pickle.dumps({"data": Malicious(proof), "fine_labels": []}, protocol=2)
    folder, files, _, _ = cifar100_files()
    path = write_tar(tmp_path / "forged.tar.gz", folder, {**files, "train": content})
    message = refusal("cifar100", path)
    assert "refused" in message and "mkdir" in message
    assert not proof.exists()
    pickle.loads(content)  # the proof that the file was a working attack
    assert proof.is_dir()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(V1+1\ntR.",
        b"c__builtin__\ngetattr\n(c__builtin__\nlist\nVappend\ntR.",
        b"cnumpy\nload\n(Vx.npy\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cos\nsystem\n(Vtrue\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"cnumpy\ndtype\n(VO\ntR.",
    ],
    ids=["eval", "getattr", "numpy.load", "scalar", "os.system", "stack_global", "object arrays"],
)
def test_no_name_but_those_of_arrays_and_containers_is_admitted(content):
    with pytest.raises(UserError, match="refused"):
        cifar_files.unpickle(content, "file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"not a pickle", "damaged"),
        (b"\x80\x02]q\x00.", "holds a list"),
        (pickle.dumps({"data": np.zeros((4, 3072), np.uint8)}, protocol=2)[:-500], "damaged"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999999L\ntVb\ntR.", "not a dict"),
    ],
    ids=["empty", "text", "list", "cut", "huge array"],
)
def test_a_damaged_pickle_is_answered_in_one_line(content, words):
    with pytest.raises(UserError, match=words) as error:
        cifar_files.unpickle(content, "file")
    assert "\n" not in str(error.value)


def test_a_forged_dtype_does_not_change_numpys_own():
    array = pickle.dumps({"data": np.asarray([[1, 256]], ">u2"), "other": np.asfortranarray(np.eye(2))}, protocol=2)
    read = cifar_files.unpickle(array, "file")
    assert read["data"].tolist() == [[1, 256]] and np.dtype("u2").isnative
    assert read["other"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.9, -20])
def test_a_truncated_archive_is_answered_in_one_line(tmp_path, kept):
    folder, files, _, _ = cifar100_files()
    path = write_tar(tmp_path / "cut.tar.gz", folder, files)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    message = refusal("cifar100", path)
    assert "damaged, cut short or no tar archive" in message or "no whole cifar100" in message


def test_damaged_bytes_in_an_archive_are_answered_in_one_line(tmp_path):
    folder, files, _, _ = cifar100_files()
    path = write_tar(tmp_path / "flipped.tar.gz", folder, files)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal("cifar100", path)


def test_a_member_of_absurd_size_is_refused_before_it_is_read(tmp_path):
    member = tarfile.TarInfo("cifar-100-python/train")
    member.size = 10**11
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(member.tobuf() + bytes(2048)))
    assert "claims 100000000000 bytes, so" in refusal("cifar100", tmp_path / "bomb.tar.gz")


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    folder, files, _, _ = cifar100_files()
    path = tmp_path / "linked.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in files:
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    assert "no cifar-100-python/train" in refusal("cifar100", path)


def test_an_archive_of_another_data_set_is_told_apart(tmp_path):
    folder, files, _, _ = cifar10_files()
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", folder, files)
    assert "no whole cifar100" in refusal("cifar100", path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train", pickle.dumps({"data": planes(2, 0), "fine_labels": [1]}, protocol=2), "train does not hold"),
        ("train", pickle.dumps({"data": planes(2, 0)[:, :3000], "fine_labels": [1, 2]}, protocol=2), "train does not"),
        ("test", pickle.dumps({"data": planes(2, 0), "fine_labels": ["a", "b"]}, protocol=2), "no whole numbers"),
        ("meta", pickle.dumps({"names": []}, protocol=2), "fine_label_names"),
    ],
)
def test_cifar_pickles_with_other_contents_are_refused(tmp_path, name, content, words):
    folder, files, _, _ = cifar100_files()
    assert words in refusal("cifar100", write_folder(tmp_path, folder, {**files, name: content}))


def test_a_cut_binary_file_is_refused(tmp_path):
    folder, files, _, _ = cifar100_files(binary=True)
    path = write_folder(tmp_path, folder, {**files, "test.bin": files["test.bin"][:-1]})
    assert "does not end with a whole record" in refusal("cifar100", path)


# ImageNet-R


@pytest.fixture(scope="module")
def imagenet_r(tmp_path_factory):
    """All 30,000 names of ImageNet-R as empty files: the real test list, and made-up training names."""
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


def test_pictures_missing_from_imagenet_r_are_counted(imagenet_r, tmp_path):
    root, lists = imagenet_r
    first, second = lists["test"][0], lists["test"][5]
    moved = [(root / name, tmp_path / name.replace("/", "_")) for name in (first, second)]
    moved.append((root / "n01443537" / "drawn_7.jpg", tmp_path / "train.jpg"))
    for source, target in moved:
        source.rename(target)
    try:
        assert f"3 of 30,000 pictures are missing, first {first}" in refusal("imagenet_r", root)
    finally:
        for source, target in moved:
            target.rename(source)
    extra = root / "n01443537" / "mine.jpg"
    extra.touch()
    try:
        assert "1 pictures too many" in refusal("imagenet_r", root)
    finally:
        extra.unlink()


def test_imagenet_r_without_its_folder_says_where_to_get_it(tmp_path):
    start = time.monotonic()
    assert "python -m cdl_jax.fetch imagenet_r" in refusal("imagenet_r")
    assert time.monotonic() - start < 2
    (tmp_path / "imagenet-r.tar").touch()
    assert "unpack it" in refusal("imagenet_r", tmp_path / "imagenet-r.tar")
    assert "known: coda, tfds80" in refusal("imagenet_r", split="tfds")


# tfds


def prepare_tfds(data_dir, name, version, features, splits):
    """A prepared tfds folder as array_record. splits: name -> list of {feature: int or bytes}."""
    tfds = pytest.importorskip("tensorflow_datasets")
    array_record = pytest.importorskip("array_record.python.array_record_module")
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


def png(value, shape=(8, 8, 3)):
    stream_ = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(stream_, "PNG")
    return stream_.getvalue()


def test_a_prepared_tfds_folder_is_read_in_the_order_of_its_ids(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
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


def test_tfds_pictures_of_several_sizes_are_sent_to_the_folder_source(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["a"]),
    }
    examples = [{"image": png(0), "label": 0}, {"image": png(0, (9, 8, 3)), "label": 0}]
    folder = prepare_tfds(tmp_path, "sizes", "1.0.0", features, {"train": examples, "test": examples})
    assert "folder source" in refusal("tfds", folder, dataset="sizes")


def test_tfds_by_its_own_mock(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    with tfds.testing.mock_data(num_examples=7):
        data = load("tfds", tmp_path, dataset="cifar100")
    assert data.train.images.shape == (7, 32, 32, 3) and data.train.images.dtype == np.uint8
    assert len(data.class_names) == 100


def test_a_tfds_set_that_is_not_prepared_is_answered_at_once_with_the_command(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    start = time.monotonic()
    message = refusal("tfds", tmp_path)
    assert time.monotonic() - start < 2
    assert f"tfds.builder('cifar100', data_dir='{tmp_path}', file_format='array_record')" in message
    assert "not found" in refusal("tfds", tmp_path, dataset="no_such_set")


@pytest.mark.parametrize("source", ["tfds", "imagenet_r"])
def test_without_tensorflow_datasets_the_answer_is_how_to_install_it(imagenet_r, monkeypatch, source):
    import builtins

    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "tensorflow_datasets":
            raise ModuleNotFoundError("No module named 'tensorflow_datasets'", name="tensorflow_datasets")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    options = {"split": "tfds80"} if source == "imagenet_r" else {}
    assert "pip install tensorflow-datasets" in refusal(source, imagenet_r[0], **options)


def test_tfds80_takes_the_order_from_tfds_and_the_pictures_from_the_folder(imagenet_r, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
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


# A user's own pictures


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


def test_folders_that_cannot_be_used_are_answered_in_one_line(tmp_path):
    assert "set data.path" in refusal("folder")
    assert "no folder" in refusal("folder", tmp_path / "none")
    assert "no pictures" in refusal("folder", tmp_path / "home")
    touch(tmp_path, "one/a/1.png", "half/train/a/1.png", "odd/train/a/1.png", "odd/test/b/1.png")
    assert "two or more" in refusal("folder", tmp_path / "one")
    assert "neither test/ nor val/" in refusal("folder", tmp_path / "half")
    assert "no such class" in refusal("folder", tmp_path / "odd")
    assert "between 0 and 1" in refusal("folder", tmp_path / "one", test_fraction=1.0)


def test_arrays_of_a_user(tmp_path):
    grey = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    colour = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 3), dtype=np.uint8)
    arrays = {"x_train": grey, "y_train": np.asarray([[0], [2], [1], [0]]), "x_test": colour}
    np.savez(tmp_path / "mine.npz", **arrays, y_test=np.asarray([1, 2], np.uint8))
    data = load("arrays", tmp_path / "mine.npz")
    assert (data.name, data.class_names) == ("mine", ("0", "1", "2"))
    assert data.train.images.shape == (4, 6, 5, 3) and all(
        np.array_equal(data.train.images[..., channel], grey) for channel in range(3)
    )
    assert data.train.labels.tolist() == [0, 2, 1, 0] and np.array_equal(data.test.images, colour)
    np.savez(tmp_path / "named.npz", **arrays, y_test=np.asarray([1, 2]), class_names=np.asarray(["x", "y", "z"]))
    assert load("arrays", tmp_path / "named.npz").class_names == ("x", "y", "z")


def test_arrays_that_cannot_be_used_are_answered_in_one_line(tmp_path):
    good = {
        "x_train": np.zeros((2, 4, 4), np.uint8),
        "y_train": np.asarray([0, 1]),
        "x_test": np.zeros((1, 4, 4), np.uint8),
        "y_test": np.asarray([0]),
    }

    def answer(**changes):
        np.savez(tmp_path / "bad.npz", **{k: v for k, v in {**good, **changes}.items() if v is not None})
        return refusal("arrays", tmp_path / "bad.npz")

    assert "float64" in answer(x_train=np.zeros((2, 4, 4)))
    assert "[2, 4, 4, 2]" in answer(x_train=np.zeros((2, 4, 4, 2), np.uint8))
    assert "no array 'y_test'" in answer(y_test=None)
    assert "whole numbers" in answer(y_train=np.asarray([0.0, 1.0]))
    assert "-1 is negative" in answer(y_train=np.asarray([0, -1]))
    assert "holds Python objects, not read" in answer(y_train=np.asarray([0, "a"], object))
    assert "label 3 among 3 pictures" in answer(y_train=np.asarray([0, 3]))
    assert "label 2147483648 is too large" in answer(y_train=np.asarray([0, 2**31]))
    (tmp_path / "text.npz").write_text("no zip")
    assert "cannot be read" in refusal("arrays", tmp_path / "text.npz")
    content = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refusal("arrays", tmp_path / "cut.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    assert "numpy.savez" in refusal("arrays", tmp_path / "single.npy")
    assert "no such file" in refusal("arrays", tmp_path / "none.npz")
    assert "set data.path" in refusal("arrays")


# What comes with packages, and glyph files


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
    assert "known: pretraining, incremental" in refusal("glyph_mini", part="both")


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


@pytest.mark.parametrize("source", names.available("data.sources"))
def test_every_source_declares_options_that_a_config_can_hold(source):
    module = names.load("data.sources", source)
    assert not set(module.OPTIONS) & {"path", "name"}
    assert json.loads(json.dumps(module.OPTIONS)) == module.OPTIONS
