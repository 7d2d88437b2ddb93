"""Fused attention against products and a softmax: accuracy and time.

    python -m benchmarks.run attention [--batch 64] [--heads 12] [--keys 197 201 247]

Both ways compute in bfloat16. Their values and gradients are compared with float32. An error is the largest difference
over the largest number. The fused kernel is cuDNN's on an NVIDIA GPU. Elsewhere the same function, with its padding,
has XLA's kernels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from cdl_jax.models.modules import attention
from cdl_jax.runtime import target

HEAD = ("queries, keys", "implementation", "error of values", "of gradients", "ms forward and backward", "ratio")
WORST = 2.0  # largest error of the fused kernel over that of the plain way


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--batch", type=int, default=64, help="number of images")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--queries", type=int, default=197)
    parser.add_argument("--keys", nargs="+", type=int, default=(197, 201, 247), help="with prompts")
    parser.add_argument("--calls", type=int, default=12, help="in a round, as many as a ViT has blocks")
    parser.add_argument("--rounds", type=int, default=7)


def measure(options) -> dict:
    """Prints the table; returns its figures.

    `wrong` is a message where the fused kernel is too inaccurate, None otherwise.
    """
    has_kernel = target.current().has_fused_attention("bfloat16", options.width)
    ways = {"plain": _plain, "fused": _fused("cudnn" if has_kernel else "xla")}
    print(timing.markdown(HEAD, []), flush=True)
    found, wrong = [], None
    for keys in options.keys:
        exact = _arrays(options, keys, jnp.float32)
        with jax.default_matmul_precision("highest"):
            reference = jax.jit(_differentiated(_plain))(exact)
        arrays = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact)
        programs = {name: jax.jit(_differentiated(way)) for name, way in ways.items()}
        errors = {name: _errors(program(arrays), reference) for name, program in programs.items()}
        timed = {name: lambda p=program, a=arrays: _milliseconds(p, a, options) for name, program in programs.items()}
        ms = timing.compare(timing.alternate(timed, options.rounds), "plain")
        found.append({"queries": options.queries, "keys": keys, "errors": errors, "ms": ms})
        for name in ways:
            values, gradients = (f"{error:.1e}" for error in errors[name].values())
            cells = (f"{options.queries}, {keys}", name, values, gradients, f"{ms[name]['median']:.3f}")
            print("| " + " | ".join((*cells, f"{ms[name]['ratio']:.2f}")) + " |", flush=True)
        if any(not errors["fused"][part] <= WORST * errors["plain"][part] for part in errors["plain"]):
            wrong = (
                f"benchmarks: fused attention with {keys} keys is over {WORST:g} times as inaccurate as the plain one"
            )
    kernel = "cudnn" if has_kernel else "xla"
    return {"kernel": kernel, "batch": options.batch, "heads": options.heads, "attention": found, "wrong": wrong}


def _arrays(options, keys, dtype):
    """Returns query, key, value and the gradient of the output.

    Their numbers are exact in bfloat16, whatever `dtype` is.
    """
    random = np.random.default_rng(0)
    lengths = (options.queries, keys, keys)
    arrays = [random.normal(size=(options.batch, length, options.heads, options.width)) for length in lengths]
    arrays.append(random.normal(size=(options.batch, options.queries, options.heads * options.width)))
    return [jnp.asarray(x, jnp.bfloat16).astype(dtype) for x in arrays]


def _plain(query, key, value):
    return attention.mix(query, key, value, attention.weights(query, key))


def _fused(implementation):
    def mix(query, key, value):
        mixed = attention.fused_attention(query, key, value, implementation)[:, : query.shape[1]]
        return mixed.reshape(*mixed.shape[:2], -1)

    return mix


def _differentiated(way):
    def run(arrays):
        *inputs, gradient = arrays
        values, pullback = jax.vjp(way, *inputs)
        return values, pullback(gradient.astype(values.dtype))

    return run


def _errors(found, reference):
    """Returns the errors of values and of gradients."""
    values, gradients = (
        max(map(_error, jax.tree.leaves(ours), jax.tree.leaves(exact)))
        for ours, exact in zip(found, reference, strict=True)
    )
    return {"values": values, "gradients": gradients}


def _error(found, exact):
    return float(jnp.abs(found.astype(jnp.float32) - exact).max() / jnp.abs(exact).max())


def _milliseconds(program, arrays, options):
    start = timing.now()
    jax.block_until_ready([program(arrays) for _ in range(options.calls)])
    return 1e3 * (timing.now() - start) / options.calls
