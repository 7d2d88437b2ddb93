"""What peers that teach each other are trained with and measured by (OKDDip, arXiv 1912.00350, and its baselines).

`allowed`: bool `[classes]`, the columns that every softmax and sum spans. Logits are `[batch, classes]`.
"""

from collections.abc import Sequence
from itertools import combinations

import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.losses import mask_classes

OPTIONS = {
    "loss": "KL",  # of distillation: "KL" divergence, or "CE": the cross-entropy with the softened target
    "temperature": 3.0,
    "alpha": 1.0,  # weight of distillation
}

RAMP_OPTIONS = {
    "length": 80,  # epochs over which the weight of distillation grows to alpha; 0: alpha from the start
    # Share of the epochs before that growth begins. Until then the weight is alpha, from which it falls to 0.0067
    # alpha: so it is in the published program.
    "start_consistency": 0.0,
}


def check(section: str, options) -> None:
    """Refuses values that make no sense.

    Raises:
      UserError: names the option and its range.
    """
    if options.loss not in ("KL", "CE"):
        raise UserError(f"{section}.loss={options.loss!r}: use 'KL' or 'CE'")
    if not options.temperature > 0:
        raise UserError(f"{section}.temperature={options.temperature} must be above 0")
    for key in ("alpha", "length"):
        if options.get(key, 0) < 0:
            raise UserError(f"{section}.{key}={options[key]} must not be negative")
    if not 0 <= options.get("start_consistency", 0) <= 1:
        raise UserError(f"{section}.start_consistency={options.start_consistency} must lie in [0, 1]")


def soften(logits, allowed, temperature: float):
    """softmax(logits / temperature) over the `allowed` columns."""
    return jax.nn.softmax(mask_classes(logits / temperature, allowed))


def distillation_loss(logits, target, allowed, options):
    """What it costs `logits` to differ from the probabilities `target`; differentiable in both.

    KL: `T^2 mean_b sum_c p (log p - log_softmax(z / T))` with p = target + 1e-7, which is not normalised again.
    CE: `-T^2 mean_b sum_c target log_softmax(z / T)`.
    """
    log_q = jax.nn.log_softmax(mask_classes(logits / options.temperature, allowed))
    if options.loss == "KL":
        p = target + 1e-7
        terms = p * (jnp.log(p) - log_q)
    else:
        terms = -target * log_q
    return options.temperature**2 * jnp.where(allowed, terms, 0).sum(axis=-1).mean()


def ramp_up_weight(epoch, options, epochs: int):
    """Weight of distillation in an epoch, counted from 0: `exp(-5 (1 - u)^2)`, u growing from 0 to 1 over `length`.

    Args:
      epoch: int, maybe traced. options: a section with the keys of `RAMP_OPTIONS`. epochs: of the phase.
    """
    start = options.start_consistency * epochs
    done = jnp.clip(epoch - start, 0, options.length) / options.length if options.length else 1.0
    return jnp.where(epoch < start, 1.0, jnp.exp(-5 * (1 - jnp.float32(done)) ** 2))


def diversity(logits: Sequence[jax.Array], allowed, divisor: str):
    """`[batch]`: mean Euclidean distance of the peers' probabilities over pairs; 1e-6 is added to each difference.

    divisor: "pairs", their number; or "reference": 3 whatever their number, as the published program has it.
    """
    p = [soften(z, allowed, 1.0) for z in logits]
    pairs = list(combinations(p, 2))
    apart = sum(jnp.sqrt(jnp.where(allowed, (a - b + 1e-6) ** 2, 0).sum(axis=-1)) for a, b in pairs)
    return apart / (len(pairs) if divisor == "pairs" else 3)


def top_k_correct(logits, labels, k: int, allowed):
    """float32 `[batch]`: 1 where the label is among the `k` largest `allowed` logits."""
    logits = mask_classes(logits, allowed)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return ((logits > own).sum(axis=1) < k).astype(jnp.float32)
