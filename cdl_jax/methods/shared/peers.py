"""Several networks, or branches of one, that learn together on the same batches: what all such methods share.

A method of this kind (`okddip`, `dml`, `one`, `cl_ilr`, `individual`) says which peers there are, what they make of
each other's outputs and the loss; `Together` makes of it what the trainer asks for.

Variables: `{"peer_0": network, ..., "leader": network}`, a network being `{"params", "batch_stats"}`; for branches also
`"stem"`, what they share; and what a method adds (`"attention"`, `"gate"`). Peers are looped over within the one
compiled step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, mask_classes
from cdl_jax.methods.base import Method, Outcome, Phase, StreamInfo, Update
from cdl_jax.methods.shared import peer_losses
from cdl_jax.models import densenet
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import Backbone, apply
from cdl_jax.models.peers.networks import PeerBranches, PeerNetworks, PeerOutputs

OPTIONS = {
    "num_branches": 4,  # how many learn together; with a leader it is the last of them
    "diversity_divisor": "pairs",  # of the pairwise distances: their number; "reference": 3, whatever their number
}

BRANCH_OPTIONS = {
    # "own": each branch has its own last block. "reference": all share one, whose running statistics move once for each
    # that runs it; OKDDip's leader then skips the final batch norm and ReLU and is an attention peer as well.
    "densenet_shared_block": "own",
}


@dataclass(frozen=True)
class Exchange:
    """A trained module beside the peers: `module(reads(seen), train)`; its variables are under `name`."""

    name: str
    module: nn.Module
    reads: Callable[[PeerOutputs], jax.Array]


@dataclass(frozen=True, kw_only=True)
class Together(Method):
    """See `methods.base.Method`.

    peers: `PeerNetworks` or `PeerBranches`.
    loss_terms(seen, told, labels, allowed, epoch) -> (scalar, {name: scalar}); `told` is what `exchange` gives.
    logits_of(seen, told) -> {network: logits}: what is evaluated.
    rivals: the networks that "mean" is about. diverse: name of a diversity -> the networks that it compares.
    divisor: see `peer_losses.diversity`.
    headline: networks whose mean accuracy chooses the best epoch.
    """

    peers: PeerNetworks | PeerBranches
    exchange: Exchange | None
    loss_terms: Callable[..., tuple[jax.Array, dict]]
    logits_of: Callable[[PeerOutputs, Any], dict[str, jax.Array]]
    networks: tuple[str, ...]
    rivals: tuple[str, ...]
    diverse: tuple[tuple[str, tuple[str, ...]], ...]
    divisor: str
    headline: tuple[str, ...]
    info: StreamInfo
    image_size: int
    epochs: int
    optimizer: optim.Optimizer

    @property
    def num_parallel_networks(self):
        return len(self.peers.names) if isinstance(self.peers, PeerNetworks) else 1

    @property
    def phases(self):
        return (Phase("peers", self.epochs, (Update(lambda path: path[1] == "params", self.optimizer, self.loss),)),)

    def init(self, key):
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        variables = self.peers.init(jax.random.fold_in(key, 0), images)
        if self.exchange is not None:
            read = self.exchange.reads(self.peers(variables, images, False, key))
            variables[self.exchange.name] = self.exchange.module.init(jax.random.fold_in(key, 1), read)
        return variables

    def load_pretrained(self, variables):
        return variables

    def outputs_of(self, variables, images, train, key):
        """(Seen, what the exchange gives), with all new running statistics in `Seen.stats`."""
        seen, told = self.peers(variables, images, train, key), None
        if self.exchange is not None:
            name = self.exchange.name
            told, stats = apply(self.exchange.module, variables[name], self.exchange.reads(seen), train, key)
            seen = replace(seen, stats={**seen.stats, name: stats})
        return seen, told

    def loss(self, variables, batch, context: Context):
        seen, told = self.outputs_of(variables, batch["images"], True, context.key)
        allowed = context.current(self.info.num_classes)
        total, terms = self.loss_terms(seen, told, batch["labels"], allowed, context.epoch)
        logits = jax.lax.stop_gradient(self.logits_of(seen, told))
        right = {f"{n}/accuracy": 100 * _right(z, batch["labels"], allowed).mean() for n, z in logits.items()}
        return total, Outcome({"loss": total, **terms, **right}, variables={k: v for k, v in seen.stats.items() if v})

    def predict(self, variables, images, context):
        return self.logits_of(*self.outputs_of(variables, images, False, context.key)), {}

    def extra_metrics(self, logits, labels, context):
        """`{name: [batch]}`: what evaluation averages over pictures, from the logits of `predict`."""
        seen = context.seen(self.info.num_classes)
        right = sum(_right(logits[name], labels, seen) for name in self.rivals) / len(self.rivals)
        values = {"mean/accuracy": 100 * right}
        values |= {f"{n}/top5": 100 * peer_losses.top_k_correct(z, labels, 5, seen) for n, z in logits.items()}
        for name, compared in self.diverse:
            values[name] = peer_losses.diversity([logits[n] for n in compared], seen, self.divisor)
        return values


def _right(logits, labels, allowed):
    return (mask_classes(logits, allowed).argmax(axis=-1) == labels).astype(jnp.float32)


def logits_without_leader(seen: PeerOutputs, told=None) -> dict:
    """Every peer by name, and the ensemble: the mean of all logits."""
    del told
    peers = {f"peer_{i}": z for i, z in enumerate(seen.logits)}
    return {**peers, "ensemble": sum(seen.logits) / len(seen.logits)}


def targets_of_others(seen: PeerOutputs):
    """For each peer the mean of the others' logits."""
    total = sum(seen.logits)
    return [(total - z) / (len(seen.logits) - 1) for z in seen.logits]


def names_of(section: str, options, leader: bool) -> tuple[str, ...]:
    """Names of the peers' variables.

    Raises:
      UserError: fewer than two.
    """
    count = options.num_branches
    if count < 2:
        raise UserError(f"{section}.num_branches={count}: peers learn from each other, choose 2 or more")
    if options.diversity_divisor not in ("pairs", "reference"):
        raise UserError(f"{section}.diversity_divisor={options.diversity_divisor!r}: use 'pairs' or 'reference'")
    last = "leader" if leader else f"peer_{count - 1}"
    return (*(f"peer_{i}" for i in range(count - 1)), last)


def branches(
    section: str, config, every: tuple[str, ...], num_classes: int, *, rescale=False, bare=False
) -> PeerBranches:
    """The branched network of `config.network`.

    Args:
      bare: whether a leader reads a shared last block once more.

    Raises:
      UserError: options that do not fit together.
    """
    backbone, block = network(config.network, num_classes), None
    tail, mode = backbone.tail, config[section].densenet_shared_block
    if mode not in ("own", "reference"):
        raise UserError(f"{section}.densenet_shared_block={mode!r}: use 'own' or 'reference'")
    if mode == "reference":
        if not isinstance(tail, densenet.Tail):
            raise UserError(
                f"{section}.densenet_shared_block='reference' is about DenseNet, network.family="
                f"{config.network.family!r}: leave it at 'own'"
            )
        block, tail = tail.block.clone(updates=len(every) + bare), tail.clone(block=None)
    return PeerBranches(backbone.stem, tail, every, block, rescale)


def network(section, num_classes: int):
    """The convolutional network of an option section.

    Raises:
      UserError: the family has no such network, or weights are named.
    """
    backbone = plugins.load_plugin("models", section.family).build(section, num_classes)
    if not isinstance(backbone, Backbone):
        raise UserError(f"network.family={section.family!r}: this method needs one of the convolutional families")
    if section.weights != "random":
        raise UserError(f"network.weights={section.weights!r}: peers start from random weights, say 'random'")
    return backbone


def defaults(section: str, options: dict, network: str, *, branched: bool, reference: bool) -> dict:
    """The config sections of a method, for a named network; with `reference` the published program's peculiarities."""
    sizes = families.network_options(network, families.CONVOLUTIONAL)
    if branched and sizes["family"] == "vgg":
        sizes["dropout"] = 0.5  # as published, whatever --dropout said
    if reference:
        options = {**options, "diversity_divisor": "reference"}
        if branched and sizes["family"] == "densenet":
            options["densenet_shared_block"] = "reference"
    return {section: options, "network": sizes}


def together(section: str, config, info: StreamInfo, peers, *, exchange=None, loss_terms, logits_of, extra=()):
    """The method without a leader: the headline is the mean over all peers or, by `select_by`, the ensemble's.

    Raises:
      UserError: an unknown `select_by`.
    """
    options = config[section]
    headline = {"mean": peers.names, "ensemble": ("ensemble",)}
    if options.select_by not in headline:
        raise UserError(
            f"{section}.select_by={options.select_by!r}: {plugins.did_you_mean(options.select_by, headline)}"
        )
    return Together(
        peers=peers,
        exchange=exchange,
        loss_terms=loss_terms,
        logits_of=logits_of,
        networks=(*peers.names, "ensemble", *extra),
        rivals=peers.names,
        diverse=diverse(peers.names[:-1], peers.names),
        divisor=options.diversity_divisor,
        headline=headline[options.select_by],
        info=info,
        image_size=config.network.image_size,
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
    )


def diverse(first, every=()):
    """Names of the diversities that can be measured: of the `first` networks (all but the last), and of `every` one."""
    named = (("diversity", tuple(first)), ("diversity_all", tuple(every)))
    return tuple((name, compared) for name, compared in named if len(compared) > 1)
