"""Sections of a config for the tests of plug-ins."""

from ml_collections import ConfigDict

from cdl_jax.options import check, defaults


def checked(name, declared, **changes):
    """The section `name` with changed values, after the check that a config of a run passes."""
    check(declared, changes, name)
    return ConfigDict(defaults(declared, **changes))
