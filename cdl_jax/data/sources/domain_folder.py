"""Loads images of yours in several domains: `<domain>/<class>/*`, or `<domain>/train/<class>/*` beside `test/`."""

from cdl_jax.data.readers.domain_sets import DomainSet

SET = DomainSet("", folders=(), remedy="set data.path to the folder with <domain>/<class>/", domains={})
OPTIONS, load = SET.options, SET.load
