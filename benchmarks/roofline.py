"""Operations and bytes of the work, and the most that the device can do.

A measured time gives the share of this maximum that the work reaches. Counted are the matrix products, which are all
but a few percent of the operations of a Transformer: two operations a multiply-add. Bytes are those of a program that
reads the operands of each product once, writes its result once, keeps the scores of an attention on the chip and fuses
all else into the products.
"""

from dataclasses import dataclass
from functools import partial

from benchmarks import timing
from cdl_jax.runtime.operations import Work


def product(rows: int, inner: int, columns: int, size: int = 4) -> Work:
    """`[rows, inner] @ [inner, columns]` of numbers of `size` bytes."""
    return Work(2.0 * rows * inner * columns, size * (rows * inner + inner * columns + rows * columns))


def attention(batch: int, queries: int, keys: int, dim: int, size: int = 4) -> Work:
    """Scores and mixture of one layer, over all heads."""
    return Work(4.0 * batch * queries * keys * dim, size * batch * dim * (2 * queries + 2 * keys))


def block(options, batch: int, tokens: int, prompts: int, size: int = 4) -> tuple[Work, Work]:
    """Returns the work of the forward pass of a Transformer block.

    Args:
      prompts: number of keys beside those of the tokens.

    Returns:
      (work of the dense layers, work of the attention).
    """
    dim, hidden, rows = options.dim, int(options.dim * options.mlp_ratio), batch * tokens
    shapes = ((dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim))
    dense = sum((product(rows, inner, out, size) for inner, out in shapes), Work())
    return dense, attention(batch, tokens, tokens + prompts, dim, size)


def forward(options, batch: int, extra: int = 0, prompts=(), size: int = 4) -> Work:
    """Returns the work of a ViT's forward pass.

    Args:
      extra: number of tokens beside class token and patches. Default: 0.
      prompts: number of additional keys of each layer. Default: none.
    """
    patches = (options.image_size // options.patch_size) ** 2
    total = product(batch * patches, 3 * options.patch_size**2, options.dim, size)
    for layer in range(options.depth):
        keys = prompts[layer] if layer < len(prompts) else 0
        dense, mixed = block(options, batch, 1 + patches + extra, keys, size)
        total = total + dense + mixed
    return total


def training(options, batch: int, extra: int = 0, prompts=(), size: int = 4) -> Work:
    """Returns the work of a forward and backward pass of a ViT with frozen weights.

    The trained parameters lie ahead of its first block. Backward a dense layer costs one product (the gradient of its
    input, none of its weight), an attention two for each of its two.
    """
    patches = (options.image_size // options.patch_size) ** 2
    total = forward(options, batch, extra, prompts, size)
    for layer in range(options.depth):
        keys = prompts[layer] if layer < len(prompts) else 0
        dense, mixed = block(options, batch, 1 + patches + extra, keys, size)
        total = total + dense + mixed * 2
    return total


@dataclass(frozen=True)
class Ceiling:
    """The most that a device can do.

    Attributes:
      flops: operations a second of a large matrix product.
      bandwidth: bytes a second of a large copy, read and written.
    """

    flops: float
    bandwidth: float

    def seconds(self, work: Work) -> float:
        """The least time that the work can take."""
        return max(work.flops / self.flops, work.bytes / self.bandwidth)


def efficiency(work: Work, ceiling: Ceiling, seconds: float) -> dict:
    """Returns how close a measured time is to the possible one.

    `gflop`, `mbyte`; `mfu`, the share of the device's operations that the work used; `least_ms`, the least time that it
    can take; `of_roof`, that time over the measured one; `bound`, what limits it: "compute" or "memory".
    """
    compute, memory = work.flops / ceiling.flops, work.bytes / ceiling.bandwidth
    return {
        "gflop": work.flops / 1e9,
        "mbyte": work.bytes / 1e6,
        "mfu": compute / seconds,
        "least_ms": 1e3 * ceiling.seconds(work),
        "of_roof": ceiling.seconds(work) / seconds,
        "bound": "compute" if compute >= memory else "memory",
    }


def measure(bfloat16: bool = False, tries: int = 5) -> Ceiling:
    """The ceilings of jax's first device, each the best of `tries`."""
    import jax
    import jax.numpy as jnp

    gpu = jax.default_backend() != "cpu"
    side, numbers = (8192, 2**28) if gpu else (1024, 2**25)
    dtype = jnp.bfloat16 if bfloat16 else jnp.float32
    matrix, long = jnp.full((side, side), 1 / side, dtype), jnp.zeros(numbers, jnp.float32)
    multiply = jax.jit(partial(jnp.matmul, precision=None if bfloat16 else "highest"))
    # In place: memory that is new to the process costs more than the copy.
    copy = jax.jit(lambda x, _: x + 1, donate_argnums=0)
    best = _best(multiply, matrix, matrix, tries)
    moved = _best(copy, long, None, tries)
    return Ceiling(2.0 * side**3 / best, 2 * 4.0 * numbers / moved)


def _best(work, x, y, tries):
    """Seconds of the fastest of `tries` calls, each with the result of the one before."""
    import jax

    seconds = []
    for _ in range(tries + 1):
        start = timing.now()
        x = jax.block_until_ready(work(x, y))
        seconds.append(timing.now() - start)
    return min(seconds[1:])
