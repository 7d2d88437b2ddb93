"""Peers: networks, or branches of one network, that process the same images.

Variables: `{name: {"params", "batch_stats"}}` for each peer. Branches also have `"stem"`, which all of them share, and
with a shared last block `"block"`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.modules.conv import apply
from cdl_jax.models.peers.parallel import map_peers

Variables = dict[str, Any]


@dataclass(frozen=True)
class PeerOutputs:
    """Outputs of all peers for one batch.

    Attributes:
      logits: float32 `[batch, classes]` of each peer.
      features: float32 `[batch, dim]` of each peer, the input of its classifier.
      shared: float32 `[batch, height, width, channels]`, the output of the stem that branches share. Networks: None.
      leader_logits: float32 `[batch, classes]`, logits of the last branch without its final batch norm. None unless
        `densenet_shared_block="reference"`.
      stats: new running statistics, as partial variables.
    """

    logits: tuple[jax.Array, ...]
    features: tuple[jax.Array, ...]
    shared: jax.Array | None = None
    leader_logits: jax.Array | None = None
    stats: Variables = field(default_factory=dict)


@dataclass(frozen=True)
class PeerNetworks:
    """Separate networks of one architecture.

    A mesh with an axis "peer" spreads them over its devices.

    Attributes:
      backbone: the architecture, such as `models.modules.conv.Backbone`.
      names: the peers' keys in the variables.
    """

    backbone: nn.Module
    names: tuple[str, ...]

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """Draws the variables of each peer from a key of its own.

        Args:
          key: PRNG key.
          images: float32 `[batch, size, size, 3]`; only the shape is used.

        Returns:
          `{name: {"params", "batch_stats"}}`.
        """
        keys = jax.random.split(key, len(self.names))
        return {name: self.backbone.init(k, images) for name, k in zip(self.names, keys, strict=True)}

    def __call__(self, variables: Mapping[str, Any], images: jax.Array, train: bool, key: jax.Array) -> PeerOutputs:
        """Runs all peers on a batch.

        Args:
          variables: see `init`.
          images: float32 `[batch, size, size, 3]`.
          train: whether batch norms use, and update, the statistics of the batch, and dropout is active.
          key: PRNG key of dropout.

        Returns:
          The outputs of all peers, in the order of `names`.
        """

        def run(peer, images, key):
            network, index = peer
            (logits, out), stats = apply(self.backbone, network, images, train, jax.random.fold_in(key, index))
            return logits, out["features"], stats

        peers = [(variables[name], jnp.int32(index)) for index, name in enumerate(self.names)]
        logits, features, stats = zip(*map_peers(run, peers, images, key), strict=True)
        return PeerOutputs(logits, features, stats=dict(zip(self.names, stats, strict=True)))


@dataclass(frozen=True)
class PeerBranches:
    """Branches of one network: they share a stem, and each has a tail of its own.

    Attributes:
      stem: the shared first part.
      tail: the part of which each branch has its own variables.
      names: the branches' keys in the variables.
      block: a last block that all branches share, or None.
      rescale: divide the gradient that reaches the stem by the number of branches.
    """

    stem: nn.Module
    tail: nn.Module
    names: tuple[str, ...]
    block: nn.Module | None = None
    rescale: bool = False

    def init(self, key: jax.Array, images: jax.Array) -> Variables:
        """Draws the variables of the stem, the shared block and each branch.

        Args:
          key: PRNG key.
          images: float32 `[batch, size, size, 3]`; only the shape is used.

        Returns:
          `{"stem", name: ...}`, with a shared block also `"block"`; each is `{"params", "batch_stats"}`.
        """
        keys = jax.random.split(key, len(self.names) + 2)
        (x, _), stem = self.stem.init_with_output(keys[0], images, False)
        variables = {"stem": stem}
        if self.block is not None:
            x, variables["block"] = self.block.init_with_output(keys[1], x, False)
        return variables | {n: self.tail.init(k, x, False) for n, k in zip(self.names, keys[2:], strict=True)}

    def __call__(self, variables: Mapping[str, Any], images: jax.Array, train: bool, key: jax.Array) -> PeerOutputs:
        """Runs the stem once and every branch on its output; see `PeerNetworks.__call__`."""
        stats = {}
        (shared, _), stats["stem"] = apply(self.stem, variables["stem"], images, train, jax.random.fold_in(key, 0))
        x = shared = divide_gradient(shared, len(self.names)) if self.rescale else shared
        if self.block is not None:
            x, stats["block"] = apply(self.block, variables["block"], x, train, key)
        logits, features = [], []
        for index, name in enumerate(self.names, 1):
            (z, out), stats[name] = apply(self.tail, variables[name], x, train, jax.random.fold_in(key, index))
            logits.append(z)
            features.append(out["features"])
        leader_logits = None
        if self.block is not None:
            leader_logits, _ = self.tail.apply(variables[self.names[-1]], x, False, skip_norm=True)
        return PeerOutputs(tuple(logits), tuple(features), shared, leader_logits, stats)


def divide_gradient(x: jax.Array, divisor: int) -> jax.Array:
    """Returns `x`, and divides the gradient that passes back through it.

    This is the branch-point rescaling of CL-ILR (Song and Chai, 2018).

    Args:
      x: float array of any shape.
      divisor: divides the gradient.

    Returns:
      `x` unchanged.

    Example:
      >>> jax.grad(lambda x: divide_gradient(x, 4) ** 2)(3.0).item()
      1.5
    """

    @jax.custom_gradient
    def identity(x):
        return x, lambda gradient: gradient / divisor

    return identity(x)
