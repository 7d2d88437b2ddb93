"""Base class and options of methods whose peers learn together.

Peers are networks, or branches of one network, that are trained on the same batches. The methods `okddip`, `dml`,
`one`, `cl_ilr` and `individual` are subclasses of `PeerMethod`.

Variables: `{"peer_0": network, ..., "leader": network}`, where a network is `{"params", "batch_stats"}`. Branches also
have `"stem"`, which all of them share. A method's mixing module adds `"attention"` or `"gate"`.
"""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, mask_classes
from cdl_jax.methods.base import Method, Outcome, Phase, StreamInfo, Update, Variables
from cdl_jax.methods.shared import peer_losses
from cdl_jax.models import densenet
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import Backbone, apply
from cdl_jax.models.peers.networks import PeerBranches, PeerNetworks, PeerOutputs
from cdl_jax.options import Option, change_defaults

OPTIONS = {
    "num_branches": Option(4, "number of peers, which learn from each other; a leader is the last of them", minimum=2),
    "diversity_divisor": Option(
        "pairs",
        "divisor of the sum of pairwise distances: the number of pairs; reference: always 3",
        choices=("pairs", "reference"),
    ),
}

BRANCH_OPTIONS = {
    # "reference": the running statistics of the shared block are updated once for each branch. OKDDip's leader then
    # skips the final batch norm and ReLU and is an attention peer as well.
    "densenet_shared_block": Option(
        "own",
        "DenseNet's last block: each branch has its own, or all share one, as in the authors' code",
        choices=("own", "reference"),
    ),
}

Logits = dict[str, jax.Array]
Terms = tuple[jax.Array, dict[str, jax.Array]]


@dataclass(frozen=True, eq=False, kw_only=True)
class PeerMethod(Method):
    """Peers that are trained together on the same batches.

    A subclass defines `loss_terms`. It overrides `logits` and `networks` where it evaluates more than the peers and
    their ensemble. A subclass with a mixing module also defines `mixing_name` and `mixing_input`.

    Attributes:
      peers: the networks or branches.
      options: the method's config section, with the keys of `OPTIONS`.
      info: of the stream.
      image_size: side of the square images, in pixels.
      epochs: of each task.
      optimizer: of all parameters.
      mixing_module: trained module that weights the peers' outputs, default None.
      mixing_name: key of its variables.
    """

    mixing_name: ClassVar[str] = ""

    peers: PeerNetworks | PeerBranches
    options: Any
    info: StreamInfo
    image_size: int
    epochs: int
    optimizer: optim.Optimizer
    mixing_module: nn.Module | None = None

    @abc.abstractmethod
    def loss_terms(
        self, outputs: PeerOutputs, mixing: jax.Array | None, labels: jax.Array, mask: jax.Array, epoch: jax.Array
    ) -> Terms:
        """Computes the loss and its logged terms.

        Args:
          outputs: of all peers.
          mixing: output of the mixing module, or None.
          labels: int32 `[batch]`.
          mask: bool `[classes]`, the classes of the current task.
          epoch: int32 scalar, counted from 0.

        Returns:
          The loss, a float32 scalar, and `{name: scalar}`.
        """

    def logits(self, outputs: PeerOutputs, mixing: jax.Array | None) -> Logits:
        """Returns `{network: logits [batch, classes]}`; default: peers and ensemble."""
        del mixing
        return peer_and_ensemble_logits(outputs)

    def mixing_input(self, outputs: PeerOutputs) -> jax.Array:
        """Returns the input of the mixing module."""
        raise NotImplementedError(f"{type(self).__name__} has a mixing module and no mixing_input")

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the evaluated networks: the peers and their ensemble."""
        return (*self.peers.names, "ensemble")

    @property
    def compared_peers(self) -> tuple[str, ...]:
        """Networks that `mean/accuracy` averages."""
        return self.peers.names

    @property
    def diversity_groups(self) -> dict[str, tuple[str, ...]]:
        """Name of each diversity metric -> the networks that it compares, two or more."""
        return groups_of_two_or_more(diversity=self.peers.names[:-1], diversity_all=self.peers.names)

    @property
    def headlines(self) -> dict[str, tuple[str, ...]]:
        """Value of the option `select_by` -> the `headline`; see `Method.headline`."""
        return {"mean": self.compared_peers, "ensemble": ("ensemble",)}

    @property
    def headline(self) -> tuple[str, ...]:
        """See `Method.headline`."""
        return self.headlines[self.options.select_by]

    @property
    def num_parallel_networks(self) -> int:
        """See `Method.num_parallel_networks`; branches stay on one device."""
        return len(self.peers.names) if isinstance(self.peers, PeerNetworks) else 1

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """One phase that updates all parameters at once."""
        return (Phase("peers", self.epochs, (Update(lambda path: path[1] == "params", self.optimizer, self.loss),)),)

    def init(self, key: jax.Array) -> Variables:
        """See `Method.init`."""
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        variables = self.peers.init(jax.random.fold_in(key, 0), images)
        if self.mixing_module is not None:
            mixing_input = self.mixing_input(self.peers(variables, images, False, key))
            variables[self.mixing_name] = self.mixing_module.init(jax.random.fold_in(key, 1), mixing_input)
        return variables

    def forward(
        self, variables: Mapping[str, Any], images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[PeerOutputs, jax.Array | None]:
        """Runs all peers and the mixing module on a batch.

        Args:
          variables: see `init`.
          images: float32 `[batch, size, size, 3]`.
          train: whether batch norms use, and update, the statistics of the batch, and dropout is active.
          key: PRNG key of dropout.

        Returns:
          The peers' outputs, with all new running statistics in `stats`, and the output of the mixing module or None.
        """
        outputs, mixing = self.peers(variables, images, train, key), None
        if self.mixing_module is not None:
            name = self.mixing_name
            mixing, stats = apply(self.mixing_module, variables[name], self.mixing_input(outputs), train, key)
            outputs = replace(outputs, stats={**outputs.stats, name: stats})
        return outputs, mixing

    def loss(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Computes the loss over the classes of the current task; see `Update.loss`."""
        outputs, mixing = self.forward(variables, batch["images"], True, context.key)
        labels, mask = batch["labels"], context.current(self.info.num_classes)
        total, terms = self.loss_terms(outputs, mixing, labels, mask, context.epoch)
        logits = jax.lax.stop_gradient(self.logits(outputs, mixing))
        accuracy = {f"{name}/accuracy": 100 * _correct(z, labels, mask).mean() for name, z in logits.items()}
        new_stats = {name: stats for name, stats in outputs.stats.items() if stats}
        return total, Outcome({"loss": total, **terms, **accuracy}, variables=new_stats)

    def distillation_weight(self, epoch: int | jax.Array) -> jax.Array:
        """Returns `alpha` times the ramp-up factor of `peer_losses.RAMP_OPTIONS`."""
        return self.options.alpha * peer_losses.ramp_up_weight(epoch, self.options, self.epochs)

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[Logits, dict]:
        """See `Method.predict`."""
        return self.logits(*self.forward(variables, images, False, context.key)), {}

    def extra_metrics(self, logits: Logits, labels: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Returns mean and top-5 accuracies in percent, and diversities."""
        mask = context.seen(self.info.num_classes)
        peers = self.compared_peers
        metrics = {"mean/accuracy": 100 * (sum(_correct(logits[name], labels, mask) for name in peers) / len(peers))}
        metrics |= {f"{n}/top5": 100 * peer_losses.top_k_correct(z, labels, 5, mask) for n, z in logits.items()}
        for name, group in self.diversity_groups.items():
            group_logits = [logits[network] for network in group]
            metrics[name] = peer_losses.diversity(group_logits, mask, self.options.diversity_divisor)
        return metrics


SomePeerMethod = TypeVar("SomePeerMethod", bound=PeerMethod)


def build_method(
    method: type[SomePeerMethod],
    section: str,
    config: Any,
    info: StreamInfo,
    peers: PeerNetworks | PeerBranches,
    mixing_module: nn.Module | None = None,
) -> SomePeerMethod:
    """Builds a method from its config.

    Args:
      method: the subclass.
      section: name of its config section.
      config: of the run.
      info: of the stream.
      peers: the networks or branches.
      mixing_module: see `PeerMethod`, default None.
    """
    return method(
        peers=peers,
        options=config[section],
        info=info,
        image_size=config.network.image_size,
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
        mixing_module=mixing_module,
    )


def _correct(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> jax.Array:
    """Scores 1 where the label has the largest logit of the mask: float32 `[batch]`."""
    return (mask_classes(logits, mask).argmax(axis=-1) == labels).astype(jnp.float32)


def groups_of_two_or_more(**groups: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns the groups that have two members or more, as a diversity needs.

    Example:
      >>> groups_of_two_or_more(diversity=["peer_0"], diversity_all=["peer_0", "peer_1"])
      {'diversity_all': ('peer_0', 'peer_1')}
    """
    return {name: tuple(members) for name, members in groups.items() if len(members) > 1}


def peer_and_ensemble_logits(outputs: PeerOutputs) -> Logits:
    """Returns the logits of every peer and their mean, the ensemble, by name.

    Example:
      >>> outputs = PeerOutputs(logits=(jnp.array([[2.0]]), jnp.array([[4.0]])), features=())
      >>> {name: z.item() for name, z in peer_and_ensemble_logits(outputs).items()}
      {'peer_0': 2.0, 'peer_1': 4.0, 'ensemble': 3.0}
    """
    peers = {f"peer_{i}": z for i, z in enumerate(outputs.logits)}
    return {**peers, "ensemble": sum(outputs.logits) / len(outputs.logits)}


def mean_logits_of_others(logits: Sequence[jax.Array]) -> list[jax.Array]:
    """Computes for each peer the mean of the other peers' logits.

    Args:
      logits: of each peer, float `[batch, classes]`; two peers or more.

    Returns:
      For each peer float `[batch, classes]`.

    Example:
      >>> [z.tolist() for z in mean_logits_of_others([jnp.zeros(1), jnp.full(1, 2.0), jnp.full(1, 6.0)])]
      [[4.0], [3.0], [1.0]]
    """
    total = sum(logits)
    return [(total - z) / (len(logits) - 1) for z in logits]


def peer_names(options: Any, leader: bool = False) -> tuple[str, ...]:
    """Returns the names of the peers, which are the keys of their variables.

    Args:
      options: a config section with the keys of `OPTIONS`.
      leader: whether the last peer is the leader.

    Example:
      >>> from types import SimpleNamespace
      >>> peer_names(SimpleNamespace(num_branches=3), leader=True)
      ('peer_0', 'peer_1', 'leader')
    """
    count = options.num_branches
    last = "leader" if leader else f"peer_{count - 1}"
    return (*(f"peer_{i}" for i in range(count - 1)), last)


def build_branches(
    section: str, config: Any, names: tuple[str, ...], num_classes: int, *, rescale: bool = False, leader: bool = False
) -> PeerBranches:
    """Builds the branched network of `config.network`.

    Args:
      section: name of the method's section, which has the keys of `BRANCH_OPTIONS`.
      config: of the run.
      names: of the branches.
      num_classes: of the stream.
      rescale: see `PeerBranches`, default False.
      leader: whether the last branch is a leader, which runs a shared last block once more; default False.

    Raises:
      UserError: options that do not fit together.
    """
    backbone, block = build_network(config.network, num_classes), None
    tail, mode = backbone.tail, config[section].densenet_shared_block
    if mode == "reference":
        if not isinstance(tail, densenet.Tail):
            raise UserError(
                f"{section}.densenet_shared_block='reference' is about DenseNet, network.family="
                f"{config.network.family!r}: leave it at 'own'"
            )
        block, tail = tail.block.clone(updates=len(names) + leader), tail.clone(block=None)
    return PeerBranches(backbone.stem, tail, names, block, rescale)


def build_network(section: Any, num_classes: int) -> Backbone:
    """Builds the convolutional network of a section.

    Args:
      section: the section `network`.
      num_classes: of the stream.

    Raises:
      UserError: the family has no convolutional network, or the section names weights.
    """
    backbone = plugins.load_plugin("models", section.family).build(section, num_classes)
    if not isinstance(backbone, Backbone):
        raise UserError(f"network.family={section.family!r}: this method needs one of the convolutional families")
    if section.weights != "random":
        raise UserError(f"network.weights={section.weights!r}: peers start from random weights, use 'random'")
    return backbone


def defaults(section: str, options: dict, network: str, *, branched: bool, reference: bool) -> dict:
    """Returns the config sections of a method.

    Args:
      section: name of the method's section.
      options: its declared options.
      network: name of a convolutional network, such as "resnet32".
      branched: whether peers are branches of one network.
      reference: use the peculiarities of the authors' code.

    Returns:
      `{section: options, "network": options}`.

    Raises:
      UserError: unknown network.
    """
    sizes = families.network_options(network, families.CONVOLUTIONAL)
    family = sizes["family"].default
    if branched and family == "vgg":
        sizes = change_defaults(sizes, dropout=0.5)  # as published; the authors' code ignores its own --dropout here
    if reference:
        options = change_defaults(options, diversity_divisor="reference")
        if branched and family == "densenet":
            options = change_defaults(options, densenet_shared_block="reference")
    return {section: options, "network": sizes}
