"""Tar archives: listed without unpacking, read by offset, and one-line errors."""

import io
import tarfile

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

from cdl_jax.data import loaders, stream
from cdl_jax.data.readers import image_files, layouts
from cdl_jax.data.sources import folder, glyph_mini
from cdl_jax.errors import UserError
from cdl_jax.options import defaults

GLYPHS = glyph_mini.load({"part": "incremental"}).train.images


def png(number):
    content = io.BytesIO()
    Image.fromarray(GLYPHS[number]).save(content, "png")
    return content.getvalue()


def packed(files, form=tarfile.GNU_FORMAT):
    """The bytes of an archive of `{name: content}`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for name, data in files.items() if isinstance(files, dict) else files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def write(path, files, **options):
    path.write_bytes(packed(files, **options))
    return path


def load(path, **options):
    return folder.load({**defaults(folder.OPTIONS), "path": str(path), **options})


def pixels(split):
    """Returns (class, image) of each row, as the loader delivers them."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    loader = loaders.make_loader(split, mesh, {}, 32)
    (item,) = loader.test_batches(np.arange(len(split))[None], np.ones((1, len(split)), np.float32))
    return np.asarray(item["images"]), np.asarray(item["labels"])


TRAIN = {"train/b/2.png": png(2), "train/b/1.png": png(1), "train/a/3.JPEG": png(3), "train/c/9.png": png(9)}
TEST = {"val/a/4.png": png(4), "val/c/5.png": png(5), "val/b/6.png": png(6)}


@pytest.mark.parametrize("above", ["", "./", "imagenet/data/"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_one_archive_of_train_and_val(tmp_path, above, form):
    path = write(tmp_path / "mine.tar", {above + k: v for k, v in {**TRAIN, **TEST}.items()}, form=form)
    data = load(path)
    assert (data.name, data.class_names) == ("mine", ("a", "b", "c"))
    images, labels = pixels(data.train)
    np.testing.assert_array_equal(images, GLYPHS[[3, 1, 2, 9]])
    assert labels.tolist() == [0, 1, 1, 2]
    images, labels = pixels(data.test)
    np.testing.assert_array_equal(images, GLYPHS[[4, 6, 5]])
    assert labels.tolist() == [0, 1, 2]


def test_an_archive_is_split_as_the_folder_would_be(tmp_path):
    files = {f"set/{name}/{i}.png": png(10 * c + i) for c, name in enumerate("xy") for i in range(6)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    unpacked, archive = load(tmp_path / "set"), load(write(tmp_path / "set.tar", files))
    assert unpacked.class_names == archive.class_names and unpacked.name == archive.name == "set"
    for part in ("train", "test"):
        one, other = getattr(unpacked, part), getattr(archive, part)
        assert len(one) == {"train": 10, "test": 2}[part]
        np.testing.assert_array_equal(pixels(one)[0], pixels(other)[0])
        np.testing.assert_array_equal(one.labels, other.labels)


def test_imagenets_archive_of_archives_beside_a_folder(tmp_path):
    inner = {"n02.tar": packed({"n02_1.JPEG": png(1), "n02_7.JPEG": png(7)}), "n01.tar": packed({"n01_2.JPEG": png(2)})}
    write(tmp_path / "ILSVRC2012_img_train.tar", inner)
    for name, number in (("n01", 3), ("n02", 4)):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "x.png").write_bytes(png(number))
    data = load(tmp_path)
    assert data.class_names == ("n01", "n02")
    images, labels = pixels(data.train)
    np.testing.assert_array_equal(images, GLYPHS[[2, 1, 7]])
    np.testing.assert_array_equal(pixels(data.test)[0], GLYPHS[[3, 4]])
    assert [member.name for member in data.train.files] == ["n01/n01_2.JPEG", "n02/n02_1.JPEG", "n02/n02_7.JPEG"]
    made = stream.split_into_tasks(data, num_tasks=2, class_order="1,0")
    np.testing.assert_array_equal(pixels(made.train)[1], [1, 0, 0])


def test_two_archives_in_a_folder_and_worker_processes(tmp_path):
    write(tmp_path / "train.tar", {k.removeprefix("train/"): v for k, v in TRAIN.items()})
    write(tmp_path / "val.tar", TEST)
    data = load(tmp_path)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    order = np.array([[3, 0], [1, 2]], np.int32)
    found = [
        np.concatenate([np.asarray(item["images"]) for item in loader.train_batches(order, 0, (0,))])
        for loader in (loaders.make_loader(data.train, mesh, {"num_workers": workers}, 32) for workers in (0, 1))
    ]
    np.testing.assert_array_equal(found[0], GLYPHS[[9, 3, 1, 2]])
    np.testing.assert_array_equal(found[0], found[1])


def test_what_is_no_image_of_a_class_is_left_out_and_the_later_of_two_counts(tmp_path, caplog):
    link = tarfile.TarInfo("a/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "1.png"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(link)
    aside = {"README.txt": b"x", "a/._1.png": b"x", ".git/a/1.png": b"x", "top.png": png(0), "a/../../b/1.png": b"x"}
    files = [*aside.items(), ("a/1.png", png(1)), ("a/1.png", png(2)), ("a/2.png", png(3))]
    path = tmp_path / "set.tar"
    path.write_bytes(content.getvalue()[:512] + packed(files))
    skipped = image_files.SkippedFiles()
    found = layouts.find(path, skipped)
    skipped.log(path)
    assert {part: {name: [m.name for m in ms] for name, ms in named.items()} for part, named in found.items()} == {
        "": {"a": ["a/1.png", "a/2.png"]}
    }
    assert found[""]["a"][0].read() == png(2)
    assert "left out 6 files" in caplog.text and "1 symbolic links (first a/link.png)" in caplog.text


def refusal(path):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        load(path)
    return str(error.value)


def test_truncated_or_damaged_archives_raise_errors(tmp_path):
    content = packed({**TRAIN, **TEST})
    path = tmp_path / "cut.tar"
    headers = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
    for length, reason in (
        (headers[3] + 700, "is cut off"),
        (headers[3], "the archive has no end mark"),
        (headers[3] + 100, ""),
    ):
        path.write_bytes(content[:length])
        message = refusal(path)
        assert "cut.tar: incomplete or damaged near byte" in message and "download or pack it again" in message
        assert reason in message
    path.write_bytes(content[: headers[2]] + b"x" * 512 + content[headers[2] + 512 :])
    assert f"damaged near byte {headers[2]:,}" in refusal(path)
    path.write_bytes(packed({"n1.tar": packed({"1.png": png(1)})[: -1024 * 9]}))
    assert "incomplete or damaged" in refusal(path)
    path.write_bytes(b"")
    assert "incomplete or damaged" in refusal(path)


@pytest.mark.parametrize(("mode", "program"), [("w:gz", "gunzip"), ("w:bz2", "bunzip2"), ("w:xz", "unxz")])
def test_compressed_archives_are_refused(tmp_path, mode, program):
    with tarfile.open(tmp_path / "set.tar", mode) as archive:
        archive.addfile(tarfile.TarInfo("a/1.png"))
    assert f"run {program} on it once" in refusal(tmp_path / "set.tar")


def test_archives_without_classes_are_refused(tmp_path):
    assert "2 outside of them: pack one folder per class" in refusal(
        write(tmp_path / "flat.tar", {"1.png": png(1), "2.png": png(2)})
    )
    assert "has train/ but neither test/ nor val/; add one" in refusal(write(tmp_path / "half.tar", TRAIN))
    assert "a class needs two or more" in refusal(write(tmp_path / "one.tar", {"a/1.png": png(1)}))
    extra = {**TRAIN, **TEST, "val/z/1.png": png(1)}
    assert "val/z: no such class" in refusal(write(tmp_path / "odd.tar", extra))


def test_a_damaged_image_and_a_shorter_archive_are_named(tmp_path):
    path = write(tmp_path / "set.tar", {**TRAIN, **TEST, "train/c/9.png": png(9)[:60]})
    data = load(path)
    with pytest.raises(UserError, match=r"set\.tar: train/c/9\.png: cannot be read as an image"):
        pixels(data.train)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"set\.tar: val/.*cannot be read as an image .*has become shorter"):
        pixels(data.test)


def test_classes_beside_a_test_part_are_the_training_part(tmp_path):
    files = {"set/a/1.png": png(1), "set/b/2.png": png(2), "set/test/b/3.png": png(3), "set/test/a/4.png": png(4)}
    data = load(write(tmp_path / "set.tar", files))
    np.testing.assert_array_equal(pixels(data.train)[0], GLYPHS[[1, 2]])
    np.testing.assert_array_equal(pixels(data.test)[0], GLYPHS[[4, 3]])


def test_tiny_imagenets_images_folders_and_left_out_members_of_an_archive(tmp_path, caplog):
    files = {f"t/{part}/{name}/images/{i}.png": png(i) for part, name, i in (("train", "a", 1), ("train", "b", 2))}
    files |= {
        "t/val/a/1.png": png(3),
        "t/val/b/2.png": png(4),
        "__MACOSX/t/val/a/1.png": b"x",
        "t/val/a/x.gif.txt": b"x",
    }
    data = load(write(tmp_path / "t.tar", files))
    assert data.class_names == ("a", "b")
    np.testing.assert_array_equal(pixels(data.train)[0], GLYPHS[[1, 2]])
    assert (
        "left out 2 files or folders: 1 of __MACOSX (first __MACOSX/t/val/a/1.png), 1 with the ending .txt"
        in caplog.text
    )
