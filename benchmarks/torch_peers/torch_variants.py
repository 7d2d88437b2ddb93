"""Variants of a PyTorch program with equal results.

A variant works as the authors' code, or as fast as PyTorch permits.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """Settings of a PyTorch program. All variants compute the same values.

    Attributes:
        name: the variant's name on the command line.
        freeze: weights without an optimizer get no gradients.
        query_once: one forward pass computes the query of teacher and student.
        fused_attention: torch's fused attention replaces two products and a softmax.
        correlation: the cosines between the tokens of the first five blocks are computed, although nothing reads them.
        watched: the host reads the accuracy of every step.
        compiled: the step is compiled by `torch.compile`.
        bfloat16: frozen weights are stored in bfloat16, and autocast is on. Default: False.
    """

    name: str
    freeze: bool
    query_once: bool
    fused_attention: bool
    correlation: bool
    watched: bool
    compiled: bool
    bfloat16: bool = False


AUTHORS = Variant(
    "authors", freeze=False, query_once=False, fused_attention=False, correlation=True, watched=True, compiled=False
)
TUNED = Variant(
    "tuned", freeze=True, query_once=True, fused_attention=True, correlation=False, watched=False, compiled=True
)
EAGER = Variant(
    "frozen", freeze=True, query_once=True, fused_attention=True, correlation=False, watched=False, compiled=False
)
VARIANTS = {variant.name: variant for variant in (AUTHORS, TUNED, EAGER)}


def compiled(function, variant: Variant, device):
    """Compiles `function` if the variant is compiled.

    On a GPU it is compiled with "max-autotune" and CUDA graphs.
    """
    import torch

    if not variant.compiled:
        return function
    return torch.compile(function, mode="max-autotune" if device.type == "cuda" else "default")
