"""What a config's `weights` stands for: a file, a file of this package, or random numbers that were asked for."""

import logging
from importlib import resources

from cdl_jax.errors import UserError
from cdl_jax.models import pretrained


def load(weights: str, params, key: str):
    """`params` with the values that `weights` names.

    Args:
      weights: a path; "package:NAME" for a file that this package ships; or "random", which keeps `params`.
      params: nested dict of arrays, or of their shapes.
      key: the config key, for messages.

    Raises:
      UserError: `weights` is empty, or the file is missing or does not fit. Random weights are never put in its place.
    """
    if not weights:
        raise UserError(f"config.{key} is empty: name a file of pretrained weights, or say 'random'")
    if weights == "random":
        logging.getLogger("cdl_jax").warning("config.%s is 'random': this backbone is not pretrained", key)
        return params
    if weights.startswith("package:"):
        name = weights.removeprefix("package:") + ".npz"
        with resources.as_file(resources.files("cdl_jax.models") / "packaged" / name) as path:
            return pretrained.load_vit(path, params)
    return pretrained.load_vit(weights, params)
