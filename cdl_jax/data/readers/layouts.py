"""Finds the classes and images of a folder, an archive or a list.

The layouts are those of common data sets. Each layout returns `{part: {class: images}}`. The parts are "train", "test"
and "val"; the part "" has images without a split. Classes are in the order of their labels.
"""

import os
from pathlib import Path

from cdl_jax.data.readers import image_lists, set_lists, tar_files
from cdl_jax.data.readers.image_files import EXTENSIONS, SkippedFiles
from cdl_jax.data.readers.tar_files import image_at, is_file, list_entries
from cdl_jax.errors import UserError

EXPECTED = (
    "expected train/<class>/ beside test/<class>/ or val/<class>/, or <class>/ alone, a list of files and labels, or "
    "the files of Tiny-ImageNet, CUB-200-2011, Food-101 or Stanford Cars; docs/guides/data.md shows the layouts"
)
_ARCHIVES = ("{}.tar", "ILSVRC2012_img_{}.tar")
_LISTS = ("{0}/{0}_annotations.txt", "{0}_annotations.txt", "{0}.csv", "{0}.txt", "LOC_{0}_solution.csv")
_PARTS = ("train", "test", "val")
_NO_CLASSES = {"images", "labels", "masks", "annotations", "bboxes", "boxes"}  # of detection and segmentation data


def find(root: Path, skipped: SkippedFiles) -> image_lists.Parts:
    """Returns the images at a path.

    Args:
      root: a folder, a tar archive, or a list whose name ends in .csv, .tsv or .txt.
      skipped: counts skipped files and folders.

    Raises:
      UserError: the archive or a list is damaged, a listed file is missing, or a label is unknown; or an archive has
        no images of classes.
    """
    if image_lists.is_list(root):
        return image_lists.read_list(root)
    if root.is_dir():
        return _read_folder(root, skipped)
    tree = tar_files.read_tree(root, skipped)
    parts = _read_folder(_top_of(tree, skipped), skipped)
    _check_archive(parts, tree)
    return parts


def _read_folder(root, skipped) -> image_lists.Parts:
    """Returns the images of a folder on disk or in an archive."""
    folders, images = list_entries(root, SkippedFiles())
    if all(is_file(root / name) for name in image_lists.CUB):
        return image_lists.read_cub(root)
    if all(is_file(root / name) for name in set_lists.FOOD):
        return set_lists.read_food(root)
    if isinstance(root, Path) and (root / set_lists.CARS).is_file():
        return set_lists.read_cars(root)
    parts: image_lists.Parts = {}
    skipped_of_parts = SkippedFiles()
    for part in _PARTS:
        archives = [root / name.format(part) for name in _ARCHIVES if is_file(root / name.format(part))]
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
    folders, images = list_entries(folder, SkippedFiles())
    return not images and any(list_entries(folder / name, SkippedFiles())[1] for name in folders if name != "images")


def _top_of(tree, skipped):
    """Returns the folder of an archive that has the layout.

    The folders above it are left out: each has no other folder, and its images are skipped.

    Raises:
      UserError: a folder may be a class or the top.
    """
    while True:
        folders, _ = list_entries(tree, SkippedFiles())
        if len(folders) != 1 or folders[0] in _PARTS or is_file(tree / image_lists.CUB[0]):
            return tree
        inner = tree / folders[0]
        names, images = list_entries(inner, SkippedFiles())
        is_top = any(name in _PARTS for name in names) or is_file(inner / image_lists.CUB[0])
        with_images = [name for name in names if list_entries(inner / name, SkippedFiles())[1]]
        if not is_top:
            if images and with_images:
                raise UserError(
                    f"{tree.archive}: {inner.name}/ has images, and so has {inner.name}/{with_images[0]}/, so one of "
                    "them may be the class: pack one folder per class, with images in these folders alone"
                )
            if images or not names or with_images == ["images"] == names:
                return tree
        for name in list_entries(tree, skipped)[1]:
            skipped.add("outside of class folders", str(tree / name))
        tree = inner


def _read_archive_of(part, path, root, known, skipped):
    """Returns the classes of an archive that has the images of one part.

    Raises:
      UserError: the archive has no images of classes, or those of another part.
    """
    tree = tar_files.read_tree(path, skipped)
    top = _top_of(tree, skipped)
    folders, images = list_entries(top, SkippedFiles())
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
        folders, _ = list_entries(tree, SkippedFiles())
        raise UserError(
            f"{tree.archive}: no images ({', '.join(EXTENSIONS)}) in class folders, {_count_images(tree):,} outside of "
            f"them: pack one folder per class; it contains {_summarize(folders, 'folders')}: "
            f"{_rename_hint(folders) or EXPECTED}"
        )


def _count_images(tree) -> int:
    count, folders = 0, [tree]
    while folders:
        folder = folders.pop()
        names, images = list_entries(folder, SkippedFiles())
        count += len(images)
        folders += [folder / name for name in names]
    return count


def _rename_hint(names) -> str:
    """Returns which folders to rename to train, test or val.

    The text is empty if no folder has a name like these.
    """
    others = [name for name in names if name not in _PARTS and name.lower() in image_lists.SPLITS]
    return ", ".join(f"rename {name}/ to {image_lists.SPLITS[name.lower()]}/" for name in others)


def describe(root: Path) -> str:
    """Describes a folder of unknown layout, and a better path, for the message."""
    folders, images = list_entries(root, SkippedFiles())
    others = sorted(entry.name for entry in root.iterdir() if entry.name not in {*folders, *images})

    content = ", ".join(
        (_summarize(folders, "folders"), _summarize(images, "images"), _summarize(others, "other files"))
    )
    inside = [
        name for name in folders if os.path.isdir(root / name / "train") or is_file(root / name / image_lists.CUB[0])
    ]
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
    lists = [root / name.format(part) for name in _LISTS if is_file(root / name.format(part))]
    folders, images = list_entries(folder, SkippedFiles())
    flat = folders == ["images"] and "images" not in known or not folders
    if flat and lists:
        return image_lists.read_part_list(lists[0], folder, known, skipped)
    if flat and part != "train":
        for name in folders or images:
            skipped.add(f"without labels in {part}/", str(folder / name))
        return {}
    return _read_class_folders(folder, skipped)


def _read_class_folders(folder, skipped, names=None):
    """Returns the images of each class folder.

    Those of Tiny-ImageNet are in `<class>/images/`.

    names: of the class folders; None: all folders.

    Raises:
      UserError: the folders are those of detection or segmentation data.
    """
    classes, images = list_entries(folder, skipped)
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
        folders, images = list_entries(class_folder, skipped)
        if not images and "images" in folders:
            folders.remove("images")
            class_folder = class_folder / "images"
            nested, images = list_entries(class_folder, skipped)
            folders += [f"images/{inner}" for inner in nested]
        for inner in folders:
            skipped.add("folders within a class", str(folder / name / inner))
        images_of[name] = [image_at(class_folder / image) for image in images]
    return images_of
