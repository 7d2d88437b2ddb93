"""Emoji files of small npm packages; a half in one color replaces resvg's drawing."""

import io
import json
import re
import sys
import types

import pytest

from cdl_jax import plugins
from cdl_jax.data.tools import make_emoji
from cdl_jax.options import defaults

LIST = [  # short name, subgroup, code points
    ("hash", "keycap", "0023-FE0F-20E3"),
    ("wave", "hand", "1F44B"),
    ("skin-tone-2", "skin-tone", "1F3FB"),
    ("heart", "emotion", "2764-FE0F"),
    ("kiss", "couple", "1F469-200D-2764-FE0F-200D-1F48B-200D-1F468"),
]
CODES = {name: code.lower().replace("-fe0f", "") for name, _, code in LIST}
DRAWN = {  # by each vendor, in an order of its own
    "noto": ("wave", "hash", "heart", "kiss"),
    "twemoji": ("kiss", "heart"),
    "openmoji": ("heart", "wave"),
    "fluent-flat": (),
}


def color(vendor, name):
    return (40 * list(DRAWN).index(vendor), 50 * list(CODES).index(name), 7)


@pytest.fixture
def packages(tmp_path):
    """The five packages, with images whose color encodes emoji and vendor."""
    write(tmp_path / "emoji-datasource/emoji.json", [
        {"short_name": name, "subcategory": subgroup, "unified": code, "skin_variations": {"1F3FB": {"unified": "X"}}}
        for name, subgroup, code in LIST
    ])  # fmt: skip
    for vendor, drawn in DRAWN.items():
        icons = {
            f"the-{name}": {"body": "<g fill='#{:02x}{:02x}{:02x}'/>".format(*color(vendor, name))} for name in drawn
        }
        folder = tmp_path / make_emoji.PACKAGES[vendor]
        write(folder / "icons.json", {"prefix": vendor, "icons": icons, "width": 36, "height": 36})
        write(folder / "chars.json", {CODES[name]: f"the-{name}" for name in drawn} | {"1f600": "no-such-icon"})
    return tmp_path


@pytest.fixture
def documents(monkeypatch):
    """Replaces resvg: the left half has one color. Returns the drawn documents."""
    svgs = []

    def svg_to_bytes(*, svg_string, width, height, **_):
        from PIL import Image

        svgs.append(svg_string)
        fill = re.search("#[0-9a-f]{6}", svg_string)
        if not fill:
            raise ValueError("no color")
        image = Image.new("RGBA", (width, height))
        image.paste(fill[0], (0, 0, width // 2, height))
        image.save(file := io.BytesIO(), "png")
        return file.getvalue()

    monkeypatch.setitem(sys.modules, "resvg_py", types.SimpleNamespace(svg_to_bytes=svg_to_bytes))
    return svgs


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_images_are_in_the_order_of_vendors_then_of_the_list(packages, documents):
    arrays = make_emoji.make(packages)
    assert {key: value.dtype.str[1:] for key, value in arrays.items()} == {
        "x": "u1", "y": "i2", "vendor": "i1", "emoji": "i2", "classes": "U7", "emoji_names": "U11", "vendors": "U11"
    }  # fmt: skip
    assert arrays["vendors"].tolist() == ["noto", "twemoji", "openmoji", "fluent-flat"]
    assert arrays["emoji_names"].tolist() == ["hash", "wave", "skin-tone-2", "heart", "kiss"]
    assert arrays["classes"].tolist() == ["couple", "emotion", "hand", "keycap"]  # no vendor draws a skin tone
    assert arrays["vendor"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    assert arrays["emoji"].tolist() == [0, 1, 3, 4, 3, 4, 1, 3]
    assert arrays["classes"][arrays["y"]].tolist() == [LIST[i][1] for i in arrays["emoji"]]
    shown = [
        list(color(arrays["vendors"][v], arrays["emoji_names"][e]))
        for v, e in zip(arrays["vendor"], arrays["emoji"], strict=True)
    ]
    assert arrays["x"].shape == (8, 32, 32, 3) and arrays["x"][:, 16, 2].tolist() == shown
    assert len(documents) == 8


def test_the_background_is_white_and_no_pixel_is_darker_than_the_drawing(packages, documents):
    x = make_emoji.make(packages)["x"].astype(int)
    assert x[:, :, 20:].min() == 255 and (x[:, :, :12] == x[:, :1, :1]).all()
    # Made smaller when already on white, a green of 150 would be 148 along the edge; 1 is for rounding.
    assert (x.min(axis=(1, 2)) >= x[:, 0, 0] - 1).all()


def test_the_size_of_an_image_is_that_of_its_icon_or_its_set(packages, documents):
    folder = packages / "@iconify-json/fluent-emoji-flat"
    write(folder / "chars.json", {"1f44b": "a", "2764": "b"})
    body = {"body": "<g fill='#010203'/>"}
    write(folder / "icons.json", {"icons": {"a": {**body, "left": -1, "height": 20}, "b": body}, "width": 32})
    drawings = make_emoji.read_drawings(packages, "@iconify-json/fluent-emoji-flat")
    assert 'viewBox="-1 0 32 20"' in drawings["1f44b"] and 'viewBox="0 0 32 16"' in drawings["2764"]


def test_the_command_writes_a_file_that_the_emoji_file_source_reads(packages, documents, tmp_path, capsys):
    out, again = tmp_path / "emoji.npz", tmp_path / "again.npz"
    assert make_emoji.main([str(packages), str(out)]) == 0 and make_emoji.main([str(packages), str(again)]) == 0
    assert "8 images of 4 emoji in 4 subgroups: noto 4, twemoji 2, openmoji 2, fluent-flat 0" in capsys.readouterr().out
    assert out.read_bytes() == again.read_bytes() and not list(tmp_path.glob("*.part"))
    folder = packages / "@iconify-json/fluent-emoji-flat"
    write(folder / "chars.json", {"2764": "a"})
    write(folder / "icons.json", {"icons": {"a": {"body": "#010203"}}})
    assert make_emoji.main([str(packages), str(out)]) == 0
    source = plugins.load_plugin("data.sources", "emoji_file")
    data = source.load(defaults(source.OPTIONS, path=str(out)))
    assert data.class_names == ("heart",) and (len(data.train), len(data.test)) == (3, 1)
    assert data.test.images[0, 16, 2].tolist() == list(color("noto", "heart"))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("emoji-datasource/emoji.json", None, "unpack the npm package emoji-datasource to"),
        ("@iconify-json/openmoji/chars.json", None, "unpack the npm package @iconify-json/openmoji to"),
        ("@iconify-json/noto/icons.json", "{", "cannot be read as JSON"),
        (
            "@iconify-json/noto/icons.json",
            '{"icons": {"the-wave": {}}}',
            "not the content of the npm package @iconify-json/noto",
        ),
        ("@iconify-json/noto/icons.json", "[]", "not the content of the npm package @iconify-json/noto"),
        ("emoji-datasource/emoji.json", '{"a": 1}', "not the content of the npm package emoji-datasource"),
        ("emoji-datasource/emoji.json", "[]", "none of the emoji"),
        ("@iconify-json/noto/icons.json", '{"icons": {"the-wave": {"body": ""}}}', "wave cannot be drawn (no color)"),
    ],
)
def test_mistakes_raise_errors_of_one_line(packages, documents, tmp_path, capsys, file, content, words):
    (packages / file).unlink() if content is None else (packages / file).write_text(content)
    assert make_emoji.main([str(packages), str(tmp_path / "out.npz")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_without_resvg_the_error_names_the_package(packages, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert make_emoji.main([str(packages), str(tmp_path / "out.npz")]) == 2
    assert capsys.readouterr().err == "make_emoji: drawing emoji needs resvg-py: pip install resvg-py\n"


def test_resvg_draws_a_vendors_image(packages):
    half = {"body": "<path fill='#102030' d='M0 0h18v36H0z'/>"}
    write(packages / "@iconify-json/noto/icons.json", {"icons": {"the-wave": half}, "width": 36, "height": 36})
    image = make_emoji.draw(make_emoji.read_drawings(packages, "@iconify-json/noto")["1f44b"])
    assert (image[:, :12] == (16, 32, 48)).all() and (image[:, 20:] == 255).all()


def test_an_emoji_source_without_a_path_names_the_command():
    source = plugins.load_plugin("data.sources", "emoji_file")
    with pytest.raises(make_emoji.UserError, match="make_emoji"):
        source.load(defaults(source.OPTIONS, path=""))
