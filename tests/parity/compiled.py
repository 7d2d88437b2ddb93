"""Runners as single compiled programs."""

from functools import partial

import jax


def compiled(runner):
    """Compiles a jax-only runner: one program a case instead of one an operation."""

    def run(config, arrays):
        return jax.device_get(jax.jit(partial(runner, config))(arrays))

    return run
