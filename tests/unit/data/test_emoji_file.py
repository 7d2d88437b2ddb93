"""Emoji by identity and by subgroup: training sets, test sets, and disjoint parts."""

import numpy as np
import pytest

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.options import check, defaults

VENDORS, SUBGROUPS = ("noto", "twemoji", "openmoji"), ("fruit", "tool", "skin-tone", "few")
SIZES = (10, 12, 9, 3)  # emoji of each subgroup


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Images whose red is the emoji and whose green is the vendor; noto lacks emoji 0."""
    rows = [(emoji, group, vendor) for emoji, group in enumerate(np.repeat(range(4), SIZES)) for vendor in range(3)]
    emoji, group, vendor = np.array([row for row in rows if row[0] or row[2]]).T
    images = np.zeros((len(emoji), 4, 4, 3), np.uint8)
    images[..., 0], images[..., 1] = emoji[:, None, None], vendor[:, None, None]
    path = tmp_path_factory.mktemp("emoji") / "emoji.npz"
    np.savez(path, x=images, y=group, vendor=vendor, emoji=emoji, classes=SUBGROUPS, vendors=VENDORS,
             emoji_names=[f"e{i}" for i in range(34)])  # fmt: skip
    return path


def load(file, **options):
    source = plugins.load_plugin("data.sources", "emoji_file")
    check(source.OPTIONS, options, "data")
    return source.load({"path": str(file), **defaults(source.OPTIONS), **options})


def shown(split):
    """Returns emoji and vendor of each image."""
    return split.images[:, 0, 0, 0], split.images[:, 0, 0, 1]


def test_identities_are_tested_on_a_vendor_outside_the_training_set(file):
    data = load(file)
    assert data.name == "emoji_identity" and data.class_names == tuple(f"e{i}" for i in range(1, 34))
    for split, vendors in ((data.train, {1, 2}), (data.test, {0})):
        emoji, vendor = shown(split)
        assert set(vendor) == vendors and len(split) == 33 * len(vendors)
        assert [data.class_names[label] for label in split.labels] == [f"e{i}" for i in emoji]


def test_pretraining_and_stream_share_no_emoji(file):
    stream, rest = (load(file, stream_classes=20, part=part) for part in ("incremental", "pretraining"))
    assert len(stream.class_names) == 20 and len(rest.class_names) == 13
    assert not {*stream.class_names} & {*rest.class_names}
    assert load(file, stream_classes=20).class_names == stream.class_names
    assert load(file, stream_classes=20, split_seed=1).class_names != stream.class_names


def test_subgroups_are_tested_on_emoji_outside_the_training_set(file):
    data = load(file, label="subgroup")
    assert data.class_names == ("fruit", "tool")  # variants and small subgroups are left out
    train, test = ({*shown(split)[0]} for split in (data.train, data.test))
    assert not train & test and len(train) == 8 + 10 and len(test) == 2 + 2
    assert [int(emoji >= 10) for emoji in shown(data.test)[0]] == data.test.labels.tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": "color"}, "use 'identity' or 'subgroup'"),
        ({"test_vendor": "apple"}, "the file has noto, twemoji, openmoji"),
        ({"part": "both"}, "use 'incremental' or 'pretraining'"),
        ({"stream_classes": 34}, "all vendors draw 33 emoji"),
        ({"part": "pretraining"}, "leaves no emoji"),
        ({"label": "subgroup", "test_fraction": 1.0}, r"data.test_fraction=1.0 must lie in \(0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(file, options, words):
    with pytest.raises(UserError, match=words):
        load(file, **options)


def test_files_that_do_not_fit_are_refused(file, tmp_path):
    with pytest.raises(UserError, match="needs data.path"):
        load("")
    arrays = dict(np.load(file))
    np.savez(tmp_path / "bad.npz", **{**arrays, "vendor": arrays["vendor"] + 1})
    with pytest.raises(UserError, match="vendor must have a number below vendors's length"):
        load(tmp_path / "bad.npz")
