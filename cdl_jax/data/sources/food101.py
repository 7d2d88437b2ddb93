"""Loads Food-101, 101 dishes, as it is delivered."""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "food101",
    "Food-101",
    folders=("food-101",),
    num_classes=101,
    base_classes=11,  # 10 tasks without one of a single class
    increment=10,
    images=(75_750, 25_250),
    remedy="run `python -m cdl_jax.fetch food101`, or unpack food-101.tar.gz",
    can_fetch=True,
)
OPTIONS, load, placeholder = SET.options, SET.load, SET.placeholder
explain_download = SET.explain_download
