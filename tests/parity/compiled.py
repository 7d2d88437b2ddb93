"""Runners as single compiled programs."""

from functools import partial

import jax


def compiled(runner):
    """Compiles a runner that computes with jax alone: one program a case instead of one program an operation."""

    def run(config, arrays):
        return jax.device_get(jax.jit(partial(runner, config))(arrays))

    return run
