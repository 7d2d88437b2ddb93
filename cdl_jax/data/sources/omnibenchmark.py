"""Loads the 300 classes of OmniBenchmark that PILOT distributes."""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "omnibenchmark",
    "OmniBenchmark (300 classes)",
    folders=("omnibenchmark",),
    num_classes=300,
    increment=30,
    images=(89_697, 5_985),
    remedy="unpack the archive omnibenchmark of PILOT (github.com/LAMDA-CL/LAMDA-PILOT)",
)
OPTIONS, load, placeholder = SET.options, SET.load, SET.placeholder
explain_download = SET.explain_download
