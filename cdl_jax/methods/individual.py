"""Branches that learn from labels alone: OKDDip's baseline without distillation."""

from dataclasses import dataclass
from typing import Any

import jax

from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peers
from cdl_jax.models.peers.networks import PeerOutputs
from cdl_jax.options import Option

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    "select_by": Option(
        "mean", "headline and best epoch: mean of the branches, or ensemble", choices=("mean", "ensemble")
    ),
}


def defaults(network: str = "resnet32", reference: bool = False) -> dict:
    """Returns the config sections of this method; see `peers.defaults`."""
    return peers.defaults("individual", OPTIONS, network, branched=True, reference=reference)


@dataclass(frozen=True, eq=False, kw_only=True)
class IndividualBranches(peers.PeerMethod):
    """Branches that learn from labels alone."""

    def loss_terms(
        self, outputs: PeerOutputs, mixing: None, labels: jax.Array, mask: jax.Array, epoch: jax.Array
    ) -> peers.Terms:
        """See `PeerMethod.loss_terms`."""
        return loss_and_metrics(outputs, labels, mask)


def build(config: Any, info: StreamInfo) -> IndividualBranches:
    """Builds the method.

    Args:
      config: with the sections `individual`, `network`, `optim` and `train`.
      info: of the stream.

    Raises:
      UserError: options that do not fit together.
    """
    names = peers.peer_names(config.individual)
    branches = peers.build_branches("individual", config, names, info.num_classes)
    return peers.build_method(IndividualBranches, "individual", config, info, branches)


def loss_and_metrics(outputs: PeerOutputs, labels: jax.Array, mask: jax.Array) -> peers.Terms:
    """Computes the sum of the branches' cross-entropies.

    Args:
      outputs: logits of all branches.
      labels: int32 `[batch]`.
      mask: bool `[classes]`, the classes of the softmax.

    Returns:
      The loss, a float32 scalar, and `{"true_loss"}`.
    """
    class_loss = sum(cross_entropy(z, labels, mask) for z in outputs.logits)
    return class_loss, {"true_loss": class_loss}
