"""DIST (Huang et al., NeurIPS 2022): correlations of probabilities.

The correlations are over the classes of each image, and over the images of a batch for each class.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import mask_classes, temperature_option
from cdl_jax.options import Option

OPTIONS = {
    "label_weight": Option(1.0, "weight of the labels' cross-entropy"),
    "inter_weight": Option(2.0, "weight of the loss over the classes of each image, the paper's beta"),
    "intra_weight": Option(2.0, "weight of the loss over the images of each class, the paper's gamma"),
    "temperature": temperature_option(1.0),
    "classes": kd.OPTIONS["classes"],
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of DIST.

    Its loss is `temperature^2 (inter_weight (1 - r_images) + intra_weight (1 - r_classes))`.

    r are mean correlations of Pearson between the probabilities of student and teacher.

    Raises:
      UserError: both weights are 0.
    """
    del teacher
    if not (options.inter_weight or options.intra_weight):
        raise UserError(
            "distill.inter_weight=0 and distill.intra_weight=0: nothing is distilled; raise one of them, or set "
            "distill=none"
        )

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels
        mask = context.mask(options.classes, student.num_classes)
        p, q = (
            jax.nn.softmax(mask_classes(out["logits"] / options.temperature, mask))
            for out in (student_out, teacher_out)
        )
        class_correlation = (mask * pearson(p.T, q.T)).sum() / mask.sum()
        scale = options.temperature**2
        inter = options.inter_weight * scale * (1 - pearson(p, q, mask).mean())
        intra = options.intra_weight * scale * (1 - class_correlation)
        return inter + intra, {"inter": inter, "intra": intra}

    return Scheme(loss=loss, label_weight=options.label_weight)


def pearson(x: jax.Array, y: jax.Array, mask: jax.Array | None = None, epsilon: float = 1e-8) -> jax.Array:
    """Returns the correlation of each row of x with the same row of y, float32 `[n]`.

    It is 0 for rows without variance.

    >>> pearson(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[2.0, 4.0, 6.0]])).round(4).tolist()
    [1.0]

    Args:
      x: float32 `[n, m]`.
      y: float32 `[n, m]`.
      mask: bool `[m]`, the columns to use; default all.
      epsilon: added to the product of both lengths.
    """
    weight = jnp.ones(x.shape[-1]) if mask is None else mask.astype(jnp.float32)

    def centered(values):
        return weight * (values - (weight * values).sum(axis=-1, keepdims=True) / weight.sum())

    x, y = centered(x), centered(y)
    squares = (x**2).sum(axis=-1), (y**2).sum(axis=-1)
    is_flat = jnp.minimum(*squares) <= 1e-20  # where the square root has no finite gradient
    lengths = [jnp.sqrt(jnp.where(is_flat, 1.0, square)) for square in squares]
    return jnp.where(is_flat, 0.0, (x * y).sum(axis=-1) / (lengths[0] * lengths[1] + epsilon))
