"""OKDDip: peers that attend to each other, and a leader that learns from all.

"Online Knowledge Distillation with Diverse Peers" (arXiv 1912.00350, AAAI 2020). Of m branches or networks the last is
the leader. Each other peer a is distilled towards its own mixture of the peers' outputs, `x_a = sum_b A_ab z_b`, whose
weights come from attention over pooled features. The leader is distilled towards the peers' mean. With ramp-up w

    loss = sum_a CE(z_a) + CE(z_L) + alpha w [sum_a KL(z_a, x_a) + KL(z_L, mean_a z_a)]

The attention's two maps are trained through the targets alone. Targets therefore pass gradients on, to peers and stem
as well. On a stream of tasks every softmax spans the classes of the current task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.peers.attention_and_gate import Attention
from cdl_jax.models.peers.networks import PeerNetworks, PeerOutputs
from cdl_jax.options import Option, change_defaults

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    **peer_losses.OPTIONS,
    **peer_losses.RAMP_OPTIONS,
    "base": Option(
        "branch", "whether peers are branches of one network or separate networks", choices=("branch", "network")
    ),
    "en": Option(False, "all are attention peers and there is no leader: the mode of the comparison of ensembles"),
    "aggregate": Option(
        "logits",
        "what targets average: logits (the authors' code), or softened probabilities (the paper)",
        choices=("logits", "probs"),
    ),
    "head_divisor": Option(8, "width of attention: the features' width divided by this", minimum=1),
    "detach_targets": Option(False, "no gradient through targets: the attention keeps its initial weights"),
    "select_by": Option(
        "leader",
        "headline and best epoch: the leader, the mean of the peers, or the ensemble (choose_E)",
        choices=("leader", "mean", "ensemble"),
    ),
}


def defaults(network: str = "resnet32", base: str = "branch", reference: bool = False) -> dict:
    """Returns the config sections of this method; see `peers.defaults`.

    Raises:
      UserError: unknown base or network.
    """
    if base not in ("branch", "network"):
        raise UserError(f"okddip.base={base!r}: use 'branch' or 'network'")
    options = change_defaults(OPTIONS, base=base)
    sections = peers.defaults("okddip", options, network, branched=base == "branch", reference=reference)
    if reference and base == "branch" and sections["network"]["family"].default == "vgg":
        sections["network"] = change_defaults(sections["network"], torch_head_bias=True)
    return sections


@dataclass(frozen=True, eq=False, kw_only=True)
class OKDDip(peers.PeerMethod):
    """Attention peers and, with `en=False`, a leader distilled towards all of them."""

    mixing_name = "attention"

    @property
    def has_leader(self) -> bool:
        """Whether the last peer is the leader."""
        return not self.options.en

    @property
    def compared_peers(self) -> tuple[str, ...]:
        """The peers without the leader."""
        return self.peers.names[:-1] if self.has_leader else self.peers.names

    @property
    def diversity_groups(self) -> dict[str, tuple[str, ...]]:
        """See `PeerMethod.diversity_groups`; a leader is not compared."""
        if self.has_leader:
            return peers.groups_of_two_or_more(diversity=self.compared_peers)
        return super().diversity_groups

    @property
    def headlines(self) -> dict[str, tuple[str, ...]]:
        """See `PeerMethod.headlines`; without a leader "leader" is the ensemble."""
        return {"leader": ("leader",) if self.has_leader else ("ensemble",), **super().headlines}

    def mixing_input(self, outputs: PeerOutputs) -> jax.Array:
        """Returns the features of the attention peers."""
        return attended_features(outputs, self.has_leader)

    def logits(self, outputs: PeerOutputs, mixing: jax.Array) -> peers.Logits:
        """See `PeerMethod.logits`; the ensemble is that of the attention peers."""
        attended, leader_logits = split_leader(outputs, self.has_leader)
        logits = dict(zip(self.compared_peers, outputs.logits, strict=False))
        if self.has_leader:
            logits["leader"] = leader_logits
        return {**logits, "ensemble": sum(attended) / len(attended)}

    def loss_terms(
        self, outputs: PeerOutputs, mixing: jax.Array, labels: jax.Array, mask: jax.Array, epoch: jax.Array
    ) -> peers.Terms:
        """See `PeerMethod.loss_terms`."""
        return loss_and_metrics(self.options, outputs, mixing, labels, mask, self.distillation_weight(epoch))


def build(config: Any, info: StreamInfo) -> OKDDip:
    """Builds the method.

    Args:
      config: with the sections `okddip`, `network`, `optim` and `train`.
      info: of the stream.

    Raises:
      UserError: options that do not fit together.
    """
    options = config.okddip
    leader, branched = not options.en, options.base == "branch"
    names = peers.peer_names(options, leader)
    if branched:
        group = peers.build_branches("okddip", config, names, info.num_classes, leader=leader)
    else:
        group = PeerNetworks(peers.build_network(config.network, info.num_classes), names)
    attention = Attention(options.head_divisor, normal_init=config.network.family == "vgg" and branched)
    return peers.build_method(OKDDip, "okddip", config, info, group, attention)


def split_leader(outputs: PeerOutputs, leader: bool) -> tuple[Sequence[jax.Array], jax.Array | None]:
    """Splits the logits into those of the attention peers and those of the leader.

    Args:
      outputs: logits of all peers. With `leader_logits` the last peer is an attention peer as well.
      leader: whether the last peer is the leader.

    Returns:
      For each attention peer float32 `[batch, classes]`, and the same of the leader, or None without a leader.
    """
    if not leader:
        return outputs.logits, None
    if outputs.leader_logits is not None:
        return outputs.logits, outputs.leader_logits
    return outputs.logits[:-1], outputs.logits[-1]


def attended_features(outputs: PeerOutputs, leader: bool) -> jax.Array:
    """Stacks the features of the attention peers: float32 `[batch, peers, dim]`."""
    attended, _ = split_leader(outputs, leader)
    return jnp.stack(outputs.features[: len(attended)], axis=1)


def mix_outputs(attention: jax.Array, outputs: Sequence[jax.Array]) -> jax.Array:
    """Computes the attention's mixtures `x_a = sum_b A_ab z_b`.

    Args:
      attention: float32 `[batch, peers, peers]`.
      outputs: of each peer, float32 `[batch, classes]`.

    Returns:
      float32 `[batch, peers, classes]`.

    Example:
      >>> attention = jnp.array([[[0.5, 0.5], [0.0, 1.0]]])
      >>> mix_outputs(attention, [jnp.array([[2.0]]), jnp.array([[4.0]])]).tolist()
      [[[3.0], [4.0]]]
    """
    return jnp.einsum("bac,bcn->ban", attention, jnp.stack(outputs, axis=1))


def distillation_targets(
    options: Any, attended: Sequence[jax.Array], attention: jax.Array, mask: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """Computes the targets of the attention peers and of the leader.

    Args:
      options: a section with the keys of `OPTIONS`.
      attended: logits of each attention peer, float32 `[batch, classes]`.
      attention: float32 `[batch, peers, peers]`.
      mask: bool `[classes]`, the classes of the softmax.

    Returns:
      Probabilities `[batch, classes]` for each attention peer, and `[batch, classes]` for the leader.
    """

    def soften(logits):
        return peer_losses.soften(logits, mask, options.temperature)

    count = len(attended)
    if options.aggregate == "logits":
        mixed = mix_outputs(attention, attended)
        targets = [soften(mixed[:, a]) for a in range(count)]
        mean = soften(sum(attended) / count)
    else:
        mixed = mix_outputs(attention, [soften(z) for z in attended])
        targets = [mixed[:, a] for a in range(count)]
        mean = sum(soften(z) for z in attended) / count
    return jax.lax.stop_gradient((targets, mean)) if options.detach_targets else (targets, mean)


def loss_and_metrics(
    options: Any,
    outputs: PeerOutputs,
    attention: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weight: float | jax.Array,
) -> peers.Terms:
    """Computes the loss and its terms.

    Args:
      options: a section with the keys of `OPTIONS`.
      outputs: logits of all peers.
      attention: float32 `[batch, peers, peers]`.
      labels: int32 `[batch]`.
      mask: bool `[classes]`, the classes of the softmax.
      weight: scalar, of the distillation.

    Returns:
      The loss, a float32 scalar, and `{"true_loss", "group_loss", "weight"}`; with a leader also
      `{"leader_true_loss", "leader_group_loss"}`.
    """
    attended, leader_logits = split_leader(outputs, not options.en)
    targets, mean = distillation_targets(options, attended, attention, mask)
    peer_logits = outputs.logits if options.en else outputs.logits[:-1]
    class_loss = sum(cross_entropy(z, labels, mask) for z in peer_logits)
    group_loss = sum(
        peer_losses.distillation_loss(z, target, mask, options) for z, target in zip(peer_logits, targets, strict=False)
    )
    loss = class_loss + weight * group_loss
    terms = {"true_loss": class_loss, "group_loss": group_loss, "weight": weight}
    if leader_logits is not None:
        terms["leader_true_loss"] = cross_entropy(leader_logits, labels, mask)
        terms["leader_group_loss"] = peer_losses.distillation_loss(leader_logits, mean, mask, options)
        loss += terms["leader_true_loss"] + weight * terms["leader_group_loss"]
    return loss, terms
