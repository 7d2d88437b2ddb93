"""Orthonormality of VkD's projection over many steps, and the effect of decay.

    python -m benchmarks.run orthogonality [--steps 10000] [--features 64] [--inputs 16] [--out FILE] [--svg FILE]
    python -m benchmarks.run orthogonality --read FILE.json [--svg FILE.svg]

The projection alone is trained, by AdamW with VkD's rate and decay, to map Gaussian features onto the layer-normalised
outputs of a fixed random network. In bfloat16 the trained numbers are rounded after every step, and the weight and the
features before their product; the map between the two is computed in float32, as linear algebra has no lower precision.
The norm of the weight over the first steps shows the effect of weight decay in the published program; --svg draws it.
--read shows what an earlier call found and trains nothing.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import optim
from cdl_jax.distill import vkd
from cdl_jax.models.modules import orthogonal
from cdl_jax.options import defaults
from cdl_jax.report import comparison_plots

BATCH, FIRST = 64, 50
RATE, DECAY = 5e-4, 0.05
HEAD = ("map", "float32", "bfloat16, as the map gives it", "bfloat16, rounded for the product", "moved by")


@partial(jax.jit, static_argnames=("kind", "dtype", "exact", "steps", "features", "inputs"))
def train(kind: str, dtype: str, exact: bool, steps: int, features: int, inputs: int):
    """Trains the projection; returns its weights and norms.

    Args:
      kind: of `distill.vkd.Projector`.
      dtype: "float32" or "bfloat16".
      exact: `reference_exact` of the projector.

    Returns:
      (weight `[features, inputs]` at the start, weight after the last step, Frobenius norms of the weight). The norms
      are those at the start and after each step; None for more than `FIRST` steps.
    """
    projector, keys = vkd.Projector(features, kind, exact), jax.random.split(jax.random.key(0), 4)
    options = ConfigDict(defaults(vkd.OPTIONS, feature_loss="smooth_l1"))
    hidden = jax.random.normal(keys[1], (inputs, 2 * features)) / inputs**0.5
    out = jax.random.normal(keys[2], (2 * features, features)) / (2 * features) ** 0.5
    variables = projector.init(keys[0], jnp.zeros((1, inputs)))
    section = defaults(optim.OPTIONS, name="adamw", learning_rate=RATE, weight_decay=DECAY, schedule="constant")
    transform = optim.build(ConfigDict(section), 1).transform

    def weight(params):
        params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return projector.apply({**variables, "params": params}, jnp.eye(inputs)).T

    def loss(params, x):
        taught = jnp.maximum(x @ hidden, 0) @ out
        projected = (x.astype(dtype) @ weight(params).astype(dtype).T).astype(jnp.float32)
        return vkd.feature_loss(options, projected, taught)

    def step(carry, key):
        params, state = carry
        gradients = jax.grad(loss)(params, jax.random.normal(key, (BATCH, inputs)))
        full = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        updates, state = transform.update(jax.tree.map(lambda g: g.astype(jnp.float32), gradients), state, full)
        params = jax.tree.map(lambda p, u: (p - RATE * u).astype(dtype), full, updates)
        return (params, state), jnp.linalg.norm(weight(params)) if steps <= FIRST else None

    start = jax.tree.map(lambda p: p.astype(dtype), variables["params"])
    state = transform.init(variables["params"])
    (params, _), norms = jax.lax.scan(step, (start, state), jax.random.split(keys[3], steps))
    first = weight(start)
    return first, weight(params), None if norms is None else jnp.append(jnp.linalg.norm(first), norms)


def errors_and_norms(steps: int, features: int, inputs: int) -> dict:
    """Returns the errors of every map, and the norms of the Householder map.

    An error is `max |W^T W - I|` after `steps`. The norms are those over the first steps.
    """
    errors, sizes = {}, (features, inputs)
    for kind in (*orthogonal.MAPS, "linear"):
        start, found, _ = train(kind, "float32", False, steps, *sizes)
        _, low, _ = train(kind, "bfloat16", False, steps, *sizes)
        rounded = low.astype(jnp.bfloat16).astype(jnp.float32)
        figures = (*map(orthogonal.orthogonality_error, (found, low, rounded)), jnp.linalg.norm(found - start))
        errors[kind] = [float(figure) for figure in figures]
        print(kind, errors[kind], flush=True)
    norms = {}
    for name, exact in (("reference_exact=False", False), ("reference_exact=True", True)):
        norms[name] = [float(n) for n in train("householder", "float32", exact, FIRST, *sizes)[2]]
    return {"steps": steps, "features": features, "inputs": inputs, "errors": errors, "norms": norms}


def table(found: dict) -> str:
    """Returns the result of `errors_and_norms` as Markdown."""
    rows = [HEAD, ["---"] * len(HEAD)]
    for kind, (*errors, moved) in found["errors"].items():
        rows.append([kind, *(f"{error:.1e}" for error in errors), f"{moved:.2f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=64, help="width of the teacher's feature")
    parser.add_argument("--inputs", type=int, default=16, help="width of the student's")
    parser.add_argument("--read", type=Path, help="figures of an earlier call to show again")
    parser.add_argument("--svg", type=Path, help="file for the plot of the norm")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    if options.read:
        found = json.loads(options.read.read_text())
    else:
        found = errors_and_norms(options.steps, options.features, options.inputs)
    print(table(found))
    if options.svg:
        options.svg.write_text(
            comparison_plots.line_plot(found["norms"], "optimizer steps", "Frobenius norm of the projection")
        )
    return found
