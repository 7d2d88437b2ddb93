"""Sections of a config for the tests of plug-ins."""

from ml_collections import ConfigDict

from cdl_jax.options import check, defaults


def checked(name, declared, **changes):
    """Returns the section `name` with changed values.

    The values pass the check of a run's config before.
    """
    check(declared, changes, name)
    return ConfigDict(defaults(declared, **changes))
