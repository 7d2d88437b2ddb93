"""CIFAR in its official forms: what is read, and what is refused in one line."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest

from cdl_jax.data.readers import cifar_files
from cdl_jax.errors import UserError
from tests.support.fake_sources import load, refusal

pytestmark = pytest.mark.usefixtures("nowhere")


def planes(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def python2_array(values):
    """Returns the pickle opcodes of a uint8 array, as in the official files.

    Python 2 and NumPy 1 wrote these opcodes.
    """
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
def test_cifar_is_found_in_the_search_paths(tmp_path, monkeypatch, place):
    home = tmp_path / "home"
    where = {"CDL_DATA": tmp_path / "named", "cache": home / ".cache" / "cdl_jax", "data": home / "data"}[place]
    folder, files, _, _ = cifar100_files()
    write_folder(where, folder, files)
    if place == "CDL_DATA":
        monkeypatch.setenv("CDL_DATA", str(where))
    assert len(load("cifar100").train) == 6


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_missing_cifar_raises_an_error_with_the_folders_and_the_command(tmp_path, monkeypatch, source):
    monkeypatch.setenv("CDL_DATA", str(tmp_path / "named"))
    message = refusal(source)
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
def test_only_names_of_arrays_and_containers_are_allowed(content):
    with pytest.raises(UserError, match="refused"):
        cifar_files.unpickle(content, "file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"not a pickle", "damaged"),
        (b"\x80\x02]q\x00.", "contains a list"),
        (pickle.dumps({"data": np.zeros((4, 3072), np.uint8)}, protocol=2)[:-500], "damaged"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L99999999999999L\ntVb\ntR.", "not a dict"),
    ],
    ids=["empty", "text", "list", "cut", "huge array"],
)
def test_a_damaged_pickle_raises_an_error_of_one_line(content, words):
    with pytest.raises(UserError, match=words) as error:
        cifar_files.unpickle(content, "file")
    assert "\n" not in str(error.value)


def test_a_forged_dtype_does_not_change_numpys_own():
    array = pickle.dumps({"data": np.asarray([[1, 256]], ">u2"), "other": np.asfortranarray(np.eye(2))}, protocol=2)
    read = cifar_files.unpickle(array, "file")
    assert read["data"].tolist() == [[1, 256]] and np.dtype("u2").isnative
    assert read["other"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.9, -20])
def test_a_truncated_archive_raises_an_error_of_one_line(tmp_path, kept):
    folder, files, _, _ = cifar100_files()
    path = write_tar(tmp_path / "cut.tar.gz", folder, files)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    message = refusal("cifar100", path)
    assert "damaged, truncated or not a tar archive" in message or "cifar100 is incomplete" in message


def test_damaged_bytes_in_an_archive_raise_an_error_of_one_line(tmp_path):
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
    assert "has 100000000000 bytes by its header, so" in refusal("cifar100", tmp_path / "bomb.tar.gz")


def test_a_link_in_an_archive_is_not_followed(tmp_path):
    folder, files, _, _ = cifar100_files()
    path = tmp_path / "linked.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in files:
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    assert "cifar-100-python/train is missing" in refusal("cifar100", path)


def test_an_archive_of_another_data_set_is_refused(tmp_path):
    folder, files, _, _ = cifar10_files()
    path = write_tar(tmp_path / "cifar-10-python.tar.gz", folder, files)
    assert "cifar100 is incomplete" in refusal("cifar100", path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train", pickle.dumps({"data": planes(2, 0), "fine_labels": [1]}, protocol=2), "train does not contain"),
        ("train", pickle.dumps({"data": planes(2, 0)[:, :3000], "fine_labels": [1, 2]}, protocol=2), "train does not"),
        ("test", pickle.dumps({"data": planes(2, 0), "fine_labels": ["a", "b"]}, protocol=2), "not whole numbers"),
        ("meta", pickle.dumps({"names": []}, protocol=2), "fine_label_names"),
    ],
)
def test_cifar_pickles_with_other_contents_are_refused(tmp_path, name, content, words):
    folder, files, _, _ = cifar100_files()
    assert words in refusal("cifar100", write_folder(tmp_path, folder, {**files, name: content}))


def test_a_truncated_binary_file_is_refused(tmp_path):
    folder, files, _, _ = cifar100_files(binary=True)
    path = write_folder(tmp_path, folder, {**files, "test.bin": files["test.bin"][:-1]})
    assert "does not end with a complete record" in refusal("cifar100", path)
