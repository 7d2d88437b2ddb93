"""A tar archive has classes, split and order of its folder, or both are refused."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from cdl_jax.errors import UserError
from tests.support.fake_sources import load, refusal


def build(root, files, texts=()):
    """Writes an image of another gray level for each name, and texts; packs the tree."""
    for level, name in enumerate(files, start=1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), level).save(root / name, "PNG")
    for name, text in dict(texts).items():
        (root / name).write_text(text)
    with tarfile.open(root.with_suffix(".tar"), "w") as archive:
        archive.add(root, ".")
    return root, root.with_suffix(".tar")


def content(path, **options):
    """[(class, file)] of both parts, or None if the path is refused."""
    try:
        data = load("folder", path, **options)
    except UserError as error:
        assert "\n" not in str(error)
        return None
    files = {}
    for part in ("train", "test"):
        split = getattr(data, part)
        names = [file if isinstance(file, str) else f"{path.with_suffix('')}/{file.name}" for file in split.files]
        names = [os.path.relpath(name, path.with_suffix("")) for name in names]
        files[part] = [(data.class_names[label], name) for label, name in zip(split.labels, names, strict=True)]
    return data.class_names, files


TWO = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
CUB = {
    "images.txt": "1 cat/1.png\n2 cat/2.png\n3 dog/1.png\n4 dog/2.png\n",
    "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
    "train_test_split.txt": "1 1\n2 0\n3 0\n4 1\n",
}
READ = {
    "classes": (TWO, {}),
    "train and test": ((*(f"train/{name}" for name in TWO), "test/cat/1.png", "test/dog/1.png"), {}),
    "extra folders": ((*(f"{part}/{name}" for name in TWO for part in ("train", "val", "extra")), "logo.png"), {}),
    "images folders": (("cat/images/1.png", "cat/images/2.png", "dog/images/1.png", "dog/images/2.png"), {}),
    "folders within a class": ((*TWO, "cat/sub/1.png", "cat/sub/deep/2.png"), {}),
    "stray images": ((*TWO, "1.png"), {}),
    "a list of a flat part": (
        (*(f"train/{name}" for name in TWO), "val/images/x.png", "val/images/y.png"),
        {"val/val_annotations.txt": "x.png\tdog\t0\t0\t1\t1\ny.png\tcat\t0\t0\t1\t1\n"},
    ),
    "CUB": (tuple(f"images/{name}" for name in TWO), CUB),
    "classes beside test": ((*TWO, "test/cat/1.png", "test/dog/1.png"), {}),
}
REFUSED = {
    "Train and Test": tuple(f"{part}/{name}" for name in TWO for part in ("Train", "Test")),
    "training and testing": tuple(f"{part}/{name}" for name in TWO for part in ("training", "testing")),
    "flat train and test": ("train/1.png", "train/2.png", "test/1.png", "test/2.png"),
    "two domains": tuple(f"{part}/{name}" for name in TWO for part in ("dom1", "dom2")),
    "mixed depths": (*(f"train/{name}" for name in TWO), "test/cat/1.png", "test/dog/1.png", "train/animals/cow/1.png"),
    "train and valid": tuple(f"{part}/{name}" for name in TWO for part in ("train", "valid")),
    "images and labels": tuple(f"{part}/{name}/1.png" for part in ("train", "test") for name in ("images", "labels")),
}


@pytest.mark.parametrize("name", READ)
def test_an_archive_is_read_as_its_folder(tmp_path, name, caplog):
    folder, archive = build(tmp_path / "set", *READ[name])
    expected = content(folder)
    logged = len(caplog.records)
    assert expected is not None and content(archive) == expected
    assert len(caplog.records) == 2 * logged
    with tarfile.open(tmp_path / "up.tar", "w") as packed:  # with folders above it
        packed.add(folder, "a/b")
    if name == "stray images":  # below another folder, that folder may be a class
        assert "so one of them may be the class" in refusal("folder", tmp_path / "up.tar")
        return
    data, original = load("folder", tmp_path / "up.tar"), load("folder", folder)
    assert data.class_names == original.class_names
    assert data.train.labels.tolist() == original.train.labels.tolist()
    assert [file.name for file in data.test.files] == [
        f"a/b/{os.path.relpath(file, folder)}" for file in original.test.files
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_is_refused_where_its_folder_is(tmp_path, name):
    folder, archive = build(tmp_path / "set", REFUSED[name])
    assert content(folder) is None and content(archive) is None


def test_names_like_train_and_test_are_corrected_in_the_message(tmp_path):
    for path in build(tmp_path / "upper", REFUSED["Train and Test"]):
        assert "rename Test/ to test/, rename Train/ to train/" in refusal("folder", path)
    for path in build(tmp_path / "valid", REFUSED["train and valid"]):
        assert "neither test/ nor val/: rename valid/ to val/" in refusal("folder", path)
    for path in build(tmp_path / "yolo", REFUSED["images and labels"]):
        assert "has the folders images, labels, which are no classes" in refusal("folder", path)


def test_an_empty_class_folder_of_an_archive_is_refused(tmp_path):
    (tmp_path / "set" / "cow").mkdir(parents=True)
    for path in build(tmp_path / "set", TWO):
        assert "1 classes without training images: cow" in refusal("folder", path)


def test_a_class_that_may_be_the_top_of_an_archive_is_refused(tmp_path):
    _, archive = build(tmp_path / "set", ("set/1.png", "set/cat/1.png", "set/dog/1.png"))
    assert "set/ has images, and so has set/cat/" in refusal("folder", archive)


def test_hard_links_are_files_and_symbolic_links_are_counted(tmp_path, caplog):
    folder, _ = build(tmp_path / "set", TWO)
    os.link(folder / "cat/1.png", folder / "cat/3.png")
    expected = content(folder)
    os.symlink("1.png", folder / "dog/3.png")
    os.symlink("cat", folder / "lion")
    _, archive = build(folder, ())
    assert content(archive) == expected
    assert "left out 2 files or folders: 2 symbolic links (first ./dog/3.png)" in caplog.text


def test_lists_of_an_archive_of_one_part_beside_a_folder(tmp_path):
    build(tmp_path / "train", TWO)
    build(tmp_path / "val", ("x.png", "y.png"))
    for part in ("train", "val"):
        (tmp_path / part).rename(tmp_path.parent / f"{tmp_path.name}_{part}")
    assert "no images" in refusal("folder", tmp_path)
    (tmp_path / "val.txt").write_text("x.png 1\ny.png 0\n")
    data = load("folder", tmp_path)
    assert [(data.class_names[c], file.name) for c, file in zip(data.test.labels, data.test.files, strict=True)] == [
        ("cat", "./y.png"),
        ("dog", "./x.png"),
    ]
    build(tmp_path / "val", ("train/cat/1.png", "train/dog/1.png"))
    (tmp_path / "val").rename(tmp_path / "other")
    assert "has train/ instead of val/" in refusal("folder", tmp_path)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("a.zip", b"PK\x03\x04", "is a zip archive, which is not read"),
        ("a.npz", b"PK\x03\x04", "read it by --config.data.name=arrays"),
        ("a.png", b"\x89PNG\r\n", "is one image: set data.path to a folder"),
        ("a.json", b'{"a": 1}', "is JSON, which is not read"),
        ("a.tar", b"<!DOCTYPE html>", "is a web page or XML, not a tar archive"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd", "run unzstd on it once"),
    ],
)
def test_other_files_are_named(tmp_path, name, start, message):
    (tmp_path / name).write_bytes(start + bytes(40))
    assert message in refusal("folder", tmp_path / name)


def test_a_deep_tree_has_a_bound(tmp_path):
    with tarfile.open(tmp_path / "deep.tar", "w") as archive:
        for name in ("a/" * 100_000 + "1.png", "cat/1.png", "cat/2.png"):
            image = io.BytesIO()
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(image, "PNG")
            member = tarfile.TarInfo(name)
            member.size = len(image.getvalue())
            archive.addfile(member, io.BytesIO(image.getvalue()))
    assert load("folder", tmp_path / "deep.tar").class_names == ("cat",)


def test_two_archives_in_one_file_are_refused(tmp_path):
    _, one = build(tmp_path / "one", TWO)
    _, other = build(tmp_path / "other", ("cow/1.png", "cow/2.png"))
    (tmp_path / "both.tar").write_bytes(one.read_bytes() + other.read_bytes())
    assert f"a second archive begins at byte {one.stat().st_size:,}" in refusal("folder", tmp_path / "both.tar")
