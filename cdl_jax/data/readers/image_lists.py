"""Reads lists of files and labels: CSV, text, CUB-200-2011 and Kaggle.

A list names each file once, and the part of a file where the list has a split.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdl_jax.data.readers.image_files import SkippedFiles
from cdl_jax.data.readers.tar_files import ArchivePath, image_at, is_file, list_entries
from cdl_jax.errors import UserError
from cdl_jax.runtime import paths
from cdl_jax.runtime.console import one_line

# Part -> class -> images, see `layouts`.
Parts = dict[str, dict[str, list[Any]]]

# The lists of CUB-200-2011: files, labels and parts by the number of an image.
CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
_NUMBER = re.compile(r"-?\d+(\.\d*)?")
_COLUMNS = {
    "file": ("file", "filename", "file_name", "filepath", "path", "image", "imageid", "image_id", "id"),
    "label": ("label", "class", "class_name", "category", "target", "predictionstring"),
    "split": ("split", "set", "part", "subset"),
}
# Word of a list -> part.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
_SPLIT_WORDS = {*SPLITS, "dev", "eval", "evaluation", "holdout", "publictest", "privatetest"}


def is_list(path: Path) -> bool:
    """Tests for a list of files and labels, by the ending of its name."""
    return path.suffix.lower() in (".csv", ".tsv", ".txt") and not path.is_dir()


def read_cub(root: Path) -> Parts:
    """Returns the images of CUB-200-2011 by its lists of files, classes and splits.

    Raises:
      UserError: the lists disagree, name a class or a file twice, or files are missing.
    """
    files, labels, splits = (_read_pairs(root / name) for name in CUB)
    names = _read_pairs(root / "classes.txt") if is_file(root / "classes.txt") else {}
    if not files or not files.keys() == labels.keys() == splits.keys() or {*splits.values()} - {"0", "1"}:
        raise UserError(f"{root}: {', '.join(CUB)} do not list the same images: unpack CUB_200_2011.tgz again")
    if len({*files.values()}) < len(files):
        raise UserError(f"{root / CUB[0]}: lists a file twice: unpack CUB_200_2011.tgz again")
    parts: Parts = {"train": {}, "test": {}}
    label_of: dict[str, str] = {}
    for number in sorted(labels, key=lambda key: _numeric_key(labels[key])):
        name = names.get(labels[number]) or files[number].split("/")[0]
        if label_of.setdefault(name, labels[number]) != labels[number]:
            raise UserError(
                f"{root}: the classes {label_of[name]} and {labels[number]} have one name, {name!r}: correct "
                "classes.txt or image_class_labels.txt"
            )
        for part in parts.values():
            part.setdefault(name, [])
        parts["train" if splits[number] == "1" else "test"][name].append(root / "images" / files[number])
    if len(label_of) > len({*labels.values()}):
        raise UserError(f"{root}: one class of image_class_labels.txt has images in two folders: add classes.txt")
    check_files((file for part in parts.values() for files in part.values() for file in files), root)
    return {
        part: {name: [image_at(file) for file in files] for name, files in classes.items()}
        for part, classes in parts.items()
    }


def read_list(path: Path) -> Parts:
    """Returns the images of a CSV with the columns file, label and, optionally, split.

    A split is train, test or val. A first line with the names of columns may change their order. Files are relative to
    the list. The delimiter is a comma, a semicolon or a tab. If all labels are whole numbers, classes are in numeric
    order. Without a column named split, a further column with words of splits is the split. One log line names other
    columns.

    Raises:
      UserError: the list has no such columns, a file is missing or listed twice, a split is unknown, two columns have
        splits, or all labels are words of splits.
    """
    rows, columns, header = _read_table(path)
    if not header and rows and not os.path.isfile(path.parent / rows[0][1][0]):
        first = {cell.strip().lower() for cell in rows[0][1]}
        for column, words in _COLUMNS.items():
            if (
                column in ("file", "label")
                and not first & {*words}
                and first & {*_COLUMNS["label"], *_COLUMNS["split"]}
            ):
                raise UserError(f"{path}, line 1: names of columns without {column}: name that column {column}")
    columns[2] = _find_split_column(path, rows, columns, header)
    parts: Parts = {}
    line_of: dict[str, int] = {}
    for line, row in rows:
        file, label, split = (row[i] if i is not None and i < len(row) else "" for i in columns)
        label, split = label.strip(), split.strip()
        part = SPLITS.get(split.lower()) if columns[2] is not None else ""
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
    labels = {label.lower() for classes in parts.values() for label in classes}
    if labels and labels <= SPLITS.keys():
        raise UserError(
            f"{path}: all labels are splits ({', '.join(sorted(labels))}): write lines of file,label,split, or "
            "name the columns in the first line"
        )
    check_files(line_of, path)
    return {part: {label: classes[label] for label in _sort_labels(classes)} for part, classes in parts.items()}


def _find_split_column(path, rows, columns, header) -> int | None:
    """Returns the column of the split, None if there is none.

    The names of unused columns are logged.

    Raises:
      UserError: two columns have splits, or a column has splits in other words.
    """
    names = {
        number: header[number] if number < len(header) else ""
        for number in range(max((len(row) for _, row in rows), default=0))
    }
    names = {number: f"{name!r}" if name else str(number + 1) for number, name in names.items()}
    others = [number for number in names if number not in columns]
    cells = {number: {row[number].strip().lower() for _, row in rows if number < len(row)} for number in others}
    others = [number for number in others if cells[number] - {""}]
    with_splits = [number for number in others if cells[number] & _SPLIT_WORDS]
    flags = [n for n in others if n < len(header) and header[n].removeprefix("is_") in SPLITS and n not in with_splits]
    if columns[2] is None and flags:
        raise UserError(
            f"{path}: the column {names[flags[0]]} is no split: write a column split with train, test or val, or "
            "remove it"
        )
    split_columns = [number for number in with_splits if cells[number] - {""} <= _SPLIT_WORDS]
    found = [columns[2], *split_columns] if columns[2] is not None else split_columns or with_splits
    if len(found) > 1:
        raise UserError(
            f"{path}: the columns {' and '.join(names[number] for number in found)} both have splits: keep one of them"
        )
    split = next(iter(found), None)
    unused = [names[number] for number in others if number != split]
    if unused:
        line = f"{path}: columns that are not used: {', '.join(unused)}"
        logging.getLogger("cdl_jax").warning("%s", one_line(line))
    return split


def read_part_list(path, folder, known, skipped):
    """Returns the classes of a folder without class folders.

    The classes are read from a list of `file label`. Labels are names of training classes, or their positions in sorted
    order from 0.

    Raises:
      UserError: an image is listed with two labels or missing, a name has two files, or a label is unknown.
    """
    rows, (file_column, label_column, _), _ = _read_table(path)
    full_paths: dict[str, Any] = {}
    paths_of: dict[str, set[str]] = {}  # of a file name, with and without its ending
    for inner in (folder / "images", folder):
        if inner.is_dir():
            for name in list_entries(inner, SkippedFiles())[1]:
                full_paths[str(inner / name)] = image_at(inner / name)
                for key in {name, name.rsplit(".", 1)[0]}:
                    paths_of.setdefault(key, set()).add(str(inner / name))
    label_of: dict[str, str] = {}
    for line, row in rows:
        if len(row) <= max(file_column, label_column):
            raise UserError(f"{path}, line {line}: expected a file and a label")
        name, label = row[file_column].split("/")[-1], row[label_column]
        label = label if label in known else _without_boxes(label)
        if name not in paths_of:
            raise UserError(f"{path}, line {line}: {name} is not in {folder}")
        if len(paths_of[name]) > 1:
            raise UserError(
                f"{path}, line {line}: {name} may be {' or '.join(sorted(paths_of[name]))}: write the full file name, "
                "or remove one of them"
            )
        (place,) = paths_of[name]
        if label_of.setdefault(place, label) != label:
            raise UserError(
                f"{path}, line {line}: {name} has the label {label!r}, and {label_of[place]!r} in an earlier line; "
                "list each file once"
            )
    for image in sorted(full_paths.keys() - label_of.keys()):
        skipped.add(f"missing in {path.name}", image)
    labels = {*label_of.values()}
    if known and not labels & known.keys():
        names = sorted(known)
        numbers = all(re.fullmatch(r"\d{1,9}", label) and int(label) < len(names) for label in labels)
        if not numbers or "0" not in labels:
            raise UserError(
                f"{path}: the label {min(labels)!r} is not a class of the training images, and the labels are "
                f"not positions from 0 to {len(names) - 1}: write names of classes"
            )
        label_of = {image: names[int(label)] for image, label in label_of.items()}
    images_of: dict[str, list[Any]] = {}
    for image in sorted(label_of):
        images_of.setdefault(label_of[image], []).append(full_paths[image])
    return {label: images_of[label] for label in _sort_labels(images_of)}


def _without_boxes(label: str) -> str:
    """Returns the class of a label of Kaggle's form `class x y x y class x y x y`.

    Any other label is returned without blanks at its ends.
    """
    words = label.split()
    numbers = [word for position, word in enumerate(words) if position % 5]
    is_boxes = len(words) % 5 == 0 and {*words[::5]} == {*words[:1]}
    return words[0] if words and is_boxes and all(map(_NUMBER.fullmatch, numbers)) else label.strip()


def _read_table(path):
    """Returns the rows of a list, three column numbers, and the names of columns.

    Rows have line numbers. The column numbers are those of file, label and split. The split column is None if no name
    is that of a split. The names are empty if the first line has none. Text files without commas or tabs have a space
    before the label.
    """
    text = load_text(path)
    try:
        first = text.split("\n", 1)[0]
        delimiter = max(",;\t", key=first.count)
        if first.count(delimiter):
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            rows = [(reader.line_num, row) for row in reader if any(row)]
        else:
            lines = enumerate(text.split("\n"), start=1)
            rows = [(number, line.rsplit(None, 1)) for number, line in lines if line.strip()]
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not rows or len(rows[0][1]) < 2:
        raise UserError(f"{path}: expected lines of file,label or file,label,split")
    header = [cell.strip().lower() for cell in rows[0][1]]
    columns = [next((i for i, cell in enumerate(header) if cell in words), None) for words in _COLUMNS.values()]
    if columns[0] is not None and columns[1] is not None:
        return rows[1:], columns, header
    return rows, [0, 1, None], []


def load_text(path: Path | ArchivePath) -> str:
    """Returns the text of a file on disk or in an archive.

    Raises:
      UserError: the file cannot be read, or is UTF-16.
    """
    try:
        content = path.entry.read() if isinstance(path, ArchivePath) else path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is UTF-16 text: save it as UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")


def read_names(path: str, option: str) -> list[str]:
    """Returns the lines of a text file of the user, without blank ones.

    Args:
      path: as the user writes it.
      option: that names the file, for messages.

    Raises:
      UserError: the file cannot be read.
    """
    resolved = paths.resolve(path, option)
    if not resolved.is_file():
        raise UserError(f"{option}={path!r} is no file: set it to a text file with one name a line")
    return [line.strip() for line in load_text(resolved).splitlines() if line.strip()]


def _read_pairs(path) -> dict[str, str]:
    """Returns the rest of each line of one of CUB's lists by its number."""
    rows = [line.strip().split(" ", 1) for line in load_text(path).splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise UserError(f"{path}: expected two columns in each line")
    pairs = dict(rows)
    if len(pairs) < len(rows):
        raise UserError(f"{path}: has a number twice: unpack CUB_200_2011.tgz again")
    return pairs


def _numeric_key(label):
    """Returns a sort key: numbers by value, before text."""
    return (0, int(label), label) if re.fullmatch(r"\d{1,9}", label) else (1, 0, label)


def _sort_labels(labels: Iterable[str]) -> list[str]:
    return sorted(labels, key=_numeric_key if all(label.isdecimal() for label in labels) else None)


def check_files(files: Iterable[Any], where: Path) -> None:
    """Raises UserError if listed files are missing.

    where: the list or folder, for the message.
    """
    missing = [file for file in files if not is_file(file)]
    if missing:
        raise UserError(f"{where}: {len(missing):,} of the listed files are missing, first {missing[0]}")
