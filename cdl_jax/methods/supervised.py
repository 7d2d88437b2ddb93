"""One network, trained with labels on each task.

The method serves pretraining, fine-tuning, or a baseline with a single task. With `supervised.trained="head"` the
network is a linear probe: only the head on a frozen backbone is trained.

`python -m cdl_jax.main --config configs/pretrain_glyph.py` writes the trained weights into the run's `weights.npz`,
with timm's names. Other configs name that file in `teacher.weights` or `student.weights`. Networks with running
statistics are written with these, with the names of this package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, cross_entropy, mask_classes
from cdl_jax.methods.base import Method, Outcome, Path, Phase, StreamInfo, Update, Variables
from cdl_jax.methods.shared import rehearsal
from cdl_jax.methods.shared.peer_losses import top_k_correct
from cdl_jax.models import weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.modules.heads import is_head
from cdl_jax.options import Option

# Options of every method that trains one network with labels.
TRAINING_OPTIONS = {
    "classes": Option(
        "current",
        "classes of the softmax: of the current task, seen so far, or all of the stream; with all, predictions "
        "choose from all classes too",
        choices=rehearsal.CLASSES,
    ),
    "label_smoothing": Option(0.0, "share of the target that all classes get; the label gets the rest", below=1),
    **rehearsal.OPTIONS,
}
# The trained part: the "network", or its "head" only. The rest is then frozen and computes as in evaluation: with
# running statistics and without dropout.
OPTIONS = {
    **TRAINING_OPTIONS,
    # Running statistics, no dropout.
    "trained": Option(
        "network", "the trained part; the rest is frozen and computes as in evaluation", choices=("network", "head")
    ),
}


def defaults(network: str = "glyph_student") -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for a named network with random weights.

    The network may be of any family.
    """
    return {"supervised": OPTIONS, "network": families.network_options(network, weights="random")}


@dataclass(frozen=True)
class Supervised(Method):
    """Trains one network with labels.

    Variables are `{"network": {"params", "batch_stats"}}`.

    Attributes:
      backbone: module of the network with its head, `module(images, train=...) -> (logits, outputs by name)`.
      options: a section with the keys of `TRAINING_OPTIONS`.
      info: the stream.
      image_size: side of the images in pixels.
      weights: of the network, see `models.weights.load_network`.
      epochs: passes over the data of a task.
      batch_size: number of the task's own images in a batch.
      optimizer: of the network.
      torch_name: names of the family's arrays in PyTorch's state dicts, or None.
      trained: "network" or "head".
    """

    supports_batch_statistics = True

    backbone: nn.Module
    options: ConfigDict
    info: StreamInfo
    image_size: int
    weights: str | tuple[str, str]
    epochs: int
    batch_size: int
    optimizer: optim.Optimizer
    torch_name: Callable[[str], str] | None = None
    trained: str = "network"
    networks: tuple[str, ...] = ("network",)

    @classmethod
    def from_section(cls, section: str, config: ConfigDict, info: StreamInfo, **fields: Any) -> Self:
        """Builds the method from a section with the keys of `TRAINING_OPTIONS`.

        Args:
          section: name of the section.
          config: with the sections `network`, `train` and `optim`.
          info: the stream.
          fields: further attributes of a subclass.

        Raises:
          UserError: options do not fit together.
        """
        options, network = config[section], config.network
        rehearsal.check(section, options)
        family = plugins.load_plugin("models", network.family)
        return cls(
            backbone=family.build(network, info.num_classes),
            options=options,
            info=info,
            image_size=network.image_size,
            weights=weights.from_section(network),
            epochs=config.train.epochs,
            batch_size=config.train.batch_size,
            optimizer=optim.build(config.optim, config.train.epochs),
            torch_name=family.torch_name,
            trained=options.get("trained", "network"),
            **fields,
        )

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        update = Update(is_network_parameter, self.optimizer, self.loss)
        return rehearsal.phases("network", self.epochs, (update,), self.options, self.batch_size)

    @property
    def loss_classes(self) -> str:
        return self.options.classes

    @property
    def predict_over(self) -> str:
        return "all" if self.options.classes == "all" else "seen"

    def init(self, key: jax.Array) -> Variables:
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        return {"network": self.backbone.init(key, images)}

    def load_pretrained(self, variables: Variables) -> Variables:
        """Loads pretrained weights, except those of the head in three cases.

        The head stays new in a ViT, if only the head is trained, and if the file has another number of classes.

        Raises:
          UserError: the weights do not fit, or only the head is trained and the network has none.
        """
        network, key = variables["network"], "network.weights"
        if self.trained == "head" and not any(map(is_head, flatten_dict(network["params"]))):
            raise UserError(
                "supervised.trained='head': this network has no layer with the name of a head: set 'network'"
            )
        if not weights.is_vit(network):
            loaded = weights.load_network(self.weights, network, key, self.torch_name, new_head=True)
            if self.trained == "network":
                return {**variables, "network": loaded}
            params, new_params = flatten_dict(loaded["params"]), flatten_dict(network["params"])
            params |= {path: leaf for path, leaf in new_params.items() if is_head(path)}
            return {**variables, "network": {**loaded, "params": unflatten_dict(params)}}
        headless = {**network, "params": {part: leaves for part, leaves in network["params"].items() if part != "head"}}
        loaded = weights.load_network(self.weights, headless, key)
        return {**variables, "network": {**loaded, "params": {**network["params"], **loaded["params"]}}}

    def is_frozen(self, path: Path) -> bool:
        return self.trained == "head" and not is_head(path)

    def loss(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Returns the cross-entropy of a batch, see `methods.base.Update`."""
        total, _, new_variables = self.label_loss(variables, batch, context)
        return total, Outcome({"loss": total}, variables=new_variables)

    def label_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, jax.Array, Variables]:
        """Computes the cross-entropy over `options.classes`, with label smoothing.

        Returns:
          The loss, a float32 scalar; the logits `[batch, classes]`; and partial variables, the new running statistics.
        """
        key = jax.random.fold_in(context.key, 1)
        train = self.trained == "network"
        (logits, _), statistics = apply(self.backbone, variables["network"], batch["images"], train, key)
        mask = context.mask(self.options.classes, self.info.num_classes)
        total = cross_entropy(logits, batch["labels"], mask)
        smoothing = self.options.label_smoothing
        if smoothing:
            log_p = jax.nn.log_softmax(mask_classes(logits, mask))
            uniform = -jnp.where(mask, log_p, 0).sum(axis=-1).mean() / mask.sum()
            total = (1 - smoothing) * total + smoothing * uniform
        return total, logits, {"network": statistics} if statistics else {}

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        (logits, _), _ = apply(self.backbone, variables["network"], images, False, context.key)
        return {"network": logits}, {}

    def extra_metrics(self, logits: dict, labels: jax.Array, context: Context) -> dict[str, jax.Array]:
        mask = context.mask(self.predict_over, self.info.num_classes)
        return {"network/top5": 100 * top_k_correct(logits["network"], labels, 5, mask)}

    def teacher_outputs(
        self,
        network: str,
        variables: Variables,
        images: jax.Array,
        context: Context,
        use_batch_statistics: bool = False,
    ) -> dict[str, jax.Array]:
        (logits, out), _ = apply(self.backbone, variables[network], images, use_batch_statistics, context.key)
        return {**out, "logits": logits}

    def features(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, dict]:
        (logits, out), _ = apply(self.backbone, variables["network"], images, False, context.key)
        return {"network": {**named_features(out), "logits": logits}}

    def export(self, variables: Variables) -> dict[str, Variables]:
        """Returns the weights of the network, those of a ViT without its head.

        The file of a ViT has float16.

        Returns {} if only the head is trained: the backbone's weights are in the file that the run started with.
        """
        network = variables["network"]
        if self.trained == "head":
            return {}
        if not weights.is_vit(network):
            return {"weights": network}
        return {"weights": {"params": {k: v for k, v in network["params"].items() if k != "head"}}}


def is_network_parameter(path: Path) -> bool:
    """Returns whether a leaf is a parameter of "network".

    >>> is_network_parameter(("network", "params", "bias")), is_network_parameter(("previous", "params", "bias"))
    (True, False)
    """
    return path[:2] == ("network", "params")


def build(config: ConfigDict, info: StreamInfo) -> Supervised:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together.
    """
    return Supervised.from_section("supervised", config, info)
