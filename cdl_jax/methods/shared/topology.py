"""Who hears whom, and in which order each learner meets the classes: NumPy, fixed before a run begins.

A mixing matrix W `[learners, learners]` has in row i how much learner i makes of each other one's answer; rows sum to
1, or to 0 where nobody is heard. "Distributed Knowledge Transfer" has two learners; the rest generalises it.
"""

from collections.abc import Sequence

import numpy as np

from cdl_jax import plugins
from cdl_jax.errors import UserError

TOPOLOGIES = ("full", "ring", "pairs", "star", "none")
ORDERS = ("same", "independent", "shuffled", "rotated")
UNITS = ("steps", "epochs", "tasks")


def mixing(topology: str | Sequence[Sequence[float]], learners: int) -> np.ndarray:
    """float32 `[learners, learners]`.

    full: all others alike. ring: the one before, the last for the first. pairs: 0 and 1, 2 and 3, ...; the last of an
    odd number stays alone. star: all hear the first, which hears all. none: nobody is heard. Or the matrix itself.

    Raises:
      UserError: no such topology, or a matrix that is none.
    """
    if not isinstance(topology, str):
        return _given(topology, learners)
    matrix = np.zeros((learners, learners), np.float32)
    everyone = np.arange(learners)
    if topology == "full":
        matrix[:] = 1 - np.eye(learners)
    elif topology == "ring":
        matrix[everyone, everyone - 1] = 1
    elif topology == "pairs":
        other = everyone ^ 1
        matrix[everyone[other < learners], other[other < learners]] = 1
    elif topology == "star":
        matrix[0, 1:] = matrix[1:, 0] = 1
    elif topology != "none":
        raise UserError(f"dkt.topology={topology!r}: {plugins.did_you_mean(topology, TOPOLOGIES)}, or a matrix")
    matrix[everyone, everyone] = 0
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _given(rows, learners):
    try:
        matrix = np.array(rows, np.float32)
    except ValueError:
        matrix = np.zeros(0, np.float32)
    if matrix.shape != (learners, learners):
        raise UserError(f"dkt.topology: a matrix must have {learners} rows of {learners} numbers, as many as learners")
    sums = matrix.sum(axis=1)
    if (matrix < 0).any() or np.diag(matrix).any() or not np.all(np.isclose(sums, 0) | np.isclose(sums, 1)):
        raise UserError("dkt.topology: a matrix has no negative numbers, zeros in its diagonal, and rows of sum 1 or 0")
    return matrix


def class_orders(kind: str, learners: int, task_sizes: Sequence[int], seed: int) -> tuple[tuple[int, ...], ...]:
    """For each learner all labels in the order in which it meets them.

    same: as the stream has them. independent: each but the first, which has the stream's, has a random order of its
    own. shuffled: the first too. rotated: learner i starts `i tasks / learners` tasks further on.

    Raises:
      UserError: another kind, or rotated tasks of different sizes.
    """
    labels = np.arange(sum(task_sizes))
    if kind == "same":
        orders = [labels] * learners
    elif kind == "independent":
        orders = [labels, *(np.random.default_rng((seed, i)).permutation(len(labels)) for i in range(1, learners))]
    elif kind == "shuffled":
        orders = [np.random.default_rng((seed, i)).permutation(len(labels)) for i in range(learners)]
    elif kind == "rotated":
        if len(set(task_sizes)) > 1:
            raise UserError("dkt.stream_order='rotated' needs tasks of one size: choose 'independent'")
        shifts = [i * len(task_sizes) // learners * task_sizes[0] for i in range(learners)]
        orders = [np.roll(labels, -shift) for shift in shifts]
    else:
        raise UserError(f"dkt.stream_order={kind!r}: {plugins.did_you_mean(kind, ORDERS)}")
    return tuple(tuple(int(label) for label in order) for order in orders)
