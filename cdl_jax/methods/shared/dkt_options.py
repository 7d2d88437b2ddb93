"""Checks of DKT's options."""

from typing import Any

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import dkt_losses, rehearsal, topology

_CHOICES = {
    "stream_order": topology.ORDERS,
    "exchange_mode": ("state", "predictions", "weights"),
    "exchange_unit": topology.UNITS,
    "update_order": ("simultaneous", "sequential"),
    "teacher_bn": ("running", "batch"),
    "teacher_checkpoint": ("same_task", "last"),
    "cutmix_ramp": ("linear", "as_coded"),
    "cutmix_labels": ("mixed", "original"),
}
_MINIMA = {
    "num_learners": 1,
    "exchange_interval": 1,
    "public": 1,
    "public_batch": 1,
    "random_peers": 0,
    "stream_seed": 0,
}


def check(options: Any) -> None:
    """Refuses options that are out of range or do not fit together.

    Args:
      options: the config section `dkt`.

    Raises:
      UserError: names the option and its range.
    """
    dkt_losses.check("dkt", options)
    rehearsal.check("dkt", options)
    for key, known in _CHOICES.items():
        if options[key] not in known:
            raise UserError(f"dkt.{key}={options[key]!r}: {plugins.did_you_mean(options[key], known)}")
    for key, minimum in _MINIMA.items():
        if options[key] < minimum:
            raise UserError(f"dkt.{key}={options[key]} must be at least {minimum}")
    count = options.num_learners
    if options.random_peers >= count and options.random_peers:
        raise UserError(f"dkt.random_peers={options.random_peers}: each of {count} learners has {count - 1} others")
    for key in ("participation", "gossip_share"):
        if not 0 <= options[key] <= 1:
            raise UserError(f"dkt.{key}={options[key]} must lie between 0 and 1")
    for key in ("joins", "leaves"):
        if options[key] and len(options[key]) != count:
            raise UserError(f"dkt.{key}={tuple(options[key])}: give {count} tasks, one for each learner")
    if options.public_batch > options.public:
        raise UserError(f"dkt.public_batch={options.public_batch} is more than the {options.public} public images")
    if options.teachers and options.exchange_mode != "state":
        raise UserError(
            f"dkt.exchange_mode={options.exchange_mode!r} has no meaning with dkt.teachers: leave it at 'state'"
        )
