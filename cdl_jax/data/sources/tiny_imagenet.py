"""Loads Tiny-ImageNet, 200 classes of ImageNet at 64x64, tested on `val/`."""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "tiny_imagenet",
    "Tiny-ImageNet",
    folders=("tiny-imagenet-200",),
    num_classes=200,
    base_classes=100,
    increment=10,
    images=(100_000, 10_000),
    remedy="run `python -m cdl_jax.fetch tiny_imagenet`, or unpack tiny-imagenet-200.zip",
    can_fetch=True,
)
OPTIONS, load, placeholder = SET.options, SET.load, SET.placeholder
explain_download = SET.explain_download
