"""D-CDL: a distillation token with its own prompts.

In version 3 of the paper (arXiv 2407.13911) the scheme has the name KDP. The student gets a learned token behind its
patches and, in later blocks, learned vectors behind its keys and values. A second head reads the token and is trained
with the teacher's logits. The first head reads the class token and is trained with the labels. Token, prompts and
second head persist over the tasks. Variant "deit" is the KD-Token of version 2, after DeiT (Touvron et al., 2021): only
a token, ahead of the class token.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme, StudentInputs
from cdl_jax.errors import UserError
from cdl_jax.models.learners.base import check_length, split_kv
from cdl_jax.models.vit import Prompt
from cdl_jax.options import Option

_INITS = {"uniform": nn.initializers.uniform(1.0), "zeros": nn.initializers.zeros}

OPTIONS = {
    **kd.OPTIONS,
    "variant": Option(
        "dcdl",
        "dcdl: the token and its prompts; deit: only a token, ahead of the class token",
        choices=("dcdl", "deit"),
    ),
    "n_layers": Option(
        0, "block 0 has the token, the next n_layers - 1 blocks have prompts; 0: all blocks, 1: only the token"
    ),
    "length": Option(6, "vectors of a prompt: the first half are keys, the rest values", minimum=2),
    "token_init": Option(
        "",
        "initial token: uniform in [0, 1), or zeros; empty: as published, zeros for deit, else uniform",
        choices=("", *_INITS),
    ),
}


class KDToken(nn.Module):
    """The distillation token, its prompts and the second head.

    Parameters: `token` `[1, dim]` and, for each block l from 1 to n_layers - 1, `prompts_l` `[length, dim]`, drawn from
    U[0, 1).

    Attributes:
      n_layers: number of blocks with a token or a prompt.
      length: vectors of a prompt.
      token_init: key of `_INITS`.
      dim: width of the student.
      head: classifier on the token.
    """

    n_layers: int
    length: int
    token_init: str
    dim: int
    head: nn.Module

    def setup(self) -> None:
        self.token = self.param("token", _INITS[self.token_init], (1, self.dim))
        shape = (self.length, self.dim)
        self.prompts = {
            layer: self.param(f"prompts_{layer}", _INITS["uniform"], shape) for layer in range(1, self.n_layers)
        }

    def inputs(self, batch_size: int) -> tuple[jax.Array, dict[int, Prompt]]:
        """Returns the token float32 `[batch, 1, dim]` and layer -> `Prompt`."""

        def repeat(x):
            return jnp.broadcast_to(x, (batch_size, *x.shape))

        return repeat(self.token), {
            layer: Prompt(suffix=split_kv(repeat(rows))) for layer, rows in self.prompts.items()
        }

    def __call__(self, features: jax.Array) -> jax.Array:
        """Returns the logits of the second head for the token's output `[batch, dim]`."""
        return self.head(features)


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme `alpha temperature^2 KL(teacher || second head)`.

    The prediction is `(1 - alpha) first head + alpha second head`.

    Raises:
      UserError: `length` is odd, or the student has fewer blocks than `n_layers`.
    """
    del teacher
    check_length(options.length, "distill.length")
    if options.n_layers > student.depth:
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

    def second_head(variables, student_out):
        return module.apply(variables, student_out["first_tokens" if deit else "last_tokens"][:, 0])

    return Scheme(
        loss=kd.make_loss(options, second_head),
        label_weight=1 - options.alpha,
        init=lambda key: module.init(key, jnp.zeros((1, student.dim))),
        student_inputs=student_inputs,
        second_head=second_head,
        second_weight=options.alpha,
    )
