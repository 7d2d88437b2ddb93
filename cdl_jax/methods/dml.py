"""Deep mutual learning: networks, each of which is distilled towards the others.

This is the form that OKDDip (arXiv 1912.00350) compares with: all networks are updated at once, targets pass gradients
on, and there is no ramp-up. The original (arXiv 1706.00384) updates one network after the other with constant targets
at temperature 1; `pairwise=True`, `detach_targets=True`, `temperature=1` come near it.
"""

from dataclasses import dataclass
from typing import Any

import jax

from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.peers.networks import PeerNetworks, PeerOutputs
from cdl_jax.options import Option

OPTIONS = {
    **peers.OPTIONS,
    **peer_losses.OPTIONS,
    "pairwise": Option(
        False, "the mean loss towards each of the others, instead of the loss towards their mean logits"
    ),
    "detach_targets": Option(False, "no gradient through targets"),
    "select_by": Option(
        "mean", "headline and best epoch: mean of the networks, or ensemble", choices=("mean", "ensemble")
    ),
}


def defaults(network: str = "resnet32", reference: bool = False) -> dict:
    """Returns the config sections of this method; see `peers.defaults`."""
    return peers.defaults("dml", OPTIONS, network, branched=False, reference=reference)


@dataclass(frozen=True, eq=False, kw_only=True)
class DML(peers.PeerMethod):
    """Deep mutual learning of networks."""

    def loss_terms(
        self, outputs: PeerOutputs, mixing: None, labels: jax.Array, mask: jax.Array, epoch: jax.Array
    ) -> peers.Terms:
        """See `PeerMethod.loss_terms`."""
        return loss_and_metrics(self.options, outputs, labels, mask)


def build(config: Any, info: StreamInfo) -> DML:
    """Builds the method.

    Args:
      config: with the sections `dml`, `network`, `optim` and `train`.
      info: of the stream.

    Raises:
      UserError: options that do not fit together.
    """
    names = peers.peer_names(config.dml)
    networks = PeerNetworks(peers.build_network(config.network, info.num_classes), names)
    return peers.build_method(DML, "dml", config, info, networks)


def loss_and_metrics(options: Any, outputs: PeerOutputs, labels: jax.Array, mask: jax.Array) -> peers.Terms:
    """Computes `sum_j CE(z_j) + alpha sum_j KL(z_j, mean_{k != j} z_k)` and its terms.

    Args:
      options: a section with the keys of `OPTIONS`.
      outputs: logits of all peers.
      labels: int32 `[batch]`.
      mask: bool `[classes]`, the classes of the softmax.

    Returns:
      The loss, a float32 scalar, and `{"true_loss", "group_loss"}`.
    """
    logits = outputs.logits

    def distill(z, target_logits):
        target = peer_losses.soften(target_logits, mask, options.temperature)
        target = jax.lax.stop_gradient(target) if options.detach_targets else target
        return peer_losses.distillation_loss(z, target, mask, options)

    class_loss = sum(cross_entropy(z, labels, mask) for z in logits)
    if options.pairwise:
        pairs = [(z, target) for i, z in enumerate(logits) for j, target in enumerate(logits) if i != j]
        group_loss = sum(distill(z, target) for z, target in pairs) / (len(logits) - 1)
    else:
        group_loss = sum(map(distill, logits, peers.mean_logits_of_others(logits)))
    return class_loss + options.alpha * group_loss, {"true_loss": class_loss, "group_loss": group_loss}
