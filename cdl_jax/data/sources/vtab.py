"""Loads the VTAB of class-incremental learning: 50 classes of five data sets.

The folder has train/ and test/, as PILOT distributes them. Classes are in the sorted order of their folders. With
`increment=10` each task is one of the five data sets if the folders are numbered in their order, as PILOT's class order
implies (its archive was not opened here).
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
OPTIONS, load, explain_download = SET.options, SET.load, SET.explain_download
