"""Layouts of image folders: each image has its own label, and omissions are named."""

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data import image_dataset
from cdl_jax.data.readers import image_files
from tests.support.fake_sources import load, refusal


def write(root, levels):
    """Writes a gray image for each `{path: level}`."""
    for name, level in levels.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (level,) * 3).save(path)


def shown(data, part):
    """(class name, gray level) of each image, as it is decoded."""
    split = getattr(data, part)
    levels = [int(np.asarray(image_dataset.load_image(split, row)[0]).mean()) for row in range(len(split))]
    return [(data.class_names[label], level) for label, level in zip(split.labels, levels, strict=True)]


TRAIN = {"train/n1/images/n1_0.png": 10, "train/n1/images/n1_1.png": 11, "train/n2/images/n2_0.png": 20}


def tiny_imagenet(root):
    write(root, {**TRAIN, "val/images/val_0.png": 21, "val/images/val_1.png": 12, "test/images/test_0.png": 99})
    boxes = "val_0.png\tn2\t0\t0\t3\t3\nval_1.png\tn1\t0\t0\t3\t3\n"
    (root / "val" / "val_annotations.txt").write_text(boxes)
    (root / "train" / "n1" / "n1_boxes.txt").write_text("n1_0.png\t0\t0\t3\t3\n")
    (root / "wnids.txt").write_text("n2\nn1\n")


def test_tiny_imagenet_as_it_is_delivered(tmp_path, caplog):
    tiny_imagenet(tmp_path)
    data = load("folder", tmp_path)
    assert shown(data, "train") == [("n1", 10), ("n1", 11), ("n2", 20)]
    assert shown(data, "test") == [("n1", 12), ("n2", 21)]
    assert "1 with the ending .txt" in caplog.text and "1 without labels in test/" in caplog.text


def cub(root, names=True):
    files = {
        "1": "001.Albatross/A_1.png",
        "2": "001.Albatross/A_2.png",
        "3": "010.Crow/C_1.png",
        "4": "010.Crow/C_2.png",
    }
    write(root, {f"images/{file}": 10 * int(number) for number, file in files.items()})
    (root / "images.txt").write_text("".join(f"{number} {file}\n" for number, file in files.items()))
    (root / "image_class_labels.txt").write_text("1 1\n2 1\n3 10\n4 10\n")
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n4 1\n")
    if names:
        (root / "classes.txt").write_text("1 001.Albatross\n10 010.Crow\n")


@pytest.mark.parametrize("names", [True, False])
def test_cubs_lists(tmp_path, names):
    cub(tmp_path / "CUB_200_2011", names)
    data = load("folder", tmp_path / "CUB_200_2011")
    assert shown(data, "train") == [("001.Albatross", 10), ("010.Crow", 40)]
    assert shown(data, "test") == [("001.Albatross", 20), ("010.Crow", 30)]
    assert "set data.path to " + str(tmp_path / "CUB_200_2011") in refusal("folder", tmp_path)
    (tmp_path / "CUB_200_2011/images/010.Crow/C_1.png").unlink()
    assert "1 of the listed files are missing, first" in refusal("folder", tmp_path / "CUB_200_2011")
    (tmp_path / "CUB_200_2011/train_test_split.txt").write_text("1 1\n")
    assert "do not list the same images" in refusal("folder", tmp_path / "CUB_200_2011")


FLAT = {"train/cat/1.png": 10, "train/dog/1.png": 20, "val/a.png": 21, "val/b.png": 11, "val/c.png": 12}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val.txt", "a.png 1\nb.png 0\nc.png 0\n"),
        ("val.txt", "val/a.png dog\nval/b.png cat\nval/c.png cat\n"),
        ("val.csv", "label,file\ndog,a.png\ncat,b.png\ncat,c.png\n"),
        ("val/val_annotations.txt", "a.png\tdog\nb.png\tcat\nc.png\tcat\n"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\na,dog 1 2 3 4\nb,cat 1 2 3 4 cat 5 6 7 8\nc,cat 0 0 1 1\n"),
    ],
)
def test_a_flat_validation_folder_with_a_list(tmp_path, name, text):
    write(tmp_path, FLAT)
    (tmp_path / name).write_text(text)
    data = load("folder", tmp_path)
    assert shown(data, "test") == [("cat", 11), ("cat", 12), ("dog", 21)]
    assert shown(data, "train") == [("cat", 10), ("dog", 20)]


def test_lists_that_do_not_fit_are_refused(tmp_path):
    write(tmp_path, FLAT)

    def answer(text):
        (tmp_path / "val.txt").write_text(text)
        return refusal("folder", tmp_path)

    assert "not positions from 0 to 1" in answer("a.png 2\nb.png 1\n")  # numbers from 1, as ILSVRC's own are
    assert "is not a class" in answer("a.png bird\n")
    assert "line 2: z.png is not in" in answer("a.png cat\nz.png dog\n")
    assert "expected lines of file,label" in answer("1\n2\n")
    (tmp_path / "val.txt").unlink()
    assert "neither test/ nor val/" in refusal("folder", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "x/1.png,cat,train\nx/2.png,dog,train\nx/3.png,cat,test\nx/4.png,dog,Test\n",
        "\ufefflabel;split;filename\r\ncat;training;x/1.png\r\ndog;train;x/2.png\r\ncat;test;x/3.png\r\ndog;test;x/4.png\r\n",
    ],
)
def test_a_csv_of_file_label_split(tmp_path, text):
    write(tmp_path, {f"x/{i}.png": 10 * i for i in range(1, 5)})
    (tmp_path / "my.csv").write_text(text, encoding="utf-8")
    data = load("folder", tmp_path / "my.csv")
    assert (data.name, data.class_names) == ("my", ("cat", "dog"))
    assert shown(data, "train") == [("cat", 10), ("dog", 20)]
    assert shown(data, "test") == [("cat", 30), ("dog", 40)]


def test_a_csv_without_splits_is_split_by_seed_and_numbers_sort_as_numbers(tmp_path):
    write(tmp_path, {f"images/{label}_{i}.png": 10 * label + i for label in (2, 10) for i in range(5)})
    rows = [f"images/{label}_{i}.png,{label}" for label in (10, 2) for i in range(5)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    data = load("folder", tmp_path / "labels.csv")
    assert data.class_names == ("2", "10") and np.bincount(data.test.labels).tolist() == [1, 1]
    both = shown(data, "train") + shown(data, "test")
    assert sorted(both) == sorted((str(label), 10 * label + i) for label in (2, 10) for i in range(5))
    assert f"set data.path to {tmp_path / 'labels.csv'}" in refusal("folder", tmp_path)


def test_csvs_that_cannot_be_used_name_the_line(tmp_path):
    write(tmp_path, {"1.png": 1, "2.png": 2})

    def answer(text):
        (tmp_path / "a.csv").write_text(text)
        return refusal("folder", tmp_path / "a.csv")

    assert "line 2: a file or its label is missing" in answer("1.png,cat\n2.png,\n")
    assert "line 2: the split 'foo' is not one of train, test, val" in answer("1.png,cat,train\n2.png,cat,foo\n")
    assert "line 2: 1.png is listed in line 1 too" in answer("1.png,cat\n1.png,dog\n")
    assert "1 of the listed files are missing, first" in answer("1.png,cat\n3.png,dog\n")
    assert "no training images; it has only test" in answer("1.png,cat,test\n2.png,cat,test\n")
    assert "expected lines of file,label" in answer("")


def test_skipped_files_are_counted_and_named_in_one_line(tmp_path, caplog):
    write(tmp_path, {f"{part}/{name}/{i}.png": i for part in ("train", "val") for name in "ab" for i in (1, 2)})
    write(tmp_path, {"train/__MACOSX/a/1.png": 1, "train/.cache/1.png": 1, "train/a/.2.png": 1, "train/top.png": 1})
    write(tmp_path, {"train/a/more/3.png": 3, "test/5.png": 5})
    (tmp_path / "train/a/notes.txt").touch()
    (tmp_path / "train/b/photo.HEIC").touch()
    (tmp_path / "train/b/lost.png").symlink_to(tmp_path / "nowhere.png")
    data = load("folder", tmp_path)
    assert data.class_names == ("a", "b") and len(data.train) == 4 and len(data.test) == 4
    (record,) = caplog.records
    line = record.getMessage()
    assert "left out 9 files or folders" in line and "\n" not in line
    for part in ("2 hidden (first ", "1 of __MACOSX (first ", "1 outside of class folders", "1 folders within a class"):
        assert part in line
    assert "1 not a file, or a broken link" in line and "2 others" in line
    assert load("folder", tmp_path) is not None


@pytest.mark.parametrize("layout", ["train/{}/1.png", "{}/1.png"])
def test_a_class_without_training_images_is_refused_unless_it_may_be_skipped(tmp_path, caplog, layout):
    write(
        tmp_path, {layout.format(name): 1 for name in "ab"} | {layout.format(name)[:-5] + "2.png": 2 for name in "ab"}
    )
    for name in ("c", "d"):
        (tmp_path / layout.format(name)).parent.mkdir()
    (tmp_path / layout.format("d")).with_suffix(".heic").touch()
    if layout.startswith("train"):
        write(tmp_path, {f"val/{name}/{i}.png": i for name in "abc" for i in (3, 4)})
    message = refusal("folder", tmp_path)
    assert "2 classes without training images: c, d" in message and "skip_empty_classes=true" in message
    caplog.clear()
    data = load("folder", tmp_path, skip_empty_classes=True)
    assert data.class_names == ("a", "b") and {label for label, _ in shown(data, "test")} == {"a", "b"}
    assert "2 classes without training images (first c)" in caplog.text
    if layout.startswith("train"):
        assert "1 val classes without training images (first c)" in caplog.text


def test_classes_of_the_test_set_alone_are_all_named(tmp_path):
    write(tmp_path, {"train/a/1.png": 1, **{f"val/{name}/1.png": 1 for name in "abcdefgh"}})
    assert "7 classes of val/ lack training images: b, c, d, e, f and 2 more" in refusal("folder", tmp_path)


def test_the_log_names_which_of_test_and_val_is_used(tmp_path, caplog):
    write(tmp_path, {"train/a/1.png": 1, "val/a/1.png": 2, "test/a/1.png": 3})
    assert shown(load("folder", tmp_path), "test") == [("a", 3)]
    assert "test/ is the test set, and val/ is not used" in caplog.text


@pytest.mark.parametrize("ending", image_files.EXTENSIONS)
def test_every_ending_is_read_in_either_case(tmp_path, ending):
    def save(path, level):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), level).save(path)

    for part, level in (("train", 40), ("test", 80)):
        save(tmp_path / part / "a" / f"x{ending}", level)
        save(tmp_path / part / "a" / f"y{ending.upper()}", level)
    data = load("folder", tmp_path)
    assert [abs(level - 40) <= 1 for _, level in shown(data, "train")] == [True, True]
    assert [abs(level - 80) <= 1 for _, level in shown(data, "test")] == [True, True]


def test_an_unknown_layout_is_described(tmp_path):
    write(tmp_path, {"1.png": 1, "2.png": 2})
    (tmp_path / "readme.md").touch()
    message = refusal("folder", tmp_path)
    assert "contains 0 folders, 2 images (1.png, 2.png), 1 other files (readme.md); expected train/<class>/" in message
    write(tmp_path / "up", {f"set/{part}/a/1.png": 1 for part in ("train", "val")})
    assert f"set data.path to {tmp_path / 'up' / 'set'}" in refusal("folder", tmp_path / "up")


SPLITS = [("cat", "train"), ("cat", "test"), ("dog", "train"), ("dog", "test")]


@pytest.mark.parametrize("header", ["file,label,phase", "file,label,Usage", "label,file,subset of mine", ""])
def test_a_column_with_splits_is_the_split_whatever_its_name(tmp_path, header):
    write(tmp_path, {f"{i}.png": 10 * i for i in range(4)})
    rows = [f"{i}.png,{label},{split}" for i, (label, split) in enumerate(SPLITS)]
    if header.startswith("label"):
        rows = [f"{label},{i}.png,{split}" for i, (label, split) in enumerate(SPLITS)]
    (tmp_path / "l.csv").write_text("\n".join([header] * bool(header) + rows))
    data = load("folder", tmp_path / "l.csv")
    assert shown(data, "train") == [("cat", 0), ("dog", 20)]
    assert shown(data, "test") == [("cat", 10), ("dog", 30)]


def test_splits_of_a_list_that_are_unclear_are_refused(tmp_path):
    write(tmp_path, {f"{i}.png": i for i in range(4)})

    def answer(*splits, header="", order="{i}.png,{label},{split}"):
        rows = [
            order.format(i=i, label=label, split=split)
            for i, ((label, _), split) in enumerate(zip(SPLITS, splits, strict=True))
        ]
        (tmp_path / "l.csv").write_text("\n".join([header] * bool(header) + rows))
        return refusal("folder", tmp_path / "l.csv")

    assert "line 1: the split 'dev' is not one of" in answer("dev", "train", "train", "test")
    assert "line 1: the split '' is not one of" in answer("", "train", "train", "test")
    kaggle = answer("Training", "PublicTest", "Training", "PrivateTest", header="file,label,Usage")
    assert "line 3: the split 'PublicTest' is not one of" in kaggle
    assert "the column 'is_train' is no split" in answer(1, 0, 1, 0, header="file,label,is_train")
    splits = ("train", "test", "train", "test")
    assert "all labels are splits (test, train)" in answer(*splits, order="{i}.png,{split},{label}")
    two = answer(*splits, header="file,label,split,phase", order="{i}.png,{label},{split},{split}")
    assert "the columns 'split' and 'phase' both have splits" in two
    assert "line 1: names of columns without file" in answer(*splits, header="image path,label,split")


def test_unused_columns_of_a_list_are_logged(tmp_path, caplog):
    write(tmp_path, {f"{i}.png": i for i in range(4)})
    rows = "".join(f"{i}.png,{label},{split},a,9\n" for i, (label, split) in enumerate(SPLITS))
    (tmp_path / "l.csv").write_text("file,label,split,author,\n" + rows)
    assert len(load("folder", tmp_path / "l.csv").test) == 2
    assert f"{tmp_path / 'l.csv'}: columns that are not used: 'author', 5" in caplog.text
    # A column of names may have one that is also a split.
    names = zip(SPLITS, ("train", "bus", "car", "cow"), strict=True)
    rows = "".join(f"{i}.png,{label},{split},{name}\n" for i, ((label, split), name) in enumerate(names))
    for header in ("file,label,split,name\n", "file,label,phase,name\n"):
        (tmp_path / "l.csv").write_text(header + rows)
        assert [name for name, _ in shown(load("folder", tmp_path / "l.csv"), "train")] == ["cat", "dog"]
    (tmp_path / "l.csv").write_text("file,label\n0.png,cat\n", encoding="utf-16")
    assert "is UTF-16 text: save it as UTF-8" in refusal("folder", tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("file,label\n")
    assert "no training images" in refusal("folder", tmp_path / "l.csv")


def test_a_validation_list_that_contradicts_itself_is_refused(tmp_path):
    write(tmp_path, {"train/golden/1.png": 1, "train/dog/1.png": 2, "val/x.png": 3, "val/y.png": 4})

    def answer(text):
        (tmp_path / "val.csv").write_text("file,label\n" + text)
        return refusal("folder", tmp_path)

    assert "line 3: x.png has the label 'dog', and 'golden' in an earlier line" in answer("x.png,golden\nx.png,dog\n")
    assert "golden retriever: no such class" in answer("x.png,golden retriever\ny.png,dog\n")
    assert "golden 1 2 3 4 dog 1 2 3 4: no such class" in answer("x.png,golden 1 2 3 4 dog 1 2 3 4\ny.png,dog\n")
    write(tmp_path, {"val/x.jpg": 5})
    assert "line 2: x may be " in answer("x,golden\ny,dog\n")
    (tmp_path / "val.csv").write_text("file,label\nx.png, golden\nx.jpg,dog 1 2 3.5 4 dog 5 6 7 8\ny,dog\n")
    assert [name for name, _ in shown(load("folder", tmp_path), "test")] == ["dog", "dog", "golden"]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    write(tmp_path, {f"{name}/{i}.png": i for name in ("cat", "dog") for i in (1, 2)})
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "cat" / "s.png").symlink_to("s.png")
    assert load("folder", tmp_path).class_names == ("cat", "dog")
    scan = image_files.os.scandir

    def refuse(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(image_files.os, "scandir", refuse)
    assert f"{tmp_path / 'dog'}: cannot be read (Permission denied)" in refusal("folder", tmp_path)


def test_a_path_longer_than_any_name_of_a_file_is_refused(tmp_path):
    for source in ("folder", "arrays", "cifar100", "imagenet_r"):
        assert "is longer than 255 bytes" in refusal(source, tmp_path / ("x" * 300))


def test_folders_and_images_beside_the_parts_are_counted(tmp_path, caplog):
    write(tmp_path, {f"{part}/cat/1.png": 1 for part in ("train", "test", "extra", "valid")} | {"stray.png": 2})
    assert len(load("folder", tmp_path).train) == 1
    assert "2 folders beside train/ (first " in caplog.text and "1 outside of class folders" in caplog.text
    caplog.clear()
    write(tmp_path / "quiz", {f"{name}/{i}.png": i for name in ("a", "test", "val") for i in (1, 2)})
    assert load("folder", tmp_path / "quiz").class_names == ("a", "test", "val")
    assert not caplog.records


def test_lists_of_cub_that_name_something_twice_are_refused(tmp_path):
    cub(tmp_path)
    for name, text, message in (
        ("classes.txt", "1 A\n10 A\n", "the classes 1 and 10 have one name, 'A'"),
        ("image_class_labels.txt", "1 1\n2 1\n3 10\n4 10\n4 1\n", "image_class_labels.txt: has a number twice"),
        (
            "images.txt",
            "1 001.Albatross/A_1.png\n2 001.Albatross/A_1.png\n3 010.Crow/C_1.png\n4 x.png\n",
            "a file twice",
        ),
    ):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        assert message in refusal("folder", tmp_path)
        (tmp_path / name).write_text(before)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "image_class_labels.txt").write_text("1 1\n2 1\n3 1\n4 1\n")
    assert "has images in two folders: add classes.txt" in refusal("folder", tmp_path)
