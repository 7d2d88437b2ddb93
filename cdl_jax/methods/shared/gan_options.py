"""Options of the method `gan`, and checks of those that do not fit together."""

from pathlib import Path

from ml_collections import ConfigDict

from cdl_jax.data.transforms import diff_augment
from cdl_jax.distill.shared import gan_losses
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import frozen_features, teachers
from cdl_jax.models.modules import orthogonal
from cdl_jax.options import Option
from cdl_jax.runtime import paths

KD_TERMS = ("aggregated", "correlated", "diversity")

# The settings without "ours" in a comment are those of the published CIFAR runs.
OPTIONS = {
    "width": Option(64, "a quarter of the channels of both networks", minimum=1),
    "z_dim": Option(128, "channels of the noise", minimum=1),
    "image_size": Option(32, "side of the images in pixels: 8, 16, 32 or another power of two", minimum=8),
    # train.batch_size is the number of real images of all these steps together: 200.
    "d_steps": Option(
        4, "steps of the discriminator before each step of the generator, each with train.batch_size / d_steps images",
        minimum=1,
    ),
    "discriminator_rate": Option(0.0, "learning rate of the discriminator; 0: optim.learning_rate, as published"),
    "ema_decay": Option(0.9999, "decay of the average of the generator, which is evaluated", maximum=1),
    "ema_start": Option(1000, "iterations before which the average is a copy of the generator"),
    "policy": Option(
        "translation,cutout",
        "differentiable augmentation of all images that the discriminator takes: color, translation and cutout, in any "
        "number, divided by commas; empty: none",
    ),
    "lecam_weight": Option(0.0, "weight of the LeCam regularization; 0.3 in the published runs that have it"),
    "lecam_start": Option(1000, "iteration after which the regularization begins"),
    "lecam_decay": Option(0.9, "decay of its averages of the scores", maximum=1),
    **teachers.OPTIONS,
    "teacher_feature": frozen_features.feature_option("the teacher"),
    "teacher_pixels": frozen_features.input_option("signed", "the teacher"),
    "teacher_shuffled": Option(
        False, "a control: the teacher's vectors are dealt to other images of the batch, so that they teach nothing"
    ),
    "kd_terms": Option(
        (), "terms of KD-DLGAN: aggregated, correlated, diversity (which is logged, as it has no gradient)",
        choices=KD_TERMS, item_type=str,
    ),
    "kd_weight": Option(10.0, "weight of these terms"),
    "kd_head": Option((1024, 512), "channels of the two layers of the head that these terms compare", minimum=1),
    "text_features": Option(
        "", "for the correlated term: .npy file of the teacher's text encoder, float [texts, channels]"
    ),
    # No code of the authors is public: both readings are ours.
    "vkd": Option(
        "none",
        "VkD's feature loss in one of our two readings; literal: beside the aggregated term, as the authors' list of "
        "removed terms leaves it; replaced: without it",
        choices=("none", "literal", "replaced"),
    ),
    "vkd_weight": Option(10.0, "weight of that loss (ours)"),
    "vkd_norm": Option("whiten", "normalization of the teacher's vectors", choices=gan_losses.NORMS),
    "vkd_root": Option("cholesky", "inverse root of the covariance", choices=gan_losses.ROOTS),
    "vkd_epsilon": Option(1e-2, "epsilon of the whitening, above 0 (ours)", above=0, maximum=1),
    "vkd_scope": Option(
        "each",
        "images over which the vectors are whitened: real and generated ones each, both jointly, or the training "
        "images of the data, once",
        choices=gan_losses.SCOPES,
    ),
    "vkd_projector": Option(
        "", "parametrization of the projection; empty: torch's choice; linear: no orthogonality",
        choices=("", *orthogonal.MAPS, "linear"),
    ),
    "vkd_distance": Option(
        "smooth_l1", "distance of the vectors: smooth_l1, mean over all channels; norm, as in KD-DLGAN",
        choices=gan_losses.DISTANCES,
    ),
    "generated": Option(10_000, "images that an evaluation generates, over all classes seen", minimum=2),
    "generation_batch": Option(50, "images that are generated together, whose statistics the batch norms use",
                               minimum=2),
    "measuring_feature": frozen_features.feature_option("the measuring network"),
    "measuring_pixels": frozen_features.input_option("unit", "the measuring network"),
    "components": Option(
        0, "principal components, of the training images, in which distances are measured; 0: the features themselves"
    ),
    "score": Option(
        False, "also measure the score of the IS formula; the measuring network then has the stream's classes"
    ),
    "sheet_columns": Option(8, "samples of each class in a sheet", minimum=1),
}  # fmt: skip


def has_teacher(options: ConfigDict) -> bool:
    """Returns whether any term has a teacher."""
    return bool(options.kd_terms) or options.vkd != "none"


def kd_terms(options: ConfigDict) -> tuple[str, ...]:
    """Returns the terms of KD-DLGAN that are used.

    The literal reading of VkD has the aggregated term.
    """
    return ("aggregated",) if options.vkd == "literal" else tuple(options.kd_terms)


def row_name(options: ConfigDict, teacher_weights: str = "") -> str:
    """Returns the name of a setting for tables.

    Rows of VkD are named as our reading wherever a number stands.

    Args:
      options: the section `gan`.
      teacher_weights: of the section `teacher`; "random" is named.

    >>> from cdl_jax.options import defaults
    >>> row_name(ConfigDict(defaults(OPTIONS, vkd="literal", teacher_shuffled=True)))
    'vkd (our reading: literal), whiten each, shuffled teacher'
    >>> row_name(ConfigDict(defaults(OPTIONS, kd_terms=("aggregated",))), "random")
    'biggan + da + aggregated, random teacher'
    """
    if options.vkd != "none":
        scope = f" {options.vkd_scope}" * (options.vkd_norm == "whiten")
        parts = [f"vkd (our reading: {options.vkd})", options.vkd_norm + scope]
        parts += [f"{options.vkd_projector} projector"] * bool(options.vkd_projector)
    else:
        terms = ["biggan", *["da"] * bool(options.policy), *["lecam"] * bool(options.lecam_weight), *options.kd_terms]
        parts = [" + ".join(terms)]
    has_teacher = options.vkd != "none" or bool(options.kd_terms)
    parts += ["shuffled teacher"] * (has_teacher and options.teacher_shuffled)
    parts += ["random teacher"] * (has_teacher and teacher_weights == "random")
    return ", ".join(parts)


def check(config: ConfigDict, info: StreamInfo) -> None:
    """Checks options that depend on each other.

    Raises:
      UserError: they do not fit together.
    """
    options, batch = config.gan, config.train.batch_size
    if info.num_tasks > 1:
        raise UserError(
            f"method 'gan' learns all classes at once, and the stream has {info.num_tasks} tasks: set data.num_tasks=1"
        )
    if batch % options.d_steps or batch // options.d_steps < 2:
        raise UserError(
            f"config.train.batch_size={batch} is to be divided into gan.d_steps={options.d_steps} equal batches of at "
            f"least 2 images: set a multiple of {options.d_steps}"
        )
    if info.train_images and info.train_images < batch:
        raise UserError(
            f"config.train.batch_size={batch} is larger than the {info.train_images} training images: set it to that "
            "or less, or gan.d_steps to 1"
        )
    if options.image_size & (options.image_size - 1):
        raise UserError(f"gan.image_size={options.image_size} must be a power of two, such as 32")
    if options.generated % options.generation_batch:
        raise UserError(
            f"gan.generated={options.generated} must be a multiple of gan.generation_batch={options.generation_batch}"
        )
    for key in ("mean", "std"):
        if tuple(config.augment[key]) != frozen_features.SIGNED[key]:
            raise UserError(
                f"augment.{key}={tuple(config.augment[key])}: the generator's pixels are in [-1, 1], so set "
                f"augment.mean and augment.std to {frozen_features.SIGNED['mean']}"
            )
    diff_augment.parse_policy(options.policy)
    if config.optim.accumulate > 1:
        raise UserError("optim.accumulate above 1: the steps of a GAN have no larger batches: set 1")
    _check_teacher(config, options)


def _check_teacher(config, options):
    if options.vkd != "none" and options.kd_terms:
        raise UserError(
            f"gan.vkd={options.vkd!r} has its own terms: leave gan.kd_terms={tuple(options.kd_terms)} empty (literal "
            "includes the aggregated term)"
        )
    if "correlated" in options.kd_terms and not options.text_features:
        raise UserError(
            "gan.kd_terms has 'correlated', which needs gan.text_features, a .npy file of the teacher's text encoder"
        )
    if len(options.kd_head) != 2:
        raise UserError(f"gan.kd_head={tuple(options.kd_head)} must have 2 numbers")
    if not has_teacher(options):
        return
    if not config.teacher.weights:
        raise UserError(
            f"gan: the setting {row_name(options)!r} has a teacher: name its file or run in config.teacher.weights, or "
            "'random' for the control"
        )
    if options.vkd != "none" and not options.vkd_weight:
        raise UserError("gan.vkd_weight=0: VkD's loss is always 0; raise it, or set gan.vkd='none'")
    if options.vkd_scope != "each" and options.vkd_norm != "whiten":
        raise UserError(
            f"gan.vkd_scope={options.vkd_scope!r} belongs to a whitening, and gan.vkd_norm={options.vkd_norm!r} is "
            "none: leave it at 'each'"
        )
    teacher, measuring = config.teacher.weights, config.measuring.weights
    if measuring not in ("", "random") and _place(teacher) == _place(measuring):
        raise UserError(
            f"config.measuring.weights={measuring!r} is the teacher, which would measure what it taught: name another "
            "network"
        )


def _place(weights):
    """Returns the file or folder of weights.

    Two names of one network have the same file or folder.
    """
    if weights.startswith("package:"):
        return weights
    path = paths.resolve(weights, "the weights")
    return path.parent if path.name == "weights.npz" else Path(path)
