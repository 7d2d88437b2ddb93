"""Optimizers and learning-rate schedules by name, from optax."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.errors import UserError

OPTIONS = {
    "name": "adam",
    "learning_rate": 1e-3,
    "schedule": "cdl_cosine",
    "warmup_epochs": 0.0,  # of schedule "cosine"
    "final_rate": 0.0,  # of schedule "cosine": the learning rate at its end
    "milestones": (),  # epochs of schedule "steps": at each the learning rate is divided by 10
    "momentum": 0.9,  # of sgd, rmsprop
    "nesterov": False,  # of sgd: Nesterov's momentum, as torch computes it
    "betas": (0.9, 0.999),  # of adam, adamw, amsgrad
    "eps": 1e-8,
    "weight_decay": 0.0,  # adamw: decoupled, on matrices only; others: added to the gradient, as in torch
    # Parts of the network without weight decay. A projector is orthogonal for any values of its parameters, so decay
    # would only pull it back to its initial value.
    "undecayed": ("projector",),
    "clip_norm": 0.0,  # bound of the global gradient norm; 0: none
    # Batches whose gradients are averaged for one step, as if they were one batch. The schedule is that of the steps.
    # Batches at the end of an epoch that do not fill a step are dropped. Batch norm and mixing use the small batches.
    "accumulate": 1,
}


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
    """Returns the schedule of the CDL program, `lr cos(99 pi max(0, e - 1) / (200 (epochs - 1)))`.

    e is the index of the epoch. The first two epochs both have the full rate. A single epoch has the full rate too (the
    program divides by zero there).

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
      UserError: the name of the schedule is unknown, or `warmup_epochs` is out of range.
    """
    rate, name = options.learning_rate, options.schedule
    if name == "constant":
        return optax.constant_schedule(rate)
    if name == "cdl_cosine":
        return cdl_cosine(rate, epochs)
    if name == "cosine":
        warmup = options.warmup_epochs
        if not 0 <= warmup < epochs:
            raise UserError(f"optim.warmup_epochs={warmup} must lie in [0, epochs={epochs}): choose fewer")
        decay = optax.cosine_decay_schedule(rate, epochs - warmup, alpha=options.final_rate / rate)
        if not warmup:
            return decay
        return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), decay], [warmup])
    if name == "steps":
        return optax.piecewise_constant_schedule(rate, {m: 0.1 for m in options.milestones})
    known = ["constant", "cdl_cosine", "cosine", "steps"]
    raise UserError(f"optim.schedule={name!r} is unknown: {plugins.did_you_mean(name, known)}")


def build(options: ConfigDict, epochs: int) -> Optimizer:
    """Returns the optimizer of one phase.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: number of epochs of the phase, the length of the schedule.

    Raises:
      UserError: a name is unknown or a value is out of range.
    """
    if not options.learning_rate > 0:
        raise UserError(f"optim.learning_rate={options.learning_rate} must be above 0")
    betas = options.betas
    if len(betas) != 2 or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas={betas} must be two numbers within [0, 1)")
    if not 0 <= options.momentum < 1:
        raise UserError(f"optim.momentum={options.momentum} must lie within [0, 1)")
    if not all(type(milestone) is int for milestone in options.milestones):
        raise UserError(f"optim.milestones={options.milestones} must be integers")
    if not all(isinstance(part, str) and part for part in options.undecayed):
        raise UserError(f"optim.undecayed={options.undecayed} must be names of parts of a network, such as 'projector'")
    first, second = betas
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
    if options.name not in kinds:
        raise UserError(f"optim.name={options.name!r} is unknown: {plugins.did_you_mean(options.name, kinds)}")
    if options.accumulate < 1:
        raise UserError(f"optim.accumulate={options.accumulate} must be at least 1")
    transforms = []
    if options.clip_norm:
        transforms.append(optax.clip_by_global_norm(options.clip_norm))
    decay, no_decay = options.weight_decay, options.undecayed
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
    """Multiplies the learning rate of each leaf by a factor; decoupled weight decay is multiplied too.

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

    These are the leaves of at least `min_rank` dimensions with none of the names `no_decay` on their paths.
    """
    no_decay_keys = {jax.tree_util.DictKey(name) for name in no_decay}
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim >= min_rank and no_decay_keys.isdisjoint(path), params
    )
