"""Training steps of a method without data, mesh and trainer.

They are for tests that compare variables.
"""

from functools import partial

import jax

from cdl_jax.methods.base import join, split

# Compiles in a fraction of the time. The speed of the program does not matter in tests.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_disable_hlo_passes": "fusion"})


def train(method, variables, batches, places, phase=0):
    """Takes one step on each batch; returns (variables, metrics) after each step.

    Both have NumPy arrays.

    Args:
        places: context of each step.
        phase: index of the phase of a task. Default: 0.
    """
    updates, history = method.phases[phase].updates, []
    opt = [quick(u.optimizer.transform.init)(split(variables, u.trainable)[0]) for u in updates]

    @quick
    def step(variables, opt, batch, place):
        metrics, after = {}, []
        for update, state in zip(updates, opt, strict=True):
            trained, rest = split(variables, update.trainable)
            loss = lambda t, u=update, r=rest: u.loss(join(r, t), batch, place)  # noqa: E731
            gradients, outcome = jax.grad(loss, has_aux=True)(trained)
            direction, state = update.optimizer.transform.update(gradients, state, trained)
            rate = update.optimizer.learning_rate(place.progress)
            trained = jax.tree.map(lambda p, d, rate=rate: p - rate * d, trained, direction)
            variables = join(rest, trained, outcome.variables)
            after.append(state)
            metrics |= outcome.metrics
        return variables, after, metrics

    for batch, place in zip(batches, places, strict=True):
        variables, opt, metrics = step(variables, opt, batch, place)
        history.append((variables, metrics))
    return jax.device_get(history)  # NumPy compares without compiling
