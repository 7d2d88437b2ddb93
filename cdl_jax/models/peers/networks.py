"""Several networks, or branches of one, run on the same pictures: what each of them makes of a batch.

Variables: `{name: {"params", "batch_stats"}}` for each peer and, for branches, `"stem"` and maybe `"block"`, what they
share. Peers are looped over (a convolution under vmap is many times slower), or spread over devices.
"""

from dataclasses import dataclass, field
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cdl_jax.models.modules.conv import apply


@dataclass(frozen=True)
class PeerOutputs:
    """What the peers make of a batch.

    logits, features: of each peer, `[batch, classes]` and `[batch, dim]`. shared: the map that branches share, or None.
    leader_logits: logits of the last branch without its final batch norm, with `densenet_shared_block="reference"` only.
    stats: new running statistics, as partial variables.
    """

    logits: tuple[jax.Array, ...]
    features: tuple[jax.Array, ...]
    shared: jax.Array | None = None
    leader_logits: jax.Array | None = None
    stats: dict = field(default_factory=dict)


@dataclass(frozen=True)
class PeerNetworks:
    """Peers that are whole networks; where the mesh has an axis "peer", each of its devices runs its share of them."""

    backbone: nn.Module
    names: tuple[str, ...]

    def init(self, key, images):
        """Variables of all peers, each drawn on its own."""
        keys = jax.random.split(key, len(self.names))
        return {name: self.backbone.init(k, images) for name, k in zip(self.names, keys, strict=True)}

    def __call__(self, variables, images, train, key) -> PeerOutputs:
        """What the peers make of images `[batch, size, size, 3]`; `key` is that of dropout."""
        each, numbers = [variables[name] for name in self.names], range(len(self.names))
        ways = jax.sharding.get_abstract_mesh().shape.get("peer", 1)
        run = partial(self._spread, ways) if ways > 1 else self._run
        told = run(each, images, key, numbers, train)
        logits, features, stats = zip(*told, strict=True)
        return PeerOutputs(logits, features, stats=dict(zip(self.names, stats, strict=True)))

    def _run(self, each, images, key, numbers, train):
        """(logits, features, new running statistics) of some networks, `numbers` being their places among all."""
        told = []
        for network, number in zip(each, numbers, strict=True):
            (z, out), stats = apply(self.backbone, network, images, train, jax.random.fold_in(key, number))
            told.append((z, out["features"], stats))
        return told

    def _spread(self, ways, each, images, key, numbers, train):
        """As `_run`, each device along "peer" looping over its own slice; what they tell is gathered on all of them."""
        share = len(each) // ways

        def run(networks, images, key, numbers):
            own = [jax.tree.map(lambda x, i=i: x[i], networks) for i in range(share)]
            return _stacked(self._run(own, images, key, [numbers[i] for i in range(share)], train))

        spread = PartitionSpec("peer"), PartitionSpec(), PartitionSpec(), PartitionSpec("peer")
        parts = jax.shard_map(run, in_specs=spread, out_specs=PartitionSpec("peer"), axis_names={"peer"})
        told = parts(_stacked(each), images, key, jnp.array(numbers))
        return [jax.tree.map(lambda x, i=i: x[i], told) for i in range(len(each))]


def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@dataclass(frozen=True)
class PeerBranches:
    """Peers that share a stem and part behind it.

    block: a last block that all branches share, or None.
    rescale: divide the gradient that reaches the stem by the number of branches.
    """

    stem: nn.Module
    tail: nn.Module
    names: tuple[str, ...]
    block: nn.Module | None = None
    rescale: bool = False

    def init(self, key, images):
        """Variables of the stem and of all branches, each drawn on its own."""
        keys = jax.random.split(key, len(self.names) + 2)
        (x, _), stem = self.stem.init_with_output(keys[0], images, False)
        variables = {"stem": stem}
        if self.block is not None:
            x, variables["block"] = self.block.init_with_output(keys[1], x, False)
        return variables | {n: self.tail.init(k, x, False) for n, k in zip(self.names, keys[2:], strict=True)}

    def __call__(self, variables, images, train, key) -> PeerOutputs:
        """As `Networks.__call__`."""
        stats = {}
        (shared, _), stats["stem"] = apply(self.stem, variables["stem"], images, train, jax.random.fold_in(key, 0))
        x = shared = divide_gradient(shared, len(self.names)) if self.rescale else shared
        if self.block is not None:
            x, stats["block"] = apply(self.block, variables["block"], x, train, key)
        logits, features = [], []
        for i, name in enumerate(self.names, 1):
            (z, out), stats[name] = apply(self.tail, variables[name], x, train, jax.random.fold_in(key, i))
            logits.append(z)
            features.append(out["features"])
        leader_logits = None
        if self.block is not None:
            leader_logits, _ = self.tail.apply(variables[self.names[-1]], x, False, bare=True)
        return PeerOutputs(tuple(logits), tuple(features), shared, leader_logits, stats)


def divide_gradient(x, by: int):
    """`x`, through which the gradient comes back divided (branch-point rescaling of CL-ILR)."""

    @jax.custom_gradient
    def same(x):
        return x, lambda gradient: gradient / by

    return same(x)
