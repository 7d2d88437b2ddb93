"""Mixup and cutmix of whole batches with soft targets, on the device inside a compiled step.

`mixup_or_cutmix` mixes image i of a batch with image n - 1 - i, as timm's batch mode does. One weight and one box are
drawn for the batch (Zhang et al., 2018; Yun et al., 2019). `cutmix` is DKT's.
"""

import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError

OPTIONS = {
    "mixup": 0.8,  # weights of mixup are drawn from Beta(mixup, mixup); 0: no mixup
    "cutmix": 1.0,  # likewise of cutmix
    "switch": 0.5,  # probability of cutmix where both are on
    "probability": 1.0,  # of mixing a batch at all
    "smoothing": 0.1,  # of the labels, spread over all classes that are asked for
}


def mixup_or_cutmix(images, labels, allowed, key, options):
    """A batch mixed with itself reversed.

    Args:
      images: float32 `[batch, height, width, 3]`. labels: int32 `[batch]`.
      allowed: bool `[classes]`, those that targets may name.
      key: of the draws.
      options: overrides of `OPTIONS`.

    Returns:
      (images, targets `[batch, classes]`).
    """
    options = {**OPTIONS, **options}
    targets = soft_labels(labels, allowed, options["smoothing"])
    if not (options["mixup"] or options["cutmix"]):
        return images, targets
    keys = jax.random.split(key, 5)
    ways = {}
    if options["mixup"]:
        weight = jax.random.beta(keys[0], options["mixup"], options["mixup"])
        ways["mixup"] = mixup(images, weight), weight
    if options["cutmix"]:
        height, width = images.shape[1:3]
        centre = jax.random.randint(keys[1], (2,), 0, jnp.array([height, width]))
        box = cutmix_box(jax.random.beta(keys[2], options["cutmix"], options["cutmix"]), centre, height, width)
        ways["cutmix"] = cutmix_images(images, box), kept_area(box, height, width)
    chosen = next(iter(ways.values()))
    if len(ways) == 2:
        cut = jax.random.uniform(keys[3]) < options["switch"]
        chosen = jax.tree.map(lambda a, b: jnp.where(cut, a, b), ways["cutmix"], ways["mixup"])
    mixed, weight = chosen
    if options["probability"] < 1:
        at_all = jax.random.uniform(keys[4]) < options["probability"]
        mixed, weight = jnp.where(at_all, mixed, images), jnp.where(at_all, weight, 1.0)
    return mixed, mixup(targets, weight)


def soft_labels(labels, allowed, smoothing: float):
    """`[batch, classes]`: 1 - smoothing at the label, and smoothing spread evenly over the `allowed` `[classes]`."""
    sharp = jax.nn.one_hot(labels, len(allowed))
    return (1 - smoothing) * sharp + smoothing * allowed / allowed.sum()


def mixup(x, weight):
    """`weight x + (1 - weight) x reversed` along the first axis."""
    return weight * x + (1 - weight) * x[::-1]


def cutmix_box(weight, centre, height: int, width: int):
    """int32 `(top, bottom, left, right)` around `centre` (row, column): 1 - weight of the area, cut at the border."""
    share = jnp.sqrt(1 - weight)
    edges = []
    for size, middle in ((height, centre[0]), (width, centre[1])):
        half = jnp.floor(size * share).astype(jnp.int32) // 2
        edges += [jnp.clip(middle - half, 0, size), jnp.clip(middle + half, 0, size)]
    return tuple(edges)


def cutmix_images(images, box, others=None):
    """Images with the pixels within `box` of `others`, by default those reversed along the batch."""
    top, bottom, left, right = box
    rows, columns = jnp.arange(images.shape[1])[:, None], jnp.arange(images.shape[2])
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return jnp.where(inside[:, :, None], images[::-1] if others is None else others, images)


def kept_area(box, height: int, width: int):
    """The part of the area outside `box`."""
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def cutmix(images, labels, key, probability):
    """With a `probability`, pictures with a box of another one of the batch in them, as DKT has it.

    A permutation of the batch says whose; weight (from Beta(1, 1)) and box are drawn once for all.

    Args:
      images: float32 `[batch, height, width, channels]`. labels: int32 `[batch]`.
      key: of the draws. probability: of mixing the batch at all, maybe traced; 1 or more: always.

    Returns:
      (images, labels `[batch]` of those that the boxes came from, the part of each picture that is its own). DKT's
      program learns with the original `labels` alone; `weight CE(labels) + (1 - weight) CE(others)` is CutMix.
    """
    keys = jax.random.split(key, 4)
    height, width = images.shape[1:3]
    order = jax.random.permutation(keys[0], len(images))
    centre = jax.random.randint(keys[1], (2,), 0, jnp.array([height, width]))
    box = cutmix_box(jax.random.uniform(keys[2]), centre, height, width)
    cut = jax.random.uniform(keys[3]) < probability
    mixed = jnp.where(cut, cutmix_images(images, box, jnp.take(images, order, axis=0)), images)
    return mixed, jnp.take(labels, order), jnp.where(cut, kept_area(box, height, width), 1.0)


def cutmix_probability(ramp: str, target: float, epoch, epochs: int):
    """Probability of `cutmix` in an epoch of a task, counted from 0 and maybe traced; from 0.1 on.

    ramp: "linear": towards `target`; "as_coded": by `target - 0.1 / epochs` each epoch, as DKT's program has it, where
      a bracket is missing: from the third epoch or so every batch is mixed.

    Raises:
      UserError: another ramp.
    """
    if ramp not in ("linear", "as_coded"):
        raise UserError(f"cutmix_ramp={ramp!r}: use 'linear' or 'as_coded'")
    return 0.1 + epoch * ((target - 0.1) / epochs if ramp == "linear" else target - 0.1 / epochs)


def check(options, key: str) -> None:
    """Refuses values that make no sense.

    Raises:
      UserError: names the option under the section `key`, and its range.
    """
    for name in ("mixup", "cutmix"):
        if options[name] < 0:
            raise UserError(f"{key}.{name}={options[name]} must not be negative; 0 leaves it out")
    for name in ("switch", "probability", "smoothing"):
        if not 0 <= options[name] <= 1:
            raise UserError(f"{key}.{name}={options[name]} must lie in [0, 1]")
