"""Measures accuracy, calibration of one network and agreement of two.

The evaluation step computes numbers for each image and sums them by task on the device. The ratios are taken once, over
all batches, so they depend neither on the batch size nor on the number of devices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data.stream import Task
from cdl_jax.losses import kl_divergences, mask_classes

BINS = 15


def calibration_bins(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sorts images into bins of the top probability.

    Bin m of M = 15 holds the probabilities in (m/M, (m+1)/M], softmax over the classes of `mask`.

    Args:
      logits: `[batch, classes]`.
      labels: int32 `[batch]`.
      mask: bool `[classes]`.

    Returns:
      `calibration`, float32 `[batch, 15, 3]`: in the image's bin 1, whether the prediction is correct, and the top
      probability; zeros in the other bins.
    """
    masked = mask_classes(logits, mask)
    confidence = jax.nn.softmax(masked).max(axis=-1)
    bins = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(jnp.int32)
    correct = (masked.argmax(axis=-1) == labels).astype(jnp.float32)
    values = jnp.stack([jnp.ones_like(confidence), correct, confidence], axis=-1)
    return {"calibration": jax.nn.one_hot(bins, BINS)[:, :, None] * values[:, None, :]}


def agreement_and_kl(teacher: jax.Array, student: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Compares the predictions of two networks over the classes of `mask`.

    Args:
      teacher: logits `[batch, classes]`.
      student: logits `[batch, classes]`.
      mask: bool `[classes]`.

    Returns:
      float32 `[batch]` each: `agreement`, whether both predict the same class, and `kl`, KL(teacher || student) in nats
      at temperature 1.
    """
    same = mask_classes(teacher, mask).argmax(axis=-1) == mask_classes(student, mask).argmax(axis=-1)
    return {"agreement": same.astype(jnp.float32), "kl": kl_divergences(student, teacher, mask, 1.0)}


def calibration_error(sums: np.ndarray) -> np.ndarray:
    """Returns the expected calibration error in percent, `[...]` (Guo et al., 2017).

    sums: `calibration_bins` summed over images, `[..., 15, 3]`.
    """
    sums = np.asarray(sums, np.float64)
    return 100 * np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1) / sums[..., 0].sum(axis=-1)


def finalize(networks: dict, pairs: dict, images: np.ndarray, task_ids: list[int]) -> dict[str, dict]:
    """Computes calibration and agreement from the sums of an evaluation.

    Args:
      networks: network -> {"calibration": `[tasks, 15, 3]`}.
      pairs: pair -> {"agreement", "kl": `[tasks]`}.
      images: number of images of each task, `[tasks]`.
      task_ids: the tasks to return.

    Returns:
      {"ece": {network: [percent on each task]}, "ece_seen": {network: percent on all of them together},
       "agreement": {pair: [percent]}, "kl": {pair: [nats]}}
    """
    bins = {name: sums["calibration"][task_ids] for name, sums in networks.items()}
    count = images[task_ids]
    return {
        "ece": {name: calibration_error(b).tolist() for name, b in bins.items()},
        "ece_seen": {name: float(calibration_error(b.sum(axis=0))) for name, b in bins.items()},
        "agreement": {pair: (100 * sums["agreement"][task_ids] / count).tolist() for pair, sums in pairs.items()},
        "kl": {pair: (sums["kl"][task_ids] / count).tolist() for pair, sums in pairs.items()},
    }


def aggregate_batches(parts: list[dict], tasks: Sequence[Task], all_tasks: bool) -> tuple[dict, dict, dict, dict, dict]:
    """Sums the outputs of the evaluation step over batches.

    Args:
      parts: sums of the evaluation step, as NumPy arrays.
      tasks: the tasks to return.
      all_tasks: whether the batches have the test images of all tasks of the stream.

    Returns:
      Accuracy, counts, extra metrics, calibration and task-incremental accuracy, see `training.evaluator`.
    """
    sums = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=np.float64), *parts)
    images, pairs, task_ids = sums.pop("images"), sums.pop("pairs"), [task.index for task in tasks]
    extra_metrics = {name: float(value.sum() / images.sum()) for name, value in sums.pop("extra_metrics").items()}
    for network in sums:
        batch_accuracy = [100 * part[network]["correct"].sum() / part["images"].sum() for part in parts]
        extra_metrics[f"{network}/accuracy_batch_mean"] = float(np.mean(batch_accuracy))
    stream = {network: 100 * s["correct"] / s["images"].clip(1) for network, s in sums.items()}
    accuracy = {network: row[task_ids].tolist() for network, row in stream.items()}
    not_counts = ("correct", "task_incremental", "calibration", "images")
    counts = {
        network: {name: value[task_ids].tolist() for name, value in s.items() if name not in not_counts}
        for network, s in sums.items()
    }
    calibration = finalize(sums, pairs, images, task_ids)
    if all_tasks:
        calibration["stream"] = {network: row.tolist() for network, row in stream.items()}
    by_task = {n: (100 * s["task_incremental"] / s["images"].clip(1))[task_ids].tolist() for n, s in sums.items()}
    return accuracy, counts, extra_metrics, calibration, by_task
