"""Loads Stanford Cars, 196 models of cars, as it is delivered.

The official address is closed. The files are cars_train.tgz, cars_test.tgz, car_devkit.tgz and
cars_test_annos_withlabels.mat, unpacked in one folder.
"""

from cdl_jax.data.readers.named_sets import NamedSet

SET = NamedSet(
    "stanford_cars",
    "Stanford Cars",
    folders=("stanford_cars", "CARS196"),
    num_classes=196,
    base_classes=16,
    increment=20,
    images=(8_144, 8_041),
    remedy="put cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat into one folder",
)
OPTIONS, load, placeholder = SET.options, SET.load, SET.placeholder
explain_download = SET.explain_download
