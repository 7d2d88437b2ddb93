"""Finds the classes and the images of a folder, an archive or a list, in the layouts that the field uses.

Each layout gives `{part: {class: images}}`. The parts are "train", "test" and "val"; the part "" stands for images
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
from cdl_jax.data.readers.image_files import LeftOut, entries
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


def find(root: Path, left_out: LeftOut) -> Parts:
    """Returns the images at a path.

    Args:
      root: a folder, a tar archive, or a list whose name ends in .csv, .tsv or .txt.
      left_out: counts what is left out.

    Raises:
      UserError: the archive or a list is damaged, a listed file is missing, or a label is unknown.
    """
    if root.is_file():
        return of_list(root) if root.suffix.lower() in (".csv", ".tsv", ".txt") else tar_files.classes(root)
    if all((root / name).is_file() for name in _CUB):
        return of_cub(root)
    found: Parts = {}
    for part in ("train", "test", "val"):
        archives = [root / name.format(part) for name in _ARCHIVES if (root / name.format(part)).is_file()]
        if (root / part).is_dir():
            classes = _part(root, part, found.get("train", {}), left_out)
            if classes or part == "train":
                found[part] = classes
        elif archives:
            inside = tar_files.classes(archives[0])
            found[part] = inside.get(part) or inside.get("") or next(iter(inside.values()))
    return found if "train" in found else {"": _classes(root, left_out)}


def described(root: Path) -> str:
    """Returns what a folder holds, and which path to name instead, for the message about an unknown layout."""
    folders, images = entries(root, LeftOut())
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in {*folders, *images})

    def some(names, what):
        return f"{len(names):,} {what}" + f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" * bool(names)

    holds = ", ".join((some(folders, "folders"), some(images, "images"), some(others, "other files")))
    inside = [name for name in folders if (root / name / "train").is_dir() or (root / name / _CUB[0]).is_file()]
    lists = [name for name in others if name.lower().endswith((".csv", ".tsv"))]
    better = [*inside, *lists]
    return f"holds {holds}" + (f": set data.path to {root / better[0]}" if better else f"; {EXPECTED}")


def _part(root, part, known, left_out):
    """Returns the classes of `train/`, `test/` or `val/`; none where images have no labels.

    known: the classes of the training part, which the numbers of a list refer to.
    """
    folder = root / part
    lists = [root / name.format(part) for name in _LISTS if (root / name.format(part)).is_file()]
    folders, images = entries(folder, LeftOut())
    flat = folders == ["images"] and "images" not in known or not folders
    if flat and lists:
        return _of_part_list(lists[0], folder, known, left_out)
    if flat and part != "train":
        for name in folders or images:
            left_out.add(f"without labels in {part}/", str(folder / name))
        return {}
    return _classes(folder, left_out)


def _classes(folder, left_out):
    """Returns the images of each class folder; those of Tiny-ImageNet are in `<class>/images/`."""
    classes, images = entries(folder, left_out)
    for name in images:
        left_out.add("outside of class folders", str(folder / name))
    found = {}
    for name in classes:
        own = folder / name
        folders, images = entries(own, left_out)
        if not images and "images" in folders:
            folders.remove("images")
            own = own / "images"
            within, images = entries(own, left_out)
            folders += [f"images/{inner}" for inner in within]
        for inner in folders:
            left_out.add("folders within a class", str(folder / name / inner))
        found[name] = [str(own / image) for image in images]
    return found


def of_cub(root: Path) -> Parts:
    """Returns the images of CUB-200-2011 by its lists: file, class and split of each image number.

    Raises:
      UserError: the lists disagree, or files are missing.
    """
    files, labels, splits = (dict(_pairs(root / name)) for name in _CUB)
    names = dict(_pairs(root / "classes.txt")) if (root / "classes.txt").is_file() else {}
    if not files or not files.keys() == labels.keys() == splits.keys() or {*splits.values()} - {"0", "1"}:
        raise UserError(f"{root}: {', '.join(_CUB)} do not list the same images: unpack CUB_200_2011.tgz again")
    found: Parts = {"train": {}, "test": {}}
    for number in sorted(labels, key=lambda key: _in_order(labels[key])):
        name = names.get(labels[number]) or files[number].split("/")[0]
        for part in found.values():
            part.setdefault(name, [])
        found["train" if splits[number] == "1" else "test"][name].append(str(root / "images" / files[number]))
    _check_files((file for part in found.values() for files in part.values() for file in files), root)
    return found


def of_list(path: Path) -> Parts:
    """Returns the images of a CSV with the columns file, label and, optionally, split (train, test or val).

    A first line with the names of columns may give them another order. Files are relative to the list. The delimiter
    is a comma, a semicolon or a tab. Labels that are all whole numbers are in the order of numbers.

    Raises:
      UserError: the list has no such columns, a file is missing or listed twice, or a split is unknown.
    """
    rows, columns = _table(path)
    found: Parts = {}
    seen: dict[str, int] = {}
    for line, row in rows:
        file, label, split = (row[at] if at is not None and at < len(row) else "" for at in columns)
        label, split = label.strip(), split.strip()
        part = _SPLITS.get(split.lower()) if columns[2] is not None else ""
        if not file or not label:
            raise UserError(f"{path}, line {line}: a file or its label is missing")
        if part is None:
            raise UserError(f"{path}, line {line}: the split {split!r} is not one of train, test, val")
        place = str(path.parent / file)
        if place in seen:
            raise UserError(f"{path}, line {line}: {file} is listed in line {seen[place]} too; list each file once")
        seen[place] = line
        found.setdefault(part, {}).setdefault(label, []).append(place)
    _check_files(seen, path)
    return {part: {label: classes[label] for label in _sorted(classes)} for part, classes in found.items()}


def _of_part_list(path, folder, known, left_out):
    """Returns the classes of a folder without class folders, by a list of `file label`.

    Labels are names of training classes, or their positions in sorted order from 0.
    """
    rows, (file_at, label_at, _) = _table(path)
    places = {}
    for inner in (folder / "images", folder):
        if inner.is_dir():
            for name in entries(inner, LeftOut())[1]:
                places[name] = places[name.rsplit(".", 1)[0]] = str(inner / name)
    listed = {}
    for line, row in rows:
        if len(row) <= max(file_at, label_at):
            raise UserError(f"{path}, line {line}: expected a file and a label")
        name, label = row[file_at].split("/")[-1], row[label_at]
        label = label if label in known else (label.split() or [""])[0]  # Kaggle adds boxes behind the class
        if name not in places:
            raise UserError(f"{path}, line {line}: {name} is not in {folder}")
        listed[places[name]] = label
    for place in sorted({*places.values()} - listed.keys()):
        left_out.add(f"missing in {path.name}", place)
    labels = {*listed.values()}
    if known and not labels & known.keys():
        names = sorted(known)
        numbers = all(re.fullmatch(r"\d{1,9}", label) and int(label) < len(names) for label in labels)
        if not numbers or "0" not in labels:
            raise UserError(
                f"{path}: the label {min(labels)!r} is not a class of {folder.parent / 'train'}, and the labels are "
                f"not positions from 0 to {len(names) - 1}: write names of classes"
            )
        listed = {place: names[int(label)] for place, label in listed.items()}
    found: dict[str, list[str]] = {}
    for place in sorted(listed):
        found.setdefault(listed[place], []).append(place)
    return {label: found[label] for label in _sorted(found)}


def _table(path):
    """Returns the rows of a list with their line numbers, and the columns of file, label and split.

    The split column is None where there is none. Text files without commas or tabs have a space before the label.
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
    named = [next((at for at, cell in enumerate(header) if cell in words), None) for words in _COLUMNS.values()]
    if named[0] is not None and named[1] is not None:
        return rows[1:], named
    split = rows[0][1][2].strip().lower() if len(rows[0][1]) > 2 else ""
    return rows, [0, 1, 2 if split in _SPLITS else None]


def _pairs(path) -> list[list[str]]:
    """Returns the number and the rest of each line of one of CUB's lists."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    rows = [line.strip().split(" ", 1) for line in text.splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise UserError(f"{path}: expected two columns in each line")
    return rows


def _in_order(label):
    """Returns a key by which numbers come in their order, before text."""
    return (0, int(label), label) if re.fullmatch(r"\d{1,9}", label) else (1, 0, label)


def _sorted(labels: Iterable[str]) -> list[str]:
    return sorted(labels, key=_in_order if all(label.isdecimal() for label in labels) else None)


def _check_files(files, where):
    missing = [file for file in files if not os.path.isfile(file)]
    if missing:
        raise UserError(f"{where}: {len(missing):,} of the listed files are missing, first {missing[0]}")
