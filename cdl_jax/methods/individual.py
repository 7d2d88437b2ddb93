"""Branches of one network that learn from labels alone: the comparison without distillation in OKDDip's tables."""

from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import peers

OPTIONS = {
    **peers.OPTIONS,
    **peers.BRANCH_OPTIONS,
    "select_by": "mean",  # headline and best epoch: "mean" of the branches, or "ensemble"
}


def defaults(network="resnet32", reference=False) -> dict:
    """The config sections of this method, for a named network."""
    return peers.defaults("individual", OPTIONS, network, branched=True, reference=reference)


def build(config, info: StreamInfo) -> peers.Together:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    every = peers.names_of("individual", config.individual, False)
    group = peers.branches("individual", config, every, info.num_classes)

    def loss_terms(seen, told, labels, allowed, epoch):
        return terms(seen, labels, allowed)

    return peers.together(
        "individual", config, info, group, loss_terms=loss_terms, logits_of=peers.logits_without_leader
    )


def terms(seen, labels, allowed):
    """(total, named terms): the sum of the cross-entropies."""
    true = sum(cross_entropy(z, labels, allowed) for z in seen.logits)
    return true, {"true_loss": true}
