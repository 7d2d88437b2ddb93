"""Terms by which a frozen network teaches the discriminator of `gan`.

The terms are those of KD-DLGAN, and VkD's in our readings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdl_jax.distill import vkd
from cdl_jax.distill.shared import gan_losses
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import StreamInfo, Variables
from cdl_jax.methods.shared import frozen_features, gan_options
from cdl_jax.models.biggan import DiscriminatorOutput
from cdl_jax.models.modules import feature_norms
from cdl_jax.runtime import paths


@dataclass(frozen=True)
class TeacherTerms:
    """Computes the loss of the discriminator that a teacher adds.

    Variables of `loss` are the teacher's, under `"teacher"`: `{"network", "texts"}`, and under `"distill"` the
    projector's `{"params", "state"}`. With `vkd_scope="data"` the latter also has `moments`, sums over the training
    images, and `whitening`, the fixed mean and inverse root of the covariance.

    Attributes:
      teacher: its vectors of images.
      width: number of channels of the vectors.
      options: the section `gan`.
      image_size: side of the images in pixels.
      texts: shape of the text features; () without them.
    """

    teacher: frozen_features.FrozenFeatures
    width: int
    options: ConfigDict
    image_size: int
    texts: tuple[int, ...] = ()

    @property
    def needs_moments(self) -> bool:
        """Whether moments of the training images whiten the teacher's vectors."""
        return self.options.vkd != "none" and self.options.vkd_scope == "data"

    @property
    def projector(self) -> vkd.Projector:
        """The map from the discriminator's pooled feature to the teacher's channels."""
        return vkd.Projector(self.width, self.options.vkd_projector)

    def init_teacher(self, key: jax.Array) -> Variables:
        """Returns random variables of the teacher."""
        texts = {"texts": jnp.zeros(self.texts)} if self.texts else {}
        return {"network": self.teacher.init(key), **texts}

    def load_pretrained(self, variables: Variables) -> Variables:
        """Returns the teacher's variables with the contents of its files.

        Args:
          variables: of the teacher, or their shapes.

        Raises:
          UserError: a file is missing or does not fit.
        """
        texts = {"texts": read_texts(self.options.text_features)} if self.texts else {}
        return {**variables, "network": self.teacher.load_pretrained(variables["network"]), **texts}

    def init(self, key: jax.Array, channels: int) -> Variables:
        """Returns the variables of the projector and of the fixed whitening.

        Without VkD's loss the result is {}.

        channels: of the discriminator's pooled feature.
        """
        if self.options.vkd == "none":
            return {}
        variables = self.projector.init(key, jnp.zeros((1, channels)))
        if not self.needs_moments:
            return variables
        square = (self.width, self.width)
        return {
            **variables,
            "moments": {"count": jnp.zeros(()), "sum": jnp.zeros((self.width,)), "products": jnp.zeros(square)},
            "whitening": {"mean": jnp.zeros((self.width,)), "matrix": jnp.eye(self.width)},
        }

    def loss(
        self, variables: Variables, images: jax.Array, out: DiscriminatorOutput, key: jax.Array, context: Context
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the weighted sum of the terms, and the terms by name.

        Args:
          variables: of the method.
          images: the discriminator's own input, generated images before real ones.
          out: the discriminator's outputs for them.
          key: of the permutations.
          context: of the step.
        """
        teacher = jax.lax.stop_gradient(self._vectors(variables, images, context))
        if self.options.teacher_shuffled:
            halves = jnp.split(teacher, 2)
            keys = jax.random.split(jax.random.fold_in(key, 0))
            shuffled = [jax.random.permutation(k, half) for k, half in zip(keys, halves, strict=True)]
            teacher = jnp.concatenate(shuffled)
        total, metrics = jnp.zeros(()), {}
        if terms := gan_options.kd_terms(self.options):
            fake_term, real_term, metrics = self._kd(variables, terms, teacher, out, jax.random.fold_in(key, 1))
            total += self.options.kd_weight * (fake_term + real_term)
        if self.options.vkd != "none":
            vkd_loss = self._vkd(variables["distill"], teacher, out.pooled)
            total += self.options.vkd_weight * vkd_loss
            metrics["vkd"] = vkd_loss
        return total, metrics

    def add_moments(self, variables: Variables, images: jax.Array, context: Context) -> Mapping[str, jax.Array]:
        """Returns the sums of the moments with those of a batch, without padding."""
        vectors = self._vectors(variables, images, context)
        weight, old = context.weight[:, None], variables["distill"]["moments"]
        with jax.default_matmul_precision("highest"):
            products = (weight * vectors).T @ vectors
        return {
            "count": old["count"] + weight.sum(),
            "sum": old["sum"] + (weight * vectors).sum(axis=0),
            "products": old["products"] + products,
        }

    def finish_moments(self, distill: Variables) -> Variables:
        """Returns the variables of `init` with the whitening of the moments.

        The sums of the moments become 0.
        """
        count, total, products = (distill["moments"][name] for name in ("count", "sum", "products"))
        mean, epsilon = total / count, self.options.vkd_epsilon
        covariance = (products - count * jnp.outer(mean, mean)) / jnp.maximum(count - 1, 1)
        shrunk = (1 - epsilon) * covariance + epsilon * jnp.eye(self.width)
        matrix = feature_norms.whitening_matrix(shrunk, self.options.vkd_root)
        empty = jax.tree.map(jnp.zeros_like, distill["moments"])
        return {**distill, "moments": empty, "whitening": {"mean": mean, "matrix": matrix}}

    def _vectors(self, variables, images, context):
        return self.teacher.outputs(variables["teacher"]["network"], images, context)["features"]

    def _kd(self, variables, terms, teacher, out, key):
        """Computes KD-DLGAN's terms.

        Returns:
          The terms of the generated and of the real half, and numbers to log.
        """
        (c_fake, c_real), (f_fake, f_real) = jnp.split(teacher, 2), jnp.split(out.features, 2)
        fake_term, real_term, metrics = jnp.zeros(()), jnp.zeros(()), {}
        if "aggregated" in terms:
            a_real, a_fake = gan_losses.aggregated_loss(c_real, c_fake, f_real, f_fake)
            real_term, fake_term = real_term + a_real, fake_term + a_fake
        if "correlated" in terms:
            texts = variables["teacher"]["texts"]
            real_term += gan_losses.correlated_loss(c_real, f_real, texts)
            fake_term += gan_losses.correlated_loss(c_fake, f_fake, texts)
        if "diversity" in terms:  # without a gradient, so in no loss
            texts = variables["teacher"]["texts"] if self.texts else jnp.eye(self.width)
            metrics["diversity"] = gan_losses.diversity(c_fake, texts, jax.random.permutation(key, len(c_fake)))
        return fake_term, real_term, metrics | {"kd_real": real_term, "kd_fake": fake_term}

    def _vkd(self, distill, teacher, pooled):
        """Returns the sum of VkD's loss over both halves."""
        options = self.options
        projector = {name: distill[name] for name in ("params", "state") if name in distill}
        projected_fake, projected_real = jnp.split(self.projector.apply(projector, pooled), 2)
        fake, real = jnp.split(teacher, 2)
        targets = gan_losses.teacher_targets(
            real, fake, norm=options.vkd_norm, root=options.vkd_root, epsilon=options.vkd_epsilon,
            scope=options.vkd_scope,
            whitening=feature_norms.Whitening(**distill["whitening"]) if self.needs_moments else None,
        )  # fmt: skip
        pairs = zip((projected_real, projected_fake), targets, strict=True)
        return sum(gan_losses.feature_distance(p, c, options.vkd_distance) for p, c in pairs)


def read_texts(path: str) -> np.ndarray:
    """Returns the text features of a file, float32 `[texts, channels]`.

    Raises:
      UserError: the file is missing, or is no such array.
    """
    file = paths.resolve(path, "gan.text_features")
    try:
        texts = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"gan.text_features={path!r} cannot be read ({error}): name a .npy file") from None
    if texts.ndim != 2 or texts.dtype.kind != "f" or not np.isfinite(texts).all():
        raise UserError(f"gan.text_features={path!r} must be finite floats [texts, channels]")
    return texts.astype(np.float32)


def build(config: ConfigDict, info: StreamInfo) -> TeacherTerms:
    """Builds the terms of a config whose teacher is named.

    Raises:
      UserError: the teacher or the text features are missing or do not fit.
    """
    options = config.gan
    teacher = frozen_features.build_teacher(config, info, options)
    width, texts = teacher.width(options.image_size), ()
    if "correlated" in gan_options.kd_terms(options):
        texts = read_texts(options.text_features).shape
        if texts[1] != width:
            raise UserError(
                f"gan.text_features={options.text_features!r} has {texts[1]} channels, the teacher's vectors {width}: "
                "name the features of the teacher's own text encoder"
            )
    return TeacherTerms(teacher, width, options, options.image_size, texts)
