"""APT, additive prompt tuning (Chen et al., ICCV 2025), as in CDL's program.

In every block one vector is added to the key of the class token and one to its value. All tasks train the same vectors.
Evaluation uses their moving average over the ends of the tasks. The head compares the normalized class token with class
vectors of length 1.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import Pool, Selection, Variables
from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Prompt
from cdl_jax.options import Option

OPTIONS = {
    "ema": Option(
        0.7,
        "weight of the old average at the end of a task; the first task's prompt becomes the first average",
        below=1,
    ),
    # The published program merges after the student's training.
    "teacher_prompts": Option(
        "live",
        "prompts with which a teacher teaches the task that it has learned; live: its trained prompt; merged: the "
        "average over earlier tasks, zeros in the first",
        choices=("live", "merged"),
    ),
}


class APT(Pool):
    """Additive prompts of all blocks.

    The parameter `prompts` `[2 depth, dim]` starts from N(0, 0.02^2). Row 2l is added to the key of block l, row
    2l + 1 to its value. The state `merged`, of the same shape, is the moving average.

    Attributes:
      ema: weight of the old average at the end of a task.
      teacher_prompts: "live" or "merged", see `OPTIONS`.
      dim: width of the backbone.
      depth: number of blocks.
    """

    uses_query: ClassVar[bool] = False

    ema: float
    teacher_prompts: str
    dim: int
    depth: int

    @nn.nowrap
    def head(self, num_classes: int) -> heads.NormalizedHead:
        """Returns APT's head, which compares features with class vectors of length 1."""
        return heads.NormalizedHead(num_classes)

    @nn.compact
    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Returns the same prompts for all images.

        In training they are the trained prompts, else their average.
        """
        del query, context
        shape = (2 * self.depth, self.dim)
        trained = self.param("prompts", nn.initializers.normal(0.02), shape)
        merged = self.variable("state", "merged", jnp.zeros, shape).value
        rows = trained if train else merged
        prompts = {layer: Prompt(additive=(rows[2 * layer], rows[2 * layer + 1])) for layer in range(self.depth)}
        return Selection(prompts, jnp.zeros(()), {})

    @nn.nowrap
    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Merges the trained prompts into the average; the trained prompts are unchanged."""
        trained, merged = variables["params"]["prompts"], variables["state"]["merged"]
        average = self.ema * merged + (1 - self.ema) * trained
        return {**variables, "state": {"merged": jnp.where(context.task == 0, trained, average)}}

    @nn.nowrap
    def teacher_variables(self, variables: Variables) -> Variables:
        """Replaces the average by the trained prompts if `teacher_prompts` is "live"."""
        if self.teacher_prompts == "merged":
            return variables
        return {**variables, "state": {"merged": variables["params"]["prompts"]}}


def teaches_as_saved(options: ConfigDict) -> bool:
    """Returns whether a teacher's prompts are those of the checkpoint.

    The average in the checkpoint is merged after the student's training.
    """
    return options.teacher_prompts == "live"


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> APT:
    """Returns the prompts of an option section, see `models.learners.base`."""
    del key_dim, num_tasks
    return APT(ema=options.ema, teacher_prompts=options.teacher_prompts, dim=dim, depth=depth)
