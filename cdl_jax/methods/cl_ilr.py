"""CL-ILR: branches, each distilled towards the mean logits of the others.

Collaborative learning (Song and Chai, 2018) in the form that OKDDip (arXiv 1912.00350) compares with: `sum_i CE(z_i) +
alpha w sum_i KL(z_i, x_i)` with ramp-up w. With intermediate-level representation sharing (CL-ILR) the stem receives
the mean of the branches' gradients instead of their sum.
"""

from dataclasses import dataclass
from typing import Any

import jax

from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.peers.networks import PeerOutputs
from cdl_jax.options import Option

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    **peer_losses.OPTIONS,
    **peer_losses.RAMP_OPTIONS,
    "bpscale": Option(True, "the gradient into the stem is divided by the number of branches; False: CL"),
    "detach_targets": Option(False, "no gradient through targets"),
    "select_by": Option(
        "mean", "headline and best epoch: mean of the branches, or ensemble", choices=("mean", "ensemble")
    ),
}


def defaults(network: str = "resnet32", reference: bool = False) -> dict:
    """Returns the config sections of this method; see `peers.defaults`."""
    return peers.defaults("cl_ilr", OPTIONS, network, branched=True, reference=reference)


@dataclass(frozen=True, eq=False, kw_only=True)
class CLILR(peers.PeerMethod):
    """Collaborative learning of branches."""

    def loss_terms(
        self, outputs: PeerOutputs, mixing: None, labels: jax.Array, mask: jax.Array, epoch: jax.Array
    ) -> peers.Terms:
        """See `PeerMethod.loss_terms`."""
        return loss_and_metrics(self.options, outputs, labels, mask, self.distillation_weight(epoch))


def build(config: Any, info: StreamInfo) -> CLILR:
    """Builds the method.

    Args:
      config: with the sections `cl_ilr`, `network`, `optim` and `train`.
      info: of the stream.

    Raises:
      UserError: options that do not fit together.
    """
    options = config.cl_ilr
    names = peers.peer_names(options)
    branches = peers.build_branches("cl_ilr", config, names, info.num_classes, rescale=options.bpscale)
    return peers.build_method(CLILR, "cl_ilr", config, info, branches)


def loss_and_metrics(
    options: Any, outputs: PeerOutputs, labels: jax.Array, mask: jax.Array, weight: float | jax.Array
) -> peers.Terms:
    """Computes the loss and its terms.

    Args:
      options: a section with the keys of `OPTIONS`.
      outputs: logits of all branches.
      labels: int32 `[batch]`.
      mask: bool `[classes]`, the classes of the softmax.
      weight: scalar, of the distillation.

    Returns:
      The loss, a float32 scalar, and `{"true_loss", "group_loss", "weight"}`.
    """
    logits = outputs.logits
    class_loss = sum(cross_entropy(z, labels, mask) for z in logits)
    targets = [peer_losses.soften(z, mask, options.temperature) for z in peers.mean_logits_of_others(logits)]
    targets = jax.lax.stop_gradient(targets) if options.detach_targets else targets
    group_loss = sum(
        peer_losses.distillation_loss(z, target, mask, options) for z, target in zip(logits, targets, strict=True)
    )
    terms = {"true_loss": class_loss, "group_loss": group_loss, "weight": weight}
    return class_loss + weight * group_loss, terms
