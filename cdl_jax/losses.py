"""Losses and masks that every system shares, and the context in which they are computed."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct

# exp() of it is exactly zero in float32 and bfloat16, and unlike -inf it leaves no NaN in differences or gradients.
_NEVER = -1e9


@struct.dataclass
class Context:
    """Where in the run a step is. All arrays, so that a new task needs no new compilation.

    task: int32, index of the current task.
    first, end: int32, the current task's labels are `first <= label < end`; classes below `end` have been seen.
    epoch: int32, of the phase; its first is 0.
    step: int32, of the epoch; its first is 0.
    progress: float32, epochs of the phase done before this step, the share of the running one included.
    key: PRNG key of this step.
    weight: float32 `[batch]`, 0 for pictures that only fill the batch up; None where there are none.
    queries: outputs of the frozen networks for these images (see `methods.base.CachesQueries`); may be empty.
    """

    task: jax.Array
    first: jax.Array
    end: jax.Array
    epoch: jax.Array
    step: jax.Array
    progress: jax.Array
    key: jax.Array
    weight: jax.Array | None = None
    queries: Mapping[str, jax.Array] = struct.field(default_factory=dict)

    def current(self, num_classes: int) -> jax.Array:
        """bool `[num_classes]`: the classes of the current task."""
        columns = jnp.arange(num_classes)
        return (columns >= self.first) & (columns < self.end)

    def seen(self, num_classes: int) -> jax.Array:
        """bool `[num_classes]`: the classes of the current and of all earlier tasks."""
        return jnp.arange(num_classes) < self.end

    def all(self, num_classes: int) -> jax.Array:
        """bool `[num_classes]`: every class of the stream, learnt or not."""
        return jnp.ones(num_classes, bool)

    def mask(self, classes: str, num_classes: int) -> jax.Array:
        """Returns the mask, bool `[num_classes]`, of the "current" classes, of those "seen", or of "all"."""
        return {"current": self.current, "seen": self.seen, "all": self.all}[classes](num_classes)

    @staticmethod
    def dummy() -> "Context":
        """Returns a context of one class at step 0, for the shapes of variables and outputs."""
        zero = jnp.zeros((), jnp.int32)
        return Context(
            task=zero, first=zero, end=zero + 1, epoch=zero, step=zero, progress=jnp.float32(0), key=jax.random.key(0)
        )


def mask_classes(logits: jax.Array, allowed: jax.Array) -> jax.Array:
    """`logits` `[batch, classes]` in float32, columns outside `allowed` `[classes]` out of any softmax or argmax."""
    return jnp.where(allowed, logits.astype(jnp.float32), _NEVER)


def cross_entropy(logits: jax.Array, labels: jax.Array, allowed: jax.Array) -> jax.Array:
    """Mean cross-entropy over the `allowed` `[classes]` columns; `labels` int32 `[batch]` are among them."""
    return optax.softmax_cross_entropy_with_integer_labels(mask_classes(logits, allowed), labels).mean()


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`mean_b -sum_c q_c log softmax(logits)_c`; logits and targets q are `[batch, classes]`."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def kl_divergence(student_logits, teacher_logits, allowed, temperature: float) -> jax.Array:
    """`mean_b sum_c p_t log(p_t / p_s)`, a float32 scalar: the mean of `kl_divergences`."""
    return kl_divergences(student_logits, teacher_logits, allowed, temperature).mean()


def kl_divergences(student_logits, teacher_logits, allowed, temperature: float) -> jax.Array:
    """`sum_c p_t log(p_t / p_s)`, p = softmax(logits / temperature) over the `allowed` `[classes]` columns.

    Not multiplied by the squared temperature. Both logits are `[batch, classes]`; the result is float32 `[batch]`.
    """
    student = jax.nn.log_softmax(mask_classes(student_logits / temperature, allowed))
    teacher = jax.nn.log_softmax(mask_classes(teacher_logits / temperature, allowed))
    return optax.losses.kl_divergence_with_log_targets(student, teacher)
