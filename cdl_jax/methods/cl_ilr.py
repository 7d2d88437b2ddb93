"""Collaborative learning: branches of one network, each distilled towards the mean logits of the others.

Song and Chai, 2018, as OKDDip (arXiv 1912.00350) compares with it: `sum_i CE(z_i) + alpha w sum_i KL(z_i, x_i)` with
ramp-up w. With intermediate-level representation sharing (CL-ILR) the stem gets the mean of the branches' gradients
instead of their sum.
"""

import jax

from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    **peer_losses.OPTIONS,
    **peer_losses.RAMP_OPTIONS,
    "bpscale": True,  # the gradient into the stem is divided by the number of branches; False: CL
    "detach_targets": False,  # no gradient through targets
    "select_by": "mean",  # headline and best epoch: "mean" of the branches, or "ensemble"
}


def defaults(network="resnet32", reference=False) -> dict:
    """The config sections of this method, for a named network."""
    return peers.defaults("cl_ilr", OPTIONS, network, branched=True, reference=reference)


def build(config, info: StreamInfo) -> peers.Together:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.cl_ilr
    peer_losses.check("cl_ilr", options)
    every = peers.names_of("cl_ilr", options, False)
    group = peers.branches("cl_ilr", config, every, info.num_classes, rescale=options.bpscale)

    def loss_terms(seen, told, labels, allowed, epoch):
        weight = options.alpha * peer_losses.ramp_up_weight(epoch, options, config.train.epochs)
        return terms(options, seen, labels, allowed, weight)

    return peers.together("cl_ilr", config, info, group, loss_terms=loss_terms, logits_of=peers.logits_without_leader)


def terms(options, seen, labels, allowed, weight):
    """(total, named terms), distillation weighted by `weight`."""
    true = sum(cross_entropy(z, labels, allowed) for z in seen.logits)
    targets = [peer_losses.soften(t, allowed, options.temperature) for t in peers.targets_of_others(seen)]
    targets = jax.lax.stop_gradient(targets) if options.detach_targets else targets
    group = sum(
        peer_losses.distillation_loss(z, target, allowed, options)
        for z, target in zip(seen.logits, targets, strict=True)
    )
    return true + weight * group, {"true_loss": true, "group_loss": group, "weight": weight}
