"""Makes a small detection set of characters in the layout of COCO.

    python -m cdl_jax.data.tools.make_glyph_scenes --out DIR [--glyphs glyph100.npz]

Each image has 1 to 5 characters on a colored background. The characters are of ten classes, whose category ids have
gaps as in COCO. Validation images have characters of typefaces that no training image has. Each image is a function of
the seed, its split and its index: a smaller set is the beginning of a larger one.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdl_jax.data.detection import coco_files
from cdl_jax.data.sampling import rng_for
from cdl_jax.data.sources import glyph_file, glyph_mini
from cdl_jax.errors import UserError
from cdl_jax.options import defaults
from cdl_jax.runtime import console, files

CHARACTERS = "¢§±»ßĐŋ™∑≤"  # of a file of 100 classes
CATEGORY_IDS = (3, 7, 12, 13, 20, 34, 41, 50, 66, 90)
PARTS = {"train": "train2017", "val": "val2017"}  # split -> folder, as in COCO
SIDES = (96, 112, 128)  # pixels, height and width of an image
_INK = 64  # gray level above which a pixel belongs to the character
_LONGER_SIDES = (20, 56)  # pixels, of a character
_MAX_CHARACTERS = 5
_MAX_IOU, _TRIES = 0.05, 20
_FIELD_SIDE, _FIELD_LEVELS = 4, 40  # of the background's random field
_MIN_CONTRAST = 80  # levels of luminance between a character and its background
_NOISE = 6  # standard deviation, in levels
_LUMINANCE = np.array([0.299, 0.587, 0.114])

# For each character its images, uint8 [height, width], cut to the ink.
Glyphs = Sequence[Sequence[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Scene:
    """One image with boxes.

    pixels: uint8 `[height, width, 3]`.
    boxes: int `[k, 4]`, (x, y, width, height) in pixels.
    characters: int `[k]`, positions in the list of characters.
    masks: bool `[k, height, width]`, the ink of each character that no later character covers.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    characters: np.ndarray
    masks: np.ndarray


def read_glyphs(path: Path | None) -> tuple[tuple[str, ...], dict[str, Glyphs]]:
    """Reads the images of ten characters.

    Args:
      path: file of `make_glyphs`; None: the characters that come with cdl_jax.

    Returns:
      (characters: `CHARACTERS` if the file has them all, else its first ten; split -> glyphs).

    Raises:
      UserError: the file cannot be read, has fewer than ten classes, or a character has no images.
    """
    dataset = glyph_file.load({"path": path}) if path else glyph_mini.load(defaults(glyph_mini.OPTIONS))
    names, count = dataset.class_names, len(CATEGORY_IDS)
    if len(names) < count:
        raise UserError(f"--glyphs {path}: has {len(names)} characters, and scenes need {count}: make a larger file")
    chosen = tuple(CHARACTERS) if set(CHARACTERS) <= set(names) else names[:count]
    splits = {"train": dataset.train, "val": dataset.test}
    return chosen, {
        split: [_cut(part.images[part.labels == names.index(c), :, :, 0], c, split) for c in chosen]
        for split, part in splits.items()
    }


def make_scene(glyphs: Glyphs, seed: int, split: str, index: int) -> Scene:
    """Draws one scene, a pure function of its arguments.

    Args:
      glyphs: of the split.
      seed: of the set, non-negative.
      split: a key of `PARTS`.
      index: of the scene in its split.
    """
    rng = rng_for(seed, list(PARTS).index(split), index)
    height, width = rng.choice(SIDES, 2).tolist()
    canvas = _background(rng, height, width)
    boxes, characters, ink = [], [], np.zeros((_MAX_CHARACTERS, height, width), bool)
    for _ in range(rng.integers(1, _MAX_CHARACTERS, endpoint=True)):
        character = int(rng.integers(len(glyphs)))
        alpha = _scaled(rng, glyphs[character])
        box = _free_box(rng, alpha.shape, (height, width), boxes)
        if box is not None:
            _paint(rng, canvas, alpha, box)
            _mark(ink, len(boxes), alpha, box)
            boxes.append(box)
            characters.append(character)
    canvas += rng.normal(0, _NOISE, canvas.shape)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(pixels, np.array(boxes), np.array(characters), ink[: len(boxes)])


def write_part(out: Path, split: str, scenes: Sequence[Scene], names: Sequence[str], image_format: str) -> Path:
    """Writes the images and the annotation file of one split.

    Args:
      out: folder of the set.
      split: a key of `PARTS`.
      scenes: of the split.
      names: of the characters.
      image_format: "png" or "jpg" (quality 95).

    Returns:
      The annotation file.

    Raises:
      OSError: a file cannot be written.
    """
    from PIL import Image

    folder = out / PARTS[split]
    folder.mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    file_names = [f"{number:012d}.{image_format}" for number in range(1, len(scenes) + 1)]
    for scene, name in zip(scenes, file_names, strict=True):
        Image.fromarray(scene.pixels).save(folder / name, quality=95)
    path = out / "annotations" / f"instances_{PARTS[split]}.json"
    files.write_atomically(path, json.dumps(_annotations(scenes, file_names, names), ensure_ascii=False))
    return path


@console.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cdl_jax.data.tools.make_glyph_scenes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--glyphs", type=Path, help="file of make_glyphs; default: the characters of cdl_jax")
    parser.add_argument("--num-train", type=_count, default=4000, help="number of training images")
    parser.add_argument("--num-val", type=_count, default=300, help="number of validation images")
    parser.add_argument("--seed", type=_count, default=0, help="of all random numbers")
    parser.add_argument("--format", choices=("png", "jpg"), default="png", help="of the images; png is lossless")
    options = parser.parse_args(argv)
    try:
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise UserError(f"--out {options.out}: exists and is not an empty folder: choose a new one")
        names, glyphs = read_glyphs(options.glyphs)
        for split, count in (("train", options.num_train), ("val", options.num_val)):
            scenes = [make_scene(glyphs[split], options.seed, split, index) for index in range(count)]
            path = write_part(options.out, split, scenes, names, options.format)
            data = coco_files.read_part(options.out, PARTS[split])
            print(f"{path}: {len(data)} images, {len(data.objects)} objects of {len(data.categories)} classes")
    except (UserError, OSError) as error:
        print(f"make_glyph_scenes: {error}", file=sys.stderr)
        return 2
    return 0


def _count(text):
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _cut(images, character, split):
    """Returns the images with ink, each cut to its ink."""
    results = []
    for image in images:
        rows, columns = (np.flatnonzero((image > _INK).any(axis=axis)) for axis in (1, 0))
        if len(rows):
            results.append(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    if not results:
        raise UserError(f"character {character!r} has no images for the {split} scenes: choose another glyph file")
    return results


def _background(rng, height, width):
    """Returns one color with a smooth random field, float64 `[height, width, 3]`."""
    from PIL import Image

    color = rng.uniform(0, 255, 3)
    field = rng.uniform(-_FIELD_LEVELS, _FIELD_LEVELS, (3, _FIELD_SIDE, _FIELD_SIDE)).astype(np.float32)
    enlarged = [Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in field]
    return np.clip(color + np.stack([np.asarray(channel, np.float64) for channel in enlarged], axis=-1), 0, 255)


def _scaled(rng, images):
    """Returns one of the images of a character at a random size.

    Returns:
      float64 `[height, width]` in [0, 1].
    """
    from PIL import Image

    image = images[rng.integers(len(images))]
    scale = rng.integers(*_LONGER_SIDES, endpoint=True) / max(image.shape)
    height, width = (max(1, round(side * scale)) for side in image.shape)
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float64) / 255


def _free_box(rng, shape, size, boxes):
    """Returns a random box (x, y, width, height) that hardly overlaps others.

    The result is None after `_TRIES` failures.
    """
    for _ in range(_TRIES):
        y, x = (int(rng.integers(0, full - side, endpoint=True)) for full, side in zip(size, shape, strict=True))
        box = (x, y, shape[1], shape[0])
        if all(_iou(box, other) < _MAX_IOU for other in boxes):
            return box
    return None


def _iou(a, b):
    inner = [max(0, min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    intersection = inner[0] * inner[1]
    return intersection / (a[2] * a[3] + b[2] * b[3] - intersection)


def _paint(rng, canvas, alpha, box):
    """Blends a character into the canvas, in a color of sufficient contrast."""
    x, y, width, height = box
    patch = canvas[y : y + height, x : x + width]
    background = patch.mean(axis=(0, 1)) @ _LUMINANCE
    color = rng.uniform(0, 255, 3)
    while abs(color @ _LUMINANCE - background) < _MIN_CONTRAST:
        color = rng.uniform(0, 255, 3)
    patch += alpha[:, :, None] * (color - patch)


def _mark(ink, number, alpha, box):
    """Adds the mask of a character, and removes its pixels from earlier masks.

    Changes `ink`.
    """
    x, y, width, height = box
    patch, is_ink = ink[:, y : y + height, x : x + width], alpha > _INK / 255
    patch &= ~is_ink
    patch[number] = is_ink


def _annotations(scenes: Sequence[Scene], file_names: Sequence[str], names: Sequence[str]) -> Mapping[str, object]:
    from pycocotools import mask

    categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, names, strict=True)]
    images, annotations = [], []
    for image_id, (scene, file_name) in enumerate(zip(scenes, file_names, strict=True), start=1):
        height, width = scene.pixels.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        segmentations = mask.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0), np.uint8))
        objects = zip(scene.boxes.tolist(), scene.characters.tolist(), segmentations, strict=True)
        for (x, y, w, h), character, segmentation in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[character],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": segmentation["counts"].decode()},
                }
            )
    return {"images": images, "annotations": annotations, "categories": categories}


if __name__ == "__main__":
    sys.exit(main())
