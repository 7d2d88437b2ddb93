"""Loads 100 classes of ImageNet (ILSVRC 2012).

The folder has these classes alone, or it is that of all classes and `class_list` names 100 of them. Papers differ in
the 100 classes, so no list is shipped.
"""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "imagenet100",
    "ImageNet-100",
    folders=("imagenet100", "imagenet-100"),
    num_classes=100,
    increment=10,
    remedy="put train/<WordNet id>/ and val/<WordNet id>/ into a folder, or set data.class_list for all of ImageNet",
    takes_list=True,
)
OPTIONS, load, explain_download = SET.options, SET.load, SET.explain_download
