"""ONE: branches, each distilled towards their ensemble, which a gate weights.

"Knowledge Distillation by On-the-Fly Native Ensemble" (arXiv 1806.04606) in the form that OKDDip (arXiv 1912.00350)
compares with: `sum_i CE(z_i) + CE(z_gate) + alpha w sum_i KL(z_i, z_gate)`, with `z_gate = sum_i g_i z_i` and ramp-up
w.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax

from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.peers.attention_and_gate import Gate
from cdl_jax.models.peers.networks import PeerOutputs
from cdl_jax.options import Option, change_defaults

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    **peer_losses.OPTIONS,
    **peer_losses.RAMP_OPTIONS,
    "bpscale": Option(False, "the gradient into the stem, the gate's too, is divided by the number of branches"),
    "vgg_double_pass": Option(
        False, "VGG's branches update their running statistics twice a step, as in the authors' code"
    ),
    "detach_targets": Option(
        False, "no gradient through targets: only the cross-entropy of its ensemble trains the gate"
    ),
    "select_by": Option(
        "mean", "headline and best epoch: mean of the branches, or ensemble", choices=("mean", "ensemble")
    ),
}

_GATE_INIT = {"vgg": "normal", "densenet": "zero_bias"}


def defaults(network: str = "resnet32", reference: bool = False) -> dict:
    """Returns the config sections of this method; see `peers.defaults`."""
    sections = peers.defaults("one", OPTIONS, network, branched=True, reference=reference)
    if reference and sections["network"]["family"].default == "vgg":
        sections["one"] = change_defaults(sections["one"], vgg_double_pass=True)
    return sections


@dataclass(frozen=True, eq=False, kw_only=True)
class ONE(peers.PeerMethod):
    """Branches and a gate; the ensemble that the gate weights is evaluated as "gate"."""

    mixing_name = "gate"

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the evaluated networks: branches, their ensemble, gate's ensemble."""
        return (*super().networks, "gate")

    def mixing_input(self, outputs: PeerOutputs) -> jax.Array:
        """Returns the feature map that all branches share."""
        return outputs.shared

    def logits(self, outputs: PeerOutputs, mixing: jax.Array) -> peers.Logits:
        """See `PeerMethod.logits`."""
        return peers.peer_and_ensemble_logits(outputs) | {"gate": gate_ensemble(outputs, mixing)}

    def loss_terms(
        self, outputs: PeerOutputs, mixing: jax.Array, labels: jax.Array, mask: jax.Array, epoch: jax.Array
    ) -> peers.Terms:
        """See `PeerMethod.loss_terms`."""
        return loss_and_metrics(self.options, outputs, mixing, labels, mask, self.distillation_weight(epoch))


def build(config: Any, info: StreamInfo) -> ONE:
    """Builds the method.

    Args:
      config: with the sections `one`, `network`, `optim` and `train`.
      info: of the stream.

    Raises:
      UserError: options that do not fit together.
    """
    options, family = config.one, config.network.family
    names = peers.peer_names(options)
    branches = peers.build_branches("one", config, names, info.num_classes, rescale=options.bpscale)
    if options.vgg_double_pass:
        if family != "vgg":
            raise UserError(f"one.vgg_double_pass is about VGG, network.family={family!r}: use False")
        branches = replace(branches, tail=branches.tail.clone(updates=2))
    gate = Gate(options.num_branches, _GATE_INIT.get(family, "torch"))
    return peers.build_method(ONE, "one", config, info, branches, gate)


def gate_ensemble(outputs: PeerOutputs, weights: jax.Array) -> jax.Array:
    """Computes `sum_i g_i z_i`.

    Args:
      outputs: logits of all branches.
      weights: float32 `[batch, peers]`, the output of the gate.

    Returns:
      float32 `[batch, classes]`.
    """
    return sum(weights[:, i, None] * z for i, z in enumerate(outputs.logits))


def loss_and_metrics(
    options: Any,
    outputs: PeerOutputs,
    gate_weights: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    weight: float | jax.Array,
) -> peers.Terms:
    """Computes the loss and its terms.

    Args:
      options: a section with the keys of `OPTIONS`.
      outputs: logits of all branches.
      gate_weights: float32 `[batch, peers]`.
      labels: int32 `[batch]`.
      mask: bool `[classes]`, the classes of the softmax.
      weight: scalar, of the distillation.

    Returns:
      The loss, a float32 scalar, and `{"true_loss", "group_loss", "weight"}`.
    """
    ensemble = gate_ensemble(outputs, gate_weights)
    target = peer_losses.soften(ensemble, mask, options.temperature)
    target = jax.lax.stop_gradient(target) if options.detach_targets else target
    class_loss = sum(cross_entropy(z, labels, mask) for z in (*outputs.logits, ensemble))
    group_loss = sum(peer_losses.distillation_loss(z, target, mask, options) for z in outputs.logits)
    terms = {"true_loss": class_loss, "group_loss": group_loss, "weight": weight}
    return class_loss + weight * group_loss, terms
