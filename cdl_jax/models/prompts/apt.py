"""APT, additive prompt tuning (Chen et al., ICCV 2025), as CDL's program has it.

In every block one vector is added to the class token's key and one to its value. All tasks train the same vectors; what
is evaluated is their moving average over the ends of the tasks. The head compares the normalised class token with
class vectors of length 1.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.modules import heads
from cdl_jax.models.prompts.base import Pool, Selection
from cdl_jax.models.vit import Prompt

OPTIONS = {
    "ema": 0.7,  # share of the old average at the end of a task; the first task's prompt is taken as it is
    # What a teacher that has learnt the task teaches with: "live", its trained prompt, or "merged", the average over
    # *earlier* tasks, all zeros in the first: the published program, which merges after the student's training.
    "teacher_prompts": "live",
}


class APT(Pool):
    """Parameter `prompts` `[2 depth, dim]`: row 2l is for the keys, row 2l + 1 for the values of block l; N(0, 0.02).

    State `merged`, the average, of the same shape.
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
    def __call__(self, query, context, train: bool) -> Selection:
        """All pictures get the same prompt: `query` and `context` are unused."""
        del query, context
        shape = (2 * self.depth, self.dim)
        live = self.param("prompts", nn.initializers.normal(0.02), shape)
        merged = self.variable("state", "merged", jnp.zeros, shape).value
        rows = live if train else merged
        prompts = {layer: Prompt(additive=(rows[2 * layer], rows[2 * layer + 1])) for layer in range(self.depth)}
        return Selection(prompts, jnp.zeros(()), {})

    @nn.nowrap
    def end_task(self, variables, context):
        """Merges the prompt into the average; it goes on itself unchanged."""
        live, merged = variables["params"]["prompts"], variables["state"]["merged"]
        average = self.ema * merged + (1 - self.ema) * live
        return {**variables, "state": {"merged": jnp.where(context.task == 0, live, average)}}

    @nn.nowrap
    def teacher_variables(self, variables):
        """With `teacher_prompts="live"` the trained prompt in place of the average."""
        if self.teacher_prompts == "merged":
            return variables
        return {**variables, "state": {"merged": variables["params"]["prompts"]}}


def build(options, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> APT:
    """The prompt for a backbone of width `dim` and `depth` blocks.

    Raises:
      UserError: a value out of range.
    """
    del key_dim, num_tasks
    if not 0 <= options.ema < 1:
        raise UserError(f"learner.ema={options.ema} must lie in [0, 1)")
    if options.teacher_prompts not in ("live", "merged"):
        raise UserError(f"learner.teacher_prompts={options.teacher_prompts!r}: use 'live' or 'merged'")
    return APT(options.ema, options.teacher_prompts, dim, depth)
