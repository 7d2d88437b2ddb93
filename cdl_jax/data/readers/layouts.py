"""Finds the classes and images of a folder, an archive or a list, in the layouts of common data sets.

Each layout returns `{part: {class: images}}`. The parts are "train", "test" and "val"; the part "" has images
without a split. Classes are in the order of their labels.
"""

import csv
import io
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdl_jax.data.readers import tar_files
from cdl_jax.data.readers.image_files import EXTENSIONS, SkippedFiles, list_entries
from cdl_jax.data.readers.tar_files import ArchivePath
from cdl_jax.errors import UserError
from cdl_jax.runtime.console import one_line

Parts = dict[str, dict[str, list[Any]]]

EXPECTED = (
    "expected train/<class>/ beside test/<class>/ or val/<class>/, or <class>/ alone, a list of files and labels, or "
    "the files of Tiny-ImageNet or CUB-200-2011; docs/guides/data.md shows the layouts"
)
_ARCHIVES = ("{}.tar", "ILSVRC2012_img_{}.tar")
_LISTS = ("{0}/{0}_annotations.txt", "{0}_annotations.txt", "{0}.csv", "{0}.txt", "LOC_{0}_solution.csv")
_CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
_PARTS = ("train", "test", "val")
_NUMBER = re.compile(r"-?\d+(\.\d*)?")
_NO_CLASSES = {"images", "labels", "masks", "annotations", "bboxes", "boxes"}  # of detection and segmentation data
_COLUMNS = {
    "file": ("file", "filename", "file_name", "filepath", "path", "image", "imageid", "image_id", "id"),
    "label": ("label", "class", "class_name", "category", "target", "predictionstring"),
    "split": ("split", "set", "part", "subset"),
}
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
_SPLIT_WORDS = {*_SPLITS, "dev", "eval", "evaluation", "holdout", "publictest", "privatetest"}


def find(root: Path, skipped: SkippedFiles) -> Parts:
    """Returns the images at a path.

    Args:
      root: a folder, a tar archive, or a list whose name ends in .csv, .tsv or .txt.
      skipped: counts skipped files and folders.

    Raises:
      UserError: the archive or a list is damaged, a listed file is missing, or a label is unknown; or an archive has
        no images of classes.
    """
    if is_list(root):
        return read_list(root)
    if root.is_dir():
        return _read_folder(root, skipped)
    tree = tar_files.read_tree(root, skipped)
    parts = _read_folder(_top_of(tree, skipped), skipped)
    _check_archive(parts, tree)
    return parts


def is_list(path: Path) -> bool:
    """Tests for a list of files and labels, by the ending of its name."""
    return path.suffix.lower() in (".csv", ".tsv", ".txt") and not path.is_dir()


def _read_folder(root, skipped) -> Parts:
    """Returns the images of a folder on disk or in an archive."""
    folders, images = _list_entries(root, SkippedFiles())
    if all(_is_file(root / name) for name in _CUB):
        return read_cub(root)
    parts: Parts = {}
    skipped_of_parts = SkippedFiles()
    for part in _PARTS:
        archives = [root / name.format(part) for name in _ARCHIVES if _is_file(root / name.format(part))]
        if part in folders:
            classes = _read_part(root / part, root, part, parts.get("train", {}), skipped_of_parts)
            if classes or part == "train":
                parts[part] = classes
        elif archives and isinstance(root, Path):
            parts[part] = _read_archive_of(part, archives[0], root, parts.get("train", {}), skipped_of_parts)
    beside = [name for name in folders if name not in _PARTS]
    if "train" in parts:
        if len(parts) == 1 and (hint := _rename_hint(beside)):
            raise UserError(f"{root}: has train/ but neither test/ nor val/: {hint}")
        skipped.merge(skipped_of_parts)
        for name in beside:
            skipped.add("folders beside train/", str(root / name))
        for name in images:
            skipped.add("outside of class folders", str(root / name))
        return parts
    tests = [name for name in _PARTS[1:] if name in folders and _has_class_folders(root / name)]
    if not tests:
        return {"": _read_class_folders(root, skipped)}
    # Class folders beside test/ are the training part.
    training = _read_class_folders(root, skipped, [name for name in folders if name not in tests])
    return ({"train": training} if training else {}) | {
        name: _read_part(root / name, root, name, training, skipped) for name in tests
    }


def _has_class_folders(folder) -> bool:
    """Tests whether a folder has no images itself, but folders with images."""
    folders, images = _list_entries(folder, SkippedFiles())
    return not images and any(_list_entries(folder / name, SkippedFiles())[1] for name in folders if name != "images")


def _top_of(tree, skipped):
    """Returns the folder of an archive that has the layout: folders above it that have nothing else are left out.

    Raises:
      UserError: a folder may be a class or the top.
    """
    while True:
        folders, _ = _list_entries(tree, SkippedFiles())
        if len(folders) != 1 or folders[0] in _PARTS or _is_file(tree / _CUB[0]):
            return tree
        inner = tree / folders[0]
        names, images = _list_entries(inner, SkippedFiles())
        is_top = any(name in _PARTS for name in names) or _is_file(inner / _CUB[0])
        with_images = [name for name in names if _list_entries(inner / name, SkippedFiles())[1]]
        if not is_top:
            if images and with_images:
                raise UserError(
                    f"{tree.archive}: {inner.name}/ has images, and so has {inner.name}/{with_images[0]}/, so one of "
                    "them may be the class: pack one folder per class, with images in these folders alone"
                )
            if images or not names or with_images == ["images"] == names:
                return tree
        for name in _list_entries(tree, skipped)[1]:
            skipped.add("outside of class folders", str(tree / name))
        tree = inner


def _read_archive_of(part, path, root, known, skipped):
    """Returns the classes of an archive that has the images of one part.

    Raises:
      UserError: the archive has no images of classes, or those of another part.
    """
    tree = tar_files.read_tree(path, skipped)
    top = _top_of(tree, skipped)
    folders, images = _list_entries(top, SkippedFiles())
    if part in folders:
        classes = _read_part(top / part, top, part, known, skipped)
        for name in folders:
            if name != part:
                skipped.add(f"folders beside {part}/", str(top / name))
        for name in images:
            skipped.add("outside of class folders", str(top / name))
    elif others := [name for name in folders if name in _PARTS]:
        raise UserError(f"{path}: has {others[0]}/ instead of {part}/ or class folders: pack the images of {part}")
    else:
        classes = _read_part(top, root, part, known, skipped)
    _check_archive({part: classes}, tree)
    return classes


def _check_archive(parts, tree):
    """Raises an error if an archive has no images of classes."""
    if {name for classes in parts.values() for name, files in classes.items() if files} <= {"images"}:
        folders, _ = _list_entries(tree, SkippedFiles())
        raise UserError(
            f"{tree.archive}: no images ({', '.join(EXTENSIONS)}) in class folders, {_count_images(tree):,} outside of "
            f"them: pack one folder per class; it contains {_summarize(folders, 'folders')}: "
            f"{_rename_hint(folders) or EXPECTED}"
        )


def _count_images(tree) -> int:
    count, folders = 0, [tree]
    while folders:
        folder = folders.pop()
        names, images = _list_entries(folder, SkippedFiles())
        count += len(images)
        folders += [folder / name for name in names]
    return count


def _rename_hint(names) -> str:
    """Returns which folders to rename to train, test or val; "" if none has a name like these."""
    others = [name for name in names if name not in _PARTS and name.lower() in _SPLITS]
    return ", ".join(f"rename {name}/ to {_SPLITS[name.lower()]}/" for name in others)


def _list_entries(folder, skipped):
    """Returns the names of the folders and of the images in a folder on disk or in an archive."""
    return folder.list_entries(skipped) if isinstance(folder, ArchivePath) else list_entries(folder, skipped)


def _is_file(place) -> bool:
    """Tests for a file on disk or in an archive; a place that cannot be read has none."""
    return place.is_file() if isinstance(place, ArchivePath) else os.path.isfile(place)


def _image_at(place):
    """Returns what the decoder reads: a path, or a member of an archive."""
    return place.entry if isinstance(place, ArchivePath) else str(place)


def describe(root: Path) -> str:
    """Describes a folder of unknown layout, and a better path, for the message."""
    folders, images = list_entries(root, SkippedFiles())
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in {*folders, *images})

    content = ", ".join(
        (_summarize(folders, "folders"), _summarize(images, "images"), _summarize(others, "other files"))
    )
    inside = [name for name in folders if os.path.isdir(root / name / "train") or _is_file(root / name / _CUB[0])]
    lists = [name for name in others if name.lower().endswith((".csv", ".tsv"))]
    better = [*inside, *lists]
    return f"contains {content}" + (
        f": set data.path to {root / better[0]}" if better else f"; {_rename_hint(folders) or EXPECTED}"
    )


def _summarize(names, what):
    return f"{len(names):,} {what}" + f" ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" * bool(names)


def _read_part(folder, root, part, known, skipped):
    """Returns the classes of `train/`, `test/` or `val/`; {} if images have no labels.

    root: folder of the lists.
    known: classes of the training part, to which the numbers of a list refer.
    """
    lists = [root / name.format(part) for name in _LISTS if _is_file(root / name.format(part))]
    folders, images = _list_entries(folder, SkippedFiles())
    flat = folders == ["images"] and "images" not in known or not folders
    if flat and lists:
        return _read_part_list(lists[0], folder, known, skipped)
    if flat and part != "train":
        for name in folders or images:
            skipped.add(f"without labels in {part}/", str(folder / name))
        return {}
    return _read_class_folders(folder, skipped)


def _read_class_folders(folder, skipped, names=None):
    """Returns the images of each class folder; those of Tiny-ImageNet are in `<class>/images/`.

    names: of the class folders; None: all folders.

    Raises:
      UserError: the folders are those of detection or segmentation data.
    """
    classes, images = _list_entries(folder, skipped)
    classes = classes if names is None else names
    if "images" in classes and len(classes) > 1 and {name.lower() for name in classes} <= _NO_CLASSES:
        raise UserError(
            f"{folder}: has the folders {', '.join(classes)}, which are no classes: move the images into one folder "
            "per class, or write a list of files and labels"
        )
    for name in images:
        skipped.add("outside of class folders", str(folder / name))
    images_of = {}
    for name in classes:
        class_folder = folder / name
        folders, images = _list_entries(class_folder, skipped)
        if not images and "images" in folders:
            folders.remove("images")
            class_folder = class_folder / "images"
            nested, images = _list_entries(class_folder, skipped)
            folders += [f"images/{inner}" for inner in nested]
        for inner in folders:
            skipped.add("folders within a class", str(folder / name / inner))
        images_of[name] = [_image_at(class_folder / image) for image in images]
    return images_of


def read_cub(root: Path) -> Parts:
    """Returns the images of CUB-200-2011 by its lists of files, classes and splits.

    Raises:
      UserError: the lists disagree, name a class or a file twice, or files are missing.
    """
    files, labels, splits = (_read_pairs(root / name) for name in _CUB)
    names = _read_pairs(root / "classes.txt") if _is_file(root / "classes.txt") else {}
    if not files or not files.keys() == labels.keys() == splits.keys() or {*splits.values()} - {"0", "1"}:
        raise UserError(f"{root}: {', '.join(_CUB)} do not list the same images: unpack CUB_200_2011.tgz again")
    if len({*files.values()}) < len(files):
        raise UserError(f"{root / _CUB[0]}: lists a file twice: unpack CUB_200_2011.tgz again")
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
    _check_files((file for part in parts.values() for files in part.values() for file in files), root)
    return {
        part: {name: [_image_at(file) for file in files] for name, files in classes.items()}
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
    labels = {label.lower() for classes in parts.values() for label in classes}
    if labels and labels <= _SPLITS.keys():
        raise UserError(
            f"{path}: all labels are splits ({', '.join(sorted(labels))}): write lines of file,label,split, or "
            "name the columns in the first line"
        )
    _check_files(line_of, path)
    return {part: {label: classes[label] for label in _sort_labels(classes)} for part, classes in parts.items()}


def _find_split_column(path, rows, columns, header) -> int | None:
    """Returns the column of the split, None if there is none; logs the names of unused columns.

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
    flags = [n for n in others if n < len(header) and header[n].removeprefix("is_") in _SPLITS and n not in with_splits]
    if columns[2] is None and flags:
        raise UserError(
            f"{path}: the column {names[flags[0]]} is no split: write a column split with train, test or val, or "
            "remove it"
        )
    of_splits_alone = [number for number in with_splits if cells[number] - {""} <= _SPLIT_WORDS]
    found = [columns[2], *of_splits_alone] if columns[2] is not None else of_splits_alone or with_splits
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


def _read_part_list(path, folder, known, skipped):
    """Returns the classes of a folder without class folders, by a list of `file label`.

    Labels are names of training classes, or their positions in sorted order from 0.

    Raises:
      UserError: an image is listed with two labels or missing, a name has two files, or a label is unknown.
    """
    rows, (file_column, label_column, _), _ = _read_table(path)
    full_paths: dict[str, Any] = {}
    paths_of: dict[str, set[str]] = {}  # of a file name, with and without its ending
    for inner in (folder / "images", folder):
        if inner.is_dir():
            for name in _list_entries(inner, SkippedFiles())[1]:
                full_paths[str(inner / name)] = _image_at(inner / name)
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
    """Returns the class of Kaggle's `class x y x y class x y x y`, and other labels without blanks at their ends."""
    words = label.split()
    numbers = [word for position, word in enumerate(words) if position % 5]
    is_boxes = len(words) % 5 == 0 and {*words[::5]} == {*words[:1]}
    return words[0] if words and is_boxes and all(map(_NUMBER.fullmatch, numbers)) else label.strip()


def _read_table(path):
    """Returns the rows of a list with line numbers, the columns of file, label and split, and the names of columns.

    The split column is None if no name is that of a split. The names are empty if the first line has none. Text files
    without commas or tabs have a space before the label.
    """
    text = _read_text(path)
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


def _read_text(path) -> str:
    try:
        content = path.entry.read() if isinstance(path, ArchivePath) else path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is UTF-16 text: save it as UTF-8")
    return content.decode("utf-8-sig", errors="surrogateescape")


def _read_pairs(path) -> dict[str, str]:
    """Returns the rest of each line of one of CUB's lists by its number."""
    rows = [line.strip().split(" ", 1) for line in _read_text(path).splitlines() if line.strip()]
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


def _check_files(files, where):
    missing = [
        file for file in files if not (file.is_file() if isinstance(file, ArchivePath) else os.path.isfile(file))
    ]
    if missing:
        raise UserError(f"{where}: {len(missing):,} of the listed files are missing, first {missing[0]}")
