"""LAE (Gao et al., ICCV 2023): trained adapters and their moving average predict.

Learning: the trained adapters are constants in the first epochs of each task but the first, while the head learns.
Accumulation: after each step the offline adapters become `decay offline + (1 - decay) trained`. They start as a copy of
the trained ones at the end of the first task. Ensemble: the score of a class is the larger of its two probabilities,
over all classes seen.

The adapters are beside the attention of the first blocks, `c (gelu(n W_down + b_down) W_up + b_up)`, with a trained
scale c. n is the input of the attention, which the authors take after the block's norm. Here n has the mean 0 and the
variance 1, without the norm's own scale and shift, which W_down and b_down contain.

Published for ViT-B/16 (ImageNet-21k): 5 blocks, bottleneck of 5, decay 0.9999, 3 epochs of constant adapters of the 5
epochs of a task (50 on ImageNet-R, with 30 of them).

"A unified continual learning framework with general parameter-efficient tuning", sections 3.2 to 3.4.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.losses import Context, mask_classes
from cdl_jax.models.learners.base import Learner, Selection, Variables, check_layers
from cdl_jax.models.learners.shared.bottlenecks import init_bottlenecks
from cdl_jax.models.vit import Adapter
from cdl_jax.options import Option

OPTIONS = {
    "rank": Option(5, "width of the bottleneck", minimum=1),
    "layers": Option(5, "blocks with an adapter: 5 are blocks 0 to 4", minimum=1),
    "decay": Option(0.9999, "weight of the old average in each step", below=1),
    "constant_epochs": Option(3, "first epochs of each task but the first in which only the head is trained"),
}


class LAE(Learner):
    """Trained adapters and their moving average.

    Parameters: those of `bottlenecks.init_bottlenecks` for the adapted blocks, and `scale` `[layers]`. The state
    `offline` has arrays of the same names.

    Attributes:
      rank: width of the bottleneck.
      layers: number of adapted blocks, from block 0 on.
      decay: weight of the old average.
      constant_epochs: first epochs of a task in which only the head is trained.
      dim: width of the backbone.
    """

    uses_query: ClassVar[bool] = False

    rank: int
    layers: int
    decay: float
    constant_epochs: int
    dim: int

    @nn.nowrap
    def init_variables(self, key: jax.Array, query: jax.Array, backbone: Mapping[str, Any]) -> Variables:
        """Returns adapters that change nothing."""
        del query, backbone
        params = {**init_bottlenecks(key, self.layers, self.dim, self.rank), "scale": jnp.ones(self.layers)}
        return {"params": params, "state": {"offline": params}}

    @nn.compact
    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Returns the adapters of the parameters.

        The adapters are constants in the first epochs of each task but the first.
        """
        params = self.variables["params"]
        if train:
            is_constant = (context.task > 0) & (context.epoch < self.constant_epochs)
            params = jax.tree.map(lambda p: jnp.where(is_constant, jax.lax.stop_gradient(p), p), params)
        rows = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(self.layers)]
        adapters = {i: Adapter(attention=Partial(_parallel_gelu, row), is_tokenwise=True) for i, row in enumerate(rows)}
        return Selection({}, jnp.zeros(()), {}, adapters=adapters)

    @nn.nowrap
    def passes(self, variables: Variables, context: Context, train: bool) -> tuple[Variables, ...]:
        """Returns the trained adapters, and in evaluation their average."""
        del context
        return (variables,) if train else (variables, {**variables, "params": variables["state"]["offline"]})

    @nn.nowrap
    def join_logits(self, logits: tuple[jax.Array, ...], context: Context, train: bool) -> jax.Array:
        """Returns in evaluation the logarithm of the larger probability of each class."""
        if train:
            return logits[0]
        seen = context.seen(logits[0].shape[-1])
        return jnp.maximum(*(jax.nn.log_softmax(mask_classes(each, seen)) for each in logits))

    @nn.nowrap
    def update_state(self, variables: Variables, outputs: Mapping[str, Any], context: Context) -> Variables:
        """Returns the average with the adapters before this step.

        These are the adapters after the previous step. The first step of a task has no previous step; `end_task` adds
        the adapters after the last step.
        """
        del outputs
        is_first = (context.epoch == 0) & (context.step == 0)
        average = self._average(variables, context)
        return {"offline": jax.tree.map(lambda x, y: jnp.where(is_first, x, y), variables["state"]["offline"], average)}

    @nn.nowrap
    def check_epochs(self, epochs: int, num_tasks: int) -> None:
        """Refuses adapters that are constants in all epochs of each task but the first."""
        if num_tasks > 1 and self.constant_epochs >= epochs:
            raise UserError(
                f"learner.constant_epochs={self.constant_epochs} leaves no epoch of {epochs} in which the adapters of "
                f"LAE learn a later task: set it below {epochs}, such as {3 * epochs // 5}"
            )

    @nn.nowrap
    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Returns the average with the adapters after the last step.

        After the first task the average is these adapters.
        """
        return {**variables, "state": {"offline": self._average(variables, context)}}

    @nn.nowrap
    def _average(self, variables, context):
        """Returns the new average; in the first task the trained adapters."""
        decay = jnp.where(context.task == 0, 0.0, self.decay)
        return jax.tree.map(
            lambda average, trained: decay * average + (1 - decay) * trained,
            variables["state"]["offline"],
            variables["params"],
        )


def _parallel_gelu(params, x, y):
    """Adds an adapter of the standardized x to y, the output of the attention."""
    params = {name: value.astype(x.dtype) for name, value in params.items()}
    hidden = jax.nn.gelu(jax.nn.standardize(x, epsilon=1e-6) @ params["down"] + params["down_bias"], approximate=False)
    return y + params["scale"] * (hidden @ params["up"] + params["up_bias"])


def teaches_as_saved(options: ConfigDict) -> bool:
    """Returns False: the checkpoint's average has one more step than the teacher's."""
    del options
    return False


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> LAE:
    """Returns the adapters of an option section, see `models.learners.base`.

    Raises:
      UserError: the backbone has fewer blocks.
    """
    del key_dim, num_tasks
    check_layers(options.layers, depth, "learner.layers")
    return LAE(**{key: options[key] for key in OPTIONS}, dim=dim)
