"""Loads images of yours in several domains, from a folder for each domain.

A domain has `<class>/*`, or `train/<class>/*` beside `test/<class>/*`.
"""

from cdl_jax.data.readers.domain_sets import DomainSet

SET = DomainSet("", folders=(), remedy="set data.path to the folder with <domain>/<class>/", domains={})
OPTIONS, load, explain_download = SET.options, SET.load, SET.explain_download
