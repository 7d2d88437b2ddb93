"""Prompt pools: one continual learner a file.

A file offers `OPTIONS`, its option section, and `build(options, *, dim, key_dim, depth, num_tasks)`, which gives a Flax
module. Called with `(query, context, train)` the module returns a `Selection`. `start_task(params, context, key)` and
`end_task(params, context)` map the pool's parameters to those with which the task begins and ends, between tasks and
compiled once.
"""

from collections.abc import Mapping

import jax
from flax import struct

from cdl_jax.models.vit import Prompt


@struct.dataclass
class Selection:
    """What a pool chose for a batch.

    prompts: layer -> Prompt for the backbone.
    loss: scalar, the pool's own loss in training, 0 otherwise.
    selected: `layer_<i>` -> int32 `[batch, pool]`, how often each row of the pool was chosen for each picture; empty
      where nothing is chosen.
    """

    prompts: Mapping[int, Prompt]
    loss: jax.Array
    selected: Mapping[str, jax.Array]
