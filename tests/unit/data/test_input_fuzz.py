"""Damaged and hostile files are accepted or refused in one line.

No code in a file runs, and memory has a bound.

Sound files of drawn layouts, formats and names are read with the labels and gray levels that they were written with.

More of them: python -m benchmarks.run fuzz
"""

import csv
import io
import logging
import pickle
import random

import numpy as np
import pytest
from PIL import Image

from benchmarks import fuzz_attacks, fuzz_checkpoints, fuzz_inputs
from benchmarks.cases import fuzz
from cdl_jax.data import image_dataset, stream
from cdl_jax.errors import UserError
from cdl_jax.runtime.console import one_line

SLOW = ("lists nested a million deep", "marks without end", "dicts without end", "sets without end")


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def outcomes(inputs, folder):
    """Returns {(kind, name): what} of inputs, none of them a finding.

    The inputs are read as in `benchmarks.cases.fuzz`, each within `fuzz.MEMORY`.
    """
    folder.mkdir()
    found = {(kind, name): result for kind, name, result in fuzz.tried(inputs, folder)}
    assert not {key: result for key, result in found.items() if result["what"] == "finding"}
    assert max(result["bytes"] for result in found.values()) < fuzz.MEMORY
    return {key: result["what"] for key, result in found.items()}


def test_intact_files_are_accepted_and_damaged_ones_are_not_findings(tmp_path):
    # Not checkpoints: where jax runs already, a process that is forked off may wait for a lock that nobody frees.
    found = outcomes(fuzz.damaged(300, seed=7, groups=tuple(fuzz_inputs.kinds())), tmp_path / "root")
    sound = {kind: what for (kind, name), what in found.items() if name == "sound"}
    assert set(sound.values()) == {"accepted"}
    assert len(found) == 300 + len(sound)
    assert sum(what == "refused" for what in found.values()) > 150


def test_no_code_runs_and_nothing_is_written_elsewhere(tmp_path):
    canary = tmp_path / "root" / "canary"
    attacks = list(fuzz_attacks._code(canary))
    pickles = [("CIFAR pickle", name, content) for name, content in attacks]
    pickles += [("pth", name, fuzz_inputs.pth(content)) for name, content in attacks]
    tars = [("ImageNet-R, unpacked", name, content) for name, content in fuzz_attacks._tars()]
    found = outcomes([*pickles, *tars], tmp_path / "root")
    assert len(found) == 2 * len(attacks) + len(tars)
    assert all(what == "refused" for (kind, _), what in found.items() if "R, unpacked" not in kind)
    assert not canary.exists()
    pickle.loads(attacks[0][1])  # the attacks are real ones
    assert canary.exists()


def test_small_files_that_need_much_memory_are_refused(tmp_path):
    greedy = [("CIFAR pickle", name, content) for name, content in fuzz_attacks._greedy_pickles() if name not in SLOW]
    safetensors = [("safetensors", name, content) for name, content in fuzz_attacks._safetensors()]
    bombs = [
        ("CIFAR archive", name, content)
        for name, content in fuzz_attacks._bombs()
        if "cifar" in name or " of type x" in name
    ]
    found = outcomes([*greedy, *safetensors, *bombs], tmp_path / "root")
    assert len(found) == len(greedy) + len(safetensors) + len(bombs)
    assert {what for (kind, _), what in found.items() if kind == "CIFAR archive"} == {"refused"}


def test_damaged_checkpoints_are_replaced_by_older_ones_or_refused(tmp_path):
    metadata = "_CHECKPOINT_METADATA", "record/metadata", "state/_METADATA"
    plain = ("", "[]", "null", "NaN", "lists nested a million deep", "b'1e400' for every number")
    crafted = [
        (kind, name, content)
        for kind, name, content in fuzz_checkpoints.crafted()
        if name in plain and "latest" in kind and kind.endswith(metadata)
    ]
    damaged = list(fuzz.damaged(12, seed=7, groups=[fuzz_checkpoints.GROUP]))
    known, found = fuzz_checkpoints.kinds(), {}
    for kind, name, content in [*crafted, *damaged]:
        found[kind, name] = fuzz.outcome(known[kind], content, tmp_path)
    assert len(found) == 3 * len(plain) + 13
    assert not {key: result for key, result in found.items() if result[0] == "finding"}
    # The frozen weights have no older ones, and `--mode eval` of the last task takes none.
    accepted = {kind for (kind, _), (what, _) in found.items() if what == "accepted"}
    assert {kind for kind, *_ in crafted} <= accepted


@pytest.mark.parametrize("what", ["raises", "writes", "memory"])
def test_a_finding_is_reported(tmp_path, what):
    def read(folder):
        if what == "raises":
            raise KeyError("x")
        if what == "writes":
            (folder.parent / "escaped").touch()
        if what == "memory":
            try:
                raise MemoryError
            except MemoryError:
                raise UserError("damaged") from None

    assert fuzz.outcome(fuzz_inputs.Kind("file", b"", read), b"", tmp_path)[0] == "finding"
    assert not list(tmp_path.iterdir())


def test_a_message_is_one_line_whatever_a_file_calls_its_parts():
    assert str(UserError("a\nb\r\nc")) == "a b c"


NAMES = (
    "a",
    "b\nc",
    "q\"uo'te",
    "100%s",
    "\udcff\udcfe",
    " edge ",
    "é",
    "b",
    "10",
    "9",
    "x,y;z",
    "{0}",
    "n0\x1b[1m",
    "#",
)


def encoded(image, ending, draw):
    """The content of an image file of that ending, in a mode that the format can have."""
    modes = {".jpg": "L RGB CMYK", ".webp": "RGB RGBA", ".bmp": "L RGB", ".gif": "L", ".ppm": "RGB", ".pgm": "L I;16"}
    mode = draw.choice(modes.get(ending, "L LA RGB RGBA I;16 F" if ending == ".tif" else "L LA RGB RGBA I;16").split())
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image, np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(image, np.float32) / 255)
    elif mode != "L":
        image = image.convert("RGB").convert(mode) if mode != "LA" else image.convert("LA")
    content = io.BytesIO()
    form = {".jpg": "JPEG", ".tif": "TIFF", ".pgm": "PPM"}.get(ending, ending[1:].upper())
    image.save(content, form, **({"lossless": True} if form == "WEBP" else {}))
    return content.getvalue()


def meant(draw, root):
    """Writes a data set in a drawn layout.

    Returns:
        (source, path, {part: sorted (class name, gray level)}).
    """
    classes = draw.sample(NAMES, draw.randint(2, 5))
    kind = draw.choice(("train and val", "tar", "tiny", "cub", "csv", "arrays"))
    if kind == "cub":  # its lists are lines
        classes = [name.replace("\n", " ").strip() for name in classes]
        classes = [f"{number:03}.{name}" for number, name in enumerate(classes)]
    if kind == "csv":  # where blanks around labels are dropped
        classes = [name.strip() for name in classes]
    levels = iter(draw.sample(range(250), 4 * len(classes)))
    images = [(part, name, next(levels)) for name in classes for part in ("train", "train", "test", "test")]
    want = {
        part: sorted((one_line(name), level) for p, name, level in images if p == part) for part in ("train", "test")
    }
    if kind == "arrays":
        scale, dtype = draw.choice(((1, "u1"), (257, "u2"), (1, "i8"), (1 / 255, "f4"), (1 / 255, "f8"), (1, "f4")))
        arrays = {"class_names": np.array(classes)}
        for part in ("train", "test"):
            own = [(classes.index(name), level) for p, name, level in images if p == part]
            x = np.array([np.full((4, 4), level) for _, level in own]) * scale
            arrays |= {f"x_{part}": x.astype(dtype), f"y_{part}": np.array([label for label, _ in own])}
        np.savez(root / "x.npz", **arrays)
        return "arrays", root / "x.npz", want
    endings = (".jpg", ".PNG", ".webp", ".bmp", ".Gif", ".tif", ".ppm", ".PGM")
    files, lists = {}, []
    for number, (part, name, level) in enumerate(images):
        ending = draw.choice(endings)
        content = encoded(Image.new("L", (4, 4), level), ending.lower(), draw)
        where = {
            "tiny": f"train/{name}/images" if part == "train" else "val/images",
            "cub": f"images/{name}",
            "csv": draw.choice(("x", "sub dir/é")),
        }.get(kind, f"{part.replace('test', 'val')}/{name}")
        files[f'{where}/{number}%d "{ending}'] = content
        lists.append((f'{number}%d "{ending}', f'{where}/{number}%d "{ending}', name, part))
    if kind == "tar":
        (root / "x.tar").write_bytes(fuzz_inputs.tar([(f"set/{name}", content) for name, content in files.items()]))
        return "folder", root / "x.tar", want
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    write = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    if kind == "tiny":
        with (root / "val/val_annotations.txt").open("w", **write) as file:
            rows = [(file_, name, 0, 0, 3, 3) for file_, _, name, part in lists if part == "test"]
            csv.writer(file, delimiter="\t").writerows(rows)
    if kind == "csv":
        with (root / "list.csv").open("w", **write) as file:
            csv.writer(file).writerows((place, name, part) for _, place, name, part in lists)
        return "folder", root / "list.csv", want
    if kind == "cub":
        columns = {
            "images.txt": [place.removeprefix("images/") for _, place, _, _ in lists],
            "image_class_labels.txt": [classes.index(name) + 1 for _, _, name, _ in lists],
            "train_test_split.txt": [int(part == "train") for *_, part in lists],
        }
        for name, column in columns.items():
            text = "".join(f"{number} {value}\n" for number, value in enumerate(column, start=1))
            (root / name).write_bytes(text.encode(errors="surrogateescape"))
    return "folder", root, want


@pytest.mark.parametrize("seed", range(60))
def test_images_and_labels_are_read_as_written(tmp_path, seed):
    draw = random.Random(seed)
    source, path, want = meant(draw, tmp_path)
    order = draw.choice(("natural", "shuffle", "python_shuffle"))
    options = {"num_tasks": 1, "class_order": order, "class_order_seed": seed}
    data = stream.load({"name": source, "path": str(path), **options})
    for part in ("train", "test"):
        split = getattr(data, part)
        found = [
            (data.class_names[label], round(float(np.asarray(image_dataset.load_image(split, row)[0]).mean())))
            for row, label in enumerate(split.labels)
        ]
        assert [name for name, _ in sorted(found)] == [name for name, _ in want[part]]
        for (name, level), (_, right) in zip(sorted(found), want[part], strict=True):
            assert abs(level - right) <= 2, (name, level, right)  # JPEG and CMYK round
