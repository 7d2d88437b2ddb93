"""CDL-Prompt, version 1 of CDL (arXiv 2407.13911v1): the teacher's prompts, mapped to the student's width.

Each layer's teacher prompt becomes an extra prefix of the student, ahead of its own. A second head on the class token
learns from the teacher's logits, the first from the labels; tested is their mean. At test time the student therefore
needs the teacher's prompts.
"""

import flax.linen as nn
import jax.numpy as jnp

from cdl_jax.distill import kd
from cdl_jax.distill.base import Scheme, StudentInputs
from cdl_jax.errors import UserError
from cdl_jax.models.modules.prompt_mapping import PoolMapping, SelfAttentionMapping
from cdl_jax.models.prompts import coda
from cdl_jax.models.prompts.base import check_layers, check_length

OPTIONS = {
    **kd.OPTIONS,
    "mapping": "pool",  # or "self_attention", which has no published result
    "pool": 0,  # rows of each layer's pool; 0: as many as the learner's pool has
    "length": 0,  # vectors of a mapped prompt; 0: the learner's
    "layers": 5,  # blocks 0 to 4, where the teacher has a prompt
    # Whose rows of the pool are used. "fixed": the first task's, by all tasks: in the published program no method ever
    # advances the counter. "advance": each task adds its own rows, and earlier ones are constants in training.
    "counter": "fixed",
}

# Teacher and student on each batch, the student at a constant rate, key losses summed over the batch.
PRESET = {"cdl": {"schedule": "interleaved", "student_rate": "constant"}, "learner": {"pull": "legacy_sum"}}


class CDLPrompt(nn.Module):
    """The mapping and the distillation head."""

    mapping: nn.Module
    head: nn.Module

    def __call__(self, prompts, features):
        """Creates all parameters."""
        return self.map(prompts, 0, False), self.logits(features)

    def map(self, prompts, task, train):
        """Layer -> Prompt of the student, for the teacher's prompts."""
        return self.mapping(prompts, task, train)

    def logits(self, features):
        """The distillation head on the class token `[batch, dim]`."""
        return self.head(features)


def build(options, teacher, student) -> Scheme:
    """`alpha temperature^2 KL(teacher || distillation head)`, with the teacher's prompts mapped into the student.

    Raises:
      UserError: a value out of range, or a learner whose prompts are no prefixes.
    """
    kd.check(options)
    if student.learner.get("form") == "tokens":
        raise UserError(
            "distill.name='prompt_mapping' maps prefixes, and with learner.form='tokens' there are none: say "
            "learner.form='prefix'"
        )
    if "length" not in student.learner:
        raise UserError(
            f"distill.name='prompt_mapping' maps prefixes, and learner.name={student.learner.name!r} has none: "
            "choose l2p, dualprompt or coda"
        )
    if options.counter not in ("fixed", "advance"):
        raise UserError(f"distill.counter={options.counter!r}: use 'fixed' or 'advance'")
    check_layers(options.layers, student.depth, "distill.layers")
    module = CDLPrompt(_mapping(options, teacher, student), student.head)
    per_task = getattr(module.mapping, "per_task", 0)
    advances = options.counter == "advance" and per_task > 0

    def start_task(variables, context, key):
        if not advances:
            return variables
        params = variables["params"]
        return {
            **variables,
            "params": {**params, "mapping": coda.start_task(params["mapping"], per_task, context.task, key)},
        }

    def student_inputs(variables, teacher_out, batch_size, context, train):
        del batch_size
        task = context.task if advances else 0
        return StudentInputs(module.apply(variables, teacher_out["prompts"].prompts, task, train, method="map"))

    def kd_logits(variables, student_out):
        return module.apply(variables, student_out["class_token"], method="logits")

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        value = kd.kd_loss(options, kd_logits(variables, student_out), teacher_out["logits"], context)
        return value, {"kd": value}

    return Scheme(
        loss=loss,
        label_weight=1 - options.alpha,
        needs=("logits", "prompts"),
        init=lambda key: module.init(key, {}, jnp.zeros((1, student.dim))),
        start_task=start_task,
        student_inputs=student_inputs,
        second_head=kd_logits,
        second_weight=0.5,
    )


def _mapping(options, teacher, student):
    if options.mapping == "self_attention":
        return SelfAttentionMapping(options.layers, student.dim, teacher.dim)
    if options.mapping != "pool":
        raise UserError(f"distill.mapping={options.mapping!r}: use 'pool' or 'self_attention'")
    pool = options.pool or student.learner.pool or student.num_tasks
    length = options.length or student.learner.length
    check_length(length, "distill.length")
    width = min(teacher.dim, length * student.dim)
    per_task = coda.rows_per_task(pool, student.num_tasks, width, "distill.pool")
    return PoolMapping(options.layers, pool, per_task, length, student.dim, teacher.dim)
