"""CDL-Prompt: the teacher's prompts, mapped to the student's width.

CDL-Prompt is version 1 of CDL (arXiv 2407.13911v1). In each layer the teacher's mapped prompt is a prefix of the
student, ahead of the student's own prefix. A second head on the class token is trained with the teacher's logits, the
first head with the labels. The prediction is the mean of both heads' logits. The student needs the teacher's prompts in
evaluation too.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme, StudentInputs
from cdl_jax.errors import UserError
from cdl_jax.models.learners import coda
from cdl_jax.models.learners.base import check_layers, check_length
from cdl_jax.models.modules.prompt_mapping import PoolMapping, SelfAttentionMapping
from cdl_jax.models.vit import Prompt
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "mapping": Option(
        "pool",
        "what maps the teacher's prompts to the student's; self_attention has no published result",
        choices=("pool", "self_attention"),
    ),
    "pool": Option(0, "rows of the pool of each layer; 0: as in the learner's pool"),
    "length": Option(0, "vectors of a mapped prompt; 0: as in the learner's prompts"),
    "layers": Option(5, "mapped blocks: 5 are blocks 0 to 4, if the teacher has a prompt there", minimum=1),
    # The authors' code never advances the counter. With "advance" the rows of earlier tasks are constants in training.
    "counter": Option(
        "fixed",
        "rows of the pool that a task uses; fixed: all tasks use the first task's; advance: each task adds rows",
        choices=("fixed", "advance"),
    ),
}

# Each batch trains teacher and student; the student has a constant learning rate; key losses are summed over the batch.
PRESET = {"cdl": {"schedule": "interleaved", "student_schedule": "constant"}, "learner": {"key_loss": "legacy_sum"}}


class CDLPrompt(nn.Module):
    """The mapping of prompts and the second head of the student."""

    mapping: nn.Module
    head: nn.Module

    def __call__(self, prompts: Mapping[int, Prompt], features: jax.Array) -> tuple[dict[int, Prompt], jax.Array]:
        """Runs both parts, so that `init` creates all parameters."""
        return self.map(prompts, 0, False), self.logits(features)

    def map(self, prompts: Mapping[int, Prompt], task: jax.Array | int, train: bool) -> dict[int, Prompt]:
        """Maps the teacher's prompts to the student's.

        Args:
          prompts: layer -> prompt of the teacher.
          task: int32, selects the rows of the pool.
          train: whether the rows of earlier tasks are constants.

        Returns:
          Layer -> prompt of the student.
        """
        return self.mapping(prompts, task, train)

    def logits(self, features: jax.Array) -> jax.Array:
        """Returns the logits of the second head for the class token `[batch, dim]`."""
        return self.head(features)


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme with mapped prompts.

    The loss is `alpha temperature^2 KL(teacher || second head)`.

    Raises:
      UserError: options do not fit together, or the learner's prompts are not prefixes.
    """
    if options.alpha in (0, 1):
        raise UserError(
            f"distill.alpha={options.alpha} leaves one of the student's two heads untrained, and "
            "distill.name='prompt_mapping' predicts by the mean of both: choose a number between 0 and 1"
        )
    if student.learner.get("prompt_form") == "tokens":
        raise UserError(
            "distill.name='prompt_mapping' maps prefixes, and learner.prompt_form='tokens' has none: set "
            "learner.prompt_form='prefix'"
        )
    if "length" not in student.learner:
        raise UserError(
            f"distill.name='prompt_mapping' maps prefixes, and learner.name={student.learner.name!r} has none: "
            "choose l2p, dualprompt or coda"
        )
    check_layers(options.layers, student.depth, "distill.layers")
    mapping, rows_per_task = _mapping(options, teacher, student)
    module = CDLPrompt(mapping, student.head)
    counter_advances = options.counter == "advance" and rows_per_task > 0

    def start_task(variables, context, key):
        if not counter_advances:
            return variables
        params = variables["params"]
        return {
            **variables,
            "params": {**params, "mapping": coda.start_task(params["mapping"], rows_per_task, context.task, key)},
        }

    def student_inputs(variables, teacher_out, batch_size, context, train):
        del batch_size
        if any(map(callable, teacher_out["prompts"].prompts.values())):
            raise UserError(
                f"distill.name='prompt_mapping' maps the prompts of a teacher, but learner.name="
                f"{student.learner.name!r} selects them within its pass: choose l2p, dualprompt or coda"
            )
        task = context.task if counter_advances else 0
        return StudentInputs(module.apply(variables, teacher_out["prompts"].prompts, task, train, method="map"))

    def second_head(variables, student_out):
        return module.apply(variables, student_out["class_token"], method="logits")

    return Scheme(
        loss=kd.make_loss(options, second_head),
        label_weight=1 - options.alpha,
        needs=("logits", "prompts"),
        init=lambda key: module.init(key, {}, jnp.zeros((1, student.dim))),
        start_task=start_task,
        student_inputs=student_inputs,
        second_head=second_head,
        second_weight=0.5,
    )


def check_growth(config: ConfigDict, num_tasks: int, new_config: ConfigDict, new_num_tasks: int) -> None:
    """Checks that a longer stream leaves each task its rows of the mapping's pool.

    Args:
      config: of the run that has fewer tasks.
      num_tasks: tasks of that run.
      new_config: of the longer stream.
      new_num_tasks: tasks of the longer stream.

    Raises:
      UserError: a task would have another number of rows.
    """
    if config.distill.mapping == "self_attention":
        return
    rows = _pool_size(config.distill, config.learner, num_tasks) // num_tasks
    pool = _pool_size(new_config.distill, new_config.learner, new_num_tasks)
    if pool != rows * new_num_tasks:
        raise UserError(
            f"distill.name='prompt_mapping' has {rows} rows of its pool for each of the {num_tasks} tasks of the "
            f"parent, so {new_num_tasks} tasks need distill.pool={rows * new_num_tasks}, not {pool}"
        )


def _pool_size(options, learner, num_tasks):
    return options.pool or learner.pool or num_tasks


def _mapping(options, teacher, student):
    """Returns the module of the mapping, and the rows of its pool for each task."""
    if options.mapping == "self_attention":
        return SelfAttentionMapping(options.layers, student.dim, teacher.dim), 0
    pool = _pool_size(options, student.learner, student.num_tasks)
    length = options.length or student.learner.length
    check_length(length, "distill.length")
    width = min(teacher.dim, length * student.dim)
    rows_per_task = coda.rows_per_task(pool, student.num_tasks, width, "distill.pool")
    return PoolMapping(options.layers, pool, rows_per_task, length, student.dim, teacher.dim), rows_per_task
