"""Makes a file of character pictures from a folder of fonts.

    python -m cdl_jax.data.tools.make_glyphs --fonts DIR --out FILE

Each picture is one character in one font, white on black, all fonts scaled to capitals of one height. A folder of fonts
counts as one type family; whole families are held out for the test set, so no test typeface was seen in training.
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

SIZE = 32  # pixels, width and height of a picture
BASELINE = 24  # the row that letters stand on
CAP_HEIGHT = 15  # pixels, height of an H
_REQUIRED = frozenset("AaZz09")  # a font without these is no text font


@dataclass(frozen=True)
class Font:
    """A usable font file: the number of its folder, and the characters it has."""

    path: Path
    family: int
    characters: frozenset[str]


def find_fonts(folder: Path, per_family: int = 16) -> list[Font]:
    """The `.otf` and `.ttf` text fonts below `folder`, at most `per_family` of each folder (0: all), in sorted order.

    Raises:
      UserError: no such folder, or no usable fonts in two folders or more.
    """
    from fontTools.ttLib import TTFont, TTLibError

    if not folder.is_dir():
        raise UserError(f"--fonts {folder}: no such folder")
    families: dict[Path, list[tuple[Path, frozenset[str]]]] = {}
    for path in sorted(folder.rglob("*")):
        taken = families.get(path.parent, [])
        if path.suffix.lower() not in (".otf", ".ttf") or (per_family and len(taken) >= per_family):
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
            f"--fonts {folder}: usable fonts in {len(families)} folders; it takes two or more, "
            "so that some can be held out"
        )
    return [
        Font(path, family, characters) for family, fonts in enumerate(families.values()) for path, characters in fonts
    ]


def choose_classes(fonts: Sequence[Font], num_classes: int, min_fonts: int, seed: int) -> list[str]:
    """Letters, numbers, punctuation and symbols that `min_fonts` fonts have, sorted: all or `num_classes` of them.

    Raises:
      UserError: there are fewer than `num_classes`.
    """
    counts = Counter(character for font in fonts for character in font.characters)
    pool = sorted(c for c, count in counts.items() if count >= min_fonts and unicodedata.category(c)[0] in "LNPS")
    if not num_classes:
        return pool
    if num_classes > len(pool):
        raise UserError(f"--num-classes {num_classes}: only {len(pool)} characters occur in {min_fonts} fonts or more")
    return sorted(pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:num_classes])


def draw(path: Path, characters: Iterable[str]) -> dict[str, np.ndarray]:
    """Pictures uint8 `[SIZE, SIZE]` of `characters` in the font `path`, standing on `BASELINE` with their ink centred.

    Left out: nearly empty pictures (under 6 pixels above 64), and characters that this font draws alike.
    """
    from PIL import Image, ImageDraw, ImageFont

    def at(size):
        return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)

    _, top, _, bottom = at(200).getbbox("H", anchor="ls")
    if bottom <= top:
        return {}
    font = at(200 * CAP_HEIGHT / (bottom - top))
    pictures = {}
    for character in characters:
        left, _, right, _ = font.getbbox(character, anchor="ls")
        picture = Image.new("L", (SIZE, SIZE))
        place = (round((SIZE - (right - left)) / 2 - left), BASELINE)
        ImageDraw.Draw(picture).text(place, character, fill=255, font=font, anchor="ls")
        pixels = np.asarray(picture)
        if np.count_nonzero(pixels > 64) >= 6:
            pictures[character] = pixels
    alike = Counter(pixels.tobytes() for pixels in pictures.values())
    return {character: pixels for character, pixels in pictures.items() if alike[pixels.tobytes()] == 1}


def make(
    fonts: Sequence[Font],
    classes: Sequence[str],
    *,
    test_fraction: float,
    per_class: int,
    per_class_test: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Draws all `classes` in all `fonts`.

    Args:
      test_fraction: part of the families to hold out, at least one; which ones depends on `seed`.
      per_class, per_class_test: keep so many pictures a class, evenly spaced over the fonts; 0: all.

    Returns:
      x uint8 `[n, SIZE, SIZE]`, y int16 `[n]`, chars `[classes]`, is_test bool `[n]`, font and family int16 `[n]`.

    Raises:
      UserError: a class without pictures in either part.
    """
    families = 1 + max(font.family for font in fonts)
    held_out = min(max(1, round(test_fraction * families)), families - 1)
    test_families = set(np.random.default_rng(seed).permutation(families)[:held_out].tolist())
    rows = []
    for number, font in enumerate(fonts):
        try:
            pictures = draw(font.path, [c for c in classes if c in font.characters])
        except (OSError, ValueError):
            continue  # a font that FreeType cannot draw
        for label, character in enumerate(classes):
            if character in pictures:
                rows.append((pictures[character], label, font.family in test_families, number, font.family))
    if not rows:
        raise UserError("none of the fonts could be drawn")
    x, y, is_test, number, family = (np.asarray(column) for column in zip(*rows, strict=True))
    kept = []
    for label, character in enumerate(classes):
        for tested, limit in ((False, per_class), (True, per_class_test)):
            of_class = np.flatnonzero((y == label) & (is_test == tested))
            if not len(of_class):
                part = "test" if tested else "training"
                raise UserError(f"character {character!r} has no {part} pictures: leave it out or give more fonts")
            count = min(limit or len(of_class), len(of_class))
            kept.append(of_class[np.arange(count) * len(of_class) // count])
    kept = np.sort(np.concatenate(kept))
    return {
        "x": x[kept],
        "y": y[kept].astype(np.int16),
        "chars": np.asarray(classes),
        "is_test": is_test[kept],
        "font": number[kept].astype(np.int16),
        "family": family[kept].astype(np.int16),
    }


@console.command
def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cdl_jax.data.tools.make_glyphs", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--fonts", type=Path, required=True, help="folder with folders of .otf and .ttf files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--classes", type=Path, help="text file whose characters are the classes, white space aside")
    chosen.add_argument(
        "--num-classes", type=int, default=0, help="draw so many characters; 0: all that enough fonts have"
    )
    parser.add_argument(
        "--min-fonts", type=int, default=300, help="fonts that must have a character (without --classes)"
    )
    parser.add_argument("--per-class", type=int, default=0, help="training pictures a class at most; 0: all")
    parser.add_argument("--per-class-test", type=int, default=0, help="test pictures a class at most; 0: all")
    parser.add_argument("--per-family", type=int, default=16, help="fonts of a folder at most; 0: all")
    parser.add_argument("--test-fraction", type=float, default=0.25, help="part of the font folders held out")
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out folders and --num-classes")
    given = parser.parse_args(argv)
    try:
        fonts = find_fonts(given.fonts, given.per_family)
        if given.classes:
            classes = _listed(given.classes)
        else:
            classes = choose_classes(fonts, given.num_classes, given.min_fonts, given.seed)
        if not classes:
            raise UserError(f"no character occurs in {given.min_fonts} of the {len(fonts)} fonts: lower --min-fonts")
        arrays = make(
            fonts,
            classes,
            test_fraction=given.test_fraction,
            per_class=given.per_class,
            per_class_test=given.per_class_test,
            seed=given.seed,
        )
        npz_files.write(given.out, arrays)
    except (UserError, OSError) as error:
        print(f"make_glyphs: {error}", file=sys.stderr)
        return 2
    tested = np.count_nonzero(arrays["is_test"])
    print(f"{given.out}: {len(classes)} classes, {len(arrays['y']) - tested} training and {tested} test pictures")
    return 0


def _listed(path):
    """Characters of a text file, each once, in the order of the file."""
    try:
        return list(dict.fromkeys("".join(path.read_text(encoding="utf-8").split())))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: cannot be read as text ({error})") from None


if __name__ == "__main__":
    sys.exit(main())
