"""Loads DomainNet, 345 classes in six domains, with its lists.

Each domain is one archive of images and two lists, `<domain>_train.txt` and `<domain>_test.txt`, in one folder. With
`kind="class"` the domains are merged, as CODA-Prompt uses the set (num_tasks=5).
"""

from cdl_jax.data.readers.domain_sets import DomainSet

_DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

SET = DomainSet(
    "domainnet",
    folders=("domainnet", "DomainNet"),
    remedy="run `python -m cdl_jax.fetch domainnet`, or unpack the six archives of ai.bu.edu/M3SDA into one folder, "
    "with the lists <domain>_train.txt and <domain>_test.txt",
    domains={name: (name,) for name in _DOMAINS},
    num_classes=345,
    can_fetch=True,
    has_split=True,
)
OPTIONS, load, explain_download = SET.options, SET.load, SET.explain_download
