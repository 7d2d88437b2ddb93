"""SimpleCIL (Zhou et al., IJCV 2024): mean features of classes, frozen backbone.

Nothing is trained. After a task the mean of the class tokens of a class becomes its prototype. An image is assigned to
the class with the largest cosine. It has no hyperparameters. Published, not checked against the paper, for ViT-B/16
pretrained on ImageNet-21k, Split CIFAR-100 in 20 tasks of 5 classes: 81.26 after the last task, 87.57 as the mean over
the tasks.

"Revisiting class-incremental learning with pre-trained models", section 4.1, equation 3.
"""

from typing import ClassVar

import flax.linen as nn
from ml_collections import ConfigDict

from cdl_jax.models.learners.base import Learner
from cdl_jax.models.learners.shared.fitted_heads import PrototypeHead

OPTIONS = {}


class SimpleCIL(Learner):
    """A learner without parameters, whose head has the class means."""

    uses_query: ClassVar[bool] = False
    trained_tasks: ClassVar[str] = "none"

    @nn.nowrap
    def head(self, num_classes: int) -> PrototypeHead:
        """Returns the head of class means."""
        return PrototypeHead(num_classes)


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> SimpleCIL:
    """Returns the learner without parameters."""
    del options, dim, key_dim, depth, num_tasks
    return SimpleCIL()
