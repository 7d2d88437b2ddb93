"""Image files of a command: found in folders, and drawn under distinct names."""

import pytest
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
