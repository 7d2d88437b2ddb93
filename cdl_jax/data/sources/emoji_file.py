"""A file of emoji in colour, each as several vendors draw it; `cdl_jax.data.tools.make_emoji` makes one.

Either the emoji are the classes, and a vendor's drawings of them are the test set: another style. Or the Unicode
subgroups are (faces, fruit, tools), and the test set is emoji that no training picture shows, by any vendor.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data import stream
from cdl_jax.data.readers import npz_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.runtime import paths

OPTIONS: dict[str, Any] = {
    "label": "identity",  # or "subgroup"
    # Of label "identity": whose drawings are the test set. Classes are the emoji that all vendors draw.
    "test_vendor": "noto",
    # How many of these, drawn by `split_seed`, make a stream ("incremental"); the rest are for "pretraining". 0: all.
    "stream_classes": 0,
    "part": "incremental",
    "test_fraction": 0.2,  # of label "subgroup": of each subgroup's emoji, rounded, at least one; by `split_seed`
    "split_seed": 0,
}

# Subgroups of variants of one picture, and those with less emoji than this, are left out.
_VARIANTS = ("country-flag", "skin-tone", "subdivision-flag")
_FEWEST = 9


def load(options: Mapping[str, Any]) -> Dataset:
    """Pictures from an `.npz` with x uint8 `[n, height, width, 3]` and, for each, its subgroup y, its vendor and its
    emoji as positions in `classes`, `vendors` and `emoji_names`.

    Raises:
      UserError: no path, no such file, arrays of other shapes and types, or an option out of range.
    """
    if not options["path"]:
        raise UserError(
            "the emoji_file source needs data.path; make a file with: python -m cdl_jax.data.tools.make_emoji --help"
        )
    path = paths.resolve(options["path"], "data.path")
    columns, lists = ("y", "vendor", "emoji"), ("classes", "vendors", "emoji_names")
    arrays = npz_files.read(path, ("x", *columns, *lists))
    images = npz_files.rgb(arrays["x"], what=f"{path}: x")
    found = [npz_files.labels(arrays[name], what=f"{path}: {name}") for name in columns]
    for column, name, names in zip(found, columns, lists, strict=True):
        if arrays[names].ndim != 1 or len(column) != len(images) or column.max(initial=0) >= len(arrays[names]):
            raise UserError(f"{path}: {name} must have a number below {names}'s length for each picture of x")
    if options["label"] not in ("identity", "subgroup"):
        raise UserError(f"data.label={options['label']!r}: use 'identity' or 'subgroup'")
    split = _by_identity if options["label"] == "identity" else _by_subgroup
    classes, names, is_test = split(options, *found, *(arrays[key] for key in lists))
    number = np.full(classes.max() + 1, -1, np.int32)
    kept = np.unique(classes[classes >= 0])
    number[kept] = np.arange(len(kept))
    splits = (Split(number[classes[rows]], images[rows]) for rows in (
        np.flatnonzero((classes >= 0) & ~is_test), np.flatnonzero((classes >= 0) & is_test)
    ))  # fmt: skip
    return Dataset(f"{path.stem}_{options['label']}", tuple(str(names[i]) for i in kept), *splits)


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the sizes of emoji32.npz (docs/guides/data.md) for the chosen labels and part."""
    if options["label"] == "subgroup":
        return stream.placeholder("emoji_file_subgroup", 65, 4_669, 1_159, side=32)
    count = options["stream_classes"] or 1_594
    count = count if options["part"] == "incremental" else 1_594 - count
    return stream.placeholder("emoji_file_identity", count, 3 * count, count, side=32)


def _by_identity(options, subgroup, vendor, emoji, subgroups, vendors, names):
    """(class of each picture, -1 where it is left out, names of classes, whether it is for testing)."""
    del subgroup, subgroups
    if options["test_vendor"] not in vendors:
        raise UserError(f"data.test_vendor={options['test_vendor']!r}: the file has {', '.join(map(str, vendors))}")
    if options["part"] not in ("incremental", "pretraining"):
        raise UserError(f"data.part={options['part']!r}: use 'incremental' or 'pretraining'")
    drawn = np.zeros((len(names), len(vendors)), bool)
    drawn[emoji, vendor] = True
    whole = np.random.default_rng(options["split_seed"]).permutation(np.flatnonzero(drawn.all(axis=1)))
    count = options["stream_classes"] or len(whole)
    if count > len(whole):
        raise UserError(f"data.stream_classes={count}: all vendors draw {len(whole)} emoji")
    chosen = whole[:count] if options["part"] == "incremental" else whole[count:]
    if not len(chosen):
        raise UserError("data.part='pretraining': data.stream_classes leaves no emoji for it, choose a smaller number")
    classes = np.where(np.isin(emoji, chosen), emoji, -1)
    return classes, names, vendor == list(vendors).index(options["test_vendor"])


def _by_subgroup(options, subgroup, vendor, emoji, subgroups, vendors, names):
    """As `_by_identity`."""
    del vendor, vendors
    if not 0 < options["test_fraction"] < 1:
        raise UserError(f"data.test_fraction={options['test_fraction']} must lie between 0 and 1")
    generator = np.random.default_rng(options["split_seed"])
    classes, held_out = np.full_like(subgroup, -1), np.zeros(len(names), bool)
    for number, name in enumerate(subgroups):
        own = np.unique(emoji[subgroup == number])
        if name in _VARIANTS or len(own) < _FEWEST:
            continue
        classes[subgroup == number] = number
        held_out[generator.permutation(own)[: max(1, round(options["test_fraction"] * len(own)))]] = True
    if not (classes >= 0).any():
        raise UserError(f"data.label='subgroup': no subgroup of the file has {_FEWEST} emoji")
    return classes, subgroups, held_out[emoji]
