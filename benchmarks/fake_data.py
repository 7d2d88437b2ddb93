"""Pictures of any size for timing: noise with labels, the same in every process."""

import numpy as np

from cdl_jax.data import stream


def noise(side: int, tasks: int, classes: int, train: int, test: int, seed: int = 0) -> stream.Stream:
    """A stream of `tasks` with `classes` each; `train` and `test` pictures `[side, side, 3]` a class."""
    rng, total = np.random.default_rng(seed), tasks * classes

    def split(each):
        labels = np.repeat(np.arange(total, dtype=np.int32), each)
        return stream.Split(labels, images=rng.integers(0, 256, (len(labels), side, side, 3), np.uint8))

    names = tuple(f"class {i}" for i in range(total))
    data = stream.Dataset("noise", names, split(train), split(test))
    return stream.split_into_tasks(data, num_tasks=tasks)
