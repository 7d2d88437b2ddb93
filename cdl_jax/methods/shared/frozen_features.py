"""Frozen networks of any family, from images in [-1, 1] to one vector an image."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.data.transforms import augment
from cdl_jax.distill import vkd
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import StreamInfo, Variables, join, split
from cdl_jax.methods.shared import finished_run, teachers
from cdl_jax.models import clip, weights
from cdl_jax.models.modules.heads import is_head
from cdl_jax.options import Option

# Normalization of images in [-1, 1], as `augment` has it.
SIGNED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
INPUTS = {
    "signed": SIGNED,
    "unit": {"mean": (), "std": ()},
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "clip": {"mean": clip.MEAN, "std": clip.STD},
}


def input_option(default: str, network: str) -> Option:
    """Declares the range of the pixels that a network takes.

    Args:
      default: a key of `INPUTS`.
      network: its name in words.
    """
    return Option(
        default,
        f"pixels that {network} takes: signed, [-1, 1]; unit, [0, 1]; imagenet or clip, the normalization of these",
        choices=tuple(INPUTS),
    )


def feature_option(network: str) -> Option:
    """Declares the named output that is a network's vector of an image."""
    return Option(
        "",
        f'named output of {network} that is the vector of an image, averaged over positions; empty: "features" if it '
        'has one (convolutional networks), else "class_token"',
    )


@dataclass(frozen=True)
class FrozenFeatures:
    """A frozen network and its vector of an image.

    Attributes:
      network: a module of any family, or a network of a finished run.
      feature: a named output, "patch_mean", or "" for the usual one.
      image_size: side of the images that the network takes, in pixels; 0: it resizes and normalizes them itself.
      pixels: a key of `INPUTS`.
      key: config key of the weights, for messages.
      has_logits: whether class logits are used, so that the file must have the head.
    """

    network: teachers.Teacher
    feature: str
    image_size: int
    pixels: str
    key: str
    has_logits: bool = False

    def init(self, key: jax.Array) -> Variables:
        """Returns random variables."""
        return self.network.init(key)

    def load_pretrained(self, variables: Variables) -> Variables:
        """Returns the variables with the weights of the file or run.

        A head that the file lacks becomes zero.

        Raises:
          UserError: there is no such file, it does not fit, or its head is used and it has none of these classes.
        """
        if not isinstance(self.network, teachers.ModuleTeacher):
            return self.network.load_pretrained(variables)
        module, with_head = self.network, variables
        if weights.is_vit(variables) and not self.has_logits:  # its file may have none
            variables, _ = split(with_head, lambda path: not is_head(path))
        loaded = weights.load_network(module.weights, variables, self.key, module.torch_name, new_head=True)
        if module.weights == "random":
            return with_head
        if self.has_logits and any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(loaded)):
            raise UserError(
                f"config.{self.key}={module.weights!r} has no head of this stream's {module.info.num_classes} "
                "classes, which the score needs: set gan.score=False, or name a network with these classes"
            )
        return jax.tree.map(_zeros_of_shape, join(with_head, loaded))

    def outputs(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Returns the vectors and the logits of images.

        Args:
          variables: of the network.
          images: float32 `[batch, size, size, 3]`.
          context: of the step.

        Returns:
          `features` float32 `[batch, dim]` and `logits`.
        """
        if self.image_size:
            images = augment.renormalize(_resize(images, self.image_size), SIGNED, INPUTS[self.pixels])
        out = self.network.outputs(variables, images, context)
        return {"features": vkd.feature_vector(out, self.feature or _usual_feature(out)), "logits": out["logits"]}

    def width(self, image_size: int) -> int:
        """Returns the number of channels of the features.

        image_size: side of the images that `outputs` takes.
        """
        images, key = jnp.zeros((2, image_size, image_size, 3)), jax.random.key(0)
        return jax.eval_shape(lambda: self.outputs(self.init(key), images, Context.dummy())["features"]).shape[-1]


def build_teacher(config: ConfigDict, info: StreamInfo, options: ConfigDict) -> FrozenFeatures:
    """Builds the features of the section `teacher`.

    The section's `weights` name a file or the folder of a finished run.

    Args:
      config: with the sections `teacher` and `augment`.
      info: the stream.
      options: a section with the keys of `teachers.OPTIONS`, `teacher_feature` and `teacher_pixels`.

    Raises:
      UserError: there is no such file or run, or it has another architecture.
    """
    section, key = config.teacher, "teacher.weights"
    if finished_run.is_run(section.weights):
        run = teachers.build_run_teacher(config, info, options)
        return FrozenFeatures(run, options.teacher_feature, 0, options.teacher_pixels, key)
    return FrozenFeatures(_module(section, info, key), options.teacher_feature, section.image_size,
                          options.teacher_pixels, key)  # fmt: skip


def build_measuring(section: ConfigDict, info: StreamInfo, options: ConfigDict) -> FrozenFeatures:
    """Builds the features of the section `measuring`, whose `weights` name a file.

    Args:
      section: of the network.
      info: the stream.
      options: a section with the keys `measuring_feature`, `measuring_pixels` and `score`.
    """
    network = _module(section, info, "measuring.weights")
    return FrozenFeatures(network, options.measuring_feature, section.image_size, options.measuring_pixels,
                          "measuring.weights", options.score)  # fmt: skip


def network_name(section: ConfigDict) -> str:
    """Returns the name of a network for the names of metrics.

    The name is that of the file of weights. A file `weights.npz` has the name of its folder. Without a file the name is
    `random_<family>`.

    >>> network_name(ConfigDict({"family": "vit", "weights": "data/glyph_vit_student.npz"}))
    'glyph_vit_student'
    >>> network_name(ConfigDict({"family": "vit", "weights": "runs/own/weights.npz"}))
    'own'
    """
    weights_of = section.weights
    if weights_of in ("", "random"):
        return f"random_{section.family}"
    path = Path(weights_of.removeprefix("package:"))
    name = path.parent.name if path.stem == "weights" and path.parent.name else path.stem
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _module(section, info, key):
    """Returns the module of an option section; its file must exist.

    Raises:
      UserError: it does not.
    """
    if section.weights not in ("", "random") and not section.weights.startswith("package:"):
        weights.find(section.weights, key)
    family = plugins.load_plugin("models", section.family)
    module = family.build(section, info.num_classes)
    return teachers.ModuleTeacher(module, info, section.image_size, weights.from_section(section), family.torch_name)


def _zeros_of_shape(leaf):
    return np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _usual_feature(out):
    return "features" if "features" in out else "class_token"


def _resize(images, size):
    """Resizes images.

    Each pixel is repeated where the new size is a multiple of the old one. Other sizes are bilinear.
    """
    if images.shape[1] == size:
        return images
    kind = "nearest" if size % images.shape[1] == 0 else "bilinear"
    return jax.image.resize(images, (len(images), size, size, images.shape[-1]), kind)
