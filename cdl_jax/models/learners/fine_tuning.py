"""Sequential fine-tuning of the backbone.

All weights of the selected layers are trained on each task, with nothing against forgetting. Fine-tuning is the lower
bound of learners that change the weights of the backbone. All classes in one task (`joint=true` of the configs) give
the upper bound.
"""

from typing import ClassVar

import flax.linen as nn
from ml_collections import ConfigDict

from cdl_jax.models.learners.base import Learner, Path
from cdl_jax.options import Option

OPTIONS = {
    "rate": Option(1.0, "learning rate of the backbone over that of the head", above=0),
    "layers": Option(
        "all",
        "what is trained of the backbone; attention: its attention layers; mlp: its MLPs; biases: all biases",
        choices=("all", "attention", "mlp", "biases"),
    ),
}

_NAMES = {"attention": "attn", "mlp": "mlp", "biases": "bias"}  # a part of the path of each trained leaf


class FineTuning(Learner):
    """Trains leaves of the backbone.

    Attributes:
      rate: learning rate of the backbone over that of the head.
      layers: "all", "attention", "mlp" or "biases".
    """

    uses_query: ClassVar[bool] = False

    rate: float
    layers: str

    @nn.nowrap
    def trains_backbone(self, path: Path) -> bool:
        """Returns whether a leaf is of the selected layers."""
        return self.layers == "all" or _NAMES[self.layers] in path

    @nn.nowrap
    def learning_rate_factor(self, path: Path) -> float:
        """Returns `rate` for the backbone, 1 for the head."""
        return self.rate if path[0] == "backbone" else 1.0


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> FineTuning:
    """Returns the learner of an option section, see `models.learners.base`."""
    del dim, key_dim, depth, num_tasks
    return FineTuning(rate=options.rate, layers=options.layers)
