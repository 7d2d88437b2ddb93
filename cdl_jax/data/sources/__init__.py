"""Data sources, one per file.

A source has `OPTIONS`, its options with their defaults, and `load(options) -> Dataset`, whose options also have `path`.
"""
