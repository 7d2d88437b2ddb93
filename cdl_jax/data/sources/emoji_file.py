"""Loads a file of color emoji, as drawn by different vendors.

`cdl_jax.data.tools.make_emoji` makes the file.

With `label="identity"` the classes are the emoji, and the drawings of one vendor are the test set: a new style. With
`label="subgroup"` the classes are the Unicode subgroups (faces, fruit, tools), and the test set has emoji that are not
in the training set, of all vendors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data import stream
from cdl_jax.data.readers import npz_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import Option
from cdl_jax.runtime import paths

OPTIONS: dict[str, Any] = {
    "label": Option("identity", "the classes: emoji, or their Unicode subgroups", choices=("identity", "subgroup")),
    "test_vendor": Option(
        "noto",
        'for label "identity": vendor whose drawings are the test set; classes are the emoji that all vendors draw',
    ),
    "stream_classes": Option(
        0,
        'number of these classes in part "incremental", drawn by `split_seed`; the others are for part '
        '"pretraining"; 0: all',
    ),
    "part": Option(
        "incremental", "the part of the emoji that the stream consists of", choices=("incremental", "pretraining")
    ),
    "test_fraction": Option(
        0.2,
        'for label "subgroup": fraction of each subgroup\'s emoji in the test set, rounded, at least one',
        above=0,
        below=1,
    ),
    "split_seed": Option(0, "seed of both splits"),
}

# Subgroups of variants of one emoji, and subgroups with fewer emoji than this, are left out.
_VARIANTS = ("country-flag", "skin-tone", "subdivision-flag")
_MIN_EMOJI = 9


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads the images of an `.npz`.

    Its arrays are x uint8 `[n, height, width, 3]` and, for each image, y (its subgroup), vendor and emoji, which are
    positions in classes, vendors and emoji_names.

    Raises:
      UserError: the path is empty, the file is missing, an array has another shape or dtype, or the file lacks what
        an option selects.
    """
    if not options["path"]:
        raise UserError(
            "the emoji_file source needs data.path; make a file with: python -m cdl_jax.data.tools.make_emoji --help"
        )
    path = paths.resolve(options["path"], "data.path")
    columns, lists = ("y", "vendor", "emoji"), ("classes", "vendors", "emoji_names")
    arrays = npz_files.read(path, ("x", *columns, *lists))
    images = npz_files.rgb(arrays["x"], what=f"{path}: x")
    indices = [npz_files.labels(arrays[name], what=f"{path}: {name}") for name in columns]
    for column, name, names in zip(indices, columns, lists, strict=True):
        if arrays[names].ndim != 1 or len(column) != len(images) or column.max(initial=0) >= len(arrays[names]):
            raise UserError(f"{path}: {name} must have a number below {names}'s length for each image of x")
    split = _by_identity if options["label"] == "identity" else _by_subgroup
    classes, names, is_test = split(options, *indices, *(arrays[key] for key in lists))
    label_of = np.full(classes.max() + 1, -1, np.int32)
    used = np.unique(classes[classes >= 0])
    label_of[used] = np.arange(len(used))
    splits = (Split(label_of[classes[rows]], images[rows]) for rows in (
        np.flatnonzero((classes >= 0) & ~is_test), np.flatnonzero((classes >= 0) & is_test)
    ))  # fmt: skip
    return Dataset(f"{path.stem}_{options['label']}", tuple(str(names[i]) for i in used), *splits)


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the sizes of emoji32.npz (docs/guides/data.md)."""
    if options["label"] == "subgroup":
        return stream.placeholder("emoji_file_subgroup", 65, 4_669, 1_159, side=32)
    count = options["stream_classes"] or 1_594
    count = count if options["part"] == "incremental" else 1_594 - count
    return stream.placeholder("emoji_file_identity", count, 3 * count, count, side=32)


def _by_identity(options, subgroup, vendor, emoji, subgroups, vendors, names):
    """Splits the images by vendor; the classes are the emoji.

    Returns:
      (class of each image, -1 to leave it out; names of classes; whether the image is a test image).
    """
    del subgroup, subgroups
    if options["test_vendor"] not in vendors:
        raise UserError(f"data.test_vendor={options['test_vendor']!r}: the file has {', '.join(map(str, vendors))}")
    drawn = np.zeros((len(names), len(vendors)), bool)
    drawn[emoji, vendor] = True
    drawn_by_all = np.random.default_rng(options["split_seed"]).permutation(np.flatnonzero(drawn.all(axis=1)))
    count = options["stream_classes"] or len(drawn_by_all)
    if count > len(drawn_by_all):
        raise UserError(f"data.stream_classes={count}: all vendors draw {len(drawn_by_all)} emoji")
    selected = drawn_by_all[:count] if options["part"] == "incremental" else drawn_by_all[count:]
    if not len(selected):
        raise UserError(
            "data.part='pretraining': data.stream_classes leaves no emoji for pretraining, choose a smaller number"
        )
    classes = np.where(np.isin(emoji, selected), emoji, -1)
    return classes, names, vendor == list(vendors).index(options["test_vendor"])


def _by_subgroup(options, subgroup, vendor, emoji, subgroups, vendors, names):
    """Returns the same as `_by_identity`."""
    del vendor, vendors
    rng = np.random.default_rng(options["split_seed"])
    classes, held_out = np.full_like(subgroup, -1), np.zeros(len(names), bool)
    for number, name in enumerate(subgroups):
        members = np.unique(emoji[subgroup == number])
        if name in _VARIANTS or len(members) < _MIN_EMOJI:
            continue
        classes[subgroup == number] = number
        held_out[rng.permutation(members)[: max(1, round(options["test_fraction"] * len(members)))]] = True
    if not (classes >= 0).any():
        raise UserError(f"data.label='subgroup': no subgroup of the file has {_MIN_EMOJI} emoji")
    return classes, subgroups, held_out[emoji]
