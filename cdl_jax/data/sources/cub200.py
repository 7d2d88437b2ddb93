"""Loads CUB-200-2011, 200 species of birds, as it is delivered."""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "cub200",
    "CUB-200-2011",
    folders=("CUB_200_2011", "cub"),
    num_classes=200,
    increment=10,
    images=(5_994, 5_794),
    remedy="run `python -m cdl_jax.fetch cub200`, or unpack CUB_200_2011.tgz",
    can_fetch=True,
)
OPTIONS, load, placeholder = SET.options, SET.load, SET.placeholder
explain_download = SET.explain_download
