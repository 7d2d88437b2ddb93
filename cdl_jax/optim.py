"""Optimizers and learning-rate schedules by name, from optax."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.options import Option

OPTIONS = {
    "name": Option("adam", "the optimizer", choices=("adam", "adamw", "amsgrad", "sgd", "rmsprop")),
    "learning_rate": Option(1e-3, "the highest learning rate", above=0),
    "schedule": Option(
        "cdl_cosine", "the learning-rate schedule within a task", choices=("constant", "cdl_cosine", "cosine", "steps")
    ),
    "warmup_epochs": Option(0.0, 'epochs of linear warmup, of schedule "cosine"'),
    "end_learning_rate": Option(0.0, 'the learning rate at the end of schedule "cosine"'),
    "milestones": Option((), 'epochs of schedule "steps"; at each the learning rate is divided by 10', item_type=int),
    "momentum": Option(0.9, "momentum of sgd and rmsprop", below=1),
    "nesterov": Option(False, "Nesterov's momentum in sgd, as torch computes it"),
    "betas": Option((0.9, 0.999), "decay of both averages of adam, adamw and amsgrad", below=1, lengths=(2,)),
    "eps": Option(1e-8, "epsilon of adam, adamw, amsgrad and rmsprop"),
    "weight_decay": Option(
        0.0,
        "weight decay; adamw: decoupled, on arrays of two or more axes except biases; others: added to the gradient, "
        "as in torch",
    ),
    # A projector is orthogonal for any values of its parameters, so decay would only pull it back to its initial value.
    "no_decay": Option(("projector",), "names of the parts of the network without weight decay", item_type=str),
    "clip_norm": Option(0.0, "bound of the global gradient norm; 0: none"),
    # The schedule is that of the steps. Batches at the end of an epoch that do not fill a step are dropped. Batch norm,
    # mixing and schemes that compare the images of a batch use the small batches.
    "accumulate": Option(1, "batches whose gradients are averaged for one step, as if they were one batch", minimum=1),
}

# Optimizers that divide the gradient, with the weight decay added to it, by its own size.
NORMALIZED = ("adam", "amsgrad", "rmsprop")


@dataclass(frozen=True)
class Optimizer:
    """The optimizer of a phase.

    The learning rate is a function of the epoch in the context of the step, not of a counter in the optimizer state, so
    that tasks of different lengths share one compiled step.

    Attributes:
      transform: gives the direction of the update.
      learning_rate: maps the fractional epoch, a float32 scalar, to the length of the update.
    """

    transform: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]


# Changes nothing: of an update that only collects statistics.
NO_STEP = Optimizer(optax.identity(), optax.constant_schedule(0.0))


def cdl_cosine(learning_rate: float, epochs: int) -> optax.Schedule:
    """Returns the schedule of the CDL program.

    The rate is `lr cos(99 pi max(0, e - 1) / (200 (epochs - 1)))`. e is the index of the epoch. The first two epochs
    both have the full rate. A single epoch has the full rate too (the program divides by zero there).

    Args:
      learning_rate: lr.
      epochs: number of epochs of the phase.

    >>> rate = cdl_cosine(0.1, epochs=3)
    >>> [round(float(rate(epoch)), 4) for epoch in (0.0, 1.5, 2.0)]
    [0.1, 0.1, 0.0713]
    """
    angle = 99 * jnp.pi / (200 * max(epochs - 1, 1))
    return lambda epoch: learning_rate * jnp.cos(angle * jnp.maximum(jnp.floor(epoch) - 1, 0))


def schedule(options: ConfigDict, epochs: int) -> optax.Schedule:
    """Returns the learning rate as a function of the fractional epoch.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase.

    Raises:
      UserError: `warmup_epochs` is out of range.
    """
    return _SCHEDULES[options.schedule](options, epochs)


def _cosine(options, epochs):
    rate, warmup = options.learning_rate, options.warmup_epochs
    if not warmup < epochs:
        raise UserError(f"optim.warmup_epochs={warmup} must lie in [0, epochs={epochs}): choose fewer")
    decay = optax.cosine_decay_schedule(rate, epochs - warmup, alpha=options.end_learning_rate / rate)
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), decay], [warmup])


_SCHEDULES = {
    "constant": lambda options, epochs: optax.constant_schedule(options.learning_rate),
    "cdl_cosine": lambda options, epochs: cdl_cosine(options.learning_rate, epochs),
    "cosine": _cosine,
    "steps": lambda options, epochs: optax.piecewise_constant_schedule(
        options.learning_rate, {milestone: 0.1 for milestone in options.milestones}
    ),
}


def build(options: ConfigDict, epochs: int) -> Optimizer:
    """Returns the optimizer of one phase.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase, the length of the schedule.

    Raises:
      UserError: `warmup_epochs` is out of range.
    """
    first, second = options.betas
    kinds = {
        "adam": lambda: optax.scale_by_adam(first, second, options.eps),
        "adamw": lambda: optax.scale_by_adam(first, second, options.eps),
        "amsgrad": lambda: optax.scale_by_amsgrad(first, second, options.eps),
        "sgd": lambda: optax.trace(options.momentum, options.nesterov) if options.momentum else optax.identity(),
        "rmsprop": lambda: optax.chain(
            optax.scale_by_rms(decay=0.99, eps=options.eps, eps_in_sqrt=False),
            optax.trace(options.momentum) if options.momentum else optax.identity(),
        ),
    }
    transforms = []
    if options.clip_norm:
        transforms.append(optax.clip_by_global_norm(options.clip_norm))
    decay, no_decay = options.weight_decay, options.no_decay
    if decay and options.name != "adamw":
        transforms.append(optax.add_decayed_weights(decay, mask=partial(_weight_decay_mask, no_decay, 0)))
    transforms.append(kinds[options.name]())
    if decay and options.name == "adamw":
        transforms.append(optax.add_decayed_weights(decay, mask=partial(_weight_decay_mask, no_decay, 2)))
    transform = optax.chain(*transforms)
    if options.accumulate > 1:  # the direction is zero until a step is full
        transform = optax.MultiSteps(transform, options.accumulate).gradient_transformation()
    return Optimizer(transform, schedule(options, epochs))


def scale_rates(optimizer: Optimizer, factor: Callable[[tuple[str, ...]], float]) -> Optimizer:
    """Multiplies the learning rate of each leaf by a factor.

    Decoupled weight decay is multiplied too.

    Args:
      optimizer: of all leaves.
      factor: path of a trained leaf -> factor.

    Returns:
      An optimizer with the same state.

    >>> optimizer = Optimizer(optax.identity(), optax.constant_schedule(0.1))
    >>> scaled = scale_rates(optimizer, lambda path: 0.5 if path == ("backbone",) else 1.0)
    >>> direction, _ = scaled.transform.update({"backbone": 4.0, "head": 4.0}, optax.EmptyState())
    >>> direction
    {'backbone': 2.0, 'head': 4.0}
    """

    def scale(path, direction):
        value = factor(tuple(key.key for key in path))
        return direction if value == 1 else value * direction

    def update(gradients, state, params=None):
        direction, state = optimizer.transform.update(gradients, state, params)
        return jax.tree_util.tree_map_with_path(scale, direction), state

    return Optimizer(optax.GradientTransformation(optimizer.transform.init, update), optimizer.learning_rate)


def _weight_decay_mask(no_decay: Collection[str], min_rank: int, params):
    """Returns the tree of booleans of the leaves with weight decay.

    These are the leaves of at least `min_rank` dimensions with none of the names `no_decay` on their paths. With a
    `min_rank`, biases have no decay: those of several blocks or tasks may be rows of one array.
    """
    no_decay_keys = {jax.tree_util.DictKey(name) for name in no_decay}

    def is_decayed(path, leaf):
        is_bias = min_rank > 0 and jax.tree_util.keystr(path, simple=True).endswith("bias")
        return leaf.ndim >= min_rank and not is_bias and no_decay_keys.isdisjoint(path)

    return jax.tree_util.tree_map_with_path(is_decayed, params)
