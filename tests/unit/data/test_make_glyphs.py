"""Glyph files made from the fonts that matplotlib ships."""

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from cdl_jax.data import stream
from cdl_jax.data.tools import make_glyphs
from cdl_jax.errors import UserError

pytest.importorskip("fontTools")


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """Three folders with one or two fonts each, and files that are to be passed over."""
    import matplotlib

    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    root = tmp_path_factory.mktemp("fonts")
    for folder, files in (
        ("mono", ["DejaVuSansMono"]),
        ("sans", ["DejaVuSans", "DejaVuSans-Bold"]),
        ("serif", ["DejaVuSerif"]),
    ):
        (root / folder).mkdir()
        for file in files:
            shutil.copy(shipped / f"{file}.ttf", root / folder)
    shutil.copy(shipped / "STIXSizOneSymReg.ttf", root / "serif")  # has no letters
    (root / "sans" / "broken.ttf").write_bytes(b"no font")
    return root


def test_text_fonts_are_found_and_others_skipped(fonts):
    found = make_glyphs.find_fonts(fonts)
    assert [(font.path.name, font.family) for font in found] == [
        ("DejaVuSansMono.ttf", 0),
        ("DejaVuSans-Bold.ttf", 1),
        ("DejaVuSans.ttf", 1),
        ("DejaVuSerif.ttf", 2),
    ]
    assert len(make_glyphs.find_fonts(fonts, per_family=1)) == 3
    assert "é" in found[0].characters


def test_letters_stand_on_the_baseline_with_capitals_of_one_height(fonts):
    for font in make_glyphs.find_fonts(fonts):
        images = make_glyphs.draw(font.path, "HIgé")
        ink = np.flatnonzero((images["H"] > 64).any(axis=1))
        # Hinting and antialiasing move an edge by a pixel at most.
        assert abs(ink[-1] - (make_glyphs.BASELINE - 1)) <= 1 and abs(len(ink) - make_glyphs.CAP_HEIGHT) <= 1
        columns = np.flatnonzero((images["H"] > 64).any(axis=0))
        assert abs((columns[0] + columns[-1]) / 2 - 15.5) <= 1
        assert np.flatnonzero((images["g"] > 64).any(axis=1))[-1] > make_glyphs.BASELINE
        assert images["é"].shape == (32, 32) and images["é"].dtype == np.uint8


def test_empty_and_equal_images_are_left_out(fonts):
    path = make_glyphs.find_fonts(fonts)[2].path
    assert set(make_glyphs.draw(path, "AΑB ")) == {"B"}  # Latin and Greek A, B, space


def test_classes_are_readable_characters_that_enough_fonts_have(fonts):
    found = make_glyphs.find_fonts(fonts)
    pool = make_glyphs.choose_classes(found, 0, 4, 0)
    assert pool == sorted(pool) and {"A", "é", "5", "±"} <= set(pool)
    assert not {c for c in pool if unicodedata.category(c)[0] in "ZCM"}
    some = make_glyphs.choose_classes(found, 12, 4, 0)
    assert len(some) == 12 and set(some) <= set(pool) and some == make_glyphs.choose_classes(found, 12, 4, 0)
    assert some != make_glyphs.choose_classes(found, 12, 4, 1)
    with pytest.raises(UserError, match="only 0 characters"):
        make_glyphs.choose_classes(found, 12, 5, 0)


def test_the_command_writes_a_file_that_the_glyph_file_source_reads(fonts, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("a b\né ß a\n", encoding="utf-8")
    out = tmp_path / "glyphs.npz"
    command = ["--fonts", str(fonts), "--out", str(out), "--classes", str(tmp_path / "classes.txt")]
    assert make_glyphs.main(command) == 0
    assert "4 classes" in capsys.readouterr().out
    with np.load(out, allow_pickle=False) as file:
        arrays = dict(file)
    assert {key: value.dtype.str[1:] for key, value in arrays.items()} == {
        "x": "u1",
        "y": "i2",
        "chars": "U1",
        "is_test": "b1",
        "font": "i2",
        "family": "i2",
    }
    assert arrays["x"].shape == (16, 32, 32)
    assert not set(arrays["family"][arrays["is_test"]]) & set(arrays["family"][~arrays["is_test"]])
    s = stream.load({"name": "glyph_file", "path": str(out), "num_tasks": 2})
    assert s.class_names == ("a", "b", "é", "ß") and len(s.train) + len(s.test) == 16

    assert make_glyphs.main([*command, "--per-class", "1"]) == 0
    with np.load(out) as file:
        assert np.bincount(file["y"][~file["is_test"]]).tolist() == [1, 1, 1, 1]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fonts", "{tmp}/none"], "no such folder"),
        (["--fonts", "{fonts}/sans"], "usable fonts in 1 folders"),
        (["--fonts", "{fonts}"], "lower --min-fonts"),
        (["--fonts", "{fonts}", "--classes", "{tmp}/none.txt"], "cannot be read as text"),
        (["--fonts", "{fonts}", "--classes", "{tmp}/han.txt"], "'漢' has no training images"),
    ],
)
def test_mistakes_raise_errors_of_one_line(fonts, tmp_path, capsys, options, words):
    (tmp_path / "han.txt").write_text("a漢", encoding="utf-8")
    filled = [option.format(fonts=fonts, tmp=tmp_path) for option in options]
    assert make_glyphs.main([*filled, "--out", str(tmp_path / "out.npz")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()
