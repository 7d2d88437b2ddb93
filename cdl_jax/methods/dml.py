"""Deep mutual learning: whole networks, each of which is distilled towards the others.

As OKDDip (arXiv 1912.00350) compares with it: all networks take their step at once, targets pass gradients on, and
there is no ramp-up. (The original, arXiv 1706.00384, updates one network after the other with constant targets at
temperature 1: `pairwise=True`, `detach_targets=True`, `temperature=1` come near it.)
"""

import jax

from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.peers.networks import PeerNetworks

OPTIONS = {
    **peers.OPTIONS,
    **peer_losses.OPTIONS,
    "pairwise": False,  # towards each of the others in turn (their mean cost), not towards the mean of their logits
    "detach_targets": False,  # no gradient through targets
    "select_by": "mean",  # headline and best epoch: "mean" of the networks, or "ensemble"
}


def defaults(network="resnet32", reference=False) -> dict:
    """The config sections of this method, for a named network."""
    return peers.defaults("dml", OPTIONS, network, branched=False, reference=reference)


def build(config, info: StreamInfo) -> peers.Together:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.dml
    peer_losses.check("dml", options)
    group = PeerNetworks(peers.network(config.network, info.num_classes), peers.names_of("dml", options, False))

    def loss_terms(seen, told, labels, allowed, epoch):
        return terms(options, seen, labels, allowed)

    return peers.together("dml", config, info, group, loss_terms=loss_terms, logits_of=peers.logits_without_leader)


def terms(options, seen, labels, allowed):
    """(total, named terms): `sum_j CE(z_j) + alpha sum_j KL(z_j, mean_{k != j} z_k)`."""

    def distill(logits, target):
        target = peer_losses.soften(target, allowed, options.temperature)
        target = jax.lax.stop_gradient(target) if options.detach_targets else target
        return peer_losses.distillation_loss(logits, target, allowed, options)

    true = sum(cross_entropy(z, labels, allowed) for z in seen.logits)
    if options.pairwise:
        pairs = [(z, t) for i, z in enumerate(seen.logits) for j, t in enumerate(seen.logits) if i != j]
        group = sum(distill(z, target) for z, target in pairs) / (len(seen.logits) - 1)
    else:
        group = sum(map(distill, seen.logits, peers.targets_of_others(seen)))
    return true + options.alpha * group, {"true_loss": true, "group_loss": group}
