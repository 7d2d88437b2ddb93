"""Classes, files and folders of any name are read.

Log lines and refusals are printable.
"""

import logging

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data import image_dataset, stream
from cdl_jax.errors import UserError
from cdl_jax.runtime import console

NAMES = ("a\nb", 'it\'s "quoted"', "100%d%s", "\udcff\udc80", "[x]*?", " space ", "é\u2028ü")


def write(root, *names, level=7):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), level).save(path, "PNG")


@pytest.mark.parametrize("name", NAMES)
def test_a_class_and_its_files_may_have_any_name(tmp_path, name, caplog, capsys):
    root = tmp_path / name
    write(root, f"train/{name}/{name}.png", f"val/{name}/{name}.png")
    write(root, "train/z/1.png", "val/z/1.png", level=90)
    (root / "train" / name / f"{name}.txt").touch()
    data = stream.load({"name": "folder", "path": str(root), "num_tasks": 2})
    shown = {console.one_line(name): 7, "z": 90}
    for part in ("train", "test"):
        split = getattr(data, part)
        found = {
            data.class_names[c]: int(np.asarray(image_dataset.load_image(split, i)[0]).max())
            for i, c in enumerate(split.labels)
        }
        assert found == shown
    (record,) = caplog.records
    line = logging.Formatter("%(message)s").format(record)
    assert "\n" not in line and line.encode() and "1 with the ending .txt" in line
    print(*data.class_names, data.name)  # a terminal takes them
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_an_error_names_them_in_one_printable_line(tmp_path, name):
    write(tmp_path, f"train/{name}/1.png", f"val/{name}/1.png", f"val/{name}2/1.png")
    with pytest.raises(UserError) as error:
        stream.load({"name": "folder", "path": str(tmp_path), "num_tasks": 1})
    text = str(error.value)
    assert text.encode() and len(text.splitlines()) == 1 and console.one_line(" ".join(f"{name}2".splitlines())) in text


def test_one_line_escapes_what_no_stream_can_print():
    assert console.one_line("a\nb\r\nc") == "a\\nb\\r\\nc"
    assert console.one_line("\udcff\x1b[31m\0\x85") == "\\udcff\\x1b[31m\\x00\\x85"
    assert console.one_line("100% 'é' \u3042") == "100% 'é' \u3042"


def test_a_utf8_name_is_shown_in_a_locale_without_utf8_too():
    assert console.one_line("caf\udcc3\udca9 \ud800") == "caf\\udcc3\\udca9 \\ud800"  # no byte has that surrogate
    assert console.one_line("caf\udcc3\udca9") == "café"
