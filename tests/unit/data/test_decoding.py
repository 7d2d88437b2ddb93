"""Images of every depth and mode become the 8-bit RGB that they show.

Images that are too large end in one line.
"""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data import image_dataset
from cdl_jax.data.readers import decoding, npz_files, tar_files
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from tests.support.fake_sources import load, refusal

DEEP = np.array([[0, 1, 128], [129, 255, 257], [32767, 65406, 65535]], np.uint16)
SHOWN = np.rint(DEEP * (255 / 65535)).astype(np.uint8)
assert SHOWN.tolist() == [[0, 0, 0], [1, 1, 1], [127, 254, 255]]


def encoded(image, form, **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def png16(values, color_type):
    """Returns a 16-bit PNG of values [height, width, channels].

    The filters None and Sub alternate from row to row.
    """

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    rows, step = values.astype(">u2").reshape(height, -1).view(np.uint8).reshape(height, -1), 2 * channels
    lines = []
    for number, row in enumerate(rows):
        if number % 2:  # Sub
            row = row - np.concatenate([np.zeros(step, np.uint8), row[:-step]])
        lines.append(bytes([number % 2]) + row.tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(lines)))
        + chunk(b"IEND", b"")
    )


def tiff(values, bits, *, order="<", photometric=1, kind=1):
    """Returns an uncompressed TIFF.

    values: [height, width] or [height, width, channels].
    """
    data, channels = values.tobytes(), values.shape[2] if values.ndim == 3 else 1
    count, end = 10 + (kind != 1), 8 + len(data)
    entries = [(256, 4, 1, values.shape[1]), (257, 4, 1, values.shape[0]), (258, 3, channels, bits)]
    entries += [(259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, channels)]
    entries += [(278, 4, 1, values.shape[0]), (279, 4, 1, len(data)), (284, 3, 1, 1)]
    entries += [(339, 3, 1, kind)] if kind != 1 else []
    tail = b""
    ifd = struct.pack(order + "H", count)
    for tag, form, number, value in entries:
        if number > 2:
            place = end + 2 + 12 * count + 4 + len(tail)
            tail += struct.pack(order + f"{number}H", *[value] * number)
            ifd += struct.pack(order + "HHII", tag, form, number, place)
        else:
            ifd += struct.pack(order + ("HHIHH" if form == 3 else "HHII"), tag, form, number, value, *[0] * (form == 3))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", end) + data + ifd + b"\0\0\0\0" + tail


def tiff_of_parts(
    values, *, rows=0, side=0, planes=1, photometric=1, order="<", compressed=False, kind=1, orientation=1
):
    """Returns a TIFF of values of any dtype.

    The file has strips of `rows` rows, or square tiles of `side` pixels.
    """
    values = values.reshape(*values.shape[:2], -1)
    height, width, channels = values.shape
    bits = 8 * values.itemsize
    step = (side, side) if side else (rows or height, width)
    padded = np.pad(values, [(0, -height % side), (0, -width % side), (0, 0)]) if side else values
    layers = [padded] if planes == 1 else [padded[..., k] for k in range(channels)]
    parts = [
        layer[y : y + step[0], x : x + step[1]].astype(values.dtype.newbyteorder(order)).tobytes()
        for layer in layers
        for y in range(0, height, step[0])
        for x in range(0, width, step[1])
    ]
    parts = [zlib.compress(part) for part in parts] if compressed else parts
    sizes = [len(part) for part in parts]
    offsets = [8 + sum(sizes[:k]) for k in range(len(sizes))]
    tags = {256: [width], 257: [height], 258: [bits] * channels, 259: [8 if compressed else 1], 262: [photometric]}
    tags |= {274: [orientation], 277: [channels], 284: [planes], 339: [kind] * channels}
    tags |= {322: [side], 323: [side], 324: offsets, 325: sizes} if side else {273: offsets, 278: [step[0]], 279: sizes}
    start = 8 + sum(sizes) + sum(sizes) % 2
    ifd, tail = struct.pack(order + "H", len(tags)), b""
    for tag, numbers in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(data) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(tail)
            tail, data = tail + data, struct.pack(order + "I", place)
        ifd += struct.pack(order + "HHI", tag, 4, len(numbers)) + data
    magic = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(parts) + bytes(sum(sizes) % 2)
    return magic + struct.pack(order + "I", start) + body + ifd + bytes(4) + tail


def pixels(content):
    image = decoding.decode(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def gray(content):
    found = pixels(content)
    assert (found == found[..., :1]).all()
    return found[..., 0]


def reason(content):
    with pytest.raises(UserError) as error:
        decoding.decode(content)
    return str(error.value)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled(form):
    assert gray(encoded(Image.fromarray(DEEP), form)).tolist() == SHOWN.tolist()
    # 25 % gray stays 25 % gray
    assert gray(encoded(Image.fromarray(np.full((2, 2), 16384, np.uint16)), form)).tolist() == [[64, 64]] * 2


def test_16_bit_color_is_rounded_to_the_nearest_level():
    color = np.stack([DEEP, DEEP.T, DEEP[::-1]], axis=-1)
    shown = np.rint(color * (255 / 65535)).astype(np.uint8)
    assert (pixels(png16(color, 2)) == shown).all()
    alpha = np.concatenate([color, np.full((3, 3, 1), 300, np.uint16)], axis=-1)
    assert (pixels(png16(alpha, 6)) == shown).all()
    assert (gray(png16(np.stack([DEEP, DEEP.T], axis=-1), 4)) == SHOWN).all()
    assert (pixels(tiff(color.astype("<u2"), 16, photometric=2)) == shown).all()
    assert (pixels(tiff(color.astype(">u2"), 16, photometric=2, order=">")) == shown).all()
    every = np.arange(65536, dtype=np.uint16).reshape(128, 512, 1).repeat(3, axis=2)
    assert (gray(png16(every, 2)) == np.rint(every[..., 0] / 257)).all()


def test_tiffs_that_pillow_leaves_unscaled():
    assert gray(tiff(DEEP.astype(">u2"), 16, order=">")).tolist() == SHOWN.tolist()
    assert gray(tiff(DEEP.astype("<u2"), 16, photometric=0)).tolist() == (255 - SHOWN).tolist()  # WhiteIsZero
    twelve = np.frombuffer(bytes([0xFF, 0xF8, 0x00]), np.uint8)  # 4095 and 2048, of 12 bits each
    content = tiff(twelve[None], 12)
    assert gray(content.replace(struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 2))).tolist() == [
        [255, 128]
    ]
    assert gray(tiff(DEEP.astype("<i4"), 32, kind=2)).tolist() == SHOWN.tolist()
    assert gray(tiff(np.array([[0, 0.25, 1]], "<f4"), 32, kind=3)).tolist() == [[0, 64, 255]]


def test_floating_point_images_are_scaled_from_either_range_or_refused():
    def image(*values):
        return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")

    assert gray(image(0.0, 0.2, 1.0)).tolist() == [[0, 51, 255]]
    assert gray(image(0.0, 99.6, 255.0)).tolist() == [[0, 100, 255]]
    for values in [(-1.0, 1.0), (0.0, 256.0), (0.0, float("nan")), (0.0, float("inf")), (0.0, 16.0)]:
        assert "scale them to [0, 1] or to [0, 255]" in reason(image(*values))


def test_integers_without_a_known_white_level_are_refused():
    assert "from 0 to 255 with an unknown white level" in reason(tiff(np.array([[0, 255]], "<i4"), 32, kind=2))
    assert "from 0 to 70000" in reason(tiff(np.array([[0, 70000]], "<i4"), 32, kind=2))
    assert "from -5 to 9000" in reason(tiff(np.array([[-5, 9000]], "<i2"), 16, kind=2))


def test_8_bit_images_keep_their_values():
    color = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for form in ("PNG", "BMP", "TIFF", "PPM"):
        assert (pixels(encoded(Image.fromarray(color), form)) == color).all()
    jpeg = encoded(Image.fromarray(color), "JPEG")
    assert (pixels(jpeg) == np.asarray(Image.open(io.BytesIO(jpeg)))).all()
    assert (gray(encoded(Image.fromarray(color[..., 0]), "PNG")) == color[..., 0]).all()
    mask = np.array([[0, 1], [1, 0]], bool)
    assert gray(encoded(Image.fromarray(mask), "PNG")).tolist() == [[0, 255], [255, 0]]
    ramp = encoded(Image.fromarray(color).convert("CMYK"), "TIFF")
    assert (pixels(ramp) == color).all()


def test_alpha_is_dropped_and_colors_stay():
    color = np.random.default_rng(1).integers(0, 256, (4, 4, 4), np.uint8)
    assert (pixels(encoded(Image.fromarray(color), "PNG")) == color[..., :3]).all()
    assert (gray(encoded(Image.fromarray(color[..., :2], "LA"), "PNG")) == color[..., 0]).all()
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    for options in ({"transparency": 1}, {"transparency": b"\x00\x80\xff"}, {}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = pixels(encoded(palette, "PNG", **options))
        assert found.tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]


GRAY = np.random.default_rng(2).integers(0, 256, (10, 20), np.uint8)
COLOR16 = np.random.default_rng(3).integers(0, 65536, (40, 33, 3)).astype(np.uint16)
SHOWN16 = np.rint(COLOR16 / 257).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_tag_of_a_tiff_has_no_effect(tmp_path, orientation):
    for values, photometric, shown in [(GRAY, 1, GRAY), (COLOR16[..., 0], 1, SHOWN16[..., 0]), (COLOR16, 2, SHOWN16)]:
        for compressed in (False, True):
            content = tiff_of_parts(values, photometric=photometric, compressed=compressed, orientation=orientation)
            (tmp_path / "a.tif").write_bytes(content)
            for found in (pixels(content), np.asarray(decoding.decode(tmp_path / "a.tif"))):
                assert found.shape[:2] == shown.shape[:2]
                assert (found == shown.reshape(*shown.shape[:2], -1)).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_orientation_tag_of_exif_has_no_effect(form):
    exif = Image.Exif()
    exif[274] = 6
    flat = np.full((3, 5, 3), 90, np.uint8)
    assert pixels(encoded(Image.fromarray(flat), form, exif=exif)).shape == (3, 5, 3)


def test_an_orientation_of_xmp_has_no_effect():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    content = encoded(Image.fromarray(GRAY), "TIFF", tiffinfo={700: xmp})
    assert Image.open(io.BytesIO(content)).getexif()[274] == 6
    assert (gray(content) == GRAY).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", [{"rows": 8}, {"side": 16}, {"rows": 8, "planes": 2}, {"side": 16, "planes": 2}])
def test_16_bit_color_in_many_parts_is_rounded_to_the_nearest_level(order, layout):
    found = pixels(tiff_of_parts(COLOR16, photometric=2, order=order, **layout))
    assert (found == SHOWN16).all()


@pytest.mark.parametrize("compressed", [False, True])
def test_16_bit_cmyk_is_rounded_before_its_conversion(compressed):
    ink = np.concatenate([65535 - COLOR16, np.zeros_like(COLOR16[..., :1])], axis=-1)
    found = pixels(tiff_of_parts(ink, photometric=5, rows=8, compressed=compressed))
    assert (found == 255 - np.rint(ink[..., :3] / 257)).all()


def test_planes_that_cannot_be_decoded_exactly_are_refused():
    what = "separate planes of this depth and compression cannot be decoded exactly: save the image with interleaved"
    assert what in reason(tiff_of_parts(COLOR16, photometric=2, planes=2, rows=8, compressed=True))
    ink = np.concatenate([COLOR16, COLOR16[..., :1]], axis=-1)
    assert what in reason(tiff_of_parts(ink, photometric=5, planes=2))
    assert what in reason(tiff_of_parts((GRAY / 255).astype(np.float32), kind=3, planes=2, order=">"))
    assert what in reason(tiff_of_parts(GRAY, photometric=0, planes=2))  # Pillow would not invert it
    # 8 bits in planes are exact
    color = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)
    for compressed in (False, True):
        assert (pixels(tiff_of_parts(color, photometric=2, planes=2, rows=4, compressed=compressed)) == color).all()
    assert (gray(tiff_of_parts(GRAY, planes=2, rows=4)) == GRAY).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [False, True])
def test_floating_point_tiffs_of_either_byte_order(order, compressed):
    levels = (GRAY / 255).astype(np.float32)
    assert (gray(tiff_of_parts(levels, kind=3, rows=4, order=order, compressed=compressed)) == GRAY).all()
    mask = (GRAY > 100).astype(np.float32)
    assert (gray(tiff_of_parts(mask, kind=3, order=order, compressed=compressed)) == 255 * mask).all()
    deep = COLOR16[..., 0].astype(np.int32)
    assert (gray(tiff_of_parts(deep, kind=2, order=order, compressed=compressed)) == SHOWN16[..., 0]).all()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compressed", [False, True])
def test_signed_tiffs_of_8_and_16_bits_are_refused(order, compressed):
    for dtype, scale in [(np.int8, 1), (np.int16, 100)]:
        for low in (-100, 5):
            values = scale * np.array([[low, 100], [7, 9]]).astype(dtype)
            why = f"from {scale * min(low, 7)} to {scale * 100} with an unknown white level"
            assert why in reason(tiff_of_parts(values, kind=2, order=order, compressed=compressed))


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_is_read(form):
    frames = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (10, 200)]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert gray(content).tolist() == [[10] * 4] * 4


def test_images_beyond_the_limits_end_in_one_line_that_names_the_file(tmp_path, monkeypatch):
    def message(size, mode="1"):
        path = tmp_path / "big.png"
        Image.new(mode, size).save(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UserError) as error:
                image_dataset.load_image(Split(np.zeros(1, np.int32), files=(str(path),)), 0)
        assert "\n" not in str(error.value) and str(path) in str(error.value)
        return str(error.value)

    assert "1 x 100000 pixels are too large" in message((1, 100_000))
    assert "the limit is 89,478,485 pixels and 65,535 a side" in message((20_000, 20_000))
    assert "10000 x 9000 pixels" in message((10_000, 9_000))
    Image.new("L", (65_535, 2)).save(tmp_path / "fits.png")
    assert decoding.decode(tmp_path / "fits.png").size == (65_535, 2)


def test_a_narrow_image_is_cropped_within_memory():
    narrow = Image.fromarray(np.arange(4 * 60_000, dtype=np.uint32).astype(np.uint8).reshape(4, 60_000)).convert("RGB")
    options = {"test": "resize_center_crop", "resize": 64}
    full = augment.transform_test_image(narrow, options, 48)
    before = augment._MAX_PIXELS
    try:
        augment._MAX_PIXELS = 2**20
        part = augment.transform_test_image(narrow, options, 48)
    finally:
        augment._MAX_PIXELS = before
    assert np.abs(full.astype(int) - part).max() <= 1
    line = augment.transform_test_image(Image.new("RGB", (1, 65_535), (9, 9, 9)), {**options, "resize": 256}, 224)
    assert line.shape == (224, 224, 3) and (line == 9).all()


def test_members_of_an_archive_are_decoded_alike(tmp_path):
    content = encoded(Image.fromarray(DEEP), "PNG")
    (tmp_path / "a.tar").write_bytes(b"x" * 100 + content)
    member = tar_files.Member(str(tmp_path / "a.tar"), "a/1.png", 100, len(content))
    image, _ = image_dataset.load_image(Split(np.zeros(1, np.int32), files=(member,)), 0)
    assert (np.asarray(image)[..., 0] == SHOWN).all()


@pytest.mark.parametrize(
    ("values", "want"),
    [
        (np.array([0.0, 0.2, 1.0]), [0, 51, 255]),
        (np.array([0.0, 0.2, 1.0], np.float16), [0, 51, 255]),
        (np.array([0.0, 100.4, 255.0], np.float32), [0, 100, 255]),
        (np.array([0, 257, 65535], np.uint16), [0, 1, 255]),
        (np.array([0, 100, 255], np.int64), [0, 100, 255]),
        (np.array([0, 100, 255], np.uint32), [0, 100, 255]),
        (np.array([False, True, True]), [0, 255, 255]),
        (np.array([3, 7, 255], np.uint8), [3, 7, 255]),
    ],
)
def test_arrays_are_scaled(tmp_path, values, want):
    images = np.tile(values[None, None], (2, 3, 1))
    given = {"x_train": images, "y_train": [0, 1], "x_test": images, "y_test": [0, 1]}
    np.savez(tmp_path / "a.npz", **given)
    data = load("arrays", tmp_path / "a.npz")
    assert data.train.images.dtype == np.uint8 and data.train.images.shape == (2, 3, 3, 3)
    assert data.train.images[1, 2, :, 1].tolist() == want


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.array([-1.0, 1.0]), "floating-point values from -1 to 1"),
        (np.array([0.0, 300.0]), "from 0 to 300"),
        (np.array([0.0, np.nan]), "from nan to nan"),
        (np.array([0, 256]), "int64 values from 0 to 256"),
        (np.array([-1, 255], np.int16), "int16 values from -1 to 255"),
        (np.array([0, 255], np.uint16), "uint16 values from 0 to 255"),
        (np.array([0, 255], ">u2"), "uint16 values from 0 to 255"),
        (np.array([0, 16]), "int64 values from 0 to 16"),
        (np.array([0, 1]), "int64 values from 0 to 1"),
        (np.array([0, 1], np.uint8), "uint8 values from 0 to 1 with an unknown white level"),
        (np.array([0, 16], np.uint8), "uint8 values from 0 to 16"),
        (np.array(["a", "b"]), "values of type <U1"),
        (np.zeros(2, [("r", "u1"), ("g", "u1")]), "values of type [('r', 'u1'), ('g', 'u1')]"),
        (np.array([1j, 0]), "values of type complex128"),
    ],
)
def test_arrays_without_a_known_scale_are_refused(tmp_path, values, why):
    images = np.tile(values[None, None], (2, 3, 1))
    np.savez(tmp_path / "a.npz", x_train=images, y_train=[0, 1], x_test=images, y_test=[0, 1])
    message = refusal("arrays", tmp_path / "a.npz")
    assert why in message and "a.npz: x_train" in message


@pytest.mark.parametrize(
    ("train", "test", "want"),
    [
        (np.array([0.0, 1.0]), np.array([0.0, 0.2]), [0, 51]),
        (np.array([0.0, 1.0], np.float16), np.array([False, True]), [0, 255]),
        (np.array([0.0, 255.0]), np.array([0, 100], np.uint8), [0, 100]),
        (np.array([0, 65535], np.uint16), np.array([0, 257], np.uint16), [0, 1]),
        (np.array([0, 65535], ">u2"), np.array([0, 65535], "<u2"), [0, 255]),
        (np.array([0, 255], np.int64), np.array([0, 99], np.uint8), [0, 99]),
        (np.array([0, 65535], np.uint16), np.array([0, 0], np.uint8), [0, 0]),
    ],
)
def test_training_and_test_arrays_have_one_scale(tmp_path, train, test, want):
    for parts, index in [((train, test), 1), ((test, train), 0)]:
        images = [np.tile(part[None, None], (2, 3, 1)) for part in parts]
        np.savez(tmp_path / "a.npz", x_train=images[0], y_train=[0, 1], x_test=images[1], y_test=[0, 1])
        data = load("arrays", tmp_path / "a.npz")
        assert (data.train, data.test)[index].images[0, 0, :, 0].tolist() == want


@pytest.mark.parametrize(
    ("train", "test", "why"),
    [
        (np.array([0.0, 1.0]), np.array([0.0, 255.0]), "x_train seems to have values up to 1 and x_test up to 255"),
        (np.array([0.0, 255.0]), np.array([0.0, 1.0]), "x_train seems to have values up to 255 and x_test up to 1"),
        (np.array([0, 255], np.uint8), np.array([0.0, 1.0]), "up to 255 and x_test up to 1: save both in one scale"),
        (np.array([0, 65535], np.uint16), np.array([0, 255], np.uint8), "up to 65535 and x_test up to 255"),
        (np.array([0, 65535], np.uint16), np.array([0, 200], np.uint16), "x_test: uint16 values from 0 to 200"),
        (np.array([0, 1], bool), np.array([0, 255], np.uint8), "up to 1 and x_test up to 255"),
        (np.array([0, 255], np.uint8), np.array([0, 1]), "x_test: int64 values from 0 to 1"),
    ],
)
def test_training_and_test_arrays_of_different_scales_are_refused(tmp_path, train, test, why):
    images = [np.tile(part[None, None], (2, 3, 1)) for part in (train, test)]
    np.savez(tmp_path / "a.npz", x_train=images[0], y_train=[0, 1], x_test=images[1], y_test=[0, 1])
    assert why in refusal("arrays", tmp_path / "a.npz")


def test_large_arrays_are_scaled_in_parts():
    values = np.linspace(0, 1, 3 * 1500 * 1000).reshape(3, 1500, 1000)
    found = npz_files.rgb(values, what="x")[..., 0]
    assert (found == np.rint(values * 255)).all()
