"""Loads published image sets by name, in the layouts of their archives.

A source of a named set is a table of facts: its folder, its number of classes and the split of the field. The images
are read by `layouts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdl_jax.data import stream
from cdl_jax.data.readers import image_files, image_lists, layouts, locate
from cdl_jax.data.readers import parts as class_parts
from cdl_jax.data.stream import Dataset
from cdl_jax.errors import UserError
from cdl_jax.options import Option, change_defaults
from cdl_jax.runtime import paths

_SIZES = ("num_tasks", "base_classes", "increment")


@dataclass(frozen=True)
class NamedSet:
    """A published image set with a folder for each class, or with lists of images.

    name: of the source and the data set.
    title: as the authors write it, for messages.
    folders: names of the folder that is searched.
    num_classes: number of classes.
    increment: classes of each task in the common split, the default of `data.increment`.
    remedy: how to get the data, for messages.
    base_classes: classes of the first task in that split; 0: as many as `increment`.
    images: published numbers of training and test images, to plan a run without data; empty: not known.
    can_fetch: whether `cdl_jax.fetch` has the set.
    has_split: whether the set is delivered with a test set.
    takes_list: whether the classes may be listed in a file, as a part of a larger set.
    """

    name: str
    title: str
    folders: tuple[str, ...]
    num_classes: int
    increment: int
    remedy: str
    base_classes: int = 0
    images: tuple[int, ...] = ()
    can_fetch: bool = False
    has_split: bool = True
    takes_list: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options of the source, with the split of the field as the default."""
        sizes = {key: stream.OPTIONS[key] for key in _SIZES}
        sizes = change_defaults(sizes, num_tasks=0, base_classes=self.base_classes, increment=self.increment)
        class_list = Option("", "text file with the classes of the set, one folder name a line; empty: all folders")
        return {
            **sizes,
            **({} if self.has_split else class_parts.SPLIT_OPTIONS),
            **({"class_list": class_list} if self.takes_list else {}),
        }

    def load(self, options: Mapping[str, Any]) -> Dataset:
        """Loads the images of a folder of any image size.

        Raises:
          UserError: the folder is missing, has another number of classes, or is damaged.
        """
        root = find_folder(options["path"], self.folders, self.name, self.remedy, self.can_fetch)
        skipped = image_files.SkippedFiles()
        parts = layouts.find(root, skipped)
        if options.get("class_list"):
            parts = _select(parts, options["class_list"])
        if self.has_split and parts.get(""):
            raise UserError(
                f"{root}: has class folders without the test set of {self.title}, and another one would give other "
                f"numbers; {self.remedy}, or read the folder by data.name=folder"
            )
        split = {key: option.default for key, option in class_parts.SPLIT_OPTIONS.items()}
        train, test = class_parts.divide(root, parts, split | dict(options), skipped)
        if len(train) != self.num_classes:
            raise UserError(
                f"{root}: has {len(train)} classes, and {self.title} has {self.num_classes}; {self.remedy}, or read "
                "the folder by data.name=folder"
            )
        skipped.log(root)
        return Dataset(
            self.name, tuple(train), *(class_parts.to_split(images, tuple(train)) for images in (train, test))
        )

    def explain_download(self) -> str:
        """Returns how to get the images, for messages."""
        return self.remedy

    def placeholder(self, options: Mapping[str, Any]) -> Dataset:
        """Returns the published sizes without images; only for a set with `images`."""
        return stream.placeholder(self.name, self.num_classes, *self.images)


def find_folder(path: str, names: tuple[str, ...], set_name: str, remedy: str, can_fetch: bool = False) -> Path:
    """Returns the folder of a set.

    It is the user's path, or a folder with one of the names there or in the search paths.

    Args:
      path: `data.path`, or empty.
      names: of the folder.
      set_name: name of the set.
      remedy: what to do if it is missing, for messages.
      can_fetch: whether `cdl_jax.fetch` has the set under its name.

    Raises:
      UserError: there is no such folder.
    """
    root = paths.resolve(path, "data.path") if path else None
    if root and root.is_dir() and not any((root / name).exists() for name in names):
        return root
    return locate.find(path, names, what=set_name, remedy=remedy, fetch_name=set_name if can_fetch else "")


def _select(parts, path):
    """Returns the parts with the classes of a list alone.

    Raises:
      UserError: the list cannot be read, names a class twice, or one that is missing.
    """
    names = image_lists.read_names(path, "data.class_list")
    if len({*names}) < len(names):
        raise UserError(f"data.class_list={path!r}: lists a class twice; list each once")
    for part, classes in parts.items():
        if absent_classes := [name for name in names if name not in classes]:
            raise UserError(
                f"data.class_list={path!r}: {len(absent_classes)} of {len(names)} listed classes are missing in "
                f"{part or 'the folder'}: {class_parts.shorten(absent_classes)}"
            )
    return {part: {name: classes[name] for name in names} for part, classes in parts.items()}
