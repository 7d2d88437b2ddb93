"""Loads the 300 classes of OmniBenchmark that PILOT distributes, as train/ and test/."""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "omnibenchmark",
    "OmniBenchmark (300 classes)",
    folders=("omnibenchmark",),
    num_classes=300,
    increment=30,
    remedy="unpack the archive omnibenchmark of PILOT (github.com/LAMDA-CL/LAMDA-PILOT)",
)
OPTIONS, load = SET.options, SET.load
