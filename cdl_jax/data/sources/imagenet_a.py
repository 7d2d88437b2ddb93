"""Loads ImageNet-A, 200 classes of photographs that mislead classifiers.

It is delivered without a split. A folder with train/ and test/, such as PILOT distributes, keeps its split; otherwise
`test_fraction` of each class is drawn by `split_seed`, and results with that split are comparable only with each other.
"""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "imagenet_a",
    "ImageNet-A",
    folders=("imagenet-a",),
    num_classes=200,
    increment=20,
    remedy="run `python -m cdl_jax.fetch imagenet_a`, or unpack imagenet-a.tar",
    can_fetch=True,
    has_split=False,
)
OPTIONS, load, explain_download = SET.options, SET.load, SET.explain_download
