"""The order in which the rows of a split are read: pure functions of counters, so that nothing is saved to resume."""

import numpy as np

from cdl_jax.errors import UserError


def epoch_order(
    n: int,
    batch_size: int,
    *,
    seed: int,
    purpose: tuple[int, ...],
    shuffle: bool = True,
    last_batch: str = "drop",
    repeats: int = 1,
) -> np.ndarray:
    """Row numbers of one epoch, int32 `[steps, batch_size]`: n // batch_size steps, or one more.

    A pure function of its arguments: nothing is saved to resume, and every process computes the same order.

    Args:
      n: number of pictures.
      seed, purpose: non-negative counters, such as a run's seed and (task, phase, epoch).
      last_batch: "drop" an incomplete last batch, or "keep" it: behind its rows stands -1.
      repeats: how often a picture comes, in a row; the epoch is no longer, so it ends after n / repeats pictures
        (repeated augmentation, Hoffer et al., 2020, as DeiT has it).

    Raises:
      UserError: not even one batch can be filled, and an incomplete one is not kept.
    """
    steps = n // batch_size
    if not steps and last_batch == "drop":
        raise UserError(
            f"batch_size={batch_size}: a task has only {n} training pictures; set batch_size to {n} or less"
        )
    rows = rng_for(seed, *purpose).permutation(n) if shuffle else np.arange(n)
    rows = np.repeat(rows[: -(-n // repeats)], repeats)[:n]
    if last_batch == "keep":
        steps = -(-n // batch_size)
        rows = np.pad(rows, (0, steps * batch_size - n), constant_values=-1)
    return rows[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def sequential_order(n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row once, in order: (rows int32 `[steps, batch]`, weight float32 `[steps, batch]`).

    The last batch is filled up with row 0 at weight 0.
    """
    steps = -(-n // batch_size)
    count = np.arange(steps * batch_size).reshape(steps, batch_size)
    return np.where(count < n, count, 0).astype(np.int32), (count < n).astype(np.float32)


def rng_for(seed: int, *purpose: int) -> np.random.Generator:
    """The random numbers of a purpose: the same in every process, and none of them those of another purpose."""
    # A spawn key rather than more entropy: entropy is padded with zeros, so that (1, 2) and (1, 2, 0) would coincide.
    return np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=tuple(int(p) for p in purpose)))
