"""Defines the compiled steps and the evaluation of generators.

The evaluation measures distances between generated and real images.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data import sampling
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.evaluation import components, frechet
from cdl_jax.losses import Context
from cdl_jax.methods.base import Generates, StreamInfo, join
from cdl_jax.training.evaluator import SeedEvaluation

if TYPE_CHECKING:
    from cdl_jax.training.compiled import CompiledSteps

# The noise of evaluation is the same in every evaluation of every run, so samples show the change of the generator.
_NOISE, _LABELS, _SHEET = range(3)
_MIN_ROWS = 10  # images for each channel, below which a covariance is little more than noise
SCORE_PARTS = 10  # of the generated images, each with an inception score
_MAX_SHEET_CLASSES = 20


def check(config) -> None:
    """Checks options that generation restricts.

    Raises:
      UserError: an option is out of range, or does not fit a generator.
    """
    augment.check(config.augment)
    if config.augment.repeats > 1:
        raise UserError(f"augment.repeats={config.augment.repeats}: a GAN draws each image once: set 1")
    if config.train.last_batch == "keep":
        raise UserError("config.train.last_batch='keep': all steps of a GAN have equal batches: use 'drop'")


def evaluation_step(method: Generates, loader, augmentation, info: StreamInfo) -> Callable:
    """Returns a step that generates images of the classes seen and measures them.

    The rows of a batch are numbers of generated images; noise and label of an image depend on its number alone.

    Returns:
      `(mutable, frozen, data, host_batch, position) -> {"labels": int32 [batch], "features": [batch, dim], ...}`.
    """
    del loader, info

    def step(mutable, frozen, data, host_batch, position):
        del data
        keys, draws = _keys(_NOISE, host_batch["rows"]), _keys(_LABELS, host_batch["rows"])
        labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, position["end"]))(draws)
        variables, context = join(frozen, mutable), Context(**position, key=jax.random.key(0))
        pixels = frechet.to_levels(method.generate(variables, keys, labels), jnp)
        return {"labels": labels, **method.measure(variables, augment.normalize(pixels, augmentation), context)}

    return step


def _keys(purpose, numbers):
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(purpose)))(numbers)


class GenerationEvaluator:
    """Measures generators, with the interface of `training.evaluator.Evaluator`.

    The features of real images are computed once.
    """

    def __init__(self, steps: "CompiledSteps"):
        self.steps, method = steps, steps.experiment.method
        self._real: dict[str, dict[str, np.ndarray]] = {}
        self._is_warned = False
        self._measure_steps = {
            name: steps.predict_step(method.measure, loader) for name, loader in self._loaders.items()
        }
        self._score_steps = {
            name: steps.predict_step(method.augmented_scores, loader) for name, loader in self._loaders.items()
        }
        self._sheet_step = steps.sampling_step(self._sheet)

    def evaluate(self, mutable, frozen, tasks, position, step=None, before_batch=None) -> list[SeedEvaluation]:
        """Evaluates variables by newly generated images of the classes of tasks.

        Args:
          tasks: a distance is returned for each, between generated images and test images of its classes.
          position: its `end` bounds the classes.
          step: a compiled step that replaces `CompiledSteps.evaluation_step`.
          before_batch: called before each batch. An exception of the call ends the evaluation soon.

        Returns:
          The evaluation of each seed: see docs/methods/generation.md for the extra metrics.
        """
        real = {name: self._real_features(name, mutable, frozen, tasks, position) for name in self._loaders}
        scores = {name: self._real_scores(name, mutable, frozen, tasks, position) for name in self._loaders}
        found = self._generate(mutable, frozen, position, step, before_batch)
        sheets = self._unstack(jax.device_get(self._sheet_step(mutable, frozen, position)))
        return [
            self._measure(own, real, {name: values[i] for name, values in scores.items()}, tasks, sheet)
            for i, (own, sheet) in enumerate(zip(found, sheets, strict=True))
        ]

    @property
    def _loaders(self):
        return {"training": self.steps.train_loader, "test": self.steps.test_loader}

    def _unstack(self, tree):
        return self.steps.experiment.axis.unstack(tree)

    def _generate(self, mutable, frozen, position, step, before_batch):
        """Returns labels and measurements of the generated images of each seed."""
        method, step = self.steps.experiment.method, step or self.steps.evaluation_step
        rows, weight = sampling.sequential_order(method.generated, method.generation_batch)
        parts = []
        with self.steps.mesh_context():
            for host_batch in self.steps.test_loader.test_batches(rows, weight):
                if before_batch:
                    jax.block_until_ready(parts[-2:-1])
                    before_batch()
                parts.append(step(mutable, frozen, self.steps.test_loader.data, host_batch, position))
        seed_outputs = self._unstack(jax.device_get(parts))
        return [jax.tree.map(lambda *leaves: np.concatenate(leaves), *own) for own in seed_outputs]

    def _split(self, name):
        stream = self.steps.experiment.stream
        return stream.train if name == "training" else stream.test

    def _on_real(self, step, name, mutable, frozen, rows, position):
        """Returns the outputs of a step on real images, for each seed."""
        loader, size = self._loaders[name], self.steps.experiment.config.eval.batch_size
        order, weight = sampling.sequential_order(len(rows), size)
        with self.steps.mesh_context():
            parts = [
                step(mutable, frozen, loader.data, host_batch, position)
                for host_batch in loader.test_batches(rows[order], weight)
            ]
        seed_outputs = self._unstack(jax.device_get(parts))
        return [jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *own) for own in seed_outputs]

    def _real_features(self, name, mutable, frozen, tasks, position):
        """Returns features and labels of the real images of tasks.

        Features and labels of all seeds are equal.
        """
        rows, key = _rows(name, tasks), f"{name} {len(tasks)}"
        if key not in self._real:
            step = self._measure_steps[name]
            outputs = self._on_real(step, name, mutable, frozen, rows, position)[0]
            self._real[key] = {**outputs, "labels": self._split(name).labels[rows]}
        return self._real[key]

    def _real_scores(self, name, mutable, frozen, tasks, position):
        """Returns the discriminator's scores of real images, for each seed.

        The scores are for the images' own labels. The images are at most as many as are generated, evenly spaced.
        """
        rows, limit = _rows(name, tasks), self.steps.experiment.method.generated
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(limit, len(rows))).astype(int))]
        labels = self._split(name).labels[rows]
        scores = self._on_real(self._score_steps[name], name, mutable, frozen, rows, position)
        return [own[np.arange(len(rows)), labels] for own in scores]

    def _measure(self, found, real, scores, tasks, sheet) -> SeedEvaluation:
        method, name = self.steps.experiment.method, self.steps.experiment.method.distance_name
        project = self._projection(real["training"]["features"])
        fake, test, training = (project(part["features"]) for part in (found, real["test"], real["training"]))
        labels, test_labels = found["labels"], real["test"]["labels"]
        row = [
            frechet.frechet_distance(fake[_has_class(task, labels)], test[_has_class(task, test_labels)])
            for task in tasks
        ]
        floor = sampling.rng_for(0).permutation(len(test))
        first, second = test[floor[: len(test) // 2]], test[floor[len(test) // 2 :]]
        measured = {
            f"kid_{name}": frechet.kernel_distance(fake, test),
            f"fd_{name}_floor": frechet.frechet_distance(first, second),
            f"kid_{name}_floor": frechet.kernel_distance(first, second),
            f"fd_{name}_training": frechet.frechet_distance(training, test),
            "class_accuracy": 100 * frechet.nearest_mean_accuracy(fake, labels, training, real["training"]["labels"]),
            "within_class_variance": frechet.variance_ratio(fake, labels, test, test_labels),
            **{f"{part}_called_real": 100 * frechet.real_share(values) for part, values in scores.items()},
        }
        if method.has_score:
            mean, deviation = frechet.inception_score(jax.nn.softmax(found["logits"]), SCORE_PARTS)
            measured |= {f"score_{method.network_name}": mean, f"score_{method.network_name}_std": deviation}
        extra_metrics = {f"generator/{key}": float(value) for key, value in measured.items()}
        return SeedEvaluation({"generator": [float(x) for x in row]}, {}, extra_metrics, {}, {}, {}, sheet)

    def _projection(self, features):
        """Returns the map of features to the channels in which distances are measured."""
        method, dim = self.steps.experiment.method, features.shape[1]
        if not method.components:
            count = min(method.generated, len(self.steps.experiment.stream.test))
            if count < _MIN_ROWS * dim and not self._is_warned:
                self._is_warned = True
                logging.getLogger("cdl_jax").warning(
                    "%d images for %d channels: a Frechet distance needs %d times as many images as channels; read "
                    "the kernel distance, or set gan.components", count, dim, _MIN_ROWS,
                )  # fmt: skip
            return lambda x: x.astype(np.float64)
        mean, axes = components.principal_components(features.astype(np.float64), method.components)
        return lambda x: (x - mean) @ axes

    def _sheet(self, mutable, frozen, position):
        """Returns samples of the first classes, in rows of one class.

        Returns:
          uint8 `[classes * side, columns * side, 3]`.
        """
        method = self.steps.experiment.method
        classes = min(self.steps.experiment.info.num_classes, _MAX_SHEET_CLASSES)
        labels = jnp.repeat(jnp.arange(classes), method.sheet_columns)
        keys = _keys(_SHEET, jnp.arange(len(labels)))
        pixels = frechet.to_levels(method.generate(join(frozen, mutable), keys, labels), jnp)
        side = pixels.shape[1]
        grid = pixels.reshape(classes, method.sheet_columns, side, side, 3).transpose(0, 2, 1, 3, 4)
        return grid.reshape(classes * side, method.sheet_columns * side, 3)


def _rows(name, tasks):
    """Returns the rows of the images of tasks in the training or the test split."""
    return np.concatenate([task.train if name == "training" else task.test for task in tasks])


def _has_class(task, labels):
    """Returns which labels are of a task, bool of the same shape."""
    return (labels >= task.first) & (labels < task.end)
