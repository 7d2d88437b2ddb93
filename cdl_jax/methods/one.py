"""ONE: branches of one network, each distilled towards an ensemble of them that a gate weighs.

"Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606), as OKDDip (arXiv 1912.00350) compares with
it: `sum_i CE(z_i) + CE(z_gate) + alpha w sum_i KL(z_i, z_gate)`, `z_gate = sum_i g_i z_i` with ramp-up w.
"""

from dataclasses import replace

import jax

from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.peers.attention_and_gate import Gate

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    **peer_losses.OPTIONS,
    **peer_losses.RAMP_OPTIONS,
    "bpscale": False,  # the gradient into the stem, the gate's too, is divided by the number of branches
    "vgg_double_pass": False,  # running statistics of VGG's branches move twice a step, as in the published program
    "detach_targets": False,  # no gradient through targets: the gate then learns from its cross-entropy alone
    "select_by": "mean",  # headline and best epoch: "mean" of the branches, or "ensemble"
}

_GATE_INIT = {"vgg": "normal", "densenet": "zero_bias"}


def defaults(network="resnet32", reference=False) -> dict:
    """The config sections of this method, for a named network."""
    sections = peers.defaults("one", OPTIONS, network, branched=True, reference=reference)
    if reference and sections["network"]["family"] == "vgg":
        sections["one"] = {**sections["one"], "vgg_double_pass": True}
    return sections


def build(config, info: StreamInfo) -> peers.Together:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.one
    peer_losses.check("one", options)
    every = peers.names_of("one", options, False)
    group = peers.branches("one", config, every, info.num_classes, rescale=options.bpscale)
    if options.vgg_double_pass:
        if config.network.family != "vgg":
            raise UserError(f"one.vgg_double_pass is about VGG, network.family={config.network.family!r}: say False")
        group = replace(group, tail=group.tail.clone(updates=2))
    gate = Gate(options.num_branches, _GATE_INIT.get(config.network.family, "torch"))

    def logits_of(seen, told):
        return peers.logits_without_leader(seen) | {"gate": gated(seen, told)}

    def loss_terms(seen, told, labels, allowed, epoch):
        weight = options.alpha * peer_losses.ramp_up_weight(epoch, options, config.train.epochs)
        return terms(options, seen, told, labels, allowed, weight)

    exchange = peers.Exchange("gate", gate, lambda seen: seen.shared)
    return peers.together(
        "one", config, info, group, exchange=exchange, loss_terms=loss_terms, logits_of=logits_of, extra=("gate",)
    )


def gated(seen, weights):
    """The gate's ensemble, `[batch, classes]`, of its `weights` `[batch, peers]`."""
    return sum(weights[:, i, None] * z for i, z in enumerate(seen.logits))


def terms(options, seen, weights, labels, allowed, weight):
    """(total, named terms) for the gate's `weights` `[batch, peers]`, distillation weighted by `weight`."""
    ensemble = gated(seen, weights)
    target = peer_losses.soften(ensemble, allowed, options.temperature)
    target = jax.lax.stop_gradient(target) if options.detach_targets else target
    true = sum(cross_entropy(z, labels, allowed) for z in (*seen.logits, ensemble))
    group = sum(peer_losses.distillation_loss(z, target, allowed, options) for z in seen.logits)
    return true + weight * group, {"true_loss": true, "group_loss": group, "weight": weight}
