"""Pascal VOC's annotations in the layout of COCO."""

import json

import pytest
from PIL import Image

from cdl_jax.data.detection import coco_files, streams
from cdl_jax.data.tools import voc_to_coco as tool
from cdl_jax.errors import UserError

OBJECT = (
    "<object><name>{0}</name><difficult>{1}</difficult><part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin>"
    "<xmax>9</xmax><ymax>9</ymax></bndbox></part><bndbox><xmin>{2}</xmin><ymin>{3}</ymin><xmax>{4}</xmax>"
    "<ymax>{5}</ymax></bndbox></object>"
)


def annotation(*objects, size=(60, 40)):
    parts = "".join(OBJECT.format(*values) for values in objects)
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{parts}</annotation>"


def write(root, **stems):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("".join(f"{stem[1:]}\n" for stem in stems))
    for stem, text in stems.items():
        (root / "Annotations" / f"{stem[1:]}.xml").write_text(text)
        Image.new("RGB", (60, 40)).save(root / "JPEGImages" / f"{stem[1:]}.jpg")
    return root


def test_the_command_writes_a_set_of_coco(tmp_path, capsys):
    voc = write(
        tmp_path / "VOC2007",
        _000012=annotation(("dog", 0, 1, 1, 60, 40), ("person", 1, 10, 20, 19, 39)),
        _000005=annotation(("aeroplane", 0, 11, 21, 11, 30.5)),
        _000007=annotation(),
    )
    assert tool.main(["--voc", str(voc), "--list", "trainval", "--out", str(tmp_path / "out")]) == 0
    assert "3 images, 2 objects and 1 difficult ones" in capsys.readouterr().out
    data = coco_files.read_part(tmp_path / "out", "trainval")
    assert data.image_ids.tolist() == [5, 7, 12] and data.categories[20] == "tvmonitor" and len(data.categories) == 20
    # Pixel 1 is the first, and the last pixel belongs to the box.
    assert data.targets(0).boxes.tolist() == [[10, 20, 11, 30.5]] and data.targets(0).labels.tolist() == [1]
    assert len(data.targets(1)) == 0
    assert data.targets(2).boxes.tolist() == [[0, 0, 60, 40]]  # the difficult person is no target
    assert data.objects.crowds.tolist() == [False, False, True] and data.objects.areas.tolist() == [10.5, 2400, 200]
    order = (0, 11, 14)  # aeroplane; dog and person
    stream = streams.DetectionData("voc", data, data).into_stream(num_tasks=2, task_sizes=(1, 2), class_order=order)
    assert [data.image_ids[task.train].tolist() for task in stream.tasks] == [[5], [12]]


def test_names_with_years_give_ids(tmp_path):
    voc = write(tmp_path, _2008_000002=annotation(), _2010_000014=annotation())
    assert [image["id"] for image in tool.convert(voc, "trainval")["images"]] == [2008000002, 2010000014]
    other = write(tmp_path / "other", _a7=annotation(), _b7=annotation())
    assert [image["id"] for image in tool.convert(other, "trainval")["images"]] == [1, 2]
    equal = write(tmp_path / "equal", _1_1=annotation(), _11=annotation())
    assert [image["id"] for image in tool.convert(equal, "trainval")["images"]] == [1, 2]


def test_files_that_count_from_0_and_other_classes(tmp_path, capsys):
    voc = write(tmp_path / "voc", _1=annotation(("cat", 0, 0, 2, 9, 9), ("ufo", 0, 1, 1, 2, 2)))
    arguments = ["--voc", str(voc), "--list", "trainval", "--out", str(tmp_path / "out"), "--name", "train2017"]
    assert tool.main(arguments) == 2
    assert "begins at pixel 0, before the first pixel 1: use --first-pixel 0" in capsys.readouterr().err
    assert tool.main([*arguments, "--first-pixel", "0"]) == 2
    assert "the class 'ufo' is unknown: list the names with --classes" in capsys.readouterr().err
    (tmp_path / "names.txt").write_text("ufo\ncat\n")
    assert tool.main([*arguments, "--first-pixel", "0", "--classes", str(tmp_path / "names.txt")]) == 0
    content = json.loads((tmp_path / "out" / "annotations" / "instances_train2017.json").read_text())
    assert [a["bbox"] for a in content["annotations"]] == [[0, 2, 10, 8], [1, 1, 2, 2]]
    assert [a["category_id"] for a in content["annotations"]] == [2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "is damaged or no XML file"),
        ("", "is damaged or no XML file"),
        (annotation(size=("x", 40)), "size/width must be a number, not 'x'"),
        ("<annotation/>", "size/height must be a number, not None"),
        (annotation(("cat", 0, 5, 5, "nan", 9)), "bndbox/xmax must be a number of pixels, not 'nan'"),
        (annotation(("cat", 0, 5, 5, 4, 9)), "ends before it begins"),
        (annotation(("cow boy", 0, 5, 5, 9, 9)), "the class 'cow boy' is unknown"),
    ],
)
def test_a_damaged_annotation_is_refused_in_one_line(tmp_path, text, message):
    voc = write(tmp_path, _7=text)
    with pytest.raises(UserError, match=message) as caught:
        tool.convert(voc, "trainval")
    assert "7.xml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_size_is_found_by_the_image(tmp_path, capsys):
    voc = write(tmp_path / "voc", _7=annotation(size=(40, 60)))
    assert tool.main(["--voc", str(voc), "--list", "trainval", "--out", str(tmp_path / "out")]) == 2
    assert "has 60 x 40 pixels, but instances_trainval.json has 40 x 60" in capsys.readouterr().err


def test_mistakes_of_lists_are_refused(tmp_path):
    voc = write(tmp_path, _7=annotation())
    lists = voc / "ImageSets" / "Main"
    for name, text, message in (
        ("cat_train", "7 -1\n", "is the list of a single class"),
        ("twice", "7\n7\n", "lists 7 twice"),
        ("empty", "\n", "lists no images"),
        ("more", "7\n8\n", r"8\.xml: no such file"),
    ):
        (lists / f"{name}.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            tool.convert(voc, name)
    with pytest.raises(UserError, match=r"test\.txt: no such file: give the folder of one year"):
        tool.convert(voc, "test")
    (voc / "JPEGImages" / "7.jpg").unlink()
    with pytest.raises(UserError, match=r"7\.jpg: no such file"):
        tool.convert(voc, "trainval")
