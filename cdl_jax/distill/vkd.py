"""VkD: an orthogonal projection and normalized features.

One vector of the student (in the paper the mean of its patch tokens) is mapped into the teacher's width. The matrix has
orthonormal columns, so it can neither scale nor drop a direction. The teacher's vector is normalized to mean 0 and
variance 1.

Source:
  Miles et al., CVPR 2024, arXiv 2403.06213.
"""

from collections.abc import Container

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.distill.base import NetworkSpec, Outputs, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergence, temperature_option
from cdl_jax.models.modules import feature_norms, orthogonal
from cdl_jax.options import Option

OPTIONS = {
    "feature_weight": Option(1.0, "weight of the feature loss"),
    "logit_weight": Option(1.0, "weight of temperature^2 KL(teacher || student)"),
    "label_weight": Option(1.0, "weight of the labels' cross-entropy"),
    "temperature": temperature_option(1.0),
    "classes": Option(
        "current",
        "classes of the softmax of the logits: of the current task, or all seen so far",
        choices=("current", "seen"),
    ),
    "student_feature": Option(
        "patch_mean",
        'the student\'s output to match: "patch_mean", "class_token", or any named output, averaged over tokens or '
        "positions",
    ),
    "teacher_feature": Option(
        "",
        'the teacher\'s output to match; empty: its output "features" if it has one (convolutional networks), else '
        '"patch_mean"',
    ),
    "student_norm": Option(
        "none", "normalization of the student's feature after its projection", choices=feature_norms.KINDS
    ),
    "teacher_norm": Option("layer", "normalization of the teacher's feature", choices=feature_norms.KINDS),
    "norm_epsilon": Option(
        -1.0, "epsilon of both norms; negative: 1e-5 for layer, 0 for batch, 0.01 for whitening", minimum=None
    ),
    "feature_loss": Option("smooth_l1", "distance of the features", choices=("smooth_l1", "mse")),
    "projector": Option(
        "",
        "parametrization of the projection; empty: the published choice; linear: no orthogonality",
        choices=("", *orthogonal.MAPS, "linear"),
    ),
    "reference_exact": Option(
        False,
        "weight decay applies to the projector too, as in the authors' code; it sets a householder to zero for good",
    ),
}


class Projector(nn.Module):
    """Maps `[batch, student_dim]` to `[batch, features]`.

    The optimizer applies no weight decay to a module of the name "projector".

    Attributes:
      features: width of the teacher's feature.
      kind: a parametrization of `models.modules.orthogonal`; "" for its default; "linear" for an unconstrained matrix,
        as a baseline.
      reference_exact: whether weight decay applies, as in the authors' code.
    """

    features: int
    kind: str = ""
    reference_exact: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the projection float32 `[batch, features]`."""
        name = "decayed_projector" if self.reference_exact else "projector"
        if self.kind == "linear":
            return nn.Dense(self.features, use_bias=False, name=name)(x)
        return orthogonal.OrthogonalDense(self.features, self.kind, self.reference_exact, name=name)(x)


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of projected features and logits.

    The loss is `feature_weight smooth-L1(norm(P f_student), norm(f_teacher)) + logit_weight T^2 KL`.
    The cross-entropy with the labels has weight `label_weight`.

    Raises:
      UserError: options do not fit together, or the teacher has no such feature.
    """
    check(options)
    teacher_feature = teacher_feature_name(options, teacher.outputs)
    output = output_name(teacher_feature, teacher.outputs)
    student_dim = feature_width("student", options.student_feature, student)
    projector = Projector(
        feature_width("teacher", teacher_feature, teacher), options.projector, options.reference_exact
    )

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        projected = projector.apply(variables, feature_vector(student_out, options.student_feature))
        target = feature_vector(teacher_out, teacher_feature)
        feature = options.feature_weight * feature_loss(options, projected, target)
        mask = context.mask(options.classes, student_out["logits"].shape[-1])
        logits = options.logit_weight * logit_loss(options, student_out["logits"], teacher_out["logits"], mask)
        return feature + logits, {"feature": feature, "kd": logits}

    return Scheme(
        loss=loss,
        label_weight=options.label_weight,
        needs=("logits", output),
        init=lambda key: projector.init(key, jnp.zeros((1, student_dim))),
    )


def feature_width(role: str, feature: str, network: NetworkSpec) -> int:
    """Returns the width of a feature of a network.

    Args:
      role: "teacher" or "student", for the message.
      feature: "patch_mean" or a named output.
      network: its description.

    Raises:
      UserError: the network has no such output.
    """
    output, shapes = output_name(feature, network.outputs), network.outputs
    if not shapes:  # a ViT, whose outputs have known widths
        blocks = (f"block_{i}/tokens" for i in range(network.depth))
        widths = dict.fromkeys(("tokens", "class_token", *blocks), network.dim) | {"logits": network.num_classes}
        shapes = {name: (width,) for name, width in widths.items() if width}
    if not shapes.get(output):
        names = ", ".join(sorted(name for name, shape in shapes.items() if shape))
        known = f"its outputs are {names}; choose one of them" if len(shapes) > 1 else "it outputs only logits"
        raise UserError(f"distill.{role}_feature={feature!r} is no output of the {role}: {known}")
    return shapes[output][-1]


def feature_loss(options: ConfigDict, projected: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the distance of normalized features, a float32 scalar.

    It is averaged over all entries. The student's feature is normalized after its projection, since only then it
    is in the space of the teacher's.

    Args:
      options: the section `distill`; `feature_loss` selects smooth-L1 (beta 1) or the squared error.
      projected: `[batch, dim]`, the student's feature after the projection.
      teacher: `[batch, dim]`, the teacher's feature.
    """
    epsilon = options.norm_epsilon if options.norm_epsilon >= 0 else None
    student = feature_norms.normalize(projected, options.student_norm, epsilon)
    target = feature_norms.normalize(teacher, options.teacher_norm, epsilon)
    if options.feature_loss == "mse":
        return ((student - target) ** 2).mean()
    return optax.huber_loss(student, target).mean()


def logit_loss(options: ConfigDict, student_logits: jax.Array, teacher_logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `temperature^2 KL(teacher || student)`, averaged over the batch.

    Args:
      options: the section `distill`.
      student_logits: `[batch, classes]`.
      teacher_logits: `[batch, classes]`.
      mask: bool `[classes]`, the classes of the softmax.
    """
    return options.temperature**2 * kl_divergence(student_logits, teacher_logits, mask, options.temperature)


def feature_vector(out: Outputs, name: str) -> jax.Array:
    """Returns one vector per image of a named feature, float32 `[batch, dim]`.

    "patch_mean" is the mean of "patch_tokens", or of "tokens" without the first, the class token. Any other output is
    averaged over its axes between the first and the last.

    >>> tokens = jnp.array([[[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]]])  # class token, two patches
    >>> feature_vector({"tokens": tokens}, "patch_mean").tolist()
    [[2.0, 3.0]]

    Args:
      out: named outputs of a network.
      name: "patch_mean" or a key of `out`.

    Raises:
      UserError: the network has no such output.
    """
    output = output_name(name, out)
    if output not in out:
        raise UserError(f"distill: a network has no output for the feature {name!r}: {plugins.did_you_mean(name, out)}")
    value = out[output][:, 1:] if (name, output) == ("patch_mean", "tokens") else out[output]
    return value.astype(jnp.float32).mean(axis=tuple(range(1, value.ndim - 1)))


def teacher_feature_name(options: ConfigDict, outputs: Container[str]) -> str:
    """Returns the feature to compare of a teacher with these outputs."""
    return options.teacher_feature or ("features" if "features" in outputs else "patch_mean")


def cacheable_outputs(options: ConfigDict, out: Outputs) -> dict[str, jax.Array]:
    """Returns the smallest outputs of a teacher for which `build`'s loss is the same.

    Args:
      options: the section `distill`.
      out: named outputs of the teacher.

    Returns:
      The logits, and the compared feature as one vector per image.
    """
    feature = teacher_feature_name(options, out)
    value = feature_vector(out, feature)
    features = {"patch_tokens": value[:, None]} if feature == "patch_mean" else {feature: value}
    return {"logits": out["logits"], **features}


def output_name(feature: str, out: Container[str]) -> str:
    """Returns the name of the output from which a feature is computed.

    >>> output_name("patch_mean", {"tokens"}), output_name("class_token", {"tokens"})
    ('tokens', 'class_token')
    """
    if feature != "patch_mean":
        return feature
    return "patch_tokens" if "patch_tokens" in out else "tokens"


def check(options: ConfigDict) -> None:
    """Checks that the options fit together.

    Raises:
      UserError: all weights are 0, or whitening has an epsilon of 0.
    """
    if not (options.feature_weight or options.logit_weight or options.label_weight):
        raise UserError(
            "distill.feature_weight, logit_weight and label_weight are 0: the loss is always 0; raise one of them"
        )
    for key in ("student_norm", "teacher_norm"):
        if options[key].startswith("whiten") and options.norm_epsilon == 0:
            raise UserError(f"distill.norm_epsilon=0 with distill.{key}={options[key]!r}: set 0.01, or -1 for 0.01")
