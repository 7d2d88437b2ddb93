"""Prototypes: the class means of student and teacher are aligned.

The means are those of a batch, of the student's projected features and of the teacher's features. A scheme of this
package, without a paper of its own. Single features may differ from the teacher's; only the means, by which
nearest-mean classifiers decide, are drawn to it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd, vkd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.distill.shared import relations
from cdl_jax.models.modules import heads
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "prototype_weight": Option(1.0, "weight of the loss on class means"),
    **relations.FEATURE_OPTIONS,
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of logit distillation plus aligned class means.

    Its loss is `kd + prototype_weight mean_c (1 - cos(W m_student,c + b, m_teacher,c))`.

    m are the means over the images of class c in a batch; the mean over c is over the classes of the batch.

    Raises:
      UserError: a network has no such feature, or all weights are 0.
    """
    relations.check_weights({"prototype": options.prototype_weight}, options.alpha)
    name = relations.teacher_feature_name(options, teacher)
    width = vkd.feature_width("student", options.student_feature, student)
    projector = nn.Dense(
        vkd.feature_width("teacher", name, teacher),
        kernel_init=heads.torch_kernel,
        bias_init=heads.torch_bias(width),
    )

    def loss(variables, student_out, teacher_out, labels, context):
        logits = kd.kd_loss(options, student_out["logits"], teacher_out["logits"], context)
        projected = projector.apply(variables, vkd.feature_vector(student_out, options.student_feature))
        means, has_images = class_means(projected, labels, student.num_classes)
        targets, _ = class_means(vkd.feature_vector(teacher_out, name), labels, student.num_classes)
        cosines = (relations.normalize_rows(means) * relations.normalize_rows(targets)).sum(axis=-1)
        prototype = options.prototype_weight * (has_images * (1 - cosines)).sum() / has_images.sum()
        return logits + prototype, {"kd": logits, "prototype": prototype}

    return Scheme(
        loss=loss,
        label_weight=1 - options.alpha,
        needs=("logits", vkd.output_name(name, teacher.outputs)),
        init=lambda key: projector.init(key, jnp.zeros((1, width))),
    )


def class_means(features: jax.Array, labels: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Returns the mean feature of each class in a batch, and which classes are there.

    >>> means, present = class_means(jnp.array([[1.0], [3.0], [5.0]]), jnp.array([2, 2, 0]), 3)
    >>> means[:, 0].tolist(), present.tolist()
    ([5.0, 0.0, 2.0], [1.0, 0.0, 1.0])

    Args:
      features: float32 `[batch, dim]`.
      labels: int32 `[batch]`.
      num_classes: number of classes of the stream.

    Returns:
      float32 `[num_classes, dim]`, zeros for a class without images, and float32 `[num_classes]`, 1 or 0.
    """
    members = jax.nn.one_hot(labels, num_classes)
    counts = members.sum(axis=0)
    return members.T @ features / jnp.maximum(counts, 1)[:, None], (counts > 0).astype(jnp.float32)
