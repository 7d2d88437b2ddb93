"""VkD (Miles et al., CVPR 2024, arXiv 2403.06213): an orthogonal projection meets the teacher's normalised feature.

One vector of the student, its mean patch in the paper, is mapped into the teacher's width by a matrix with orthonormal
columns, which can neither scale nor drop a direction; of the teacher's vector mean and scale are taken away.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cdl_jax import plugins
from cdl_jax.distill.base import Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergence
from cdl_jax.models.modules import feature_norms, orthogonal

OPTIONS = {
    "feature_weight": 1.0,
    "logit_weight": 1.0,  # of temperature^2 KL(teacher || student)
    "label_weight": 1.0,
    "temperature": 1.0,
    "classes": "current",  # of the logits' term; or "seen": those of the earlier tasks too
    # What is compared: "patch_mean", "class_token", or any named output, averaged over tokens or over the map; of a
    # teacher, "" is its "features" where it has such an output (convolutional networks), else "patch_mean".
    "student_feature": "patch_mean",
    "teacher_feature": "",
    "student_norm": "none",  # "layer", "batch", "whiten_cholesky", "whiten_zca"
    "teacher_norm": "layer",
    "norm_epsilon": -1.0,  # of these; negative: 1e-5 for "layer", 0 for "batch", 0.01 for whitening
    "feature_loss": "smooth_l1",  # or "mse"
    "projector": "",  # "householder", "matrix_exp", "cayley", "skew_expm", "linear"; "": the published choice
    # As the published program: weight decay reaches the projector too, and puts a "householder" to zero for good.
    "reference_exact": False,
}


class Projector(nn.Module):
    """`[batch, student_dim]` to `[batch, features]`; optimizers keep weight decay from a part of the name "projector".

    kind: a map of `models.orthogonal`, "" for its usual one, or "linear" for an unconstrained matrix to compare with.
    """

    features: int
    kind: str = ""
    reference_exact: bool = False

    @nn.compact
    def __call__(self, x):
        name = "decayed_projector" if self.reference_exact else "projector"
        if self.kind == "linear":
            return nn.Dense(self.features, use_bias=False, name=name)(x)
        return orthogonal.OrthogonalDense(self.features, self.kind, self.reference_exact, name=name)(x)


def build(options, teacher, student) -> Scheme:
    """`feature_weight smooth-L1(P norm(f_student), norm(f_teacher)) + logit_weight KL`, `label_weight` of the labels'.

    Raises:
      UserError: a value out of range, or a teacher of whose features nothing is known.
    """
    check(options)
    asked = teacher_feature(options, teacher.outputs)
    source = output_name(asked, teacher.outputs)
    dim = teacher.outputs[source][-1] if source in teacher.outputs else teacher.dim
    if not dim:
        told = f"its outputs are {', '.join(sorted(teacher.outputs))}" if teacher.outputs else "it tells logits alone"
        raise UserError(f"distill.teacher_feature={asked!r} is no output of the teacher: {told}")
    projector = Projector(dim, options.projector, options.reference_exact)

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        projected = projector.apply(variables, feature_vector(student_out, options.student_feature))
        feature = options.feature_weight * feature_loss(options, projected, feature_vector(teacher_out, asked))
        logits = options.logit_weight * logit_loss(
            options, student_out["logits"], teacher_out["logits"], getattr(context, options.classes)
        )
        return feature + logits, {"feature": feature, "kd": logits}

    return Scheme(
        loss=loss,
        label_weight=options.label_weight,
        needs=("logits", source),
        init=lambda key: projector.init(key, jnp.zeros((1, student.dim))),
    )


def feature_loss(options, projected, teacher) -> jax.Array:
    """Smooth-L1 (beta 1) or squared error, mean over all entries, of `[batch, dim]` vectors, both normalised here.

    The student's is normalised after its projection, as the teacher's lives in the same space.
    """
    epsilon = options.norm_epsilon if options.norm_epsilon >= 0 else None
    ours = feature_norms.normalize(projected, options.student_norm, epsilon)
    theirs = feature_norms.normalize(teacher, options.teacher_norm, epsilon)
    if options.feature_loss == "mse":
        return ((ours - theirs) ** 2).mean()
    return optax.huber_loss(ours, theirs).mean()


def logit_loss(options, student, teacher, classes) -> jax.Array:
    """`temperature^2 KL(teacher || student)` of logits `[batch, n]`, over the columns `classes(n)`."""
    return options.temperature**2 * kl_divergence(student, teacher, classes(student.shape[-1]), options.temperature)


def feature_vector(out: Mapping[str, jax.Array], name: str) -> jax.Array:
    """The named feature of a network's outputs as one vector a picture: `[batch, dim]` float32.

    "patch_mean" is the mean of "tokens" behind the class token, or of "patch_tokens" where a network has several such
    tokens; any other name is averaged over its axes between the first and the last.

    Raises:
      UserError: the network has no such output.
    """
    source = output_name(name, out)
    if source not in out:
        raise UserError(f"distill: a network has no output for the feature {name!r}: {plugins.did_you_mean(name, out)}")
    value = out[source][:, 1:] if (name, source) == ("patch_mean", "tokens") else out[source]
    return value.astype(jnp.float32).mean(axis=tuple(range(1, value.ndim - 1)))


def teacher_feature(options, outputs) -> str:
    """The name of the feature that is read of a teacher with these outputs."""
    return options.teacher_feature or ("features" if "features" in outputs else "patch_mean")


def cacheable_outputs(options, out: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The least of a teacher's outputs from which `build`'s loss is the same: logits, and the feature as one vector."""
    feature = teacher_feature(options, out)
    value = feature_vector(out, feature)
    told = {"patch_tokens": value[:, None]} if feature == "patch_mean" else {feature: value}
    return {"logits": out["logits"], **told}


def output_name(feature: str, out) -> str:
    """The name among a network's outputs `out` from which `vector` makes a feature."""
    if feature != "patch_mean":
        return feature
    return "patch_tokens" if "patch_tokens" in out else "tokens"


def check(options) -> None:
    """Refuses values that make no sense.

    Raises:
      UserError: names the option and its range.
    """
    for key in ("feature_weight", "logit_weight", "label_weight"):
        if options[key] < 0:
            raise UserError(f"distill.{key}={options[key]} must not be negative")
    if not (options.feature_weight or options.logit_weight or options.label_weight):
        raise UserError(
            "distill.feature_weight, logit_weight and label_weight are 0: the loss is 0 whatever the weights; "
            "raise one of them"
        )
    if not options.temperature > 0:
        raise UserError(f"distill.temperature={options.temperature} must be above 0")
    if options.classes not in ("current", "seen"):
        raise UserError(f"distill.classes={options.classes!r}: use 'current' or 'seen'")
    if options.feature_loss not in ("smooth_l1", "mse"):
        raise UserError(f"distill.feature_loss={options.feature_loss!r}: use 'smooth_l1' or 'mse'")
    if options.projector != "linear":
        orthogonal.check(options.projector, "distill.projector")
    for key in ("student_norm", "teacher_norm"):
        feature_norms.check(options[key], f"distill.{key}")
        if options[key].startswith("whiten") and options.norm_epsilon == 0:
            raise UserError(f"distill.norm_epsilon=0 with distill.{key}={options[key]!r}: set 0.01, or -1 for the same")
