"""Mixing matrices and class orders of DKT's learners, in NumPy.

Both are fixed before a run begins. A mixing matrix W `[learners, learners]` weights in row i the outputs that learner
i receives from every other learner. Rows sum to 1, or to 0 for a learner that receives nothing. "Distributed Knowledge
Transfer" has two learners; the topologies here generalize it.
"""

import ast
from collections.abc import Sequence

import numpy as np

from cdl_jax import plugins
from cdl_jax.errors import UserError

TOPOLOGIES = ("full", "ring", "pairs", "star", "none")
ORDERS = ("same", "independent", "shuffled", "rotated")
UNITS = ("steps", "epochs", "tasks")


def mixing_matrix(topology: str | Sequence[Sequence[float]], num_learners: int) -> np.ndarray:
    """Builds the mixing matrix of a topology.

    Args:
      topology: "full": each learner receives from all others, equally weighted. "ring": from the one before, the first
        from the last. "pairs": 0 and 1, 2 and 3, ... exchange; an odd last learner receives nothing. "star": all
        receive from the first, which receives from all. "none": nobody receives. Or the matrix itself, as rows or as
        their text.
      num_learners: at least 1.

    Returns:
      float32 `[learners, learners]`.

    Raises:
      UserError: unknown topology, or an invalid matrix.

    Example:
      >>> mixing_matrix("ring", 3).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
      >>> mixing_matrix("star", 3).tolist()
      [[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
      >>> mixing_matrix("((0, 1), (0, 0))", 2).tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    if not isinstance(topology, str) or topology.startswith(("(", "[")):
        return _checked_matrix(topology, num_learners)
    matrix = np.zeros((num_learners, num_learners), np.float32)
    learners = np.arange(num_learners)
    if topology == "full":
        matrix[:] = 1 - np.eye(num_learners)
    elif topology == "ring":
        matrix[learners, learners - 1] = 1
    elif topology == "pairs":
        partner = learners ^ 1
        matrix[learners[partner < num_learners], partner[partner < num_learners]] = 1
    elif topology == "star":
        matrix[0, 1:] = matrix[1:, 0] = 1
    elif topology != "none":
        raise UserError(f"dkt.topology={topology!r}: {plugins.did_you_mean(topology, TOPOLOGIES)}, or a matrix")
    matrix[learners, learners] = 0
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def _checked_matrix(rows: str | Sequence[Sequence[float]], num_learners: int) -> np.ndarray:
    try:
        matrix = np.array(ast.literal_eval(rows) if isinstance(rows, str) else rows, np.float32)
    except (TypeError, ValueError, SyntaxError):
        matrix = np.zeros(0, np.float32)
    if matrix.shape != (num_learners, num_learners):
        raise UserError(
            f"dkt.topology: a matrix must have {num_learners} rows of {num_learners} numbers, as many as learners"
        )
    sums = matrix.sum(axis=1)
    if (matrix < 0).any() or np.diag(matrix).any() or not np.all(np.isclose(sums, 0) | np.isclose(sums, 1)):
        raise UserError("dkt.topology: a matrix has no negative numbers, zeros in its diagonal, and rows of sum 1 or 0")
    return matrix


def class_orders(kind: str, num_learners: int, task_sizes: Sequence[int], seed: int) -> tuple[tuple[int, ...], ...]:
    """Computes the class order of each learner.

    Args:
      kind: "same": the stream's order for all. "independent": the first learner has the stream's order, each other one
        a random order. "shuffled": each learner has a random order. "rotated": learner i starts
        `i * tasks // learners` tasks later and wraps around.
      num_learners: at least 1.
      task_sizes: number of classes of each task.
      seed: of the random orders.

    Returns:
      For each learner all labels, in the order in which it learns them.

    Raises:
      UserError: "rotated" with tasks of unequal sizes.

    Example:
      >>> class_orders("rotated", 2, (1, 1, 1, 1), seed=0)
      ((0, 1, 2, 3), (2, 3, 0, 1))
    """
    labels = np.arange(sum(task_sizes))
    if kind == "same":
        orders = [labels] * num_learners
    elif kind == "independent":
        orders = [labels, *(np.random.default_rng((seed, i)).permutation(len(labels)) for i in range(1, num_learners))]
    elif kind == "shuffled":
        orders = [np.random.default_rng((seed, i)).permutation(len(labels)) for i in range(num_learners)]
    else:
        if len(set(task_sizes)) > 1:
            raise UserError("dkt.stream_order='rotated' needs tasks of one size: choose 'independent'")
        shifts = [i * len(task_sizes) // num_learners * task_sizes[0] for i in range(num_learners)]
        orders = [np.roll(labels, -shift) for shift in shifts]
    return tuple(tuple(int(label) for label in order) for order in orders)
