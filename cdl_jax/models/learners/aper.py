"""APER (Zhou et al., IJCV 2024): prototypes of adapted and frozen backbone.

The first task trains an efficient adaptation of the backbone with a cosine classifier. Then the backbone is fixed. The
features of an image are those of the adapted backbone and those of the pretrained one, concatenated. After each task
the mean features of its classes become prototypes, which are compared by cosine. So a prediction needs two passes.

Published, not checked against the paper, for ViT-B/16 pretrained on ImageNet-21k, Split CIFAR-100 in 20 tasks of 5
classes, after the last task and as the mean over the tasks: adapters 85.15 and 90.65, ssf 81.98 and 87.78, deep vpt
82.17 and 88.46. The authors train by SGD with momentum 0.9, weight decay 5e-4 and a cosine schedule, 20
epochs, batch 48.

"Revisiting class-incremental learning with pre-trained models", section 4.2. APER was first published as ADAM.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import Variables
from cdl_jax.models.learners.shared import first_task
from cdl_jax.models.learners.shared.fitted_heads import PrototypeHead
from cdl_jax.options import Option

OPTIONS = {
    **first_task.OPTIONS,
    "adaptation": Option(
        "adapter",
        "what the first task trains; adapter: bottlenecks beside the MLPs; ssf: scale and shift of each layer's "
        "output; vpt: tokens for each block",
        choices=("adapter", "ssf", "vpt"),
    ),
}


class APER(first_task.FirstTaskLearner):
    """An adaptation of the first task, and prototypes of two backbones.

    The backbones are the adapted and the pretrained one.
    """

    @nn.nowrap
    def passes(self, variables: Variables, context: Context, train: bool) -> tuple[Variables, ...]:
        """Returns the adapted pass, and in evaluation the pass of the pretrained backbone."""
        del context
        return (variables,) if train else (variables, first_task.frozen(variables))

    @nn.nowrap
    def join_features(self, features: tuple[jax.Array, ...], context: Context, train: bool) -> tuple[jax.Array, ...]:
        """Returns one array of both features.

        In training it has the adapted features twice; the classifier reads one of the two.
        """
        del context
        return (jnp.concatenate(features * 2 if train else features, axis=1),)

    @nn.nowrap
    def head(self, num_classes: int) -> PrototypeHead:
        """Returns the prototypes."""
        return PrototypeHead(num_classes, self.dim)


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> APER:
    """Returns the learner of an option section, see `models.learners.base`."""
    del key_dim, num_tasks
    return APER(**{key: options[key] for key in OPTIONS}, dim=dim, depth=depth)
