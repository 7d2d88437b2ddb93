"""The optimizer of ViDT (arXiv 2110.03921): AdamW with decay by groups, clipping, and a rate for each epoch."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Path
from cdl_jax.optim import Optimizer

OPTIONS = {
    "learning_rate": 1e-4,
    "schedule": "cosine",  # or "steps": each milestone divides the learning rate by 10
    "end_learning_rate": 1e-7,  # of schedule "cosine"
    "warmup_epochs": 0,  # of schedule "cosine"
    "warmup_rate": 1e-6,  # the first learning rate, if there is a warm-up
    "milestones": (40,),  # of schedule "steps", in epochs
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-4,
    "clip_norm": 0.1,  # bound of the global gradient norm; 0: none
    # Batches whose gradients are averaged for one step. The authors' code adds them up if there is a teacher.
    "accumulate": 1,
}

_SCHEDULES = ("cosine", "steps")
_UNDECAYED = ("bias", "det_token", "det_pos_embed")


def build(options: ConfigDict, epochs: int) -> Optimizer:
    """Returns the optimizer of a phase.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase, the length of the schedule.

    Raises:
      UserError: a value is out of range or unknown.
    """
    check(options, epochs)
    first, second = options.betas
    transforms = [
        optax.scale_by_adam(first, second, options.eps),
        optax.add_decayed_weights(options.weight_decay, mask=decay_mask),
    ]
    if options.clip_norm:
        transforms.insert(0, clip_by_global_norm(options.clip_norm))
    transform = optax.chain(*transforms)
    if options.accumulate > 1:  # the direction is zero until a step is full
        transform = optax.MultiSteps(transform, options.accumulate).gradient_transformation()
    return Optimizer(transform, schedule(options, epochs))


def check(options: ConfigDict, epochs: int) -> None:
    """Checks the ranges and choices of the options.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase.

    Raises:
      UserError: a value is out of range or unknown.
    """
    if not options.learning_rate > 0:
        raise UserError(f"optim.learning_rate={options.learning_rate} must be above 0")
    for key in ("end_learning_rate", "warmup_rate", "weight_decay", "clip_norm"):
        if options[key] < 0:
            raise UserError(f"optim.{key}={options[key]} must not be negative")
    if options.schedule not in _SCHEDULES:
        hint = plugins.did_you_mean(options.schedule, _SCHEDULES)
        raise UserError(f"optim.schedule={options.schedule!r} is unknown: {hint}")
    if not 0 <= options.warmup_epochs < epochs:
        raise UserError(f"optim.warmup_epochs={options.warmup_epochs} must lie in [0, epochs={epochs}): choose fewer")
    betas = options.betas
    if len(betas) != 2 or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas={betas} must be two numbers within [0, 1)")
    if options.accumulate < 1:
        raise UserError(f"optim.accumulate={options.accumulate} must be at least 1")


def schedule(options: ConfigDict, epochs: int) -> optax.Schedule:
    """Returns the learning rate as a function of the fractional epoch; it is constant within an epoch.

    The cosine of epoch e is `f(max(e - 1, 0))`, so the first two epochs have the same rate:
    `f(t) = end_learning_rate + (learning_rate - end_learning_rate) (1 + cos(pi t / epochs)) / 2`. During the warm-up,
    `t < warmup_epochs`, the rate grows linearly from `warmup_rate` to `learning_rate`.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase.

    >>> rate = schedule(ConfigDict({**OPTIONS, "learning_rate": 1.0, "end_learning_rate": 0.0}), epochs=4)
    >>> [round(float(rate(epoch)), 4) for epoch in (0.0, 1.9, 2.0, 3.0)]
    [1.0, 1.0, 0.8536, 0.5]
    """
    base = options.learning_rate
    if options.schedule == "steps":
        return optax.piecewise_constant_schedule(base, {milestone: 0.1 for milestone in options.milestones})
    warmup, cosine = options.warmup_epochs, optax.cosine_decay_schedule(base, epochs, options.end_learning_rate / base)
    linear = optax.linear_schedule(options.warmup_rate, base, max(warmup, 1))

    def rate(epoch):
        completed = jnp.maximum(jnp.floor(epoch) - 1, 0)
        return jnp.where(completed < warmup, linear(completed), cosine(completed))

    return rate


def clip_by_global_norm(bound: float) -> optax.GradientTransformation:
    """Returns the transformation that multiplies all gradients by `min(1, bound / (norm + 1e-6))`, as torch does.

    Args:
      bound: of the norm of all gradients together.
    """

    def clip(gradients, params):
        del params
        factor = jnp.minimum(1, bound / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda gradient: gradient * factor, gradients)

    return optax.stateless(clip)


def decay_mask(params):
    """Returns the tree of booleans of the leaves with weight decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: has_decay(tuple(key.key for key in path), leaf.ndim), params
    )


def has_decay(path: Path, ndim: int) -> bool:
    """Returns whether weight decay applies to a parameter.

    Outside the backbone it applies to all parameters: matrices, biases, norms and projectors. In the backbone it spares
    biases, other vectors, and the detection tokens with their positions.

    >>> has_decay(("params", "backbone", "norm", "scale"), 1), has_decay(("params", "neck", "norm", "scale"), 1)
    (False, True)

    Args:
      path: keys from the root of the variables to the parameter.
      ndim: number of its axes.
    """
    return "backbone" not in path or (ndim > 1 and path[-1] not in _UNDECAYED)
