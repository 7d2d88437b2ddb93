"""What an evaluation tells: accuracy, how far a network's confidence can be trusted, how alike two networks are.

The step gives numbers a picture, which are summed by task on the device; the ratios are taken once, over all batches,
so they depend neither on the size of a batch nor on the number of devices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.losses import kl_divergences, mask_classes

BINS = 15


def of_network(logits, labels, allowed) -> dict:
    """`calibration` float32 `[batch, 15, 3]`: in the bin of a picture's top probability 1, whether it is right, and
    that probability; zeros in the others.

    Bin m of M = 15 holds the probabilities in (m/M, (m+1)/M], softmax over the `allowed` `[classes]` columns of
    `logits` `[batch, classes]`.
    """
    masked = mask_classes(logits, allowed)
    confidence = jax.nn.softmax(masked).max(axis=-1)
    place = jnp.clip(jnp.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(jnp.int32)
    right = (masked.argmax(axis=-1) == labels).astype(jnp.float32)
    facts = jnp.stack([jnp.ones_like(confidence), right, confidence], axis=-1)
    return {"calibration": jax.nn.one_hot(place, BINS)[:, :, None] * facts[:, None, :]}


def of_pair(teacher, student, allowed) -> dict:
    """float32 `[batch]` each, from logits `[batch, classes]` over the `allowed` `[classes]` columns: `agreement`,
    whether both predict the same class, and `kl`, KL(teacher || student) in nats at temperature 1."""
    same = mask_classes(teacher, allowed).argmax(axis=-1) == mask_classes(student, allowed).argmax(axis=-1)
    return {"agreement": same.astype(jnp.float32), "kl": kl_divergences(student, teacher, allowed, 1.0)}


def calibration_error(sums) -> np.ndarray:
    """Expected calibration error (Guo et al., 2017) in percent, `[...]`, from summed `calibration` `[..., 15, 3]`."""
    sums = np.asarray(sums, np.float64)
    return 100 * np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1) / sums[..., 0].sum(axis=-1)


def ratios(networks: dict, pairs: dict, images, asked: list[int]) -> dict:
    """What the sums of an evaluation come to, for the tasks numbered `asked`.

    Args:
      networks: network -> {"calibration": `[tasks, 15, 3]`}. pairs: pair -> {"agreement", "kl": `[tasks]`}.
      images: `[tasks]`, how many pictures were summed.

    Returns:
      {"ece": {network: [percent on each task]}, "ece_seen": {network: percent on all of them together},
       "agreement": {pair: [percent]}, "kl": {pair: [nats]}}
    """
    bins = {name: sums["calibration"][asked] for name, sums in networks.items()}
    return {
        "ece": {name: calibration_error(b).tolist() for name, b in bins.items()},
        "ece_seen": {name: float(calibration_error(b.sum(axis=0))) for name, b in bins.items()},
        "agreement": {pair: (100 * sums["agreement"][asked] / images[asked]).tolist() for pair, sums in pairs.items()},
        "kl": {pair: (sums["kl"][asked] / images[asked]).tolist() for pair, sums in pairs.items()},
    }


def summed(parts, tasks, whole):
    """Accuracy, counts, measures and ratios from the sums over batches that the evaluation step gave.

    whole: whether these were over the test pictures of all tasks.
    """
    sums = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=np.float64), *parts)
    images, pairs, asked = sums.pop("images"), sums.pop("pairs"), [task.index for task in tasks]
    measures = {name: float(value.sum() / images.sum()) for name, value in sums.pop("measures").items()}
    for network in sums:
        of_batches = [100 * part[network]["correct"].sum() / part["images"].sum() for part in parts]
        measures[f"{network}/accuracy_batch_mean"] = float(np.mean(of_batches))
    stream = {network: 100 * s["correct"] / s["images"].clip(1) for network, s in sums.items()}
    accuracy = {network: row[asked].tolist() for network, row in stream.items()}
    own = ("correct", "calibration", "images")
    counts = {
        network: {name: value[asked].tolist() for name, value in s.items() if name not in own}
        for network, s in sums.items()
    }
    found = ratios(sums, pairs, images, asked)
    if whole:
        found["stream"] = {network: row.tolist() for network, row in stream.items()}
    return accuracy, counts, measures, found
