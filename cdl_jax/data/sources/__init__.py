"""Data sources, one per file.

A source has `OPTIONS`, name -> `cdl_jax.options.Option`, and `load(options) -> Dataset`. The options of `load` also
have `path`.
"""
