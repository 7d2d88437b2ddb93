"""The files and readers of the decoding benchmark."""

import io

import numpy as np
from PIL import Image

from benchmarks import run
from benchmarks.cases import decoding
from cdl_jax.data.transforms import augment
from cdl_jax.options import defaults


def test_files_have_the_size_of_imagenet_and_the_spectrum_of_photographs():
    files = [decoding.photograph(number) for number in range(2)]
    assert all(8e4 < len(file) < 1.6e5 for file in files)
    images = [Image.open(io.BytesIO(file)) for file in files]
    assert [image.size for image in images] == [(500, 375), (375, 500)]
    power = np.abs(np.fft.fft2(np.asarray(images[0].convert("L"), np.float64))) ** 2
    frequency = np.hypot(np.fft.fftfreq(375)[:, None], np.fft.fftfreq(500)[None])
    low, high = (power[(frequency > f) & (frequency < 1.2 * f)].mean() for f in (0.02, 0.16))
    assert 40 < low / high < 100  # amplitude 1 / f: power 8 ** 2 times


def test_crops_of_larger_images_could_be_decoded_at_half_size(monkeypatch):
    options = {**defaults(augment.OPTIONS), "scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    assert decoding.share_of_reducible_crops(options) == 0  # squares of 375 pixels
    monkeypatch.setattr(decoding, "SIZES", ((448, 800), (447, 800)))
    assert decoding.share_of_reducible_crops(options) == 0.5


def test_every_reader_has_a_row(capsys):
    run.main(["decoding", "--images", "2", "--rounds", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    names = [row.split(" | ")[0].strip("| ") for row in rows]
    assert names[:4] == ["ours", "ours, decoding alone", "ours, decoded before", "Pillow, draft mode at half size"]
