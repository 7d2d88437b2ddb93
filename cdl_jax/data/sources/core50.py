"""Loads CORe50, 50 objects in eleven sessions, from core50_128x128.zip unpacked.

Sessions 3, 7 and 10 are the test set of all tasks, and the eight others are the domains, as in the benchmark of new
instances (NI).
"""

from cdl_jax.data.readers.domain_sets import DomainSet

SET = DomainSet(
    "core50",
    folders=("core50_128x128",),
    remedy="unpack core50_128x128.zip (vlomonaco.github.io/core50)",
    domains={f"s{number}": (f"s{number}",) for number in range(1, 12)},
    num_classes=50,
    test_domains=("s3", "s7", "s10"),
    images=(119_894, 44_972),
    can_fetch=True,
)
OPTIONS, load, placeholder = SET.options, SET.load, SET.placeholder
explain_download = SET.explain_download
