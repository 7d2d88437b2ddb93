"""No teacher: the student learns alone, with the teacher's loss (cross-entropy of weight 1 and its pool's loss)."""

import jax.numpy as jnp

from cdl_jax.distill.base import Scheme

OPTIONS = {}


def build(options, teacher, student) -> Scheme:
    """The scheme without a distillation term."""
    del options, teacher, student
    return Scheme(loss=lambda *_: (jnp.zeros(()), {}), needs=())
