"""BigGAN with few images, whose discriminator a frozen network may teach.

One iteration has `d_steps` steps of the discriminator, each on an equal part of the batch, and one of the generator.
Real and generated images are augmented differentiably. The discriminator may be regularized by LeCam, by the terms of
KD-DLGAN, or by VkD's feature loss in one of our two readings. An exponential moving average of the generator is
evaluated. docs/methods/generation.md has the equations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax import optim
from cdl_jax.data.transforms import diff_augment
from cdl_jax.distill.shared import gan_losses
from cdl_jax.losses import Context
from cdl_jax.methods.base import Generates, Method, Outcome, Path, Phase, StreamInfo, Update, Variables
from cdl_jax.methods.shared import frozen_features, gan_options, gan_terms
from cdl_jax.models.biggan import Discriminator, Generator
from cdl_jax.models.modules import families

PROBLEM = "generation"

OPTIONS = gan_options.OPTIONS

# Purposes of randomness: the number that is folded into the key of a step.
_D_DRAWS, _G_DRAWS, _SHUFFLE, _DATA = range(4)
_STATE = ("batch_stats", "spectral")  # what a pass of a network in training changes


def defaults(teacher: str = "clip_vit_b32", measuring: str = "efficientnet_lite0") -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for the named networks of teacher and measurement.

    `measuring.weights` is to name a file, and so is `teacher.weights` where a term has a teacher.
    """
    return {
        "gan": OPTIONS,
        "teacher": families.network_options(teacher, weights=""),
        "measuring": families.network_options(measuring, weights=""),
    }


@dataclass(frozen=True)
class Draws:
    """Holds the random numbers of a step.

    Attributes:
      z: noise, float32 `[batch, z_dim]`.
      labels: of the generated images, int32 `[batch]`.
      augmentation: of `diff_augment`, for the generated images and, in a step of the discriminator, the real ones
        behind them.
    """

    z: jax.Array
    labels: jax.Array
    augmentation: Mapping[str, jax.Array]


@dataclass(frozen=True)
class GAN(Method, Generates):
    """Trains a BigGAN.

    Variables are `{"generator", "generator_ema", "discriminator", "measuring", "progress"}`, with terms of a teacher
    also `"teacher"` and `"distill"`. `progress` has `iterations`, the number of finished iterations, and
    `score_means`, LeCam's averages `real` and `fake`.

    Attributes:
      options: the section `gan`.
      info: the stream.
      terms: the terms of the teacher; None without a teacher.
      measuring: the network of distances.
      network_name: its name in metrics.
      epochs: passes over the data of a task.
      generator_optimizer: of the generator.
      discriminator_optimizer: of the discriminator and the projector.
    """

    loss_classes = ""
    bookkeeping = frozenset({"progress"})

    options: ConfigDict
    info: StreamInfo
    terms: gan_terms.TeacherTerms | None
    measuring: frozen_features.FrozenFeatures
    network_name: str
    epochs: int
    generator_optimizer: optim.Optimizer
    discriminator_optimizer: optim.Optimizer
    networks: tuple[str, ...] = ("generator",)
    external: tuple[str, ...] = field(default=())

    @property
    def image_size(self) -> int:
        return self.options.image_size

    @property
    def generated(self) -> int:
        return self.options.generated

    @property
    def generation_batch(self) -> int:
        return self.options.generation_batch

    @property
    def components(self) -> int:
        return self.options.components

    @property
    def has_score(self) -> bool:
        return self.options.score

    @property
    def sheet_columns(self) -> int:
        return self.options.sheet_columns

    @property
    def metric(self) -> str:
        return f"fd_{self.distance_name}"

    @property
    def setting(self) -> str:
        return gan_options.row_name(self.options)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        def is_of_discriminator(path):
            return path[:2] in (("discriminator", "params"), ("distill", "params"))

        def is_of_generator(path):
            return path[:2] == ("generator", "params")

        def no_leaf(path):
            return False

        no_step = optim.Optimizer(optax.identity(), self.generator_optimizer.learning_rate)  # whose rate is logged
        updates = (
            Update(is_of_discriminator, self.discriminator_optimizer, self.discriminator_loss, self.options.d_steps),
            Update(is_of_generator, self.generator_optimizer, self.generator_loss),
            Update(no_leaf, no_step, self.finish_iteration),
        )
        training = Phase("gan", self.epochs, updates)
        if not (self.terms and self.terms.needs_moments):
            return (training,)
        moments = Update(no_leaf, optim.NO_STEP, self.add_moments)
        return Phase("moments", 1, (moments,), sequential=True, finish=self.finish_moments), training

    @property
    def generator(self) -> Generator:
        return Generator(self.options.width, self.info.num_classes, self.options.z_dim, self.options.image_size)

    @property
    def discriminator(self) -> Discriminator:
        head = (*self.options.kd_head[:1], self.terms.width) if gan_options.kd_terms(self.options) else ()
        return Discriminator(self.options.width, self.info.num_classes, head)

    def init(self, key: jax.Array) -> Variables:
        keys, size = [jax.random.fold_in(key, i) for i in range(5)], self.image_size
        labels, images = jnp.zeros((2,), jnp.int32), jnp.zeros((2, size, size, 3))
        generator = self.generator.init(keys[0], jnp.zeros((2, self.options.z_dim)), labels, False)
        variables = {
            "generator": generator,
            "generator_ema": generator,
            "discriminator": self.discriminator.init(keys[1], images, labels, False),
            "measuring": self.measuring.init(keys[2]),
            "progress": {"iterations": jnp.int32(0), "score_means": {"real": jnp.zeros(()), "fake": jnp.zeros(())}},
        }
        if self.terms:
            variables |= {"teacher": self.terms.init_teacher(keys[3])}
            if distill := self.terms.init(keys[4], 4 * self.options.width):
                variables |= {"distill": distill}
        return variables

    def load_pretrained(self, variables: Variables) -> Variables:
        measuring = {"measuring": self.measuring.load_pretrained(variables["measuring"])}
        teacher = {"teacher": self.terms.load_pretrained(variables["teacher"])} if self.terms else {}
        return {**variables, **measuring, **teacher}

    def is_frozen(self, path: Path) -> bool:
        return path[0] in ("teacher", "measuring")

    def start_task(self, variables: Variables, context: Context) -> Variables:
        # A copy, as training steps reuse the buffers of both.
        return {**variables, "generator_ema": jax.tree.map(jnp.copy, variables["generator_ema"])}

    def draw(self, context: Context, purpose: int, count: int, images: int) -> Draws:
        """Draws the random numbers of a step.

        Args:
          context: its key and the classes of the current task are used.
          purpose: folded into the key.
          count: number of images that are generated.
          images: number of images that are augmented.
        """
        keys = jax.random.split(jax.random.fold_in(context.key, purpose), 3)
        z = jax.random.normal(keys[0], (count, self.options.z_dim))
        labels = jax.random.randint(keys[1], (count,), context.first, context.end)
        return Draws(z, labels, self._draw_augmentation(keys[2], images))

    def discriminator_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns the discriminator's loss on a part of the batch.

        See `methods.base.Update`.
        """
        count = len(batch["images"])
        return self.discriminator_loss_for(variables, batch, self.draw(context, _D_DRAWS, count, 2 * count), context)

    def discriminator_loss_for(
        self, variables: Variables, batch: Mapping[str, Any], draws: Draws, context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns the discriminator's loss for given random numbers.

        Generated images come before the real ones, and both pass the discriminator together. The generator is in
        training mode and gets no gradient; its statistics change.
        """
        real = batch["images"]
        fake, generator = self._pass(self.generator, variables["generator"], draws.z, draws.labels)
        images = jnp.concatenate([jax.lax.stop_gradient(fake), real])
        images = self._augment(images, draws.augmentation)
        labels = jnp.concatenate([draws.labels, batch["labels"]])
        out, discriminator = self._pass(self.discriminator, variables["discriminator"], images, labels)
        fake_score, real_score = jnp.split(out.score, 2)
        loss_real, loss_fake = gan_losses.discriminator_hinge(real_score, fake_score)
        lecam, progress = self._lecam(variables["progress"], real_score, fake_score)
        total = loss_real + loss_fake + lecam
        metrics = {
            "hinge_real": loss_real,
            "hinge_fake": loss_fake,
            "score_real": real_score.mean(),
            "score_fake": fake_score.mean(),
            **({"lecam": lecam} if self.options.lecam_weight else {}),
        }
        if self.terms:
            shuffle = jax.random.fold_in(context.key, _SHUFFLE)
            value, terms = self.terms.loss(variables, images, out, shuffle, context)
            total, metrics = total + value, metrics | terms
        changed = {"generator": generator, "discriminator": discriminator, "progress": progress}
        return total, Outcome({"loss": total, **metrics}, variables=changed)

    def generator_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns `-mean score` of newly generated images, see `methods.base.Update`."""
        count = len(batch["images"]) // self.options.d_steps
        return self.generator_loss_for(variables, self.draw(context, _G_DRAWS, count, count))

    def generator_loss_for(self, variables: Variables, draws: Draws) -> tuple[jax.Array, Outcome]:
        """Returns the generator's loss for given random numbers."""
        images, generator = self._pass(self.generator, variables["generator"], draws.z, draws.labels)
        images = self._augment(images, draws.augmentation)
        out, discriminator = self._pass(self.discriminator, variables["discriminator"], images, draws.labels)
        loss = gan_losses.generator_hinge(out.score)
        changed = {"generator": generator, "discriminator": discriminator}
        return loss, Outcome({"generator_loss": loss}, variables=changed)

    def finish_iteration(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Moves the average towards the generator and counts the iteration. The loss is 0.

        The average spans parameters, running statistics and the vectors of spectral norms.
        """
        del batch, context
        iteration = variables["progress"]["iterations"] + 1
        decay = jnp.where(iteration < self.options.ema_start, 0.0, self.options.ema_decay)
        average = optax.incremental_update(variables["generator"], variables["generator_ema"], 1 - decay)
        progress = {"iterations": iteration}
        return jnp.zeros(()), Outcome({}, variables={"generator_ema": average, "progress": progress})

    def add_moments(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Adds the teacher's vectors of training images to the sums of their moments.

        The images are augmented. The loss is 0.
        """
        key = jax.random.fold_in(context.key, _DATA)
        images = self._augment(batch["images"], self._draw_augmentation(key, len(batch["images"])))
        sums = self.terms.add_moments(variables, images, context)
        return jnp.zeros(()), Outcome({"images": context.weight.sum()}, variables={"distill": {"moments": sums}})

    def finish_moments(self, variables: Variables, context: Context) -> Variables:
        """Returns the variables with the whitening of the moments; the sums are 0 again."""
        del context
        return {**variables, "distill": self.terms.finish_moments(variables["distill"])}

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        return {"discriminator": self._class_scores(variables, images)}, {}

    def augmented_scores(self, variables: Variables, images: jax.Array, context: Context) -> jax.Array:
        draws = self._draw_augmentation(context.key, len(images))
        return self._class_scores(variables, self._augment(images, draws))

    def generate(self, variables: Variables, keys: jax.Array, labels: jax.Array) -> jax.Array:
        z = jax.vmap(lambda key: jax.random.normal(key, (self.options.z_dim,)))(keys)
        return self._pass(self.generator, variables["generator_ema"], z, labels)[0]

    def measure(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, jax.Array]:
        outputs = self.measuring.outputs(variables["measuring"], images, context)
        return {name: outputs[name] for name in ("features", *["logits"] * self.has_score)}

    def export(self, variables: Variables) -> dict[str, Variables]:
        return {"generator": variables["generator_ema"]}

    def _draw_augmentation(self, key, count):
        return diff_augment.draw(key, self.options.policy, count, self.image_size, self.image_size)

    def _augment(self, images, numbers):
        return diff_augment.augment(images, numbers, self.options.policy)

    def _class_scores(self, variables, images):
        return self.discriminator.apply(variables["discriminator"], images, method="class_scores")

    def _pass(self, module, variables, x, labels) -> tuple[Any, Variables]:
        """Applies a network in training mode.

        Returns:
          The output, and the collections that the pass changed.
        """
        changed = [name for name in _STATE if name in variables]
        out, state = module.apply(variables, x, labels, True, mutable=changed)
        return out, jax.lax.stop_gradient(state)

    def _lecam(self, progress, real_score, fake_score):
        """Returns LeCam's weighted term and its new averages, which the term already uses."""
        options, iteration = self.options, progress["iterations"] + 1
        old = gan_losses.ScoreMeans(**progress["score_means"])
        means = old.update(real_score, fake_score, iteration, options.lecam_start, options.lecam_decay)
        changed = {"score_means": {"real": means.real, "fake": means.fake}}
        if not options.lecam_weight:
            return 0.0, changed
        return options.lecam_weight * gan_losses.lecam(
            means, real_score, fake_score, iteration, options.lecam_start
        ), changed


def build(config: ConfigDict, info: StreamInfo) -> GAN:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together, or a network's file is missing or has another architecture.
    """
    options = config.gan
    gan_options.check(config, info)
    optimizer = optim.build(config.optim, config.train.epochs)
    rate = options.discriminator_rate
    discriminator_optimizer = (
        optim.scale_rates(optimizer, lambda path: rate / config.optim.learning_rate) if rate else optimizer
    )
    return GAN(
        options=options,
        info=info,
        terms=gan_terms.build(config, info) if gan_options.has_teacher(options) else None,
        measuring=frozen_features.build_measuring(config.measuring, info, options),
        network_name=frozen_features.network_name(config.measuring),
        epochs=config.train.epochs,
        generator_optimizer=optimizer,
        discriminator_optimizer=discriminator_optimizer,
    )
