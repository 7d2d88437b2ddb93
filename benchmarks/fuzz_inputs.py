"""Inputs of the case `fuzz`: small valid files of each kind, and their damage."""

import gzip
import hashlib
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdl_jax import config as configs
from cdl_jax import fetch
from cdl_jax.data import image_dataset
from cdl_jax.data.readers import cifar_files
from cdl_jax.data.sources import arrays, cifar100, folder, glyph_file
from cdl_jax.data.stream import Split
from cdl_jax.models import weights
from cdl_jax.models.weights import pretrained
from cdl_jax.options import defaults
from cdl_jax.report import tables
from cdl_jax.report.groups import TABLE_METRICS, read_groups

PARAMETERS = {"cls_token": np.ones((1, 1, 6), np.float32), "norm": {"bias": np.ones(6, np.float32)}}
NETWORK = {"params": {"Dense_0": {"bias": np.ones(4, np.float32)}}, "batch_stats": {"mean": np.ones(4, np.float32)}}


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    file: its name below the folder that `read` is given.
    content: what is damaged; `pack` makes the file of it (an archive with right checksums, say).
    read: reads the file as the program does.
    """

    file: str
    content: bytes
    read: Callable[[Path], object]
    pack: Callable[[bytes], bytes] = bytes


def tar(files, form=tarfile.GNU_FORMAT) -> bytes:
    """An archive of `(name or TarInfo, content)`."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=form) as archive:
        for member, data in files:
            member = tarfile.TarInfo(member) if isinstance(member, str) else member
            if member.isreg():
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def zipped(files, compression=zipfile.ZIP_STORED) -> bytes:
    """A zip file of `{name: content}`."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def mended(content: bytes) -> bytes:
    """Returns a damaged tar archive whose headers have right checksums.

    Readers then accept the values in the headers.
    """
    content = bytearray(content)
    for at in range(0, len(content) - 511, 512):
        if content[at + 257 : at + 262] == b"ustar":
            content[at + 148 : at + 156] = b"        "
            content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return bytes(content)


def image_bytes(form="png", dtype=np.uint8) -> bytes:
    """Returns an encoded image: color of 8 bits, or gray of another dtype."""
    from PIL import Image

    content = io.BytesIO()
    values = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    Image.fromarray(values if dtype == np.uint8 else values[..., 0].astype(dtype)).save(content, form)
    return content.getvalue()


def npz(values) -> bytes:
    """A file of numpy.savez."""
    content = io.BytesIO()
    np.savez(content, **values)
    return content.getvalue()


def npy(values) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def tensor(key: str, count: int, shape) -> bytes:
    """Returns the pickle of torch.save for a float tensor."""
    size, strides = (
        b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t" for numbers in (shape, [1] * len(shape))
    )
    stored = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    stored += b"J" + struct.pack("<i", count) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + b"K\x00" + size + strides + b"\x89" + hooks + b"tR"


STATE = (
    b"\x80\x02}"
    + text("cls_token")
    + tensor("0", 6, [1, 1, 6])
    + b"s"
    + text("norm.bias")
    + tensor("1", 6, [6])
    + b"s."
)


def pth(content: bytes) -> bytes:
    """A file of torch.save with this pickle."""
    block = np.ones(6, np.float32).tobytes()
    return zipped({"a/data.pkl": content, "a/byteorder": b"little", "a/data/0": block, "a/data/1": block})


def old_pth(content: bytes) -> bytes:
    """A file of torch.save with this pickle, as it was before torch 1.6."""
    start = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    pickles = [*(pickle.dumps(value, protocol=2) for value in start), content, pickle.dumps(["0", "1"], protocol=2)]
    return b"".join(pickles) + 2 * (struct.pack("<q", 6) + np.ones(6, np.float32).tobytes())


def onnx_file(values) -> bytes:
    """A graph with these tensors, of which the first is added to the image."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Add", ["image", next(iter(values))], ["sum"])
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in ("image", "sum")]
    tensors = [numpy_helper.from_array(array, name) for name, array in values.items()]
    return helper.make_model(helper.make_graph([node], "main_graph", *ends, tensors)).SerializeToString()


def _unpacked(root):
    path = root / "imagenet-r.tar"
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    archive = fetch.Archive("http://localhost", path.name, path.stat().st_size, "md5", digest, unpacked="imagenet-r")
    fetch.fetch_archive(archive, root)


def _compared(root):
    groups = read_groups([root])
    return configs.read(root), tables.table(groups), tables.headlines(groups)


def kinds() -> dict[str, Kind]:
    """Every kind, by name."""
    from safetensors.numpy import save

    planes = np.arange(4 * 3072).astype(np.uint8).reshape(4, 3072)
    batch = pickle.dumps({b"data": planes, b"fine_labels": [0, 1, 1, 0]}, protocol=2)
    records = b"".join(bytes([0, label]) + plane.tobytes() for label, plane in enumerate(planes[:2]))
    meta = pickle.dumps({b"fine_label_names": [b"a", b"b"]}, protocol=2)
    cifar = tar(
        [(f"cifar-100-python/{name}", data) for name, data in (("train", batch), ("test", batch), ("meta", meta))]
    )
    archive = tar([(f"{part}/{c}/{i}.png", image_bytes()) for part in ("train", "test") for c in "ab" for i in (0, 1)])
    long = tar([("set/" + "x" * 200 + f"/{i}.png", b"12") for i in (0, 1, 2)], tarfile.PAX_FORMAT)
    folders = tar([("imagenet-r/n01/a.jpg", b"1"), ("imagenet-r/n02/b.jpg", b"2")])
    x, y = np.zeros((4, 8, 8), np.uint8), np.asarray([0, 1, 0, 1])
    own = npz({"x_train": x, "y_train": y, "x_test": x, "y_test": y, "class_names": np.asarray(["a", "b"])})
    glyphs = npz({"x": x, "y": y, "chars": np.asarray(["a", "b"]), "is_test": np.asarray([True, True, False, False])})
    state = {"cls_token": PARAMETERS["cls_token"], "norm.bias": PARAMETERS["norm"]["bias"]}
    flat = {"params/Dense_0/bias": np.ones(4, np.float32), "batch_stats/mean": np.ones(4, np.float32)}
    config = json.dumps({"config": {"seed": 0, "train": {"epochs": 3}, "seeds": []}, "command": "python"}).encode()
    results = json.dumps(
        {
            "status": "finished",
            "headline": ["student"],
            "networks": {"student": {"metrics": dict.fromkeys(TABLE_METRICS, 1.5)}},
            "extra_metrics": [{"student/accuracy_batch_mean": 2.0}],
            "best": [],
        }
    ).encode()

    def run_with(**files):
        def read(root):
            for name, content in files.items():
                (root / f"{name}.json").write_bytes(content)
            return _compared(root)

        return read

    def load_vit(name):
        return lambda root: pretrained.load_vit(root / name, PARAMETERS)

    def from_source(source, name):
        options = defaults(source.OPTIONS, test_fraction=0.5) if source is folder else defaults(source.OPTIONS)
        return lambda root: source.load({**options, "path": str(root / name)})

    def binary(content):
        files = (("train.bin", content), ("test.bin", records), ("fine_label_names.txt", b"a\nb\n"))
        return tar([(f"cifar-100-binary/{name}", data) for name, data in files])

    def from_binary_folder(root):
        (root / "test.bin").write_bytes(records)
        (root / "fine_label_names.txt").write_bytes(b"a\nb\n")
        return cifar100.load({"path": str(root)})

    def from_list(root):
        for number in range(1, 5):
            (root / f"{number}.png").write_bytes(image_bytes())
        return folder.load(defaults(folder.OPTIONS, path=str(root / "list.csv")))

    def read_image(name):
        return lambda root: image_dataset.load_image(Split(np.zeros(1, np.int32), files=(str(root / name),)), 0)

    def torch_network(root):
        return pretrained.load_network(root / "w.pth", {"params": PARAMETERS}, lambda module: module)

    return {
        "CIFAR archive": Kind("c.tar.gz", gzip.compress(cifar, mtime=0), from_source(cifar100, "c.tar.gz")),
        "CIFAR archive, headers mended": Kind(
            "c.tar.gz", cifar, from_source(cifar100, "c.tar.gz"), lambda c: gzip.compress(mended(c), 1, mtime=0)
        ),
        "CIFAR pickle": Kind("train", batch, lambda root: cifar_files.unpickle((root / "train").read_bytes(), "train")),
        "CIFAR pickle in its archive": Kind(
            "c.tar",
            batch,
            from_source(cifar100, "c.tar"),
            lambda c: tar(
                [(f"cifar-100-python/{name}", d) for name, d in (("train", c), ("test", batch), ("meta", meta))]
            ),
        ),
        "CIFAR binary": Kind("c.tar", records, from_source(cifar100, "c.tar"), binary),
        "CIFAR binary archive": Kind(
            "c.tar.gz", gzip.compress(binary(records), mtime=0), from_source(cifar100, "c.tar.gz")
        ),
        "CIFAR binary folder": Kind("train.bin", records, from_binary_folder),
        "tar of images": Kind("p.tar", archive, from_source(folder, "p.tar")),
        "tar of images, headers mended": Kind("p.tar", archive, from_source(folder, "p.tar"), mended),
        "tar with long names, mended": Kind("p.tar", long, from_source(folder, "p.tar"), mended),
        "ImageNet-R, unpacked": Kind("imagenet-r.tar", folders, _unpacked, mended),
        "PNG": Kind("p.png", image_bytes(), read_image("p.png")),
        "JPEG": Kind("p.jpg", image_bytes("jpeg"), read_image("p.jpg")),
        "GIF": Kind("p.gif", image_bytes("gif"), read_image("p.gif")),
        "TIFF": Kind("p.tif", image_bytes("tiff"), read_image("p.tif")),
        "TIFF of 16 bits": Kind("p.tif", image_bytes("tiff", np.uint16), read_image("p.tif")),
        "TIFF of floats": Kind("p.tif", image_bytes("tiff", np.float32), read_image("p.tif")),
        "PNG of 16 bits": Kind("p.png", image_bytes("png", np.uint16), read_image("p.png")),
        "PPM": Kind("p.ppm", image_bytes("ppm"), read_image("p.ppm")),
        "list of images": Kind("list.csv", b"1.png,a,train\n2.png,b,train\n3.png,a,test\n4.png,b,test\n", from_list),
        "npz of images": Kind("x.npz", own, from_source(arrays, "x.npz")),
        "npz of glyphs": Kind("x.npz", glyphs, from_source(glyph_file, "x.npz")),
        "npz, an array in it": Kind(
            "x.npz",
            npy(y),
            from_source(arrays, "x.npz"),
            lambda c: zipped({"x_train.npy": npy(x), "y_train.npy": c, "x_test.npy": npy(x), "y_test.npy": npy(y)}),
        ),
        "npz of weights": Kind("w.npz", npz(state), load_vit("w.npz")),
        "npz of weights, an array in it": Kind(
            "w.npz",
            npy(state["norm.bias"]),
            load_vit("w.npz"),
            lambda c: zipped({"norm.bias.npy": c, "cls_token.npy": npy(state["cls_token"])}),
        ),
        "weights.npz of a run": Kind(
            "w.npz", npz(flat), lambda root: weights.load_network(str(root / "w.npz"), NETWORK, "student.weights")
        ),
        "safetensors": Kind("w.safetensors", save(state), load_vit("w.safetensors")),
        "ONNX": Kind("w.onnx", onnx_file(state), load_vit("w.onnx")),
        "pth": Kind("w.pth", pth(STATE), load_vit("w.pth")),
        "pth, its pickle": Kind("w.pth", STATE, load_vit("w.pth"), pth),
        "pth of a network, its pickle": Kind("w.pth", STATE, torch_network, pth),
        "pth before torch 1.6": Kind("w.pth", old_pth(STATE), load_vit("w.pth")),
        "config.json": Kind("config.json", config, run_with(results=results)),
        "results.json": Kind("results.json", results, run_with(config=config)),
    }


_ODD = (
    b"\0",
    b"\xff",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\0" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"-1",
    b"9" * 11,
    b"\n",
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Returns `content` after one to four random edits.

    An edit flips a bit, replaces or inserts bytes, cuts a part, or repeats a part.
    """
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, length = draw.randrange(len(content) + 1), draw.choice((1, 2, 4, 8, 64, 512))
        way = draw.randrange(7)
        if way == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif way == 1 and at < len(content):
            content[at] = draw.randrange(256)
        elif way == 2:
            odd = draw.choice(_ODD)
            content[at : at + len(odd)] = odd
        elif way == 3:
            content[at:at] = draw.randbytes(length)
        elif way == 4:
            del content[at : at + length]
        elif way == 5:
            content[at:at] = content[at : at + length] * draw.randrange(1, 20)
        elif way == 6 and draw.randrange(4) == 0:
            del content[at:]
    return bytes(content)
