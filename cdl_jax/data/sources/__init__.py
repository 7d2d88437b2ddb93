"""Data sources, one a file: `OPTIONS`, the options of its own, and `load(options) -> Dataset`, `path` among them."""
