"""Token labels of a detector's feature maps.

Each position of a feature map learns the classes of the objects that cover the position.

Source:
  Song et al., "ViDT+", arXiv 2204.07962; Jiang et al., "All Tokens Matter: Token Labeling", NeurIPS 2021.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax.options import Option

OPTIONS = {
    "focal_weight": Option(2.0, "weight of the focal loss of token labels"),
    "dice_weight": Option(2.0, "weight of the dice loss of token labels"),
    "focal_alpha": Option(0.25, "weight of a present class in the focal loss; absent: 1 - alpha", maximum=1),
    "focal_gamma": Option(2.0, "exponent of the focal loss"),
}


def class_shares(
    labels: jax.Array, num_classes: int, extents: jax.Array, map_extents: jax.Array, shape: tuple[int, int]
) -> jax.Array:
    """Returns the share of each class at each position of a feature map.

    The share is taken over the pixels that the position covers. Position i of h covers the pixels from
    floor(i H / h) to ceil((i + 1) H / h), as in torch's adaptive average pooling. The share of class 0 is that of all
    objects together.

    Args:
      labels: integers `[N, height, width]`, see `data.detection.segmentations.label_map`; 0 outside the extents.
      num_classes: K.
      extents: int32 `[N, 2]`, (H, W), height and width of the images with the padding of their group.
      map_extents: int32 `[N, 2]`, (h, w), the part of the feature map that belongs to the extent.
      shape: height and width of the feature map.

    Returns:
      float32 `[N, *shape, K]`, 0 outside `map_extents`.
    """
    pool = jax.vmap(pooling_matrix, in_axes=(0, 0, None, None))
    rows = pool(extents[:, 0], map_extents[:, 0], labels.shape[1], shape[0])
    columns = pool(extents[:, 1], map_extents[:, 1], labels.shape[2], shape[1])

    def share(label):
        covered = jnp.where(label == 0, labels > 0, labels == label).astype(jnp.float32)
        return jnp.einsum("nih,nhw,njw->nij", rows, covered, columns)

    # One class at a time: the pixels of all classes need gigabytes.
    return jnp.moveaxis(jax.lax.map(share, jnp.arange(num_classes)), 0, -1)


def pooling_matrix(size: jax.Array, out_size: jax.Array, length: int, out_length: int) -> jax.Array:
    """Returns the matrix of adaptive average pooling.

    The matrix maps `size` positions to `out_size` positions.

    Args:
      size: int32 scalar, number of positions, at most `length`.
      out_size: int32 scalar, number of averages, at most `out_length`.
      length, out_length: static bounds of both numbers.

    Returns:
      float32 `[out_length, length]`, 0 in the rows from `out_size` on.

    >>> pooling_matrix(3, 2, length=4, out_length=3).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    out = jnp.arange(out_length)[:, None]
    first, last = out * size // out_size, -(-(out + 1) * size // out_size)
    position = jnp.arange(length)
    covered = (position >= first) & (position < last) & (out < out_size)
    return covered / (last - first).astype(jnp.float32)


def token_losses(
    options: ConfigDict,
    logits: Sequence[jax.Array],
    shares: Sequence[jax.Array],
    inside: Sequence[jax.Array],
    normalizer: jax.Array,
) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Computes the focal loss and the dice loss of all levels.

    An image's focal loss is the sum over classes of the mean over positions. Its dice loss is
    `1 - (2 sum p y + 1) / (sum p + sum y + 1)`, the sums over positions and classes.

    Args:
      options: a section with the keys of `OPTIONS`.
      logits: for each level `[N, h, w, K]`.
      shares: for each level `[N, h, w, K]`, the targets y; see `class_shares`.
      inside: for each level bool `[N, h, w]`, the positions that count.
      normalizer: number of objects, see `detection_losses.object_normalizer`.

    Returns:
      The weighted loss, a scalar, and the unweighted terms `loss_token_focal` and `loss_token_dice`.
    """
    focal, dice = 0.0, 0.0
    for z, y, counts in zip(logits, shares, inside, strict=True):
        counts, axes = counts[..., None], (1, 2, 3)
        losses = optax.sigmoid_focal_loss(z, y, alpha=options.focal_alpha, gamma=options.focal_gamma)
        focal += (losses.sum(axis=axes, where=counts) / counts.sum(axis=axes)).sum() / normalizer
        p = jax.nn.sigmoid(z)
        hits, total = (p * y).sum(axis=axes, where=counts), (p + y).sum(axis=axes, where=counts)
        dice += (1 - (2 * hits + 1) / (total + 1)).sum() / normalizer
    loss = options.focal_weight * focal + options.dice_weight * dice
    return loss, {"loss_token_focal": focal, "loss_token_dice": dice}
