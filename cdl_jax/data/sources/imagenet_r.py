"""Split ImageNet-R, 200 classes of renditions: the unpacked `imagenet-r/` folder and one of two published splits."""

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

OPTIONS: dict[str, Any] = {
    "split": "coda",  # coda: lists of CODA-Prompt and CDL; tfds80: 80% and 20% in tfds order, as in L2P and DualPrompt
    "tfds_dir": "",  # tfds80: data_dir of the prepared tfds set imagenet_r; empty: tfds' own
}

_LISTS = Path(__file__).parent.parent / "imagenet_r_split.json.gz"
_TOTAL = 30_000
_REMEDY = "run `python -m cdl_jax.fetch imagenet_r`"


def load(options: Mapping[str, Any]) -> Dataset:
    """Files of any size, 24,000 to train on and 6,000 to test on.

    coda: the lists that CODA-Prompt publishes and CDL takes over; class ids are not in the order of the WordNet ids.
    tfds80: `test[:80%]` and `test[80%:]` of the tfds set `imagenet_r`, classes in the order of the WordNet ids. Only
      tfds knows its order, so the set must be prepared; names come from there and pictures from the folder.

    Raises:
      UserError: an unknown split, no folder, pictures missing in it, or tfds not ready.
    """
    if options["split"] not in ("coda", "tfds80"):
        raise UserError(f"data.split={options['split']!r} is unknown: known: coda, tfds80")
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
        train, test = _published(root, label_of_wnid, lists["test"], _TOTAL - len(lists["test"]))
    else:
        label_of_wnid = {wnid: label for label, wnid in enumerate(sorted(label_of_wnid))}
        train, test = _tfds_order(root, options["tfds_dir"])
    class_names = _readable(root, sorted(label_of_wnid, key=label_of_wnid.get))
    return Dataset("imagenet_r", class_names, *(_split(root, files, label_of_wnid) for files in (train, test)))


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """The published sizes without the pictures."""
    return stream.placeholder("imagenet_r", 200, 24_000, 6_000)


def _published(root, label_of_wnid, test, train_size):
    """(train, test): names `<wnid>/<file>`; whatever is not listed as test is train."""
    present = [
        f"{wnid}/{name}"
        for wnid in sorted(label_of_wnid, key=label_of_wnid.get)
        if (root / wnid).is_dir()
        for name in image_files.image_names(root / wnid)
    ]
    listed, found = set(test), set(present)
    train = [name for name in present if name not in listed]
    absent = [name for name in test if name not in found]
    lacking = train_size - len(train)
    if absent or lacking > 0:
        empty = [wnid for wnid in sorted(label_of_wnid) if not (root / wnid).is_dir()]
        first = absent[0] if absent else f"the whole of {empty[0]}" if empty else "a training picture"
        raise UserError(
            f"{root}: {len(absent) + max(lacking, 0):,} of {len(test) + train_size:,} pictures are missing, first "
            f"{first}; unpack imagenet-r.tar again"
        )
    if lacking < 0:
        raise UserError(
            f"{root}: {-lacking:,} pictures too many for the published split; remove what is not ImageNet-R's"
        )
    return train, test


def _tfds_order(root, tfds_dir):
    builder = prepared_tfds.builder("imagenet_r", tfds_dir)
    parts = []
    for part in ("test[:80%]", "test[80%:]"):
        records = prepared_tfds.records(builder, part, undecoded=("image",))
        names = [records[index]["file_name"] for index in range(len(records))]
        parts.append([name.decode() if isinstance(name, bytes) else str(name) for name in names])
    absent = [name for part in parts for name in part if not (root / name).is_file()]
    if absent:
        raise UserError(
            f"{root}: {len(absent):,} of {sum(map(len, parts)):,} pictures are missing, first {absent[0]}; unpack "
            "imagenet-r.tar again"
        )
    return parts


def _split(root, files, label_of_wnid):
    labels = np.asarray([label_of_wnid[name.split("/")[0]] for name in files], np.int32)
    return Split(labels, files=tuple(str(root / name) for name in files))


def _readable(root, wnids):
    """The class names that the data set's own README gives, or WordNet ids where it is not at hand."""
    readme = root / "README.txt"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    named = dict(re.findall(r"^(n\d{8})[ \t:,]+(\S.*?)\s*$", text, flags=re.MULTILINE))
    return tuple(named.get(wnid, wnid).replace("_", " ") for wnid in wnids)
