"""Makes a file of character images from a folder of fonts.

    python -m cdl_jax.data.tools.make_glyphs --fonts DIR --out FILE

Each image is one character in one font, white on black. All fonts are scaled to capitals of one height. A folder of
fonts is one type family. Complete families are held out for the test set, so no test typeface is in the training set.
The `glyph_file` source reads the result.
"""

import argparse
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdl_jax.data.readers import npz_files
from cdl_jax.errors import UserError
from cdl_jax.runtime import console

SIZE = 32  # pixels, width and height of an image
BASELINE = 24  # row of the baseline of letters
CAP_HEIGHT = 15  # pixels, height of an H
_REQUIRED = frozenset("AaZz09")  # a font without these is not a text font


@dataclass(frozen=True)
class Font:
    """A usable font file.

    path: of the file.
    family: number of its folder.
    characters: that it has.
    """

    path: Path
    family: int
    characters: frozenset[str]


def find_fonts(folder: Path, per_family: int = 16) -> list[Font]:
    """Lists the `.otf` and `.ttf` text fonts below a folder, in sorted order.

    Args:
      folder: with a folder for each family.
      per_family: most fonts of each family; 0: all.

    Raises:
      UserError: the folder is missing, or fewer than two families have usable fonts.
    """
    from fontTools.ttLib import TTFont, TTLibError

    if not folder.is_dir():
        raise UserError(f"--fonts {folder}: no such folder")
    families: dict[Path, list[tuple[Path, frozenset[str]]]] = {}
    for path in sorted(folder.rglob("*")):
        family_fonts = families.get(path.parent, [])
        if path.suffix.lower() not in (".otf", ".ttf") or (per_family and len(family_fonts) >= per_family):
            continue
        try:
            with TTFont(path, lazy=True) as font:
                characters = frozenset(map(chr, font.getBestCmap() or {}))
        except (TTLibError, OSError, ValueError, KeyError, AssertionError):
            continue  # a damaged font, or one without a Unicode table
        if characters >= _REQUIRED:
            families.setdefault(path.parent, []).append((path, characters))
    if len(families) < 2:
        raise UserError(
            f"--fonts {folder}: usable fonts in {len(families)} folders; use two or more, so that some can be held out"
        )
    return [
        Font(path, family, characters) for family, fonts in enumerate(families.values()) for path, characters in fonts
    ]


def choose_classes(fonts: Sequence[Font], num_classes: int, min_fonts: int, seed: int) -> list[str]:
    """Chooses letters, numbers, punctuation and symbols that enough fonts have.

    Args:
      fonts: of `find_fonts`.
      num_classes: number of classes, drawn by `seed`; 0: all.
      min_fonts: fonts that must have a character.
      seed: of the draw.

    Returns:
      Characters, sorted.

    Raises:
      UserError: fewer characters than `num_classes` occur in enough fonts.
    """
    counts = Counter(character for font in fonts for character in font.characters)
    candidates = sorted(c for c, count in counts.items() if count >= min_fonts and unicodedata.category(c)[0] in "LNPS")
    if not num_classes:
        return candidates
    if num_classes > len(candidates):
        raise UserError(
            f"--num-classes {num_classes}: only {len(candidates)} characters occur in {min_fonts} fonts or more"
        )
    return sorted(candidates[i] for i in np.random.default_rng(seed).permutation(len(candidates))[:num_classes])


def draw(path: Path, characters: Iterable[str]) -> dict[str, np.ndarray]:
    """Draws characters in a font, on `BASELINE` and horizontally centered.

    Nearly empty images (under 6 pixels above 64) and characters with equal images in this font are left out.

    Args:
      path: of the font.
      characters: to draw.

    Returns:
      {character: uint8 `[SIZE, SIZE]`}.
    """
    from PIL import Image, ImageDraw, ImageFont

    def font_of_size(size):
        return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)

    _, top, _, bottom = font_of_size(200).getbbox("H", anchor="ls")
    if bottom <= top:
        return {}
    font = font_of_size(200 * CAP_HEIGHT / (bottom - top))
    images = {}
    for character in characters:
        left, _, right, _ = font.getbbox(character, anchor="ls")
        image = Image.new("L", (SIZE, SIZE))
        position = (round((SIZE - (right - left)) / 2 - left), BASELINE)
        ImageDraw.Draw(image).text(position, character, fill=255, font=font, anchor="ls")
        pixels = np.asarray(image)
        if np.count_nonzero(pixels > 64) >= 6:
            images[character] = pixels
    counts = Counter(pixels.tobytes() for pixels in images.values())
    return {character: pixels for character, pixels in images.items() if counts[pixels.tobytes()] == 1}


def make(
    fonts: Sequence[Font],
    classes: Sequence[str],
    *,
    test_fraction: float,
    per_class: int,
    per_class_test: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Draws all classes in all fonts.

    Args:
      fonts: of `find_fonts`.
      classes: characters.
      test_fraction: fraction of the families to hold out, rounded, at least one family.
      per_class: training images to keep of each class, evenly spaced over the fonts; 0: all.
      per_class_test: test images to keep of each class, likewise.
      seed: draws the families that are held out.

    Returns:
      x uint8 `[n, SIZE, SIZE]`, y int16 `[n]`, chars `[classes]`, is_test bool `[n]`, font and family int16 `[n]`.

    Raises:
      UserError: a class has no training images or no test images.
    """
    families = 1 + max(font.family for font in fonts)
    held_out = min(max(1, round(test_fraction * families)), families - 1)
    test_families = set(np.random.default_rng(seed).permutation(families)[:held_out].tolist())
    rows = []
    for number, font in enumerate(fonts):
        try:
            images = draw(font.path, [c for c in classes if c in font.characters])
        except (OSError, ValueError):
            continue  # a font that FreeType cannot draw
        for label, character in enumerate(classes):
            if character in images:
                rows.append((images[character], label, font.family in test_families, number, font.family))
    if not rows:
        raise UserError("none of the fonts could be drawn")
    x, y, is_test, number, family = (np.asarray(column) for column in zip(*rows, strict=True))
    selected = []
    for label, character in enumerate(classes):
        for in_test_set, limit in ((False, per_class), (True, per_class_test)):
            candidates = np.flatnonzero((y == label) & (is_test == in_test_set))
            if not len(candidates):
                part = "test" if in_test_set else "training"
                raise UserError(f"character {character!r} has no {part} images: leave it out or add fonts")
            count = min(limit or len(candidates), len(candidates))
            selected.append(candidates[np.arange(count) * len(candidates) // count])
    selected = np.sort(np.concatenate(selected))
    return {
        "x": x[selected],
        "y": y[selected].astype(np.int16),
        "chars": np.asarray(classes),
        "is_test": is_test[selected],
        "font": number[selected].astype(np.int16),
        "family": family[selected].astype(np.int16),
    }


@console.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cdl_jax.data.tools.make_glyphs", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--fonts", type=Path, required=True, help="folder with folders of .otf and .ttf files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    class_group = parser.add_mutually_exclusive_group()
    class_group.add_argument(
        "--classes", type=Path, help="text file whose characters are the classes; white space is ignored"
    )
    class_group.add_argument(
        "--num-classes", type=int, default=0, help="number of characters to draw; 0: all that enough fonts have"
    )
    parser.add_argument(
        "--min-fonts", type=int, default=300, help="fonts that must have a character (without --classes)"
    )
    parser.add_argument("--per-class", type=int, default=0, help="most training images of a class; 0: all")
    parser.add_argument("--per-class-test", type=int, default=0, help="most test images of a class; 0: all")
    parser.add_argument("--per-family", type=int, default=16, help="most fonts of a folder; 0: all")
    parser.add_argument("--test-fraction", type=float, default=0.25, help="fraction of the font folders held out")
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out folders and --num-classes")
    options = parser.parse_args(argv)
    try:
        fonts = find_fonts(options.fonts, options.per_family)
        if options.classes:
            classes = _read_characters(options.classes)
        else:
            classes = choose_classes(fonts, options.num_classes, options.min_fonts, options.seed)
        if not classes:
            raise UserError(f"no character occurs in {options.min_fonts} of the {len(fonts)} fonts: lower --min-fonts")
        arrays = make(
            fonts,
            classes,
            test_fraction=options.test_fraction,
            per_class=options.per_class,
            per_class_test=options.per_class_test,
            seed=options.seed,
        )
        npz_files.write(options.out, arrays)
    except (UserError, OSError) as error:
        print(f"make_glyphs: {error}", file=sys.stderr)
        return 2
    num_test = np.count_nonzero(arrays["is_test"])
    print(f"{options.out}: {len(classes)} classes, {len(arrays['y']) - num_test} training and {num_test} test images")
    return 0


def _read_characters(path):
    """Returns the characters of a text file, each once, in the order of the file."""
    try:
        return list(dict.fromkeys("".join(path.read_text(encoding="utf-8").split())))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: cannot be read as text ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
