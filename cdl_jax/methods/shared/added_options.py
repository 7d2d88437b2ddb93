"""Completes configs of earlier versions by the options that came later."""

from collections.abc import Mapping
from typing import Any

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.data.stream import OPTIONS as STREAM_OPTIONS
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import detection_token_labels
from cdl_jax.options import defaults


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Completes a flat config by options that earlier versions lack.

    Their values are those without an effect.

    Configs that differ only in such options thereby become equal.

    Args:
      config: flat; it stays as it is. A data source that no longer exists gets no options.

    >>> complete({"method": "cdl", "data.name": "digits", "student.weights": ""})["student.weights_key"]
    ''
    """
    absent_options = {f"{key}_key": "" for key in config if key.endswith(".weights")}
    if config.get("method") == "vidt":
        absent_options |= configs.flatten(defaults(detection_token_labels.OPTIONS), "token_labels.")
    try:
        source = plugins.load_plugin("data.sources", config["data.name"]).OPTIONS
    except (UserError, KeyError):
        source = None
    if source is not None:
        absent_options |= configs.flatten(defaults({**STREAM_OPTIONS, **source}), "data.")
    return {**absent_options, **config}
