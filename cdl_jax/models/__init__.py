"""Families of networks: one family a file.

A file defines
  OPTIONS: the option section of a network of the family, key -> `cdl_jax.options.Option`;
  SIZES: name of a network -> the options in which it differs from `OPTIONS`;
  build(options, num_classes): the Flax module of an option section;
  torch_name: maps the path of a module, `stem/conv1`, to its name in torch's state dicts. None: torch's files are not
    read.
"""
