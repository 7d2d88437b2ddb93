"""Loads Office-Home, 65 classes in four domains, as it is delivered.

It has no official split: `test_fraction` of each class of each domain is drawn by `split_seed`, and results are
comparable only with those of the same split.
"""

from cdl_jax.data.readers.domain_sets import DomainSet

SET = DomainSet(
    "office_home",
    folders=("OfficeHomeDataset_10072016", "OfficeHome", "office_home"),
    remedy="unpack OfficeHomeDataset_10072016.zip (hemanthdv.github.io/officehome-dataset)",
    domains={
        "Art": ("Art", "art"),
        "Clipart": ("Clipart", "clipart"),
        "Product": ("Product", "product"),
        "Real World": ("Real World", "Real_World", "RealWorld", "real_world", "Real"),
    },
    num_classes=65,
)
OPTIONS, load, explain_download = SET.options, SET.load, SET.explain_download
