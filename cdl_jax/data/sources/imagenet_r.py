"""Loads ImageNet-R, 200 classes of renditions, with one of two published splits.

The images are read from the unpacked folder.
"""

import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cdl_jax.data import stream
from cdl_jax.data.readers import image_files, locate, prepared_tfds
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import Option

OPTIONS: dict[str, Any] = {
    "split": Option(
        "coda",
        "coda: lists of CODA-Prompt and CDL; tfds80: 80% and 20% in tfds order, as in L2P and DualPrompt",
        choices=("coda", "tfds80"),
    ),
    "tfds_dir": Option("", 'for split "tfds80": data_dir of the prepared tfds set imagenet_r; empty: tfds\' own'),
}

_LISTS = Path(__file__).parent.parent / "imagenet_r_split.json.gz"
_TOTAL = 30_000
_REMEDY = "run `python -m cdl_jax.fetch imagenet_r`"


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads 24,000 training and 6,000 test files of any image size.

    coda: the lists of CODA-Prompt, which CDL also uses; class ids are not in the order of the WordNet ids.
    tfds80: `test[:80%]` and `test[80%:]` of the tfds set `imagenet_r`, classes in the order of the WordNet ids. The
      order of files exists in tfds only, so the set must be prepared. File names are from tfds, images from the folder.

    Raises:
      UserError: the folder or images are missing, or the tfds set is not prepared.
    """
    lists = json.loads(gzip.decompress(_LISTS.read_bytes()))
    label_of_wnid = lists["label_of_wnid"]
    root = locate.find(
        options["path"],
        ["imagenet-r"],
        what="imagenet_r",
        remedy=_REMEDY,
        inside=sorted(label_of_wnid),
        fetch_name="imagenet_r",
    )
    if not root.is_dir():
        raise UserError(f"{root}: is a file; unpack it and set data.path to the folder imagenet-r")
    if options["split"] == "coda":
        train, test = _read_published_split(root, label_of_wnid, lists["test"], _TOTAL - len(lists["test"]))
    else:
        label_of_wnid = {wnid: label for label, wnid in enumerate(sorted(label_of_wnid))}
        train, test = _read_tfds_split(root, options["tfds_dir"])
    class_names = _class_names(root, sorted(label_of_wnid, key=label_of_wnid.get))
    return Dataset("imagenet_r", class_names, *(_split(root, files, label_of_wnid) for files in (train, test)))


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the published sizes without images."""
    return stream.placeholder("imagenet_r", 200, 24_000, 6_000)


def _read_published_split(root, label_of_wnid, test, train_size):
    """Returns (train, test), names `<wnid>/<file>` of images.

    All images outside the test list are training images.
    """
    present = [
        f"{wnid}/{name}"
        for wnid in sorted(label_of_wnid, key=label_of_wnid.get)
        if (root / wnid).is_dir()
        for name in image_files.image_names(root / wnid)
    ]
    test_names, present_names = set(test), set(present)
    train = [name for name in present if name not in test_names]
    absent = [name for name in test if name not in present_names]
    num_lacking = train_size - len(train)
    if absent or num_lacking > 0:
        empty = [wnid for wnid in sorted(label_of_wnid) if not (root / wnid).is_dir()]
        first = absent[0] if absent else f"all of {empty[0]}" if empty else "a training image"
        raise UserError(
            f"{root}: {len(absent) + max(num_lacking, 0):,} of {len(test) + train_size:,} images are missing, first "
            f"{first}; unpack imagenet-r.tar again"
        )
    if num_lacking < 0:
        raise UserError(
            f"{root}: {-num_lacking:,} images too many for the published split; remove files that are not ImageNet-R's"
        )
    return train, test


def _read_tfds_split(root, tfds_dir):
    builder = prepared_tfds.builder("imagenet_r", tfds_dir)
    parts = []
    for part in ("test[:80%]", "test[80%:]"):
        records = prepared_tfds.records(builder, part, undecoded=("image",))
        names = [records[index]["file_name"] for index in range(len(records))]
        parts.append([name.decode() if isinstance(name, bytes) else str(name) for name in names])
    absent = [name for part in parts for name in part if not (root / name).is_file()]
    if absent:
        raise UserError(
            f"{root}: {len(absent):,} of {sum(map(len, parts)):,} images are missing, first {absent[0]}; unpack "
            "imagenet-r.tar again"
        )
    return parts


def _split(root, files, label_of_wnid):
    labels = np.asarray([label_of_wnid[name.split("/")[0]] for name in files], np.int32)
    return Split(labels, files=tuple(str(root / name) for name in files))


def _class_names(root, wnids):
    """Returns the class names of the data set's README.

    A class without a name there has its WordNet id as the name.
    """
    readme = root / "README.txt"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    names = dict(re.findall(r"^(n\d{8})[ \t:,]+(\S.*?)\s*$", text, flags=re.MULTILINE))
    return tuple(names.get(wnid, wnid).replace("_", " ") for wnid in wnids)
