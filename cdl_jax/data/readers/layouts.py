"""Finds the classes and images of a folder, an archive or a list, in the layouts of common data sets.

Each layout returns `{part: {class: images}}`. The parts are "train", "test" and "val"; the part "" has images
without a split. Classes are in the order of their labels.
"""

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdl_jax.data.readers import tar_files
from cdl_jax.data.readers.image_files import SkippedFiles, list_entries
from cdl_jax.errors import UserError

Parts = dict[str, dict[str, list[Any]]]

EXPECTED = (
    "expected train/<class>/ beside test/<class>/ or val/<class>/, or <class>/ alone, a list of files and labels, or "
    "the files of Tiny-ImageNet or CUB-200-2011; docs/guides/data.md shows the layouts"
)
_ARCHIVES = ("{}.tar", "ILSVRC2012_img_{}.tar")
_LISTS = ("{0}/{0}_annotations.txt", "{0}_annotations.txt", "{0}.csv", "{0}.txt", "LOC_{0}_solution.csv")
_CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
_COLUMNS = {
    "file": ("file", "filename", "file_name", "filepath", "path", "image", "imageid", "image_id", "id"),
    "label": ("label", "class", "class_name", "category", "target", "predictionstring"),
    "split": ("split", "set", "part", "subset"),
}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)


def find(root: Path, skipped: SkippedFiles) -> Parts:
    """Returns the images at a path.

    Args:
      root: a folder, a tar archive, or a list whose name ends in .csv, .tsv or .txt.
      skipped: counts skipped files and folders.

    Raises:
      UserError: the archive or a list is damaged, a listed file is missing, or a label is unknown.
    """
    if root.is_file():
        return read_list(root) if root.suffix.lower() in (".csv", ".tsv", ".txt") else tar_files.images_by_class(root)
    if all((root / name).is_file() for name in _CUB):
        return read_cub(root)
    parts: Parts = {}
    for part in ("train", "test", "val"):
        archives = [root / name.format(part) for name in _ARCHIVES if (root / name.format(part)).is_file()]
        if (root / part).is_dir():
            classes = _read_part(root, part, parts.get("train", {}), skipped)
            if classes or part == "train":
                parts[part] = classes
        elif archives:
            archive_parts = tar_files.images_by_class(archives[0])
            parts[part] = archive_parts.get(part) or archive_parts.get("") or next(iter(archive_parts.values()))
    return parts if "train" in parts else {"": _read_class_folders(root, skipped)}


def describe(root: Path) -> str:
    """Describes a folder of unknown layout, and a better path, for the message."""
    folders, images = list_entries(root, SkippedFiles())
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in {*folders, *images})

    def summarize(names, what):
        return f"{len(names):,} {what}" + f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" * bool(names)

    content = ", ".join((summarize(folders, "folders"), summarize(images, "images"), summarize(others, "other files")))
    inside = [name for name in folders if (root / name / "train").is_dir() or (root / name / _CUB[0]).is_file()]
    lists = [name for name in others if name.lower().endswith((".csv", ".tsv"))]
    better = [*inside, *lists]
    return f"contains {content}" + (f": set data.path to {root / better[0]}" if better else f"; {EXPECTED}")


def _read_part(root, part, known, skipped):
    """Returns the classes of `train/`, `test/` or `val/`; {} if images have no labels.

    known: classes of the training part, to which the numbers of a list refer.
    """
    folder = root / part
    lists = [root / name.format(part) for name in _LISTS if (root / name.format(part)).is_file()]
    folders, images = list_entries(folder, SkippedFiles())
    flat = folders == ["images"] and "images" not in known or not folders
    if flat and lists:
        return _read_part_list(lists[0], folder, known, skipped)
    if flat and part != "train":
        for name in folders or images:
            skipped.add(f"without labels in {part}/", str(folder / name))
        return {}
    return _read_class_folders(folder, skipped)


def _read_class_folders(folder, skipped):
    """Returns the images of each class folder; those of Tiny-ImageNet are in `<class>/images/`."""
    classes, images = list_entries(folder, skipped)
    for name in images:
        skipped.add("outside of class folders", str(folder / name))
    images_of = {}
    for name in classes:
        class_folder = folder / name
        folders, images = list_entries(class_folder, skipped)
        if not images and "images" in folders:
            folders.remove("images")
            class_folder = class_folder / "images"
            nested, images = list_entries(class_folder, skipped)
            folders += [f"images/{inner}" for inner in nested]
        for inner in folders:
            skipped.add("folders within a class", str(folder / name / inner))
        images_of[name] = [str(class_folder / image) for image in images]
    return images_of


def read_cub(root: Path) -> Parts:
    """Returns the images of CUB-200-2011 by its lists of files, classes and splits.

    Raises:
      UserError: the lists disagree, or files are missing.
    """
    files, labels, splits = (dict(_read_pairs(root / name)) for name in _CUB)
    names = dict(_read_pairs(root / "classes.txt")) if (root / "classes.txt").is_file() else {}
    if not files or not files.keys() == labels.keys() == splits.keys() or {*splits.values()} - {"0", "1"}:
        raise UserError(f"{root}: {', '.join(_CUB)} do not list the same images: unpack CUB_200_2011.tgz again")
    parts: Parts = {"train": {}, "test": {}}
    for number in sorted(labels, key=lambda key: _numeric_key(labels[key])):
        name = names.get(labels[number]) or files[number].split("/")[0]
        for part in parts.values():
            part.setdefault(name, [])
        parts["train" if splits[number] == "1" else "test"][name].append(str(root / "images" / files[number]))
    _check_files((file for part in parts.values() for files in part.values() for file in files), root)
    return parts


def read_list(path: Path) -> Parts:
    """Returns the images of a CSV with the columns file, label and, optionally, split.

    A split is train, test or val. A first line with the names of columns may change their order. Files are relative to
    the list. The delimiter is a comma, a semicolon or a tab. If all labels are whole numbers, classes are in numeric
    order.

    Raises:
      UserError: the list has no such columns, a file is missing or listed twice, or a split is unknown.
    """
    rows, columns = _read_table(path)
    parts: Parts = {}
    line_of: dict[str, int] = {}
    for line, row in rows:
        file, label, split = (row[i] if i is not None and i < len(row) else "" for i in columns)
        label, split = label.strip(), split.strip()
        part = _SPLITS.get(split.lower()) if columns[2] is not None else ""
        if not file or not label:
            raise UserError(f"{path}, line {line}: a file or its label is missing")
        if part is None:
            raise UserError(f"{path}, line {line}: the split {split!r} is not one of train, test, val")
        full_path = str(path.parent / file)
        if full_path in line_of:
            raise UserError(
                f"{path}, line {line}: {file} is listed in line {line_of[full_path]} too; list each file once"
            )
        line_of[full_path] = line
        parts.setdefault(part, {}).setdefault(label, []).append(full_path)
    _check_files(line_of, path)
    return {part: {label: classes[label] for label in _sort_labels(classes)} for part, classes in parts.items()}


def _read_part_list(path, folder, known, skipped):
    """Returns the classes of a folder without class folders, by a list of `file label`.

    Labels are names of training classes, or their positions in sorted order from 0.
    """
    rows, (file_column, label_column, _) = _read_table(path)
    full_paths = {}
    for inner in (folder / "images", folder):
        if inner.is_dir():
            for name in list_entries(inner, SkippedFiles())[1]:
                full_paths[name] = full_paths[name.rsplit(".", 1)[0]] = str(inner / name)
    label_of = {}
    for line, row in rows:
        if len(row) <= max(file_column, label_column):
            raise UserError(f"{path}, line {line}: expected a file and a label")
        name, label = row[file_column].split("/")[-1], row[label_column]
        label = label if label in known else (label.split() or [""])[0]  # Kaggle adds boxes after the class
        if name not in full_paths:
            raise UserError(f"{path}, line {line}: {name} is not in {folder}")
        label_of[full_paths[name]] = label
    for image in sorted({*full_paths.values()} - label_of.keys()):
        skipped.add(f"missing in {path.name}", image)
    labels = {*label_of.values()}
    if known and not labels & known.keys():
        names = sorted(known)
        numbers = all(re.fullmatch(r"\d{1,9}", label) and int(label) < len(names) for label in labels)
        if not numbers or "0" not in labels:
            raise UserError(
                f"{path}: the label {min(labels)!r} is not a class of {folder.parent / 'train'}, and the labels are "
                f"not positions from 0 to {len(names) - 1}: write names of classes"
            )
        label_of = {image: names[int(label)] for image, label in label_of.items()}
    images_of: dict[str, list[str]] = {}
    for image in sorted(label_of):
        images_of.setdefault(label_of[image], []).append(image)
    return {label: images_of[label] for label in _sort_labels(images_of)}


def _read_table(path):
    """Returns the rows of a list with their line numbers, and the columns of file, label and split.

    The split column is None if the list has none. Text files without commas or tabs have a space before the label.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            text = file.read()
        first = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=first.count)
        if first.count(delimiter):
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            rows = [(reader.line_num, row) for row in reader if any(row)]
        else:
            lines = enumerate(text.split("\n"), start=1)
            rows = [(number, line.rsplit(None, 1)) for number, line in lines if line.strip()]
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not rows or len(rows[0][1]) < 2:
        raise UserError(f"{path}: expected lines of file,label or file,label,split")
    header = [cell.strip().lower() for cell in rows[0][1]]
    columns = [next((i for i, cell in enumerate(header) if cell in words), None) for words in _COLUMNS.values()]
    if columns[0] is not None and columns[1] is not None:
        return rows[1:], columns
    split = rows[0][1][2].strip().lower() if len(rows[0][1]) > 2 else ""
    return rows, [0, 1, 2 if split in _SPLITS else None]


def _read_pairs(path) -> list[list[str]]:
    """Returns the number and the rest of each line of one of CUB's lists."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    rows = [line.strip().split(" ", 1) for line in text.splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise UserError(f"{path}: expected two columns in each line")
    return rows


def _numeric_key(label):
    """Returns a sort key: numbers by value, before text."""
    return (0, int(label), label) if re.fullmatch(r"\d{1,9}", label) else (1, 0, label)


def _sort_labels(labels: Iterable[str]) -> list[str]:
    return sorted(labels, key=_numeric_key if all(label.isdecimal() for label in labels) else None)


def _check_files(files, where):
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise UserError(f"{where}: {len(missing):,} of the listed files are missing, first {missing[0]}")
