"""Losses and metrics of peers that distill into each other.

They are those of OKDDip (arXiv 1912.00350) and its baselines.

Throughout, logits are float `[batch, classes]`. `mask` is bool `[classes]`: the classes that every softmax and every
sum spans.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.losses import mask_classes, temperature_option
from cdl_jax.options import Option

OPTIONS = {
    "loss": Option(
        "KL", "distillation: KL divergence, or CE, the cross-entropy with the softened target", choices=("KL", "CE")
    ),
    "temperature": temperature_option(3.0),
    "alpha": Option(1.0, "weight of distillation"),
}

RAMP_OPTIONS = {
    "length": Option(80, "epochs over which the weight of distillation grows to alpha; 0: alpha from the start"),
    # Until then the weight is alpha, from which it falls to 0.0067 alpha, as in the authors' code.
    "start_consistency": Option(0.0, "share of the epochs before that growth begins", maximum=1),
}


def soften(logits: jax.Array, mask: jax.Array, temperature: float) -> jax.Array:
    """Computes `softmax(logits / temperature)` over the classes of the mask.

    Args:
      logits: float `[batch, classes]`.
      mask: bool `[classes]`.
      temperature: above 0.

    Returns:
      float32 `[batch, classes]`, 0 outside the mask.

    Example:
      >>> soften(jnp.array([[2.0, 2.0, 9.0]]), jnp.array([True, True, False]), temperature=2.0).tolist()
      [[0.5, 0.5, 0.0]]
    """
    return jax.nn.softmax(mask_classes(logits / temperature, mask))


def distillation_loss(logits: jax.Array, target: jax.Array, mask: jax.Array, options: Any) -> jax.Array:
    """Computes the distillation loss of logits against target probabilities.

    KL: `T^2 mean_b sum_c p (log p - log_softmax(z / T))` with `p = target + 1e-7`, which is not normalized again.
    CE: `-T^2 mean_b sum_c target log_softmax(z / T)`.

    Args:
      logits: float `[batch, classes]`.
      target: float32 `[batch, classes]`, probabilities.
      mask: bool `[classes]`.
      options: a section with the keys `loss` and `temperature` of `OPTIONS`.

    Returns:
      float32 scalar, differentiable in logits and target.
    """
    log_q = jax.nn.log_softmax(mask_classes(logits / options.temperature, mask))
    if options.loss == "KL":
        p = target + 1e-7
        terms = p * (jnp.log(p) - log_q)
    else:
        terms = -target * log_q
    return options.temperature**2 * jnp.where(mask, terms, 0).sum(axis=-1).mean()


def ramp_up_weight(epoch: int | jax.Array, options: Any, epochs: int) -> jax.Array:
    """Computes the ramp-up factor of the distillation weight in an epoch.

    `exp(-5 (1 - u)^2)`, where u grows from 0 to 1 over `length` epochs.

    Args:
      epoch: int, counted from 0; may be traced.
      options: a section with the keys of `RAMP_OPTIONS`.
      epochs: length of the phase, in epochs.

    Returns:
      float32 scalar in (0, 1].

    Example:
      >>> from types import SimpleNamespace
      >>> options = SimpleNamespace(length=80, start_consistency=0.0)
      >>> [round(float(ramp_up_weight(epoch, options, 300)), 4) for epoch in (0, 40, 80)]
      [0.0067, 0.2865, 1.0]
    """
    start = options.start_consistency * epochs
    progress = jnp.clip(epoch - start, 0, options.length) / options.length if options.length else 1.0
    return jnp.where(epoch < start, 1.0, jnp.exp(-5 * (1 - jnp.float32(progress)) ** 2))


def diversity(logits: Sequence[jax.Array], mask: jax.Array, divisor: str) -> jax.Array:
    """Computes the mean Euclidean distance between the probabilities of peers.

    1e-6 is added to each difference, as torch's `pairwise_distance` does.

    Args:
      logits: of each peer, float `[batch, classes]`; two peers or more.
      mask: bool `[classes]`.
      divisor: of the sum over pairs. "pairs": the number of pairs. "reference": 3 for any number of peers, as in the
        authors' code.

    Returns:
      float32 `[batch]`.

    Example:
      >>> peers = [jnp.array([[30.0, 0.0]]), jnp.array([[0.0, 30.0]])]
      >>> round(diversity(peers, jnp.array([True, True]), "pairs").item(), 3)
      1.414
    """
    p = [soften(z, mask, 1.0) for z in logits]
    pairs = list(combinations(p, 2))
    total = sum(jnp.sqrt(jnp.where(mask, (a - b + 1e-6) ** 2, 0).sum(axis=-1)) for a, b in pairs)
    return total / (len(pairs) if divisor == "pairs" else 3)


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int, mask: jax.Array) -> jax.Array:
    """Scores 1 where the label is among the k largest logits of the mask, else 0.

    Args:
      logits: float `[batch, classes]`.
      labels: int32 `[batch]`, classes of the mask.
      k: at least 1.
      mask: bool `[classes]`.

    Returns:
      float32 `[batch]`.

    Example:
      >>> logits, labels = jnp.array([[3.0, 2.0, 1.0]]), jnp.array([1])
      >>> [top_k_correct(logits, labels, k, jnp.ones(3, bool)).item() for k in (1, 2)]
      [0.0, 1.0]
    """
    logits = mask_classes(logits, mask)
    label_logits = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return ((logits > label_logits).sum(axis=1) < k).astype(jnp.float32)
