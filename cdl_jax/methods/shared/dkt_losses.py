"""Losses, loss weights and class masks of DKT and of its baselines LwF and EEIL.

Throughout, logits are float `[batch, classes]`. They span all classes of the stream, as in the authors' code.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergence, temperature_option
from cdl_jax.options import Option

OPTIONS = {
    # "soft_mse" is described in the authors' README, and absent from their code.
    "st_loss": Option(
        "mse",
        "loss of the ST head; mse: of raw logits; kd: KL divergence of softened probabilities; soft_mse: MSE of "
        "these; none: the ST head is not trained",
        choices=("mse", "kd", "soft_mse", "none"),
    ),
    "temperature": temperature_option(2.0, "temperature of the softmax of st_loss kd and soft_mse"),
    "reduction": Option(
        "mean",
        "reduction of both heads' losses; sum: over images and, for the ST head, classes",
        choices=("mean", "sum"),
    ),
    "kd_rel": Option(0.5, "weight of the ST head's loss"),
    "kd_every": Option(0, "number of tasks after which that weight changes, the first included; 0: it is constant"),
    "kd_step": Option(0.5, "change of the weight; below 0 it falls; a weight that is exactly 0 stays 0", minimum=None),
    "kd_clamp": Option(
        False, "whether the weight stops at 0; otherwise it may become negative, as in the authors' code"
    ),
    "kd_warmup": Option(0, "number of first tasks whose weight is 0"),
}


def class_loss(cl_logits: jax.Array, labels: jax.Array, reduction: str = "mean") -> jax.Array:
    """Computes the cross-entropy of the CL head over all classes.

    Args:
      cl_logits: float `[batch, classes]`.
      labels: int32 `[batch]`.
      reduction: over the batch, "mean" or "sum".

    Returns:
      Scalar in the logits' dtype.
    """
    return getattr(jnp, reduction)(optax.softmax_cross_entropy_with_integer_labels(cl_logits, labels))


def student_target(logits: jax.Array, kind: str, temperature: float) -> jax.Array:
    """Computes the ST head's target from the logits of a teacher or a peer.

    Targets of multiple peers may be averaged: the gradient is then that of the average of their losses.

    Args:
      logits: float `[batch, classes]`.
      kind: the option `st_loss`.
      temperature: of "kd" and "soft_mse".

    Returns:
      float `[batch, classes]` without a gradient: probabilities for "kd" and "soft_mse", else the logits.

    Example:
      >>> student_target(jnp.array([[2.0, 2.0]]), "kd", temperature=2.0).tolist()
      [[0.5, 0.5]]
    """
    logits = jax.lax.stop_gradient(logits)
    return jax.nn.softmax(logits / temperature) if kind in ("kd", "soft_mse") else logits


def student_loss(
    st_logits: jax.Array, target: jax.Array, kind: str, temperature: float, reduction: str = "mean"
) -> jax.Array:
    """Computes the distillation loss of the ST head.

    mse: `mean_bc (z - target)^2` of raw logits.
    kd: `mean_bc target (log target - log_softmax(z / T))`, neither multiplied by T^2 nor summed over classes.
    soft_mse: `mean_bc (softmax(z / T) - target)^2`.
    none: 0.

    Args:
      st_logits: float `[batch, classes]`.
      target: float `[batch, classes]`, a `student_target` of the same kind.
      kind: the option `st_loss`.
      temperature: of "kd" and "soft_mse".
      reduction: "mean", or "sum": sums over batch and classes replace the means above.

    Returns:
      Scalar in the logits' dtype.

    Example:
      >>> student_loss(jnp.array([[1.0, 3.0]]), jnp.array([[1.0, 1.0]]), "mse", temperature=2.0).item()
      2.0
    """
    reduce = getattr(jnp, reduction)
    if kind == "none":
        return jnp.zeros((), st_logits.dtype)
    if kind == "mse":
        return reduce(optax.squared_error(st_logits, target))
    if kind == "soft_mse":
        return reduce(optax.squared_error(jax.nn.softmax(st_logits / temperature), target))
    log_p = jax.nn.log_softmax(st_logits / temperature)
    divergence = optax.losses.kl_divergence(log_p, target)
    return reduce(divergence) / (st_logits.shape[-1] if reduction == "mean" else 1)


def kd_weight(options: Any, task: int | jax.Array, num_tasks: int = 1000) -> jax.Array:
    """Computes the weight of the ST head's loss in a task.

    The weights of all tasks are computed in double precision, one after the other, as in the authors' code. So
    0.3 - 3 x 0.1 is not 0, and the weight goes on to -0.1.

    Args:
      options: a section with the keys of `OPTIONS`.
      task: int, counted from 0; may be traced.
      num_tasks: of the stream.

    Returns:
      float32 scalar.

    Example:
      >>> from types import SimpleNamespace
      >>> from cdl_jax.options import defaults
      >>> options = SimpleNamespace(**defaults(OPTIONS, kd_every=2, kd_step=0.25))
      >>> [float(kd_weight(options, task, num_tasks=4)) for task in range(4)]
      [0.5, 0.75, 0.75, 1.0]
    """
    weights, weight = [], float(options.kd_rel)
    for number in range(num_tasks):
        if weight != 0 and options.kd_every and (number + 1) % options.kd_every == 0:
            weight += options.kd_step
            if options.kd_clamp:
                weight = max(weight, 0.0)
        weights.append(0.0 if number < options.kd_warmup else weight)
    return jnp.asarray(np.array(weights, np.float64).astype(np.float32))[task]


def active_classes(task_classes: np.ndarray | jax.Array, task: int | jax.Array, kind: str) -> jax.Array:
    """Selects the old classes whose logits `lwf_loss` and `eeil_loss` preserve.

    Args:
      task_classes: bool `[tasks, classes]`, the classes of each task.
      task: int, the task that is being learned; may be traced.
      kind: "last": the classes of the task before, as in the authors' library. "all_seen": of all tasks before.

    Returns:
      bool `[classes]`; all False for the first task.

    Example:
      >>> active_classes(np.eye(3, dtype=bool), 2, "last").tolist()
      [False, True, False]
      >>> active_classes(np.eye(3, dtype=bool), 2, "all_seen").tolist()
      [True, True, False]
    """
    tasks = jnp.arange(len(task_classes))
    before = tasks == task - 1 if kind == "last" else tasks < task
    return jnp.any(jnp.asarray(task_classes) & before[:, None], axis=0)


def check_preserved_classes(section: str, key: str, options: Any, task_sizes: tuple[int, ...]) -> None:
    """Refuses `lwf_loss` over one class.

    The softmax over one class is always 1, so the loss is 0 for all weights.

    Args:
      section: name of the config section, for the message.
      key: option of the section with the kind of `active_classes`.
      options: the section, with `alpha`, the weight of the loss.
      task_sizes: number of classes of each task.

    Raises:
      UserError: names the task, and the option to change.
    """
    kind, first = options[key], task_sizes[0]
    preserved = task_sizes[:-1] if kind == "last" else task_sizes[:1] if len(task_sizes) > 1 else ()
    if not options.alpha or 1 not in preserved:
        return
    change = f"set {section}.{key}='all_seen'" if first > 1 else "choose data.task_sizes with two classes in task 0"
    raise UserError(
        f"{section}.{key}={kind!r} preserves one class after task {task_sizes.index(1)}, and the softmax over one "
        f"class is always 1, so this distillation is 0 whatever the weights; {change}, or {section}.alpha=0"
    )


def lwf_loss(logits: jax.Array, previous_logits: jax.Array, active: jax.Array, temperature: float) -> jax.Array:
    """Computes the loss that preserves the previous network's outputs in LwF.

    `mean_b KL(previous || current)`, softmax at T over the active classes, not multiplied by T^2. Learning without
    Forgetting (Li and Hoiem, 2016) in the form of DKT's baseline.

    Args:
      logits: float `[batch, classes]`.
      previous_logits: float `[batch, classes]`, of the network before this task; no gradient passes.
      active: bool `[classes]`; see `active_classes`.
      temperature: T.

    Returns:
      float32 scalar, 0 without an active class.
    """
    return kl_divergence(logits, jax.lax.stop_gradient(previous_logits), active, temperature)


def eeil_loss(logits: jax.Array, previous_logits: jax.Array, active: jax.Array, temperature: float) -> jax.Array:
    """Computes the loss that preserves the previous network's outputs in EEIL.

    Each class has a softmax at T over the images of the batch. The loss is the sum over the active classes of the
    binary cross-entropy with the previous network's softmax, a mean over the batch. This is EEIL (Castro et al., 2018)
    in the form of DKT's baseline; the paper's softmax is over classes.

    Args:
      logits: float `[batch, classes]`.
      previous_logits: float `[batch, classes]`, of the network before this task; no gradient passes.
      active: bool `[classes]`; see `active_classes`.
      temperature: T.

    Returns:
      float32 scalar, 0 without an active class.
    """
    log_p = jax.nn.log_softmax(logits / temperature, axis=0)
    target = jax.nn.softmax(jax.lax.stop_gradient(previous_logits) / temperature, axis=0)
    # A probability of 1 would make log(1 - p) infinite.
    log_rest = jnp.log1p(-jnp.minimum(jnp.exp(log_p), 1 - 1e-7))
    columns = -(target * log_p + (1 - target) * log_rest).mean(axis=0)
    return jnp.where(active, columns, 0).sum()


def gradient_noise_std(step: int | jax.Array, eta: float = 0.3, gamma: float = 0.55) -> jax.Array:
    """Computes `eta / (1 + step)^gamma`, the standard deviation of gradient noise.

    DKT's baseline EEIL adds this noise. Neelakantan et al. (2015) give this value for the variance: their rule is
    `optax.add_noise(eta, gamma, seed)`. This one is `optax.add_noise(eta**2, 2 * gamma, seed)` with a state that no
    task resets.

    Args:
      step: int, counted from 0 over all tasks of the run; may be traced.
      eta: standard deviation at step 0.
      gamma: exponent of the decay.

    Returns:
      Scalar.

    Example:
      >>> gradient_noise_std(3, eta=0.3, gamma=0.5)
      0.15
    """
    return eta / (1.0 + step) ** gamma


def noise_loss(params: Any, key: jax.Array, deviation: float | jax.Array) -> jax.Array:
    """Returns a loss of 0 that adds normal noise to the gradient of `params`.

    Args:
      params: pytree of float arrays.
      key: PRNG key.
      deviation: standard deviation of the noise, which is independent for each parameter.

    Returns:
      float32 scalar 0.
    """
    flat, _ = ravel_pytree(params)
    term = deviation * jnp.vdot(jax.random.normal(key, flat.shape), flat)
    return term - jax.lax.stop_gradient(term)
