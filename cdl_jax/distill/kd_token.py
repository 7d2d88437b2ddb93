"""D-CDL, called KDP in version 3 of the paper (arXiv 2407.13911): a distillation token and prompts of its own.

The student gets a learnt token behind its patches and, in later blocks, learnt prefixes behind its keys and values. A
second head reads the token and learns from the teacher; the first reads the class token and learns from the labels.
Token, prompts and head persist over tasks. Variant "deit" is the KD-Token of version 2, after DeiT (Touvron et al.,
2021): only a token, ahead of the class token.
"""

import flax.linen as nn
import jax.numpy as jnp

from cdl_jax.distill import kd
from cdl_jax.distill.base import Scheme, StudentInputs
from cdl_jax.errors import UserError
from cdl_jax.models.prompts.base import check_length, split_kv
from cdl_jax.models.vit import Prompt

OPTIONS = {
    **kd.OPTIONS,
    "variant": "dcdl",  # or "deit"
    "n_layers": 0,  # block 0 has the token, the next n_layers - 1 blocks prompts; 0: all blocks, 1: the token alone
    "length": 6,  # vectors of a prompt: the first half keys, the rest values
    "token_init": "",  # "uniform" on [0, 1) or "zeros"; "": as published, zeros for "deit", else uniform
}

_INITS = {"uniform": nn.initializers.uniform(1.0), "zeros": nn.initializers.zeros}


class KDToken(nn.Module):
    """Parameters `token` `[1, dim]` and, for blocks l from 1 to n_layers - 1, `prompts_l` `[length, dim]` from U[0, 1).

    Called with the token's output `[batch, dim]` it gives the distillation head's logits.
    """

    n_layers: int
    length: int
    token_init: str
    dim: int
    head: nn.Module

    def setup(self):
        self.token = self.param("token", _INITS[self.token_init], (1, self.dim))
        shape = (self.length, self.dim)
        self.prompts = {
            layer: self.param(f"prompts_{layer}", _INITS["uniform"], shape) for layer in range(1, self.n_layers)
        }

    def inputs(self, batch_size: int):
        """The token `[batch, 1, dim]` and the prompts of the layers."""

        def each(x):
            return jnp.broadcast_to(x, (batch_size, *x.shape))

        return each(self.token), {layer: Prompt(suffix=split_kv(each(rows))) for layer, rows in self.prompts.items()}

    def __call__(self, features):
        return self.head(features)


def build(options, teacher, student) -> Scheme:
    """`alpha temperature^2 KL(teacher || distillation head)`; tested is `(1 - alpha) label head + alpha KD head`.

    Raises:
      UserError: a value out of range.
    """
    del teacher
    kd.check(options)
    check_length(options.length, "distill.length")
    if options.variant not in ("dcdl", "deit"):
        raise UserError(f"distill.variant={options.variant!r}: use 'dcdl' or 'deit'")
    if options.token_init not in ("", *_INITS):
        raise UserError(f"distill.token_init={options.token_init!r}: use 'uniform', 'zeros' or ''")
    if not 0 <= options.n_layers <= student.depth:
        raise UserError(f"distill.n_layers={options.n_layers}: the student has {student.depth} blocks, 0 means all")
    deit = options.variant == "deit"
    module = KDToken(
        n_layers=1 if deit else options.n_layers or student.depth,
        length=options.length,
        token_init=options.token_init or ("zeros" if deit else "uniform"),
        dim=student.dim,
        head=student.head,
    )

    def student_inputs(variables, teacher_out, batch_size, context, train):
        del teacher_out, context, train
        token, prompts = module.apply(variables, batch_size, method="inputs")
        return StudentInputs(prompts, first_tokens=token) if deit else StudentInputs(prompts, last_tokens=token)

    def kd_logits(variables, student_out):
        return module.apply(variables, student_out["tokens"][:, 0 if deit else -1].astype(jnp.float32))

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        value = kd.kd_loss(options, kd_logits(variables, student_out), teacher_out["logits"], context)
        return value, {"kd": value}

    return Scheme(
        loss=loss,
        label_weight=1 - options.alpha,
        init=lambda key: module.init(key, jnp.zeros((1, student.dim))),
        student_inputs=student_inputs,
        second_head=kd_logits,
        second_weight=options.alpha,
    )
