"""Fake images of any size for timing: noise with labels, equal in every process."""

import numpy as np

from cdl_jax.data import stream


def noise_stream(side: int, tasks: int, classes: int, train: int, test: int, seed: int = 0) -> stream.Stream:
    """Makes a stream of noise.

    Args:
        side: height and width of the images, in pixels.
        tasks: number of tasks.
        classes: number of classes of each task.
        train: number of training images of each class, uint8 `[side, side, 3]`.
        test: number of test images of each class.
        seed: of the random numbers. Default: 0.
    """
    rng, total = np.random.default_rng(seed), tasks * classes

    def split(each):
        labels = np.repeat(np.arange(total, dtype=np.int32), each)
        return stream.Split(labels, images=rng.integers(0, 256, (len(labels), side, side, 3), np.uint8))

    names = tuple(f"class {i}" for i in range(total))
    data = stream.Dataset("noise", names, split(train), split(test))
    return stream.split_into_tasks(data, num_tasks=tasks)
