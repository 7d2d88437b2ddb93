"""In which manner a PyTorch peer does the same work: as the authors' programs do, or as fast as PyTorch permits."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Manner:
    """How a peer works; what it computes stays the same.

    freeze: weights that no optimizer has get no gradients. query_once: one pass asks for teacher and student.
    fused_attention: torch's own attention, in place of two products and a softmax. correlation: the cosines between the
      tokens of the first five blocks are computed, for nothing. watched: every step's accuracy is read by the host.
    compiled: `torch.compile`. bfloat16: autocast, frozen weights stored so.
    """

    name: str
    freeze: bool
    query_once: bool
    fused_attention: bool
    correlation: bool
    watched: bool
    compiled: bool
    bfloat16: bool = False


AUTHORS = Manner(
    "authors", freeze=False, query_once=False, fused_attention=False, correlation=True, watched=True, compiled=False
)
TUNED = Manner(
    "tuned", freeze=True, query_once=True, fused_attention=True, correlation=False, watched=False, compiled=True
)
EAGER = Manner(
    "frozen", freeze=True, query_once=True, fused_attention=True, correlation=False, watched=False, compiled=False
)
KNOWN = {manner.name: manner for manner in (AUTHORS, TUNED, EAGER)}


def compiled(function, manner: Manner, device):
    """`function`, compiled if the manner is; on a GPU with the search for the fastest kernels and CUDA graphs."""
    import torch

    if not manner.compiled:
        return function
    return torch.compile(function, mode="max-autotune" if device.type == "cuda" else "default")
