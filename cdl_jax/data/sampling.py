"""Orders the rows of a split into batches.

All functions are pure, so nothing is saved to resume.
"""

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
    """Shuffles the rows of one epoch into batches.

    A pure function of its arguments, so every process computes the same order.

    >>> epoch_order(5, 2, seed=0, purpose=(), shuffle=False).tolist()
    [[0, 1], [2, 3]]
    >>> epoch_order(5, 2, seed=0, purpose=(), shuffle=False, last_batch="keep").tolist()
    [[0, 1], [2, 3], [4, -1]]

    Args:
      n: number of images.
      batch_size: images in a batch.
      seed: of the run, non-negative.
      purpose: non-negative counters, such as (task, phase, epoch).
      shuffle: False keeps the rows in order.
      last_batch: "drop" leaves out an incomplete last batch; "keep" pads it with row -1.
      repeats: number of times that an image appears, in a row. The epoch keeps its length, so it ends after n / repeats
        images (repeated augmentation, Hoffer et al., 2020, as in DeiT).

    Returns:
      int32 `[steps, batch_size]`, rows; n // batch_size steps, or one more with "keep".

    Raises:
      UserError: n is less than `batch_size`, and `last_batch` is "drop".
    """
    steps = n // batch_size
    if not steps and last_batch == "drop":
        raise UserError(f"batch_size={batch_size}: a task has only {n} training images; set batch_size to {n} or less")
    rows = rng_for(seed, *purpose).permutation(n) if shuffle else np.arange(n)
    rows = np.repeat(rows[: -(-n // repeats)], repeats)[:n]
    if last_batch == "keep":
        steps = -(-n // batch_size)
        rows = np.pad(rows, (0, steps * batch_size - n), constant_values=-1)
    return rows[: steps * batch_size].reshape(steps, batch_size).astype(np.int32)


def sequential_order(n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Orders every row once, for evaluation.

    >>> rows, weight = sequential_order(3, 2)
    >>> rows.tolist(), weight.tolist()
    ([[0, 1], [2, 0]], [[1.0, 1.0], [1.0, 0.0]])

    Returns:
      (rows int32 `[steps, batch_size]`, weight float32 `[steps, batch_size]`). The last batch is padded with row 0 at
      weight 0.
    """
    steps = -(-n // batch_size)
    count = np.arange(steps * batch_size).reshape(steps, batch_size)
    return np.where(count < n, count, 0).astype(np.int32), (count < n).astype(np.float32)


def rng_for(seed: int, *purpose: int) -> np.random.Generator:
    """Returns the random generator of a purpose.

    It is the same in every process. Different purposes have independent generators.

    Args:
      seed: of the run, non-negative.
      purpose: non-negative counters.
    """
    # A spawn key rather than more entropy: entropy is padded with zeros, so that (1, 2) and (1, 2, 0) would coincide.
    return np.random.default_rng(np.random.SeedSequence(int(seed), spawn_key=tuple(int(p) for p in purpose)))
