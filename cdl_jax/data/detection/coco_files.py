"""Reads images with annotated boxes in the layout of COCO.

The layout is a folder of images and a JSON file:

    ROOT/train2017/*.jpg
    ROOT/annotations/instances_train2017.json

All images of the JSON file are read, sorted by id, also those without objects. Labels are the category ids of the file,
which may have gaps. Everything is checked before the first image is decoded, except for the pixels of the images.
"""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdl_jax.data.detection import segmentations
from cdl_jax.data.loaders import usable_cpus
from cdl_jax.errors import UserError
from cdl_jax.runtime import paths
from cdl_jax.runtime.console import short_repr

MAX_CATEGORY = 9_999  # a detector has one output for each number up to the largest category id
_MAX_SIDE = 65_535  # pixels, the limit of JPEG
_MAX_COORDINATE = 1e9  # pixels; NaN and infinity fail the same comparison
_TOLERANCE = 1.0  # pixels; annotation tools round coordinates
_NO_DEFAULT = object()


@dataclass(frozen=True, eq=False)
class Objects:
    """Annotated boxes, sorted by image, and within an image in the order of the file.

    ids: int64 `[m]`, of the annotations.
    rows: int32 `[m]`, position of the image in its set.
    labels: int32 `[m]`, category ids.
    boxes: float64 `[m, 4]`, (x, y, width, height) in pixels, as in the file.
    areas: float64 `[m]`, in pixels; of the segmentation, where the file has one.
    crowds: bool `[m]`, whether the box holds a group of objects (`iscrowd`).
    masks: `[m]` of `segmentations.encode`, empty bytes for an object without a segmentation; None: they were not read.
    """

    ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowds: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls) -> "Objects":
        """Returns no objects."""
        numbers = np.zeros(0, np.int32)
        return cls(numbers.astype(np.int64), numbers, numbers, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))

    def take(self, selection: np.ndarray | slice) -> "Objects":
        """Selects objects by indices, a mask or a slice."""
        columns = (self.ids, self.rows, self.labels, self.boxes, self.areas, self.crowds)
        masks = None if self.masks is None else self.masks[selection]
        return Objects(*(column[selection] for column in columns), masks)


@dataclass(frozen=True, eq=False)
class Targets:
    """The objects of one image from which a detector is trained.

    boxes: float32 `[k, 4]`, (x0, y0, x1, y1) in pixels.
    labels: int32 `[k]`, category ids.
    areas: float32 `[k]`, in pixels.
    masks: `[k]`, of `Objects`, of the image before any transform.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, selection: np.ndarray) -> "Targets":
        """Selects objects by a mask."""
        masks = None if self.masks is None else self.masks[selection]
        return Targets(self.boxes[selection], self.labels[selection], self.areas[selection], masks)


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """Images with annotated boxes.

    name: of the annotation file, for messages.
    categories: category id -> name, in ascending order.
    image_ids: int64 `[n]`, ascending.
    files: n paths.
    sizes: int32 `[n, 2]`, (height, width) in pixels.
    objects: of all images.
    """

    name: str
    categories: Mapping[int, str]
    image_ids: np.ndarray
    files: tuple[str, ...]
    sizes: np.ndarray
    objects: Objects

    def __len__(self) -> int:
        return len(self.files)

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a detector: the largest category id + 1."""
        return max(self.categories) + 1

    @functools.cached_property
    def max_objects(self) -> int:
        """The largest number of targets of an image, at least 1."""
        counts = np.bincount(self.objects.rows[self.trainable], minlength=len(self))
        return max(1, int(counts.max(initial=0)))

    @functools.cached_property
    def trainable(self) -> np.ndarray:
        """Whether each object is a target, bool `[m]`.

        A target is no crowd, and its box has an extent inside of the image.
        """
        corners = clipped_corners(self.objects.boxes, self.sizes[self.objects.rows])
        return ~self.objects.crowds & has_extent(corners)

    def targets(self, row: int) -> Targets:
        """Returns the targets of an image."""
        first, end = self._bounds[row : row + 2]
        objects = self.objects.take(slice(first, end))
        columns = objects.boxes, objects.labels, objects.areas, objects.crowds
        return prepare_targets(*columns, self.sizes[row], objects.masks)

    def select(self, rows: np.ndarray, objects: np.ndarray) -> "DetectionSet":
        """Selects images and objects.

        Args:
          rows: int `[k]`, of the images, ascending.
          objects: bool `[m]`; objects of other images are left out too.
        """
        selected = self.objects.take(objects & np.isin(self.objects.rows, rows))
        selected = replace(selected, rows=np.searchsorted(rows, selected.rows).astype(np.int32))
        files = tuple(self.files[row] for row in rows)
        return replace(self, image_ids=self.image_ids[rows], files=files, sizes=self.sizes[rows], objects=selected)

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        return np.searchsorted(self.objects.rows, np.arange(len(self) + 1))


def prepare_targets(
    boxes: np.ndarray,
    labels: np.ndarray,
    areas: np.ndarray,
    crowds: np.ndarray,
    size: Sequence[int],
    masks: np.ndarray | None = None,
) -> Targets:
    """Returns the targets of an image.

    Boxes are clipped to the image. Crowds, and boxes without an extent in the image, are left out.

    >>> boxes = np.array([[-2.0, 1.0, 5.0, 5.0], [8.0, 0.0, 3.0, 3.0]])
    >>> prepare_targets(boxes, np.array([7, 7]), np.array([25.0, 9.0]), np.zeros(2, bool), (4, 8)).boxes.tolist()
    [[0.0, 1.0, 3.0, 4.0]]

    Args:
      boxes: `[k, 4]`, (x, y, width, height) in pixels.
      labels: `[k]`, category ids.
      areas: `[k]`, in pixels.
      crowds: bool `[k]`.
      size: (height, width) of the image in pixels.
      masks: `[k]`, of `Objects`; default None.
    """
    corners = clipped_corners(boxes, np.asarray(size))
    targets = Targets(corners, labels.astype(np.int32), areas.astype(np.float32), masks)
    return targets.take(~crowds & has_extent(corners))


def clipped_corners(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Converts (x, y, width, height) to corners inside of images.

    Args:
      boxes: `[k, 4]`, in pixels.
      sizes: int, (height, width) of the image in pixels, `[2]`, or `[k, 2]` for boxes of different images.

    Returns:
      float32 `[k, 4]`, (x0, y0, x1, y1) in pixels.
    """
    low, extents = np.split(boxes.astype(np.float32), 2, axis=1)
    limits = sizes[..., ::-1].astype(np.float32)
    return np.concatenate([np.clip(low, 0, limits), np.clip(low + extents, 0, limits)], axis=1)


def has_extent(corners: np.ndarray) -> np.ndarray:
    """Tests boxes `[k, 4]`, (x0, y0, x1, y1), for a positive width and height."""
    return (corners[:, 2:] > corners[:, :2]).all(axis=1)


def read_part(root: str | os.PathLike, part: str, *, check_sizes: bool = True, masks: bool = False) -> DetectionSet:
    """Reads one part of a set in the layout of COCO.

    Args:
      root: folder with `annotations/` and the folders of images.
      part: name of the folder of images, such as "train2017".
      check_sizes, masks: as in `read`.

    Raises:
      UserError: as in `read`.
    """
    root = paths.resolve(root)
    return read(root / "annotations" / f"instances_{part}.json", root / part, check_sizes=check_sizes, masks=masks)


def read(
    annotations: str | os.PathLike, images: str | os.PathLike, *, check_sizes: bool = True, masks: bool = False
) -> DetectionSet:
    """Reads an annotation file and checks it against its images.

    `area` may be missing (width x height then), and `iscrowd` (0 then). Boxes without an extent stay in the set, are no
    targets, and one log line counts them. A box may exceed its image, but must not lie outside of it by more than a
    pixel.

    Args:
      annotations: path of `instances_*.json`.
      images: folder of the images.
      check_sizes: whether to compare the sizes of all image files with the annotations, by their headers. The loader
        also compares the size of each image that it decodes.
      masks: whether to read the segmentations of objects.

    Raises:
      UserError: the file or an image is missing or damaged, a value has a wrong type or range, an id occurs twice, an
        annotation has an unknown image or category, a box lies outside of its image, an image has another size, or a
        segmentation that is read is damaged, or missing for a target.
    """
    path, folder = paths.resolve(annotations, "the annotation file"), paths.resolve(images, "the folder of images")
    content = _read_json(path, masks)
    categories = _categories(_Table.from_content(path, content, "categories", "category"))
    images_table = _Table.from_content(path, content, "images", "image")
    image_ids, files, sizes = _images(images_table, folder)
    table = _Table.from_content(path, content, "annotations", "annotation")
    objects = _objects(table, image_ids, sizes, categories, masks)
    _check_files_exist(files, path, folder)
    result = DetectionSet(path.name, categories, image_ids, files, sizes, objects)
    if check_sizes:
        check_image_sizes(result)
    return result


def check_image_sizes(data: DetectionSet) -> None:
    """Compares the sizes of all image files with the annotations.

    Raises:
      UserError: a file cannot be read, or has another size.
    """

    def check(row):
        check_size(data, row, read_size(data.files[row]))

    with ThreadPoolExecutor(usable_cpus()) as pool:
        for _ in pool.map(check, range(len(data))):
            pass


def check_size(data: DetectionSet, row: int, size: tuple[int, int]) -> None:
    """Compares the (height, width) of an image with the annotations.

    Raises:
      UserError: they differ.
    """
    if tuple(data.sizes[row]) != size:
        height, width = data.sizes[row]
        raise UserError(
            f"{data.files[row]}: has {size[1]} x {size[0]} pixels, but {data.name} has {width} x {height} for image "
            f"{data.image_ids[row]}: its boxes belong to another version of the image; restore that version"
        )


def read_size(file: str) -> tuple[int, int]:
    """Returns the (height, width) of an image file by its header.

    Raises:
      UserError: the file is missing, damaged or too large.
    """
    from cdl_jax.data.readers import decoding

    try:
        return decoding.read_size(file)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: cannot be read as an image ({reason}); replace the file") from None


@dataclass(frozen=True)
class _Table:
    """One list of records of an annotation file.

    path: of the file.
    noun: for one record.
    records: of the file.
    """

    path: Path
    noun: str
    records: list[dict[str, Any]]

    @classmethod
    def from_content(cls, path, content, key, noun):
        records = content.get(key)
        if not isinstance(records, list):
            found = "is missing" if records is None else f"is a {type(records).__name__}"
            raise UserError(f"{path}: {key!r} must be a list, but {found}: use an instances_*.json of COCO's format")
        table = cls(path, noun, records)
        table.refuse(
            [i for i, record in enumerate(records) if not isinstance(record, dict)],
            lambda i: f"must be an object with named values, not {short_repr(records[i])}",
        )
        return table

    def column(self, key, is_valid: Callable[[Any], bool], requirement: str, default=_NO_DEFAULT) -> list[Any]:
        """Returns one value of each record.

        Raises:
          UserError: a value is missing without a default, or invalid.
        """
        values = [record.get(key, default) for record in self.records]
        wrong = [i for i, value in enumerate(values) if value is not default and not is_valid(value)]
        if default is _NO_DEFAULT:
            self.refuse([i for i, value in enumerate(values) if value is default], lambda i: f"{key} is missing")
        self.refuse(wrong, lambda i: f"{key} must be {requirement}, not {short_repr(values[i])}")
        return values

    def ids(self) -> np.ndarray:
        """Returns the ids of the records, int64; they are unique."""
        values = self.column("id", _is_id, "an integer, 0 or more")
        self.check_unique("id", values)
        return np.array(values, np.int64)

    def check_unique(self, key, values) -> None:
        first: dict[Any, int] = {}
        repeated = [i for i, value in enumerate(values) if first.setdefault(value, i) != i]
        self.refuse(repeated, lambda i: f"{key} {short_repr(values[i])} occurs twice; it must be unique")

    def refuse(self, wrong: Sequence[int], problem: Callable[[int], str]) -> None:
        """Raises a UserError about the first of some records."""
        if len(wrong):
            first, more = int(wrong[0]), len(wrong) - 1
            has_id = isinstance(self.records[first], dict) and "id" in self.records[first]
            name = f"id {short_repr(self.records[first]['id'])}" if has_id else f"number {first + 1} of the list"
            rest = f" ({more} more like this)" if more else ""
            raise UserError(f"{self.path}: {self.noun} with {name}: {problem(first)}{rest}")


def _read_json(path, masks):
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=_with_packed_segmentation if masks else _without_segmentation)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of an instances_*.json") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of an instances_*.json") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is damaged or no JSON file ({reason}); download or write it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must have images, annotations and categories, but is a {type(content).__name__}")
    return content


def _without_segmentation(record):
    record.pop("segmentation", None)  # four fifths of the memory
    return record


def _with_packed_segmentation(record):
    if "segmentation" in record:
        record["segmentation"] = segmentations.pack(record["segmentation"])
    return record


def _categories(table):
    ids = table.ids().tolist()
    names = table.column("name", lambda value: isinstance(value, str) and value.strip(), "text")
    if not ids:
        raise UserError(f"{table.path}: has no categories: list them with id and name")
    table.refuse(
        [i for i, number in enumerate(ids) if number > MAX_CATEGORY],
        lambda i: f"the id is above {MAX_CATEGORY}, and a detector has an output for each number: renumber categories",
    )
    return dict(sorted(zip(ids, names, strict=True)))


def _images(table, folder):
    ids = table.ids()
    names = table.column("file_name", lambda value: isinstance(value, str) and value.strip("/. "), "the name of a file")
    table.check_unique("file_name", names)
    sides = [
        table.column(key, lambda value: _is_id(value) and 0 < value <= _MAX_SIDE, f"an integer, 1 to {_MAX_SIDE}")
        for key in ("height", "width")
    ]
    if not len(ids):
        raise UserError(f"{table.path}: has no images: use the annotations of a set with images")
    order = np.argsort(ids)
    return ids[order], tuple(str(folder / names[i]) for i in order), np.array(sides, np.int32).T[order]


def _objects(table, image_ids, sizes, categories, read_masks):
    ids = table.ids()
    numbers = np.array(table.column("image_id", _is_id, "an integer, 0 or more"), np.int64)
    rows = np.searchsorted(image_ids, numbers).clip(max=len(image_ids) - 1)
    table.refuse(np.flatnonzero(image_ids[rows] != numbers), lambda i: f"the file has no image with id {numbers[i]}")
    labels = np.array(table.column("category_id", _is_id, "an integer, 0 or more"), np.int64)
    known = np.isin(labels, list(categories))
    table.refuse(np.flatnonzero(~known), lambda i: f"the file has no category with id {labels[i]}")
    lists = table.column("bbox", _is_box, "4 finite numbers [x, y, width, height], width and height not negative")
    boxes = np.array(lists, np.float64).reshape(-1, 4)
    areas = np.array(table.column("area", _is_extent, "a finite number, 0 or more", None), np.float64)
    areas = np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas)
    crowds = np.array(table.column("iscrowd", lambda value: value in (0, 1), "0 or 1", 0), bool)
    limits = sizes[rows][:, ::-1]
    outside = ((boxes[:, :2] > limits + _TOLERANCE) | (boxes[:, :2] + boxes[:, 2:] < -_TOLERANCE)).any(axis=1)
    table.refuse(
        np.flatnonzero(outside),
        lambda i: (
            f"the box {lists[i]} lies outside of image {numbers[i]} with {limits[i][0]} x {limits[i][1]} pixels; "
            "correct or remove it"
        ),
    )
    are_targets = ~crowds & has_extent(clipped_corners(boxes, sizes[rows]))
    masks = _masks(table, sizes[rows], are_targets) if read_masks else None
    order = np.argsort(rows, kind="stable")
    objects = Objects(ids, rows.astype(np.int32), labels.astype(np.int32), boxes, areas, crowds, masks).take(order)
    _log_unused(table, objects, sizes)
    return objects


def _masks(table, sizes, are_targets):
    """Returns the masks of all records.

    A record without a segmentation has empty bytes; it is no target.
    """
    values = [record.get("segmentation") or b"" for record in table.records]
    is_empty = np.array([not value for value in values], bool)
    table.refuse(
        np.flatnonzero(is_empty & are_targets),
        lambda i: (
            "segmentation is missing, and data.segmentations=True reads that of every object: use annotations with "
            "segmentations, or set data.segmentations and token_label to False"
        ),
    )
    masks = np.full(len(values), b"", object)
    for i in np.flatnonzero(~is_empty):
        try:
            masks[i] = segmentations.encode(values[i], tuple(sizes[i].tolist()))
        except segmentations.DamagedError as error:
            table.refuse([i], lambda _, error=error: f"segmentation {error}; correct or remove it")
    return masks


def _log_unused(table, objects, sizes):
    logger = logging.getLogger("cdl_jax")
    empty = ~has_extent(clipped_corners(objects.boxes, sizes[objects.rows])) & ~objects.crowds
    if empty.any():
        first = objects.ids[empty.argmax()]
        logger.warning("%s: %d boxes without an extent are no targets (first id %d)", table.path, empty.sum(), first)
    ignored = [i for i, record in enumerate(table.records) if record.get("ignore") and not record.get("iscrowd")]
    if ignored:
        logger.warning(
            "%s: %d annotations have 'ignore', which COCO's evaluation does not use; set iscrowd to 1 where objects "
            "must be left out of training and evaluation",
            table.path,
            len(ignored),
        )


def _check_files_exist(files: Iterable[str], path, folder):
    missing, entries = [], {}
    for file in files:
        parent, name = os.path.split(file)
        if parent not in entries:
            entries[parent] = _list_names(parent)
        if name not in entries[parent]:
            missing.append(file)
    if missing:
        raise UserError(
            f"{path}: {len(missing):,} of its images are not in {folder} (first {missing[0]}): give the folder of the "
            "images, or complete it"
        )


def _list_names(folder) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}): allow reading the folder") from None


def _is_id(value) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value) -> bool:
    return type(value) in (int, float) and -_MAX_COORDINATE < value < _MAX_COORDINATE


def _is_extent(value) -> bool:
    return type(value) in (int, float) and 0 <= value < _MAX_COORDINATE**2


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and min(value[2:]) >= 0
