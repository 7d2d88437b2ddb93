"""Describes the device for which programs are compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax

BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA's Ampere: the first GPUs with products in bfloat16, and with cuDNN's attention


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      name: for messages, such as "NVIDIA H200".
      platform: "cpu", "cuda", or another backend of jax.
      capability: CUDA's compute capability (major, minor); (0, 0) of other devices.
    """

    name: str
    platform: str
    capability: tuple[int, int] = (0, 0)

    @property
    def has_bfloat16(self) -> bool:
        """Whether products in bfloat16 are faster than in float32.

        Other devices than NVIDIA's GPUs were not measured, so they are False.
        """
        return self.platform == "cuda" and self.capability >= BFLOAT16_CAPABILITY

    def has_fused_attention(self, dtype: str, width: int) -> bool:
        """Returns whether cuDNN's fused attention has a dtype and a head width."""
        return self.has_bfloat16 and dtype == "bfloat16" and width % 8 == 0 and width <= 128


_assumed_targets: list[Target] = []


def current() -> Target:
    """Returns the first device of this process, or the target that a caller assumes."""
    if _assumed_targets:
        return _assumed_targets[-1]
    device = jax.devices()[0]
    is_cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    if not is_cuda:
        return Target(device.device_kind, device.platform)
    major, _, minor = device.compute_capability.partition(".")
    return Target(device.device_kind, "cuda", (int(major), int(minor)))


@contextmanager
def assume(target: Target) -> Iterator[None]:
    """Compiles for a device that is not here, within the context."""
    _assumed_targets.append(target)
    try:
        yield
    finally:
        _assumed_targets.pop()


def compute_dtype(option: str) -> str:
    """Returns the dtype of an option `dtype`.

    "auto" is bfloat16 on GPUs that have it, and float32 elsewhere.

    >>> with assume(Target("NVIDIA H200", "cuda", (9, 0))):
    ...     compute_dtype("auto")
    'bfloat16'
    >>> compute_dtype("float32")
    'float32'
    """
    if option != "auto":
        return option
    return "bfloat16" if current().has_bfloat16 else "float32"
