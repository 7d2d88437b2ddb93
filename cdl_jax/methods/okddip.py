"""OKDDip: peers that attend to each other's outputs, and a leader that learns from all of them.

"Online Knowledge Distillation with Diverse Peers" (arXiv 1912.00350), AAAI 2020. Of m branches or networks the last is
the leader. Each auxiliary peer a is distilled towards its own mixture of the peers' outputs, `x_a = sum_b A_ab z_b`,
with weights by attention over pooled features; the leader towards the peers' mean. With w the ramp-up weight

    loss = sum_a CE(z_a) + CE(z_L) + alpha w [sum_a KL(z_a, x_a) + KL(z_L, mean_a z_a)]

The attention's two maps are trained through the targets alone, which therefore pass gradients on, to peers and stem
as well. On a stream of tasks every softmax spans the current task's classes.
"""

import jax
import jax.numpy as jnp

from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.peers.attention_and_gate import Attention
from cdl_jax.models.peers.networks import PeerNetworks, PeerOutputs

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    **peer_losses.OPTIONS,
    **peer_losses.RAMP_OPTIONS,
    "base": "branch",  # peers are branches of one network; or "network": whole networks
    "en": False,  # all are attention peers and there is no leader: the mode of the comparison of ensembles
    "aggregate": "logits",  # what attention and mean mix: "logits" (the program), or softened "probs" (the paper)
    "head_divisor": 8,  # of the features' width: the width of attention
    "detach_targets": False,  # no gradient through targets: peers are not pushed, and the attention stays as it began
    "select_by": "leader",  # headline and best epoch: "leader", "mean" of the peers, or "ensemble" (choose_E)
}


def defaults(network="resnet32", base="branch", reference=False) -> dict:
    """The config sections of this method, for a named network."""
    if base not in ("branch", "network"):
        raise UserError(f"okddip.base={base!r}: use 'branch' or 'network'")
    options = {**OPTIONS, "base": base}
    sections = peers.defaults("okddip", options, network, branched=base == "branch", reference=reference)
    if reference and base == "branch" and sections["network"]["family"] == "vgg":
        sections["network"]["torch_head_bias"] = True
    return sections


def build(config, info: StreamInfo) -> peers.Together:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.okddip
    _check(options)
    leader = not options.en
    every = peers.names_of("okddip", options, leader)
    rivals = every[:-1] if leader else every
    if options.base == "branch":
        group = peers.branches("okddip", config, every, info.num_classes, bare=leader)
    else:
        group = PeerNetworks(peers.network(config.network, info.num_classes), every)
    headline = {"leader": ("leader",), "mean": rivals, "ensemble": ("ensemble",)}
    select_by = "ensemble" if options.en and options.select_by == "leader" else options.select_by
    attention = Attention(options.head_divisor, normal_init=config.network.family == "vgg" and options.base == "branch")

    def logits_of(seen, told=None):
        attended, led = split(seen, leader)
        logits = {name: z for name, z in zip(rivals, seen.logits, strict=False)}
        logits |= {"leader": led} if leader else {}
        return logits | {"ensemble": sum(attended) / len(attended)}

    def loss_terms(seen, told, labels, allowed, epoch):
        weight = options.alpha * peer_losses.ramp_up_weight(epoch, options, config.train.epochs)
        return terms(options, seen, told, labels, allowed, weight)

    return peers.Together(
        peers=group,
        exchange=peers.Exchange("attention", attention, lambda seen: attended_features(seen, leader)),
        loss_terms=loss_terms,
        logits_of=logits_of,
        networks=(*every, "ensemble"),
        rivals=rivals,
        diverse=peers.diverse(rivals) if leader else peers.diverse(rivals[:-1], rivals),
        divisor=options.diversity_divisor,
        headline=headline[select_by],
        info=info,
        image_size=config.network.image_size,
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
    )


def split(seen: PeerOutputs, leader: bool):
    """(Logits of the attention's peers, logits of the leader or None)."""
    if not leader:
        return seen.logits, None
    if seen.leader_logits is not None:
        return seen.logits, seen.leader_logits
    return seen.logits[:-1], seen.logits[-1]


def attended_features(seen: PeerOutputs, leader: bool):
    """Features of the attention's peers, `[batch, peers, dim]`."""
    attended, _ = split(seen, leader)
    return jnp.stack(seen.features[: len(attended)], axis=1)


def terms(options, seen, attention, labels, allowed, weight):
    """(total, named terms) for the attention `[batch, peers, peers]`, distillation weighted by `weight`."""
    attended, led = split(seen, not options.en)
    soften = lambda logits: peer_losses.soften(logits, allowed, options.temperature)  # noqa: E731
    if options.aggregate == "logits":
        mixed = mix(attention, attended)
        targets = [soften(mixed[:, a]) for a in range(len(attended))]
        mean = soften(sum(attended) / len(attended))
    else:
        mixed = mix(attention, [soften(z) for z in attended])
        targets = [mixed[:, a] for a in range(len(attended))]
        mean = sum(soften(z) for z in attended) / len(attended)
    if options.detach_targets:
        targets, mean = jax.lax.stop_gradient((targets, mean))
    rivals = seen.logits if options.en else seen.logits[:-1]
    distill = lambda z, target: peer_losses.distillation_loss(z, target, allowed, options)  # noqa: E731
    true = sum(cross_entropy(z, labels, allowed) for z in rivals)
    group = sum(distill(z, target) for z, target in zip(rivals, targets, strict=False))
    total, named = true + weight * group, {"true_loss": true, "group_loss": group, "weight": weight}
    if led is not None:
        named |= {"leader_true_loss": cross_entropy(led, labels, allowed), "leader_group_loss": distill(led, mean)}
        total += named["leader_true_loss"] + weight * named["leader_group_loss"]
    return total, named


def mix(attention, outputs):
    """`sum_b A_ab z_b`: `[batch, peers, classes]` of outputs `[batch, classes]` each."""
    return jnp.einsum("bac,bcn->ban", attention, jnp.stack(outputs, axis=1))


def _check(options):
    peer_losses.check("okddip", options)
    choices = {"base": ("branch", "network"), "aggregate": ("logits", "probs")}
    choices["select_by"] = ("leader", "mean", "ensemble")
    for key, known in choices.items():
        if options[key] not in known:
            raise UserError(f"okddip.{key}={options[key]!r}: {plugins.did_you_mean(options[key], known)}")
    if options.head_divisor < 1:
        raise UserError(f"okddip.head_divisor={options.head_divisor} must be at least 1")
