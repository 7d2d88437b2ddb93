"""Defines the metrics of a run over a stream.

The first paragraph of a metric's docstring is the metric's definition in results.json.

Most are functions of the accuracy matrix A: A[i, j] is the percent of task j's test images that are correct after
learning task i, predicted over all classes seen until then, without task identity; T is the number of tasks. Methods
whose loss spans all classes of the stream (`classes=all`) predict over all of them. Of a detector, A[i, j] is the
average precision of task j's classes in percent, and metrics of images do not exist. On the same images and classes, E
is the matrix of a network's expected calibration errors, and G and D are the matrices of a teacher's and its student's
agreement and divergence. S is A with all tasks of the stream in every row, future ones too; it exists where learners
have streams of their own. O is A with the task of each image given, so predicted over the classes of this task alone.

Of a generator, A[i, j] is a distance between generated and real images of task j's classes, and smaller numbers are
better. Forgetting and transfer then have the opposite sign, so that positive forgetting is a loss, and the worst task
has the maximum.
"""

import numpy as np

from cdl_jax.errors import UserError


def as_matrix(rows) -> np.ndarray:
    """Returns rows of 1, 2, ..., T numbers as a matrix with NaN above the diagonal.

    Returns:
      float64 `[T, T]`.

    Raises:
      UserError: row i has not i + 1 numbers.
    """
    matrix = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        if len(row) != i + 1:
            raise UserError(f"matrix: row {i} has {len(row)} numbers instead of {i + 1}")
        matrix[i, : i + 1] = row
    return matrix


def last(matrix) -> float:
    """mean over j of A[T-1, j]: every task counts alike."""
    return float(matrix[-1].mean())


def average_incremental(matrix) -> float:
    """mean over i of the mean over j <= i of A[i, j]."""
    return float(np.nanmean(matrix, axis=1).mean())


def last_image_weighted(matrix, test_counts) -> float:
    """mean of A[T-1, j] weighted by task j's test images: every image counts alike."""
    return float(np.average(matrix[-1], weights=test_counts[: len(matrix)]))


def average_incremental_image_weighted(matrix, test_counts) -> float:
    """mean over i of the mean over j <= i of A[i, j] weighted by task j's test images."""
    rows = [np.average(row[: i + 1], weights=test_counts[: i + 1]) for i, row in enumerate(matrix)]
    return float(np.mean(rows))


def learning_accuracy(matrix) -> float:
    """mean over j of A[j, j]: right after a task was learned."""
    return float(np.diag(matrix).mean())


def worst_task(matrix) -> float:
    """min over j of A[T-1, j]."""
    return float(matrix[-1].min())


def forgetting_cdl(matrix) -> float:
    """sum over j of (A[j, j] - A[T-1, j]) / T:
    what the CDL program prints and its tables show."""
    return float((np.diag(matrix) - matrix[-1]).sum() / len(matrix))


def forgetting_coda(matrix) -> float:
    """1/(T-1) sum over t >= 1 of 1/t sum over i < t of (A[t-1, i] - A[t, i]):
    CODA-Prompt's."""
    steps = [(matrix[t - 1, :t] - matrix[t, :t]).mean() for t in range(1, len(matrix))]
    return float(np.mean(steps))


def forgetting_max(matrix) -> float:
    """mean over j < T-1 of (max over t of A[t, j] - A[T-1, j]): L2P's, divided by T-1."""
    return float((np.nanmax(matrix, axis=0) - matrix[-1])[:-1].mean())


def backward_transfer(matrix) -> float:
    """mean over j < T-1 of (A[T-1, j] - A[j, j]) (Lopez-Paz and Ranzato, 2017)."""
    return float((matrix[-1] - np.diag(matrix))[:-1].mean())


def forgetting_by_task(matrix, best: bool = False) -> np.ndarray:
    """A[j, j] - A[T-1, j] of each task j but the last;
    its mean is the negative backward transfer.

    float64 `[T-1]`; with `best`, max over j <= k < T-1 of A[k, j] - A[T-1, j].
    """
    before = np.where(np.tril(np.ones_like(matrix)), matrix, -np.inf)[:-1, :-1]
    return (before.max(axis=0, initial=-np.inf) if best else np.diag(before)) - matrix[-1, :-1]


def forgetting_after_each(matrix) -> np.ndarray:
    """after each task i the mean over j < i of A[j, j] - A[i, j]; 0 after the first.

    float64 `[T]`.
    """
    return np.array([forgetting_by_task(matrix[:n, :n]).mean() if n > 1 else 0.0 for n in range(1, len(matrix) + 1)])


def stream_accuracy(row, counts=None) -> float:
    """mean over all j of S[T-1, j] weighted by task j's test images:
    every image of the stream counts alike, of a task learned already or not."""
    # A run that was continued has shorter rows from before its further tasks.
    return float(np.average(row, weights=None if counts is None else counts[: len(row)]))


def stream_accuracy_by_task(row) -> float:
    """mean over all j of S[T-1, j]: every task of the stream counts alike."""
    return stream_accuracy(row)


def forward_transfer(pretask_accuracy, initial_accuracy) -> float:
    """mean over j >= 1 of pretask_accuracy[j] - initial_accuracy[j]:
    percent on task j over the classes up to it, just before it is learned and at the untrained start (Lopez-Paz and
    Ranzato, 2017)."""
    pretask, initial = np.asarray(pretask_accuracy, np.float64), np.asarray(initial_accuracy, np.float64)
    return float((pretask - initial[: len(pretask)])[1:].mean())


def ece_last(seen) -> float:
    """expected calibration error over the test images of all tasks together
    after learning task T-1: 15 bins of equal width of the top probability over the classes of prediction, sum over bins
    of |correct - sum of probabilities| / images, in percent (Guo et al., 2017)."""
    return float(seen[-1])


def ece_average_incremental(seen) -> float:
    """mean over i of the expected calibration error
    over the test images of tasks 0..i together after learning task i."""
    return float(np.mean(seen))


def ece_last_by_task(matrix) -> float:
    """mean over j of E[T-1, j]:
    the calibration error of each task's test images by themselves."""
    return float(matrix[-1].mean())


def task_incremental_last(matrix) -> float:
    """mean over j of O[T-1, j];
    O[i, j] is the percent of task j's test images that are correct after learning task i, predicted over the classes of
    task j, with task identity."""
    return float(matrix[-1].mean())


def task_incremental_learning(matrix) -> float:
    """mean over j of O[j, j]: right after a task was learned."""
    return float(np.diag(matrix).mean())


def agreement_last(agreement, kl) -> float:
    """mean over j of G[T-1, j];
    G[i, j] is the percent of task j's test images for which teacher and student name the same class after learning task
    i."""
    del kl
    return float(agreement[-1].mean())


def agreement_learning(agreement, kl) -> float:
    """mean over j of G[j, j]: right after a task was distilled."""
    del kl
    return float(np.diag(agreement).mean())


def kl_last(agreement, kl) -> float:
    """mean over j of D[T-1, j];
    D[i, j] is the mean over task j's test images of KL(teacher || student) in nats, softmax at temperature 1 over the
    classes seen, after learning task i."""
    del agreement
    return float(kl[-1].mean())


def kl_learning(agreement, kl) -> float:
    """mean over j of D[j, j]: right after a task was distilled."""
    del agreement
    return float(np.diag(kl).mean())


_MATRIX_METRICS = (last, average_incremental, learning_accuracy, worst_task)
_IMAGE_WEIGHTED_METRICS = (last_image_weighted, average_incremental_image_weighted)
_TWO_TASK_METRICS = (forgetting_cdl, forgetting_coda, forgetting_max, backward_transfer)

_STREAM_METRICS = (stream_accuracy, stream_accuracy_by_task)
_CALIBRATION_METRICS = (ece_last, ece_average_incremental)
_TASK_INCREMENTAL_METRICS = (task_incremental_last, task_incremental_learning)
_PAIR_METRICS = (agreement_last, agreement_learning, kl_last, kl_learning)


def _definitions(functions):
    return {f.__name__: " ".join(f.__doc__.split("\n\n")[0].split()) for f in functions}


_ACCURACY_METRICS = (*_MATRIX_METRICS, *_IMAGE_WEIGHTED_METRICS, *_TWO_TASK_METRICS, forward_transfer)
_IMAGE_METRICS = (*_STREAM_METRICS, *_CALIBRATION_METRICS, ece_last_by_task, *_TASK_INCREMENTAL_METRICS)
FORMULAS = _definitions((*_ACCURACY_METRICS, *_IMAGE_METRICS, *_PAIR_METRICS))
SERIES = _definitions((forgetting_by_task, forgetting_after_each, *_STREAM_METRICS))  # one number for each task


def named_metrics(
    rows, test_counts, pretask_accuracy=None, initial_accuracy=None, *, lower_is_better: bool = False
) -> dict[str, float | None]:
    """Returns every metric of the finished tasks by name.

    A metric is None where a single task or a missing row defines none.

    Args:
      rows: the accuracy matrix as rows of 1, 2, ... numbers.
      test_counts: number of test images of each task of the stream; None leaves out the image-weighted metrics.
      pretask_accuracy: see `forward_transfer`.
      initial_accuracy: see `forward_transfer`.
      lower_is_better: whether the numbers are distances, see the module.
    """
    sign = -1 if lower_is_better else 1
    matrix = sign * as_matrix(rows)
    values = {f.__name__: sign * f(matrix) for f in _MATRIX_METRICS}
    if test_counts is not None:
        values |= {f.__name__: sign * f(matrix, test_counts) for f in _IMAGE_WEIGHTED_METRICS}
    values |= {f.__name__: f(matrix) if len(matrix) > 1 else None for f in _TWO_TASK_METRICS}
    # The untrained start of tasks that were added later is unknown.
    known = pretask_accuracy and initial_accuracy and 1 < len(pretask_accuracy) <= len(initial_accuracy)
    transfer = sign * forward_transfer(pretask_accuracy, initial_accuracy) if known else None
    values["forward_transfer"] = transfer
    return values


def stream_metrics(rows, test_counts) -> dict[str, float | None]:
    """Returns the accuracy over all tasks of a stream by name; None: not measured.

    Args:
      rows: accuracy on every task of the stream, after each finished task.
      test_counts: number of test images of each task.
    """
    if not rows:
        return dict.fromkeys(f.__name__ for f in _STREAM_METRICS)
    return {
        "stream_accuracy": stream_accuracy(rows[-1], test_counts),
        "stream_accuracy_by_task": stream_accuracy_by_task(rows[-1]),
    }


def series(rows, stream, test_counts, *, lower_is_better: bool = False) -> dict[str, list[float]]:
    """Returns the metrics that have a value for each task.

    Args:
      rows: the accuracy matrix.
      stream: the rows of `stream_metrics`, or None.
      test_counts: number of test images of each task.
      lower_is_better: whether the numbers are distances, see the module.
    """
    matrix = -as_matrix(rows) if lower_is_better else as_matrix(rows)
    values = {f.__name__: f(matrix).tolist() for f in (forgetting_by_task, forgetting_after_each)}
    if stream:
        values["stream_accuracy"] = [stream_accuracy(row, test_counts) for row in stream]
        values["stream_accuracy_by_task"] = [stream_accuracy_by_task(row) for row in stream]
    return values


def means(networks: list[dict]) -> dict[str, float | None]:
    """Averages each metric over networks; None where a network lacks it."""
    values = {name: [metrics[name] for metrics in networks] for name in networks[0]}
    return {name: None if None in row else float(np.mean(row)) for name, row in values.items()}


def calibration_metrics(rows, seen) -> dict[str, float | None]:
    """Returns the calibration metrics of a network by name; None: not measured.

    Args:
      rows: expected calibration error in percent on each task, as rows of 1, 2, ... numbers.
      seen: the same over the tasks seen together, after each task.
    """
    by_name = {f.__name__: f(seen) if seen else None for f in _CALIBRATION_METRICS}
    return {**by_name, "ece_last_by_task": ece_last_by_task(as_matrix(rows)) if rows else None}


def task_incremental_metrics(rows) -> dict[str, float | None]:
    """Returns the accuracies with task identity by name; None: not measured.

    Args:
      rows: percent on each task over its own classes, as rows of 1, 2, ... numbers; or None.
    """
    matrix = as_matrix(rows) if rows else None
    return {f.__name__: None if matrix is None else f(matrix) for f in _TASK_INCREMENTAL_METRICS}


def pair_metrics(agreement, kl) -> dict[str, float]:
    """Returns the metrics of a teacher and its student by name.

    Args:
      agreement: rows of 1, 2, ... percents.
      kl: rows of 1, 2, ... nats.
    """
    agreement, kl = as_matrix(agreement), as_matrix(kl)
    return {f.__name__: f(agreement, kl) for f in _PAIR_METRICS}
