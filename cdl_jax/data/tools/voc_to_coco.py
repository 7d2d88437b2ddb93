"""Converts annotations of Pascal VOC to the layout of COCO.

    python -m cdl_jax.data.tools.voc_to_coco --voc VOCdevkit/VOC2007 --list trainval --out DIR

reads `ImageSets/Main/trainval.txt`, `Annotations/*.xml` and `JPEGImages/`, and writes
`DIR/annotations/instances_trainval.json` and `DIR/trainval`, a link to the images.

Pixels. VOC counts pixels from 1, and a box includes its last pixel. So x = xmin - 1 and width = xmax - xmin + 1, and
likewise for y. `--first-pixel 0` is for files of other tools that count from 0.

Difficult objects become `iscrowd=1`. Training then leaves them out, and in evaluation neither they nor detections on
them count, as in VOC's own evaluation. One difference remains: the overlap with a crowd is divided by the area of the
detection, not by the union. `ignore`, which some converters write, has no effect in pycocotools.
"""

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdl_jax.data.detection import coco_files
from cdl_jax.errors import UserError
from cdl_jax.runtime import console, files

CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)  # ids 1 to 20
_EDGES = ("xmin", "ymin", "xmax", "ymax")
_ENDINGS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation.

    name: of its class.
    box: (x, y, width, height) in pixels, from 0.
    difficult: whether VOC's evaluation leaves it out.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def convert(folder: Path, list_name: str, classes: Sequence[str] = CLASSES, first_pixel: int = 1) -> dict[str, Any]:
    """Converts the images of one list.

    Image ids are the digits of the file names, such as 2008000002 for 2008_000002, where all names have digits alone
    and no two become equal. Else they are the positions in the list, from 1.

    Args:
      folder: with `Annotations`, `ImageSets/Main` and `JPEGImages`.
      list_name: of a file in `ImageSets/Main`, without its ending.
      classes: names in the order of their ids, from 1.
      first_pixel: the number of the first pixel, 1 or 0.

    Returns:
      The content of an `instances_*.json`.

    Raises:
      UserError: a file is missing or damaged, a class is unknown, or a box is impossible.
    """
    stems = read_list(folder / "ImageSets" / "Main" / f"{list_name}.txt")
    ids = {name: number for number, name in enumerate(classes, start=1)}
    images, annotations = [], []
    for image_id, stem in zip(_image_ids(stems), stems, strict=True):
        path = folder / "Annotations" / f"{stem}.xml"
        (height, width), objects = read_annotation(path, first_pixel)
        file_name = _find_image(folder / "JPEGImages", stem)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for thing in objects:
            if thing.name not in ids:
                raise UserError(f"{path}: the class {thing.name!r} is unknown: list the names with --classes")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[thing.name],
                    "bbox": list(thing.box),
                    "area": thing.box[2] * thing.box[3],
                    "iscrowd": int(thing.difficult),
                }
            )
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def read_list(path: Path) -> list[str]:
    """Returns the names of images in a list of VOC.

    Raises:
      UserError: the file is missing, empty, names an image twice, or is the list of one class.
    """
    lines = [line.split() for line in _read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: lists no images: unpack the set again")
    if any(len(line) > 1 for line in lines):
        raise UserError(f"{path}: is the list of a single class: use train, val, trainval or test")
    names = [name for (name,) in lines]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: lists {repeated} twice: list each image once")
    return names


def read_annotation(path: Path, first_pixel: int = 1) -> tuple[tuple[int, int], list[VocObject]]:
    """Reads the annotation of one image.

    Returns:
      ((height, width) in pixels, objects).

    Raises:
      UserError: the file is missing or damaged, or a box is impossible.
    """
    try:
        root = ElementTree.fromstring(_read_bytes(path))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: is damaged or no XML file ({error}); unpack the set again") from None
    size = tuple(int(_number(root, f"size/{key}", path)) for key in ("height", "width"))
    objects = []
    for element in root.iter("object"):
        left, top, right, bottom = edges = [_number(element, f"bndbox/{key}", path) for key in _EDGES]
        if min(left, top) < first_pixel:
            raise UserError(
                f"{path}: a box begins at pixel {min(left, top):g}, before the first pixel {first_pixel}: use "
                "--first-pixel 0 if the files count from 0"
            )
        if right < left or bottom < top:
            raise UserError(f"{path}: the box {edges} ends before it begins: correct it")
        box = (left - first_pixel, top - first_pixel, right - left + 1, bottom - top + 1)
        is_difficult = (element.findtext("difficult") or "0").strip() not in ("", "0")
        objects.append(VocObject((element.findtext("name") or "").strip(), box, is_difficult))
    return size, objects


@console.command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cdl_jax.data.tools.voc_to_coco", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--voc", type=Path, required=True, help="folder with Annotations, ImageSets and JPEGImages")
    parser.add_argument("--list", required=True, help="train, val, trainval or test: a file of ImageSets/Main")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--name", help="of the part in --out; default: that of the list")
    parser.add_argument("--classes", type=Path, help="text file with one class name a line; default: VOC's 20")
    parser.add_argument("--first-pixel", type=int, choices=(0, 1), default=1, help="number of the first pixel")
    options = parser.parse_args(argv)
    try:
        classes = tuple(_read_text(options.classes).split("\n")) if options.classes else CLASSES
        classes = tuple(name.strip() for name in classes if name.strip())
        content = convert(options.voc, options.list, classes, options.first_pixel)
        name = options.name or options.list
        path = options.out / "annotations" / f"instances_{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, json.dumps(content))
        if not (options.out / name).exists():
            (options.out / name).symlink_to((options.voc / "JPEGImages").resolve(), target_is_directory=True)
        data = coco_files.read_part(options.out, name)
    except (UserError, OSError) as error:
        print(f"voc_to_coco: {error}", file=sys.stderr)
        return 2
    num_difficult = int(data.objects.crowds.sum())
    print(f"{path}: {len(data)} images, {len(data.objects) - num_difficult} objects and {num_difficult} difficult ones")
    return 0


def _image_ids(stems):
    digits = [stem.replace("_", "") for stem in stems]
    if all(re.fullmatch(r"[0-9]{1,18}", text) for text in digits) and len({*map(int, digits)}) == len(digits):
        return [int(text) for text in digits]
    return range(1, len(stems) + 1)


def _find_image(folder, stem):
    for ending in _ENDINGS:
        if (folder / (stem + ending)).is_file():
            return stem + ending
    raise UserError(f"{folder / stem}.jpg: no such file: unpack the set again")


def _number(element, key, path):
    text = element.findtext(key)
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise UserError(f"{path}: {key} must be a number, not {text!r}") from None
    if not abs(number) < 1e6:
        raise UserError(f"{path}: {key} must be a number of pixels, not {text!r}")
    return int(number) if number.is_integer() else number


def _read_text(path):
    try:
        return _read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text in UTF-8 ({error})") from None


def _read_bytes(path):
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: give the folder of one year, such as VOCdevkit/VOC2007") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): allow reading it") from None


if __name__ == "__main__":
    sys.exit(main())
