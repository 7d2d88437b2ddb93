"""The optimizer of ViDT (arXiv 2110.03921): AdamW with clipping.

Weight decay differs between groups of parameters. Each epoch has one learning rate.
"""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.base import Path
from cdl_jax.optim import Optimizer
from cdl_jax.options import Option

OPTIONS = {
    "learning_rate": Option(1e-4, "the highest learning rate", above=0),
    "schedule": Option("cosine", "the learning-rate schedule within a task", choices=("cosine", "steps")),
    "end_learning_rate": Option(1e-7, 'the learning rate at the end of schedule "cosine"'),
    "warmup_epochs": Option(0, 'epochs of linear warmup, of schedule "cosine"'),
    "warmup_learning_rate": Option(1e-6, "the first learning rate, if there is a warmup"),
    "milestones": Option((40,), 'epochs of schedule "steps"; at each the learning rate is divided by 10'),
    "betas": Option((0.9, 0.999), "decay of both averages of adamw", below=1, lengths=(2,)),
    "eps": Option(1e-8, "epsilon of adamw"),
    "weight_decay": Option(1e-4, "decoupled weight decay"),
    "clip_norm": Option(0.1, "bound of the global gradient norm; 0: none"),
    # The authors' code adds the gradients up if there is a teacher.
    "accumulate": Option(1, "batches whose gradients are averaged for one step", minimum=1),
}

_UNDECAYED = ("bias", "det_token", "det_pos_embed")


def build(options: ConfigDict, epochs: int) -> Optimizer:
    """Returns the optimizer of a phase.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase, the length of the schedule.

    Raises:
      UserError: the warmup is as long as the phase.
    """
    if options.warmup_epochs >= epochs:
        raise UserError(f"optim.warmup_epochs={options.warmup_epochs} must be less than epochs={epochs}: choose fewer")
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


def schedule(options: ConfigDict, epochs: int) -> optax.Schedule:
    """Returns the learning rate as a function of the fractional epoch.

    The rate is constant within an epoch. The cosine of epoch e is `f(max(e - 1, 0))`, so the first two epochs have the
    same rate: `f(t) = end_learning_rate + (learning_rate - end_learning_rate) (1 + cos(pi t / epochs)) / 2`. During the
    warmup, `t < warmup_epochs`, the rate grows linearly from `warmup_learning_rate` to `learning_rate`.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase.

    >>> from cdl_jax.options import defaults
    >>> rate = schedule(ConfigDict(defaults(OPTIONS, learning_rate=1.0, end_learning_rate=0.0)), epochs=4)
    >>> [round(float(rate(epoch)), 4) for epoch in (0.0, 1.9, 2.0, 3.0)]
    [1.0, 1.0, 0.8536, 0.5]
    """
    base = options.learning_rate
    if options.schedule == "steps":
        return optax.piecewise_constant_schedule(base, {milestone: 0.1 for milestone in options.milestones})
    warmup, cosine = options.warmup_epochs, optax.cosine_decay_schedule(base, epochs, options.end_learning_rate / base)
    linear = optax.linear_schedule(options.warmup_learning_rate, base, max(warmup, 1))

    def rate(epoch):
        completed = jnp.maximum(jnp.floor(epoch) - 1, 0)
        return jnp.where(completed < warmup, linear(completed), cosine(completed))

    return rate


def clip_by_global_norm(bound: float) -> optax.GradientTransformation:
    """Returns the transformation that clips gradients by their global norm.

    As in torch, all gradients are multiplied by `min(1, bound / (norm + 1e-6))`.

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
