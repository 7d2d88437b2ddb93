"""Loads image sets with a folder for each domain of the same classes.

    ROOT/<domain>/<class>/*.jpg                      the test set is drawn, or `test_domains` have it
    ROOT/<domain>/train/<class>/*.jpg, .../test/...  the test set of the domain
    ROOT/<domain>_train.txt, <domain>_test.txt       lists of DomainNet: "<domain>/<class>/<image> <number>" in a line

A source of a named set is a table of facts about it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdl_jax.data import stream
from cdl_jax.data.readers import image_files, image_lists, layouts, named_sets
from cdl_jax.data.readers import parts as class_parts
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import Option, change_defaults

# Options of every source with domains.
OPTIONS: dict[str, Any] = {
    **change_defaults({key: stream.OPTIONS[key] for key in ("kind", "num_tasks")}, kind="domain", num_tasks=0),
    **class_parts.SPLIT_OPTIONS,
    "missing_classes": Option(
        "refuse", "a class without images in a domain: refuse it, or allow it", choices=("refuse", "allow")
    ),
}


@dataclass(frozen=True)
class DomainSet:
    """An image set with a folder for each domain.

    name: of the source and the data set; empty: the name of the folder.
    folders: names of the folder that is searched.
    remedy: how to get the data, for messages.
    domains: name of each domain -> names that its folder may have; empty: every folder is a domain.
    num_classes: number of classes; 0: any.
    test_domains: those of `domains` whose images are the test set of all domains; empty: each domain has its own.
    images: published numbers of training and test images, to plan a run without data; empty: not known.
    can_fetch: whether `cdl_jax.fetch` has the set.
    has_split: whether the set is delivered with a test set; otherwise it is drawn where there is none.
    """

    name: str
    folders: tuple[str, ...]
    remedy: str
    domains: Mapping[str, tuple[str, ...]]
    num_classes: int = 0
    test_domains: tuple[str, ...] = ()
    images: tuple[int, ...] = ()
    can_fetch: bool = False
    has_split: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options of the source."""
        unused = class_parts.SPLIT_OPTIONS if self.test_domains or self.has_split else ()
        return {key: option for key, option in OPTIONS.items() if key not in unused}

    def load(self, options: Mapping[str, Any]) -> Dataset:
        """Loads the images of all domains, of any image size.

        Classes are in the sorted order of their names, numbers in them by value.

        Raises:
          UserError: the folder or a domain is missing, or a class is missing in a domain.
        """
        name = self.name or "domain_folder"
        root = named_sets.find_folder(options["path"], self.folders, name, self.remedy, self.can_fetch)
        skipped = image_files.SkippedFiles()
        folders = self._find_domains(root)
        if self.test_domains:
            parts = {name: _without_split(folder, skipped) for name, folder in folders.items()}
            parts = {
                name: ({}, images) if name in self.test_domains else (images, {}) for name, images in parts.items()
            }
        else:
            split = {key: option.default for key, option in class_parts.SPLIT_OPTIONS.items()} | dict(options)
            parts = {name: self._read_domain(root, folder, split, skipped) for name, folder in folders.items()}
        classes = sorted({label for splits in parts.values() for images in splits for label in images}, key=_by_number)
        self._check_classes(root, parts, classes, options["missing_classes"])
        skipped.log(root)
        domains = tuple(name for name in folders if name not in self.test_domains)
        train, test = (_join(parts, classes, domains, part) for part in (0, 1))
        return Dataset(self.name or root.resolve().name, tuple(classes), train, test, domains)

    def explain_download(self) -> str:
        """Returns how to get the images, for messages."""
        return self.remedy

    def placeholder(self, options: Mapping[str, Any]) -> Dataset:
        """Returns the published sizes without images, in domains of one size.

        Only for a set with `images`.
        """
        domains = tuple(name for name in self.domains if name not in self.test_domains)
        data = stream.placeholder(self.name, self.num_classes, *self.images)

        def with_domains(split, is_shared):
            domains_of_images = np.arange(len(split), dtype=np.int32) // self.num_classes % len(domains)
            return replace(split, domains=np.full_like(domains_of_images, -1) if is_shared else domains_of_images)

        train, test = with_domains(data.train, False), with_domains(data.test, bool(self.test_domains))
        return replace(data, train=train, test=test, domains=domains)

    def _find_domains(self, root) -> dict[str, Path]:
        present_names = image_files.list_entries(root, image_files.SkippedFiles())[0]
        aliases = self.domains or {name: (name,) for name in present_names}
        folders = {
            name: next((alias for alias in names if alias in present_names), None) for name, names in aliases.items()
        }
        if absent := [name for name, folder in folders.items() if folder is None]:
            raise UserError(
                f"{root}: has no folder of the domain {class_parts.shorten(absent)}; {self.remedy}, or read the "
                "domains there by data.name=domain_folder"
            )
        if len(folders) < 2:
            raise UserError(
                f"{root}: has {len(folders)} folders, and each folder is a domain: set data.path to the folder with "
                "<domain>/<class>/"
            )
        return {name: root / folder for name, folder in folders.items()}

    def _read_domain(self, root, folder, options, skipped) -> tuple[class_parts.Images, class_parts.Images]:
        """Returns the training and the test images of a domain."""
        lists = [root / f"{folder.name}_{part}.txt" for part in ("train", "test")]
        existing = [path for path in lists if path.is_file()]
        if len(existing) == 1:
            (absent,) = {*lists} - {*existing}
            raise UserError(f"{existing[0]}: its counterpart {absent.name} is missing: add it, or remove both lists")
        if existing:
            train, test = (_read_list(path, root) for path in lists)
            return train, test
        parts = layouts.find(folder, skipped)
        if not any(files for classes in parts.values() for files in classes.values()):
            raise UserError(f"{folder}: no images of classes: it {layouts.describe(folder)}")
        if self.has_split and parts.get(""):
            raise UserError(
                f"{root}: {lists[0].name} and {lists[1].name} are missing, and another split would give other numbers; "
                f"{self.remedy}, or read the folder by data.name=domain_folder"
            )
        allow = options["missing_classes"] == "allow"
        return class_parts.divide(folder, parts, options, skipped, skip_empty=allow)

    def _check_classes(self, root, parts, classes, missing_classes):
        if self.num_classes and len(classes) != self.num_classes:
            raise UserError(
                f"{root}: has {len(classes)} classes, and {self.name} has {self.num_classes}; {self.remedy}, or read "
                "the folder by data.name=domain_folder"
            )
        for name, (train, test) in parts.items():
            absent = [label for label in classes if not train.get(label) and not test.get(label)]
            if absent and missing_classes == "refuse":
                raise UserError(
                    f"{root / name}: {len(absent)} of {len(classes)} classes have no images in this domain: "
                    f"{class_parts.shorten(absent)}; add some, or set data.missing_classes=allow"
                )


def _without_split(folder, skipped) -> class_parts.Images:
    """Returns the images of the class folders of a domain."""
    parts = layouts.find(folder, skipped)
    if "" not in parts:
        raise UserError(f"{folder}: has {' and '.join(parts)}; move the class folders into {folder.name}/ itself")
    return parts[""]


def _read_list(path, root) -> class_parts.Images:
    """Returns the images of a list of DomainNet, by the folder of their class.

    Raises:
      UserError: a line has no such path, or files are missing.
    """
    images: dict[str, list[str]] = {}
    for number, line in enumerate(image_lists.load_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        file = line.rsplit(None, 1)[0]
        if file.count("/") < 2 or file == line:
            raise UserError(f"{path}, line {number}: expected <domain>/<class>/<image> and a number, not {line[:80]!r}")
        images.setdefault(file.split("/")[-2], []).append(str(root / file))
    image_lists.check_files((file for files in images.values() for file in files), path)
    return images


def _join(parts, classes: Sequence[str], domains: tuple[str, ...], part: int) -> Split:
    """Returns the split of all domains.

    Images of a domain that is no task belong to all domains.
    """
    splits = [class_parts.to_split(images[part], classes) for images in parts.values()]
    numbers = [domains.index(name) if name in domains else -1 for name in parts]
    joined = Split(
        np.concatenate([split.labels for split in splits]),
        files=tuple(file for split in splits for file in split.files),
    )
    return replace(joined, domains=np.repeat(np.array(numbers, np.int32), [len(split) for split in splits]))


def _by_number(name):
    """Returns a sort key by which o2 precedes o10.

    Text is compared by letters, numbers in it by value.
    """
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else piece) for piece in re.split(r"(\d{1,9})", name)]
