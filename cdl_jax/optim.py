"""Optimizers and learning-rate schedules by name, all of them optax's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from cdl_jax import plugins
from cdl_jax.errors import UserError

OPTIONS = {
    "name": "adam",
    "learning_rate": 1e-3,
    "schedule": "cdl_cosine",
    "warmup_epochs": 0.0,  # of schedule "cosine"
    "final_rate": 0.0,  # of schedule "cosine": where it ends
    "milestones": (),  # epochs, of schedule "steps": the rate falls to a tenth at each
    "momentum": 0.9,  # of sgd, rmsprop
    "nesterov": False,  # of sgd: the step looks ahead along the momentum, as torch's
    "betas": (0.9, 0.999),  # of adam, adamw, amsgrad
    "eps": 1e-8,
    "weight_decay": 0.0,  # adamw: decoupled, on matrices only; others: added to the gradient, as in torch
    # Parts of these names have no weight decay. A projector is orthogonal whatever its numbers: decay would only pull
    # it back to where it began.
    "undecayed": ("projector",),
    "clip_norm": 0.0,  # bound on the global gradient norm; 0: none
    # Batches whose gradients are averaged for one step, as if they were one batch; its schedule is that of the steps.
    # Batches of an epoch that fill no step are left out. Batch norm and mixing see the small batches.
    "accumulate": 1,
}


@dataclass(frozen=True)
class Optimizer:
    """`transform` gives the direction of the update, `learning_rate(context_epoch)` its length.

    The rate is a function of the epoch that the step reads from its context, not of a counter in the optimizer's state:
    tasks of different length then share one compiled step.
    """

    transform: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]


def cdl_cosine(learning_rate: float, epochs: int) -> optax.Schedule:
    """`lr cos(99 pi max(0, e - 1) / (200 (epochs - 1)))` of the whole epoch e: the CDL program's schedule.

    The first two epochs both run at the full rate; one epoch alone runs at the full rate as well (the program divides
    by zero there).
    """
    angle = 99 * jnp.pi / (200 * max(epochs - 1, 1))
    return lambda epoch: learning_rate * jnp.cos(angle * jnp.maximum(jnp.floor(epoch) - 1, 0))


def schedule(options, epochs: int) -> optax.Schedule:
    """The schedule that `options` names, as a function of the (fractional) epoch.

    Raises:
      UserError: the name is unknown.
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
        fall = optax.cosine_decay_schedule(rate, epochs - warmup, alpha=options.final_rate / rate)
        if not warmup:
            return fall
        return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), fall], [warmup])
    if name == "steps":
        return optax.piecewise_constant_schedule(rate, {m: 0.1 for m in options.milestones})
    hint = plugins.did_you_mean(name, ["constant", "cdl_cosine", "cosine", "steps"])
    raise UserError(f"optim.schedule={name!r} is unknown: {hint}")


def build(options, epochs: int) -> Optimizer:
    """The optimizer of one phase.

    Args:
      options: a section with the keys of `OPTIONS`.
      epochs: of the phase; what the schedule stretches over.

    Raises:
      UserError: an unknown name or a value out of range.
    """
    if not options.learning_rate > 0:
        raise UserError(f"optim.learning_rate={options.learning_rate} must be above 0")
    betas = options.betas
    if len(betas) != 2 or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas={betas} must be two numbers within [0, 1)")
    if not 0 <= options.momentum < 1:
        raise UserError(f"optim.momentum={options.momentum} must lie within [0, 1)")
    if not all(type(milestone) is int for milestone in options.milestones):
        raise UserError(f"optim.milestones={options.milestones} must be whole numbers")
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
    chain = []
    if options.clip_norm:
        chain.append(optax.clip_by_global_norm(options.clip_norm))
    decay = options.weight_decay
    if decay and options.name != "adamw":
        chain.append(optax.add_decayed_weights(decay, mask=partial(_weight_decay_mask, options.undecayed, 0)))
    chain.append(kinds[options.name]())
    if decay and options.name == "adamw":
        chain.append(optax.add_decayed_weights(decay, mask=partial(_weight_decay_mask, options.undecayed, 2)))
    transform = optax.chain(*chain)
    if options.accumulate > 1:  # the direction is zero until a step is full
        transform = optax.MultiSteps(transform, options.accumulate).gradient_transformation()
    return Optimizer(transform, schedule(options, epochs))


def _weight_decay_mask(names, rank, params):
    """Whether weight decay applies to a leaf: to all of at least this rank on whose path is none of the names."""
    outside = {jax.tree_util.DictKey(name) for name in names}
    return jax.tree_util.tree_map_with_path(lambda path, p: p.ndim >= rank and outside.isdisjoint(path), params)
