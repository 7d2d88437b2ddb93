"""Loads VTAB as class-incremental learning uses it: 50 classes of five data sets, as train/ and test/ of PILOT.

Classes are in the sorted order of their folders. With `increment=10` each task is one of the five data sets if the
folders are numbered, as in PILOT's archive (not checked here).
"""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "vtab",
    "VTAB (50 classes)",
    folders=("vtab-cil/vtab", "vtab"),
    num_classes=50,
    increment=10,
    remedy="unpack the archive vtab-cil of PILOT (github.com/LAMDA-CL/LAMDA-PILOT)",
)
OPTIONS, load = SET.options, SET.load
