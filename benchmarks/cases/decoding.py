"""Reading JPEG files of ImageNet's sizes into random crops, against other readers.

    python -m benchmarks.run decoding [--images 64] [--rounds 5] [--clock cpu]

The figures are images a second of one core. The files are made here: noise with the spectrum of photographs, 500 x 375
pixels or upright, about 110 kB each as in ImageNet. Each reader makes crops of 224 pixels, half of them flipped, in one
thread. Readers whose package is missing are left out. "big_vision" is the way of that code: TensorFlow decodes only the
crop. `cores` is the number of cores that a host needs for a GPU that takes --rate images a second.
"""

import importlib.util
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import timing
from cdl_jax.data.image_dataset import ImageDataset
from cdl_jax.data.readers import decoding
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.options import defaults

HEAD = ("reader", "ms an image (quartiles)", "images a second of a core", "ratio", "cores")
SIZES = ((375, 500), (500, 375))  # (height, width), the most frequent ones of ImageNet
QUALITY = 91
CROP = 224
OURS = "ours"


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=8500, help="images a second that a GPU takes")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    options_of_crops = {**defaults(augment.OPTIONS), "train": "random_resized_crop", "flip": True}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(options.images)]
        for number, file in enumerate(files):
            file.write_bytes(photograph(number))
        kilobytes = float(np.mean([file.stat().st_size for file in files])) / 1e3
        readers = {OURS: _crops(Split(np.zeros(len(files), np.int32), files=files), options_of_crops)}
        readers["ours, decoding alone"] = lambda: [decoding.decode(file) for file in files]
        upright = [file for number, file in enumerate(files) if number % 2]  # of one size, for one array
        decoded = np.stack([np.asarray(decoding.decode(file)) for file in upright or files[:1]])
        cached = Split(np.zeros(len(decoded), np.int32), images=decoded)
        cached_crops = _crops(cached, options_of_crops)
        repeats = len(files) // len(decoded)
        readers["ours, decoded before"] = lambda: [cached_crops() for _ in range(repeats)]
        readers |= other_readers(files)
        ways = {name: lambda read=read: _milliseconds(read, len(files)) for name, read in readers.items()}
        for way in ways.values():
            way()
        found = timing.compare(timing.alternate(ways, options.rounds), OURS)
    rows = []
    for name, one in found.items():
        rate = 1e3 / one["median"]
        quartiles = f"{one['median']:.2f} ({one['q1']:.2f}-{one['q3']:.2f})"
        rows.append((name, quartiles, f"{rate:.0f}", f"{one['ratio']:.2f}", f"{options.rate / rate:.0f}"))
    print(timing.markdown(HEAD, rows))
    share = share_of_reducible_crops(options_of_crops)
    print(f"\nA file has {kilobytes:.0f} kB. {100 * share:.1f} % of all crops could be decoded at half size.")
    return {"kilobytes": kilobytes, "ms": found, "rate": options.rate, "reducible": share}


def photograph(number: int) -> bytes:
    """Returns a JPEG file of noise with the spectrum of photographs.

    The amplitude of the noise falls with the frequency.

    number: seed; odd numbers are upright.
    """
    height, width = SIZES[number % 2]
    random = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = random.normal(size=(3, *frequency.shape)) + 1j * random.normal(size=(3, *frequency.shape))
    gray, *colors = np.fft.irfft2(spectrum / frequency, s=(height, width))
    channels = [gray / gray.std(), *(0.3 * color / color.std() for color in colors)]
    mixed = np.stack([channels[0], channels[0] + channels[1], channels[0] + channels[2]], axis=-1)
    file = io.BytesIO()
    Image.fromarray(np.clip(128 + 50 * mixed, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def share_of_reducible_crops(options) -> float:
    """Returns the share of crops with at least twice the needed width and height.

    A decoder could halve these crops. libjpeg decodes images at 1/2, 1/4 or 1/8 of their size ("draft mode" of Pillow)
    faster than at full size.
    """
    random, boxes = np.random.default_rng(0), []
    for number in range(1000):
        height, width = SIZES[number % 2]
        uniforms = random.random(augment.num_uniforms(options))
        boxes.append(augment.crop_box(uniforms, height, width, options["scale"], options["ratio"], np))
    return float(np.mean([min(box[2], box[3]) >= 2 * CROP for box in boxes]))


def other_readers(files) -> dict:
    """Returns the readers whose packages are installed, by name."""
    readers = {"Pillow, draft mode at half size": lambda: [_half(file) for file in files]}
    if importlib.util.find_spec("torchvision"):
        readers["torchvision"] = _torchvision(files)
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        readers["simplejpeg, decoding alone"] = lambda: [simplejpeg.decode_jpeg(file.read_bytes()) for file in files]
    if importlib.util.find_spec("tensorflow"):
        readers["big_vision"] = _big_vision(files)
    return readers


def _crops(split, options):
    rows = np.arange(len(split.labels))
    images = ImageDataset(split, rows, rows, (0,), options, CROP)
    return lambda: [images[row] for row in rows]


def _half(file):
    """Decodes at half the size and resizes.

    The pixels differ from those of a full decoding.
    """
    with Image.open(file) as image:
        image.draft("RGB", (image.width // 2, image.height // 2))
        image.load()
        return np.asarray(image.resize((CROP, CROP), Image.Resampling.BILINEAR))


def _torchvision(files):
    from torchvision import transforms
    from torchvision.datasets.folder import default_loader

    steps = [transforms.RandomResizedCrop(CROP), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    transform = transforms.Compose(steps)
    return lambda: [transform(default_loader(str(file))) for file in files]


def _big_vision(files):
    import tensorflow as tf

    def read(file):
        content = tf.io.read_file(str(file))
        shape = tf.io.extract_jpeg_shape(content)
        box = tf.zeros((0, 0, 4), tf.float32)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape, box, area_range=(0.08, 1.0), use_image_if_no_bounding_boxes=True
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        crop = tf.image.decode_and_crop_jpeg(content, window, channels=3)
        return tf.image.random_flip_left_right(tf.image.resize(crop, (CROP, CROP)))

    return lambda: [read(file) for file in files]


def _milliseconds(read, count):
    start = timing.now()
    read()
    return 1e3 * (timing.now() - start) / count
