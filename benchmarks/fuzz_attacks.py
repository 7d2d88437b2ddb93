"""Files made to do harm, for the case `fuzz`.

They would run code, fill memory or disk, or write elsewhere.
"""

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from benchmarks.fuzz_inputs import old_pth, pth, tar, tensor, text, zipped

GIB = 2**30


class _Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def _numpy_descr(descr, shape, stored=b"", version=1):
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + stored
    )


def _laughs(depth=60):
    """Returns pickle instructions for a tuple of two tuples of two tuples and so on.

    The tuple is small in the file and endless to walk.
    """
    return b")" + b"q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(depth))


def _code(canary) -> Iterator[tuple[str, bytes]]:
    """(name, pickle) of such as would write `canary`."""
    import os
    import subprocess

    touch, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    calls = {
        "os.system": _Calls(os.system, touch),
        "builtins.eval": _Calls(eval, python),
        "builtins.exec": _Calls(exec, python),
        "subprocess.Popen": _Calls(subprocess.Popen, ["touch", str(canary)]),
        "os.mkdir": _Calls(os.mkdir, str(canary)),
        "numpy's reducer": np.array([_Calls(os.system, touch)], dtype=object),
    }
    for name, call in calls.items():
        for protocol in range(6):
            for place in ("value", "key", "list"):
                held = {"value": {"data": call}, "key": [{"data": 1}, call], "list": [call]}[place]
                yield f"{name}, protocol {protocol}, {place}", pickle.dumps(held, protocol=protocol)
    yield "INST", b"(S'" + touch.encode() + b"'\nios\nsystem\n."
    yield "OBJ", b"(cos\nsystem\n" + text(touch) + b"o."
    yield "dotted name", b"\x80\x04" + text("numpy") + text("core.os.system") + b"\x93" + text(touch) + b"\x85R."
    yield (
        "attributes of what is allowed",
        (b"\x80\x02ccollections\nOrderedDict\n}" + text("__code__") + b"cos\nsystem\nsb" + text(touch) + b"\x85R."),
    )


def _greedy_pickles() -> Iterator[tuple[str, bytes]]:
    yield "memo of 2**32 places", b"\x80\x02K\x01r\xff\xff\xff\xff."
    yield "tuples nested a million deep as a key", b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s."
    yield "lists nested a million deep", b"\x80\x02]" + b"]" * 10**6 + b"a" * 10**6 + b"."
    yield "a key of 2**60 tuples", b"\x80\x02}" + _laughs() + b"K\x01s."
    yield "a storage called by 2**60 tuples", (
        b"\x80\x02}" + text("cls_token") + b"(" + text("storage") + b"ctorch\nFloatStorage\n" + _laughs() + text("cpu")
        + b"K\x06tQs."
    )  # fmt: skip
    yield "marks without end", b"\x80\x02" + b"(" * 7 * 10**6 + b"."
    yield "dicts without end", b"\x80\x04(" + b"}" * 7 * 10**6 + b"l."
    yield "sets without end", b"\x80\x04" + b"\x8f" * 7 * 10**6 + b"."
    yield "bytes with a length of 2**62", b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x."
    yield "a bytearray with a length of 2**40", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x."
    yield "a frame with a length of 2**62", b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N."
    yield "a long number", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x."
    yield "a number in ten million digits", b"I" + b"9" * 10**7 + b"\n."
    encode = b"c_codecs\nencode\n(h\x00tR"
    yield (
        "a text encoded 4,000 times",
        b"\x80\x02(X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x00" + encode * 4000 + b"l.",
    )
    items = b"".join(text(f"{i}") + b"K\x01" for i in range(10**5))
    copied = b"ccollections\nOrderedDict\n(h\x00tR"
    yield "a dict copied 1,000 times", b"\x80\x02}q\x00(" + items + b"u(" + copied * 1000 + b"l."
    yield "a large array", b"\x80\x02}" + text("cls_token") + tensor("0", 6, [2**30, 2**30]) + b"s."


def _tars() -> Iterator[tuple[str, bytes]]:
    """(name, archive) of such as lead out of the folder that they are unpacked to."""

    def member(name, kind=tarfile.REGTYPE, link=""):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return info

    inside = ("imagenet-r/n01/a.jpg", b"1")
    for name in (
        "../escaped",
        "imagenet-r/../../escaped",
        "/tmp/cdl_jax_escaped",
        "imagenet-r/../../../escaped",
        "..",
        "/",
    ):
        yield f"the name {name}", tar([inside, (member(name), b"harm")])
    for kind, what in ((tarfile.SYMTYPE, "symbolic link"), (tarfile.LNKTYPE, "hard link")):
        for target in ("../..", "/etc/passwd", "../../../escaped", "/tmp"):
            link = (member("imagenet-r/out", kind, target), b"")
            yield (
                f"a {what} to {target}",
                tar([inside, link, ("imagenet-r/out/escaped", b"harm"), ("imagenet-r/out", b"harm")]),
            )
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        yield f"a device of type {kind.decode()}", tar([inside, (member("imagenet-r/device", kind), b"")])
    yield "folders nested 3,000 deep", tar([("imagenet-r/" + "a/" * 3000 + "b.png", b"1")])
    yield "a name of 3 MB", tar([("imagenet-r/" + "a" * 3 * 10**6 + "/b.png", b"1")])
    header = tarfile.TarInfo("imagenet-r/next")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    yield (
        "20,000 long names in turn",
        (header.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 20000 + bytes(1024),
    )
    nested = tar([("n01/a.png", b"1")])
    for _ in range(1200):
        nested = nested_once(nested)
    yield "archives nested 1,200 deep", nested
    claim = tarfile.TarInfo("imagenet-r/n01/a.png")
    for size in (2**33 - 1, 2**60):
        claim.size = size
        yield f"a member with a size of {size}", claim.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def nested_once(content: bytes) -> bytes:
    """Returns an archive that contains an archive.

    It is written by hand, because tarfile would copy the content in many small pieces.
    """
    info = tarfile.TarInfo("a.tar")
    info.size = len(content)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512) + bytes(1024)


def _gzip_bomb(header: bytes, size: int) -> bytes:
    """Returns `header` and `size` zero bytes, packed without the checksum at the end.

    No reader should reach the checksum.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)  # the same bytes wherever it stands
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + first + zeros * (size >> 24) + packer.flush()


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Yields (name, packed archive) of 4 GiB of zeros or of two million members.

    The zeros are one of the files, the header of the next file, or behind the end of the archive.
    """
    for kind, name in (
        (tarfile.REGTYPE, "cifar-100-python/train"),
        (tarfile.REGTYPE, "elsewhere"),
        (tarfile.XHDTYPE, "x"),
        (tarfile.XGLTYPE, "x"),
        (tarfile.GNUTYPE_LONGNAME, "x"),
        (tarfile.GNUTYPE_LONGLINK, "x"),
    ):
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, 4 * GIB
        yield f"4 GiB in {name} of type {kind.decode()}", _gzip_bomb(info.tobuf(tarfile.GNU_FORMAT), 4 * GIB)
    yield "4 GiB behind the end", _gzip_bomb(bytes(1024), 4 * GIB)
    header = tarfile.TarInfo("imagenet-r/empty").tobuf(tarfile.GNU_FORMAT)
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    yield "two million empty members", b"".join(packer.compress(header * 10000) for _ in range(200)) + packer.flush()


def _zips() -> Iterator[tuple[str, bytes]]:
    """(name, npz)."""
    for array in ("y_train", "norm.bias", "params/Dense_0/bias"):
        for descr, shape in (
            ("<f4", (2**31, 2**31)), ("<f4", (2**62,)), ("<i8", (-1, -16)), ("|V0", (2**62,)), ("<U0", (2**62,)),
            ("|O", (4,)), ("<f4", (10**18, 0)), ([("a", "<f4", (2**20, 2**20))], (1,)),
        ):  # fmt: skip
            yield f"{array} of {descr} {shape}", zipped({f"{array}.npy": _numpy_descr(descr, shape, bytes(128))})
            yield f"{array} of {descr} {shape}, nothing stored", zipped({f"{array}.npy": _numpy_descr(descr, shape)})
        for way in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            yield f"{array} packed by {way}", zipped({f"{array}.npy": _numpy_descr("|u1", (2**24,), bytes(2**24))}, way)
    yield "3 GiB in 3 MB", _deflated(_numpy_descr("|u1", (3 * GIB,)), 3 * GIB)
    yield "a header of 4 GiB", _deflated(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1), 3 * GIB)
    yield "50,000 empty members", zipped({f"{i}.npy": b"" for i in range(50000)})
    yield "a member called ../escaped", zipped({"../../escaped.npy": _numpy_descr("|u1", (1,), b"1")})
    yield "an encrypted member", _flagged(zipped({"y_train.npy": _numpy_descr("|u1", (1,), b"1")}))


def _deflated(start: bytes, zeros: int) -> bytes:
    """An npz of one packed array."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("y_train.npy", "w", force_zip64=True) as member:
            member.write(start)
            for _ in range(zeros >> 24):
                member.write(bytes(2**24))
    return content.getvalue()


def _flagged(content):
    """Makes a zip file whose flags mark its members as encrypted."""
    at = content.index(b"PK\x01\x02")
    return content[:6] + b"\x01" + content[7 : at + 8] + b"\x01" + content[at + 9 :]


def _safetensors() -> Iterator[tuple[str, bytes]]:
    for length in (2**60, 2**64 - 1, 2**40, 99_999_999):
        yield f"a header of {length}", struct.pack("<Q", length) + b"{}"
    for shape, offsets in (
        ([2**60], [0, 2**62]), ([2**31, 2**31], [0, 16]), ([4], [0, 2**63]), ([4], [16, 0]), ([0, 2**62], [0, 0]),
        ([2**62], [0, 0]), ([-1], [0, 4]), ([4], [-16, 0]),
    ):  # fmt: skip
        header = f'{{"cls_token":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode()
        yield f"{shape} at {offsets}", struct.pack("<Q", len(header)) + header + bytes(16)
    for dtype in ("F8_E4M3", "F4", "BOOL", "C64", "U64", "Q9"):
        header = f'{{"cls_token":{{"dtype":"{dtype}","shape":[1,1,6],"data_offsets":[0,6]}}}}'.encode()
        yield f"numbers of type {dtype}", struct.pack("<Q", len(header)) + header + bytes(6)
    deep = b'{"a":' + b"[" * 10**6
    yield "lists nested a million deep", struct.pack("<Q", len(deep)) + deep


def _large_image() -> bytes:
    """Makes a PNG whose header states 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def crafted(canary) -> Iterator[tuple[str, str, bytes]]:
    """(kind of `fuzz_inputs.kinds`, name, file) one after another.

    canary: the file that any code in them would make.
    """
    for name, content in (*_code(canary), *_greedy_pickles()):
        yield "CIFAR pickle", name, content
        yield "pth", name, pth(content)
        yield "pth before torch 1.6", name, old_pth(content)
    for name, content in _tars():
        yield "ImageNet-R, unpacked", name, content
        yield "tar of images", name, content
        yield "CIFAR archive", name, gzip.compress(content, 1)
    for name, content in _bombs():
        yield "CIFAR archive", name, content
        yield "tar of images", name, content
        yield "ImageNet-R, unpacked", name, content
    for name, content in _zips():
        for kind in ("npz of images", "npz of weights", "weights.npz of a run", "pth"):
            yield kind, name, content
    for name, content in _safetensors():
        yield "safetensors", name, content
    yield "PNG", "60,000 x 60,000 points", _large_image()
    yield (
        "PNG",
        "PostScript",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) (r) file\n",
    )
    for kind in ("config.json", "results.json"):
        for name, content in (
            ("lists nested a million deep", b"[" * 10**6), ("a number of ten million digits", b"9" * 10**7),
            ("a list", b"[]"), ("null", b"null"), ("NaN", b'{"config": NaN}'),
            ("no text", b"\xff\xfe\x00"), ("empty", b""),
        ):  # fmt: skip
            yield kind, name, content
