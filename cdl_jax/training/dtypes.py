"""The dtypes of a run: what "auto" stands for on its device."""

import copy

from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax.runtime import target


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a copy of a config in which no dtype is "auto".

    A network's `dtype` becomes bfloat16 on GPUs that have it, and float32 elsewhere. `frozen_dtype` becomes bfloat16 if
    all networks are ViTs that compute in it: their kernels would be rounded to it in each step.

    Args:
      config: of a run.
    """
    resolved = copy.deepcopy(config)
    for section in _networks(resolved):
        if "dtype" in section:
            section.dtype = target.compute_dtype(section.dtype)
    if resolved.frozen_dtype == "auto":
        resolved.frozen_dtype = "bfloat16" if _are_bfloat16_vits(resolved) else "float32"
    return resolved


def describe(config: ConfigDict) -> str:
    """Returns a line with the device and the dtype of each network.

    Args:
      config: resolved, see `resolve`.
    """
    networks = [
        (name, section.dtype) for name, section in config.items() if _is_network(section) and "dtype" in section
    ]
    dtypes = sorted({dtype for _, dtype in networks})
    if len(dtypes) > 1:
        text = ", ".join(f"{name} in {dtype}" for name, dtype in networks)
    else:
        text = f"all networks in {dtypes[0] if dtypes else 'float32'}"
    return f"device: {target.current().name}, {text}"


def _networks(config):
    return [section for section in config.values() if _is_network(section)]


def _is_network(section):
    return isinstance(section, ConfigDict) and "family" in section


def _are_bfloat16_vits(config):
    """Returns whether all networks are ViTs in bfloat16 of this run.

    A network of a finished run is none of them.
    """
    networks = _networks(config)
    has_runs = any(key.endswith("teacher_runs") and value for key, value in configs.flatten(config).items())
    in_bfloat16 = [section.family == "vit" and section.dtype == "bfloat16" for section in networks]
    return bool(networks) and all(in_bfloat16) and not has_runs
