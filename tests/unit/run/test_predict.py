"""Image files of a command: found in folders, and drawn under distinct names."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict
from PIL import Image

from cdl_jax.errors import UserError
from cdl_jax.run import predict


def test_folders_are_searched_with_their_subfolders(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x/3.tif", ".hidden/4.png", "b/notes.txt", "0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "no_ending").touch()
    found = predict.find_images([str(tmp_path / "no_ending"), str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "no_ending", "0.png", "a/x/3.tif", "b/1.JPG", "b/2.png"
    ]  # fmt: skip
    with pytest.raises(UserError, match="a/none: no such file or folder"):
        predict.find_images([str(tmp_path / "a" / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no images \(.jpg"):
        predict.find_images([str(tmp_path / "empty")])


def test_drawn_files_have_distinct_names(tmp_path):
    for name in ("x/1.jpg", "y/1.jpg", "y/1.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / name)
    found = predict.find_images([str(tmp_path / "in")])
    assert predict.drawn_names(found) == ["x/1.png", "y/1.png", "y/1_1.png"]
    assert predict.drawn_names(found[:1]) == ["1.png"]


def run_of(network):
    return SimpleNamespace(
        config=ConfigDict({"augment": {}, "eval": {"batch_size": 4}}),
        folder=Path("run"),
        network=lambda *_: network,
    )


def images_below(folder):
    for name in ("x.png", "y.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    return {name: (folder / name).read_bytes() for name in ("x.png", "y.png")}


def test_drawn_images_never_replace_the_images(tmp_path):
    before = images_below(tmp_path)
    request = predict.Request([str(tmp_path)], draw=str(tmp_path))
    with pytest.raises(UserError, match="x.png is one of the images: choose another folder"):
        predict.predict(run_of(None), request)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"output": "folder.json"}, "folder.json is a folder: name a file"),
        ({"draw": "x.png"}, "x.png is not a folder: choose another folder"),
        ({"draw": "x.png/a/b"}, "x.png is not a folder: choose another folder"),
    ],
)
def test_outputs_are_checked_before_a_network_is_read(tmp_path, flags, message):
    images_below(tmp_path)
    (tmp_path / "folder.json").mkdir()
    request = predict.Request([str(tmp_path)], **{key: str(tmp_path / value) for key, value in flags.items()})
    with pytest.raises(UserError, match=message):
        predict.predict(None, request)


@pytest.mark.parametrize(("flag", "value"), [("draw", "drawn"), ("threshold", 0.0)])
def test_flags_of_boxes_are_refused_for_a_classifier(tmp_path, flag, value):
    images_below(tmp_path)
    value = str(tmp_path / value) if flag == "draw" else value
    with pytest.raises(UserError, match=f"--{flag}=.*: network 'student' predicts classes, not boxes"):
        predict.predict(run_of(SimpleNamespace(name="student")), predict.Request([str(tmp_path)], **{flag: value}))
