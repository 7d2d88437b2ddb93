"""Loss terms, weights, masks and measures of DKT and of the baselines that it is compared with.

Logits are `[batch, classes]` and span all classes of the stream, seen or not, as the authors' do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergence

OPTIONS = {
    # How the ST head follows its target: "mse" of raw logits, "kd": divergence of softened probabilities, "soft_mse":
    # mse of these (as the authors' README has it, not their program), or "none": it does not learn.
    "st_loss": "mse",
    "temperature": 2.0,  # of kd and soft_mse
    "reduction": "mean",  # of both heads' terms; or "sum", over pictures and, of the ST head's, classes
    "kd_rel": 0.5,  # weight of the ST head's term
    "kd_every": 0,  # tasks after which that weight changes, the first included; 0: it is constant
    "kd_step": 0.5,  # by how much it then changes; below 0 it falls. A weight that is exactly 0 stays so
    "kd_clamp": False,  # whether it stops at 0; otherwise it may become negative, as in the authors' program
    "kd_warmup": 0,  # so many first tasks have the weight 0
}

_KINDS = ("mse", "kd", "soft_mse", "none")


def check(section: str, options) -> None:
    """Refuses values that make no sense.

    Raises:
      UserError: names the option and its range.
    """
    if options.st_loss not in _KINDS:
        raise UserError(f"{section}.st_loss={options.st_loss!r}: {plugins.did_you_mean(options.st_loss, _KINDS)}")
    if options.reduction not in ("mean", "sum"):
        raise UserError(f"{section}.reduction={options.reduction!r}: use 'mean' or 'sum'")
    if not options.temperature > 0:
        raise UserError(f"{section}.temperature={options.temperature} must be above 0")
    for key in ("kd_rel", "kd_every", "kd_warmup"):
        if options[key] < 0:
            raise UserError(f"{section}.{key}={options[key]} must not be negative")


def class_loss(cl_logits, labels, reduction: str = "mean"):
    """Cross-entropy of the CL head over all classes; labels int32 `[batch]`."""
    return getattr(jnp, reduction)(optax.softmax_cross_entropy_with_integer_labels(cl_logits, labels))


def student_target(logits, kind: str, temperature: float):
    """What the ST head follows of a teacher's or a peer's `logits`, without a gradient: the logits, or probabilities.

    Targets of several peers may be averaged: the gradient is then that of the average of their terms.
    """
    logits = jax.lax.stop_gradient(logits)
    return jax.nn.softmax(logits / temperature) if kind in ("kd", "soft_mse") else logits


def student_loss(st_logits, target, kind: str, temperature: float, reduction: str = "mean"):
    """What it costs the ST head to differ from a `student_target` of the same `kind`; a scalar.

    mse: `mean_bc (z - target)^2`, of raw logits. kd: `mean_bc target (log target - log_softmax(z / T))`, neither
    multiplied by T^2 nor summed over classes. soft_mse: `mean_bc (softmax(z / T) - target)^2`. none: 0.
    With `reduction` "sum", sums in place of these means over batch and classes.
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


def kd_weight(options, task, num_tasks: int = 1000):
    """Returns the weight of the ST head's term while a task is learned.

    The weights of all tasks are computed in double precision, one after the other, as in the authors' program. So
    0.3 - 3 x 0.1 is not 0, and the weight goes on to -0.1.

    Args:
      options: a section with the keys of `OPTIONS`.
      task: int, the task's number from 0, possibly traced.
      num_tasks: of the stream.

    Returns:
      float32 scalar.
    """
    weights, weight = [], float(options.kd_rel)
    for number in range(num_tasks):
        if weight != 0 and options.kd_every and (number + 1) % options.kd_every == 0:
            weight += options.kd_step
            if options.kd_clamp:
                weight = max(weight, 0.0)
        weights.append(0.0 if number < options.kd_warmup else weight)
    return jnp.asarray(np.array(weights, np.float64).astype(np.float32))[task]


def active_classes(task_classes, task, kind: str):
    """bool `[classes]`: those whose logits `lwf_loss` and `eeil_loss` hold on to while task `task` is learnt.

    Args:
      task_classes: bool `[tasks, classes]`. task: int, maybe traced; for the first one no class is active.
      kind: "last": those of the task before, as the authors' library has it; "all_seen": those of all tasks before.
    """
    tasks = jnp.arange(len(task_classes))
    before = tasks == task - 1 if kind == "last" else tasks < task
    return jnp.any(jnp.asarray(task_classes) & before[:, None], axis=0)


def lwf_loss(logits, previous_logits, active, temperature: float):
    """`mean_b KL(previous || current)`, softmax at T over the `active` `[classes]` columns; 0 where none is.

    Learning without Forgetting (Li and Hoiem, 2016) as DKT's baseline has it, not multiplied by T^2.
    """
    return kl_divergence(logits, jax.lax.stop_gradient(previous_logits), active, temperature)


def eeil_loss(logits, previous_logits, active, temperature: float):
    """Sum over the `active` `[classes]` columns of a binary cross-entropy with the previous network, a mean over the
    batch, where each column is a softmax at T over the batch.

    EEIL (Castro et al., 2018) as DKT's baseline has it; the paper's softmax is over classes.
    """
    log_p = jax.nn.log_softmax(logits / temperature, axis=0)
    target = jax.nn.softmax(jax.lax.stop_gradient(previous_logits) / temperature, axis=0)
    # A column that one picture has to itself would make log(1 - p) infinite.
    log_rest = jnp.log1p(-jnp.minimum(jnp.exp(log_p), 1 - 1e-7))
    columns = -(target * log_p + (1 - target) * log_rest).mean(axis=0)
    return jnp.where(active, columns, 0).sum()


def gradient_noise_std(step, eta: float = 0.3, gamma: float = 0.55):
    """Standard deviation `eta / (1 + step)^gamma` of the noise that EEIL's baseline adds to gradients in step `step`.

    Counted from 0 over the whole run. Neelakantan et al. (2015) have it as the variance: their rule is
    `optax.add_noise(eta, gamma, seed)`, this one `optax.add_noise(eta**2, 2 * gamma, seed)` with a state that no task
    resets.
    """
    return eta / (1.0 + step) ** gamma


def noise_loss(params, key, deviation):
    """A scalar of value 0 that adds independent normal noise of a standard deviation to the gradient of `params`."""
    flat, _ = ravel_pytree(params)
    term = deviation * jnp.vdot(jax.random.normal(key, flat.shape), flat)
    return term - jax.lax.stop_gradient(term)


def rounded_correct(logits, labels):
    """float32 `[batch]`: 1 where the largest of the probabilities, each rounded to 0 or 1, is the label's.

    What the authors' stand-alone test counts. A picture whose largest probability is at most one half counts as class
    0, so that its accuracies are too low: to compare with theirs, not to report.
    """
    return (jnp.round(jax.nn.softmax(logits)).argmax(axis=-1) == labels).astype(jnp.float32)
