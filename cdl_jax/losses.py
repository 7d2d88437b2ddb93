"""Losses and class masks of all methods, and the context of their computation."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cdl_jax.options import Option

# Logit of an excluded class. Its exp() is exactly zero in float32 and bfloat16. Unlike -inf it gives no NaN in
# differences and gradients.
_EXCLUDED = -1e9

# Range of temperatures. Below 0.01 logits that differ by 1 become probabilities of exactly 0 and 1 in float32, so the
# gradient vanishes. Above 1000 the probabilities differ from 1 / classes by little more than their rounding error, so
# the divergence is 0 or noise.
_TEMPERATURES = (0.01, 1000.0)


@struct.dataclass
class Context:
    """The position of a step in the run.

    All fields are arrays, so that all tasks share one compilation.

    Attributes:
      task: int32, index of the current task.
      first: int32, first label of the current task.
      end: int32, last label of the current task plus 1. Classes below `end` have been seen.
      epoch: int32, index of the epoch in the phase.
      step: int32, index of the step in the epoch.
      progress: float32, epochs of the phase completed before this step, with the fraction of the current epoch.
      key: PRNG key of this step.
      weight: float32 `[batch]`, 0 for padding images. None, the default: there is no padding.
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
        """Returns the mask of the classes of the current task, bool `[num_classes]`.

        >>> Context.dummy().replace(first=1, end=3).current(4).tolist()
        [False, True, True, False]
        """
        columns = jnp.arange(num_classes)
        return (columns >= self.first) & (columns < self.end)

    def seen(self, num_classes: int) -> jax.Array:
        """Returns the mask of the classes of the current and all earlier tasks.

        Returns:
          bool `[num_classes]`.
        """
        return jnp.arange(num_classes) < self.end

    def all(self, num_classes: int) -> jax.Array:
        """Returns the mask of all classes of the stream, bool `[num_classes]`."""
        return jnp.ones(num_classes, bool)

    def mask(self, classes: str, num_classes: int) -> jax.Array:
        """Returns one of the masks by its name, bool `[num_classes]`.

        Args:
          classes: "current", "seen" or "all".
          num_classes: classes of the stream.
        """
        return {"current": self.current, "seen": self.seen, "all": self.all}[classes](num_classes)

    @staticmethod
    def dummy() -> "Context":
        """Returns a context of one class at step 0.

        The context serves to compute the shapes of variables and outputs.
        """
        zero = jnp.zeros((), jnp.int32)
        return Context(
            task=zero, first=zero, end=zero + 1, epoch=zero, step=zero, progress=jnp.float32(0), key=jax.random.key(0)
        )


def temperature_option(default: float, meaning: str = "temperature of the softmax of distillation") -> Option:
    """Declares a temperature whose softmax has a usable gradient in float32.

    >>> temperature_option(2.0).range
    '[0.01, 1000]'
    """
    lowest, highest = _TEMPERATURES
    reason = (
        "outside the softened probabilities are exactly 0 and 1, or all equal, in float32, and nothing is distilled"
    )
    return Option(default, meaning, minimum=lowest, maximum=highest, reason=reason)


def fill_with_smallest(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns logits in which classes without a mask have the smallest other logit.

    >>> fill_with_smallest(jnp.array([[2.0, 1.0, -jnp.inf]]), jnp.array([True, True, False])).tolist()
    [[2.0, 1.0, 1.0]]

    Args:
      logits: float32 `[batch, classes]`.
      mask: bool `[classes]`.
    """
    return jnp.where(mask, logits, jnp.where(mask, logits, jnp.inf).min(axis=-1, keepdims=True))


def mask_classes(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Excludes classes from any softmax or argmax.

    Args:
      logits: `[batch, classes]`.
      mask: bool `[classes]` or `[batch, classes]`, the classes to keep.

    Returns:
      float32 `[batch, classes]`, with a very negative number for the other classes.

    >>> print(jax.nn.softmax(mask_classes(jnp.zeros((1, 4)), jnp.array([True, True, False, False]))))
    [[0.5 0.5 0.  0. ]]
    """
    return jnp.where(mask, logits.astype(jnp.float32), _EXCLUDED)


def cross_entropy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy over the classes of a mask.

    The loss is `mean_b -log softmax(logits_b)[label_b]`.

    Args:
      logits: `[batch, classes]`.
      labels: int32 `[batch]`, classes of the mask.
      mask: bool `[classes]`, the classes of the softmax.

    Returns:
      float32 scalar.

    >>> logits = jnp.array([[0.0, jnp.log(3.0), 50.0]])
    >>> mask = jnp.array([True, True, False])
    >>> print(f"{cross_entropy(logits, jnp.array([1]), mask):.4f}")  # log(4 / 3)
    0.2877
    """
    return optax.softmax_cross_entropy_with_integer_labels(mask_classes(logits, mask), labels).mean()


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy with soft targets.

    The loss is `mean_b -sum_c q_bc log softmax(logits_b)_c`.

    Args:
      logits: `[batch, classes]`.
      targets: q, float32 `[batch, classes]`, the target probabilities.

    Returns:
      float32 scalar.

    >>> print(f"{soft_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.5, 0.5]])):.4f}")  # log 2
    0.6931
    """
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def kl_divergence(
    student_logits: jax.Array, teacher_logits: jax.Array, mask: jax.Array, temperature: float
) -> jax.Array:
    """Computes the mean over the batch of `kl_divergences`; arguments as there.

    Returns:
      float32 scalar.
    """
    return kl_divergences(student_logits, teacher_logits, mask, temperature).mean()


def kl_divergences(
    student_logits: jax.Array, teacher_logits: jax.Array, mask: jax.Array, temperature: float
) -> jax.Array:
    """Computes the Kullback-Leibler divergence of each image.

    The divergence of the student s from the teacher t is `sum_c p_t log(p_t / p_s)`. The probabilities are
    `p = softmax(logits / temperature)` over the classes of the mask. The divergence is not multiplied by the squared
    temperature.

    Args:
      student_logits: `[batch, classes]`.
      teacher_logits: `[batch, classes]`.
      mask: bool `[classes]`, the classes of the softmax.
      temperature: above 0.

    Returns:
      float32 `[batch]`.

    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(3.0)]])
    >>> print(kl_divergences(student, teacher, jnp.array([True, True]), 1.0).round(4))  # 3/4 log 3 - log 2
    [0.1308]
    """
    student = jax.nn.log_softmax(mask_classes(student_logits / temperature, mask))
    teacher = jax.nn.log_softmax(mask_classes(teacher_logits / temperature, mask))
    return optax.losses.kl_divergence_with_log_targets(student, teacher)
