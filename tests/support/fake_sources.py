"""Fixtures of the tests of data sources."""

import pytest

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.options import check, defaults


def load(source, path="", **options):
    module = plugins.load_plugin("data.sources", source)
    check(module.OPTIONS, options, "data")
    return module.load({"path": str(path), **defaults(module.OPTIONS), **options})


def refusal(source, path="", **options):
    """The one-line message with which a source answers."""
    with pytest.raises(UserError) as error:
        load(source, path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
