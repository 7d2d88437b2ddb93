"""Defines the compiled steps and the evaluation of detectors.

The evaluation measures average precision by task.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data.detection import canvases, transforms
from cdl_jax.data.detection.coco_files import DetectionSet
from cdl_jax.data.detection.loader import DetectionLoader, StreamLoader
from cdl_jax.errors import UserError
from cdl_jax.evaluation import coco
from cdl_jax.evaluation.detections import Detections, top_detections
from cdl_jax.losses import Context
from cdl_jax.methods.base import Method, StreamInfo, join
from cdl_jax.runtime import operations
from cdl_jax.training.evaluator import SeedEvaluation
from cdl_jax.training.state import position

if TYPE_CHECKING:
    from cdl_jax.training.compiled import CompiledSteps
    from cdl_jax.training.experiment import Experiment
    from cdl_jax.training.steps import TrainStep

MIN_SCORE = 0.3  # of the detections that the report shows
NUM_EXAMPLES = 6  # images that the report shows


def check(config) -> None:
    """Checks options that detection restricts.

    Raises:
      UserError: an option is out of range, or has no effect in detection.
    """
    transforms.check(config.augment, "config.augment")
    if config.seeds:
        raise UserError("config.seeds: detectors are trained one seed at a time: set config.seed")
    if config.train.steps_per_call > 1:
        raise UserError("config.train.steps_per_call: batches of detection differ in size: leave it at 1")
    if config.train.last_batch == "keep":
        raise UserError("config.train.last_batch='keep': groups of images have one size: use 'drop'")
    size = config.augment.group_size
    for key in ("train", "eval"):
        if config[key].batch_size % size:
            raise UserError(
                f"config.{key}.batch_size={config[key].batch_size} must be a multiple of augment.group_size={size}"
            )


def plan_options(config) -> dict[str, Any]:
    """Returns the options of the `BatchPlan` beside those of every problem."""
    return {"group_size": config.augment.group_size}


def make_loaders(experiment: "Experiment") -> tuple[StreamLoader, StreamLoader]:
    """Returns the loaders of the training and the test images.

    Raises:
      UserError: no canvas holds the images, or the method needs label maps, which cannot be drawn.
    """
    stream, options = experiment.stream, experiment.config.augment.to_dict()

    def build(data, training, n_max):
        size = options["group_size"]
        return DetectionLoader.build(
            data,
            experiment.mesh,
            options,
            group_size=size,
            training=training,
            n_max=n_max,
            label_maps=training and experiment.method.label_maps,
        )

    sets = tuple(build(data, True, stream.train.max_objects) for data in stream.train_sets())
    return StreamLoader(sets), StreamLoader((build(stream.test, False, 0),))


def read_batch(step: "TrainStep", data, host_batch, position, seed) -> dict[str, jax.Array]:
    """Returns the batch of a training step; images were transformed on the host."""
    del position, seed
    return step.loader.read(data, host_batch)


def evaluation_step(method: Method, loader: StreamLoader, augmentation, info: StreamInfo) -> Callable:
    """Returns a step that detects the classes seen so far.

    Columns of later classes cannot be selected. Columns that are no category can, as in the authors' code.

    Returns:
      `(mutable, frozen, data, host_batch, position) -> {network: detections}`, see `top_detections`.
    """
    del augmentation

    def step(mutable, frozen, data, host_batch, position):
        batch = loader.read(data, host_batch)
        context = Context(**position, key=jax.random.key(0), weight=host_batch["weight"])
        networks, _ = method.predict(join(frozen, mutable), batch, context)
        later = ~context.seen(info.num_classes)

        def detect(outputs):
            hidden = jnp.zeros(outputs["logits"].shape[-1], bool).at[jnp.array(info.class_ids)].set(later)
            logits = jnp.where(hidden, -jnp.inf, outputs["logits"])
            return top_detections(logits, outputs["boxes"], batch["original_sizes"])

        return {name: detect(outputs) for name, outputs in networks.items()}

    return step


def image_work(experiment: "Experiment") -> tuple[transforms.Size, operations.Work]:
    """Returns the work of the method's networks for one test image.

    The work is that of the matrix products and convolutions of a forward pass.

    Returns:
      (height, width) of the most common size of test images, after the transform and without padding, and the work.
    """
    sizes, counts = np.unique(experiment.stream.test.sizes, axis=0, return_counts=True)
    size = transforms.evaluation_size(tuple(sizes[counts.argmax()].tolist()), experiment.config.augment)
    pair = jax.ShapeDtypeStruct((1, 2), np.int32)
    image = {"images": jax.ShapeDtypeStruct((1, *size, 3), np.float32), "sizes": pair, "extents": pair}
    context = Context(**position(experiment.stream.tasks[-1]), key=jax.random.key(0), weight=jnp.ones(1))

    def predict(variables, image):
        return experiment.method.predict(variables, image, context)[0]

    return size, operations.count(predict, experiment.variable_shapes, image)


class DetectionEvaluator:
    """Measures detectors by COCO's average precision.

    The interface is that of `training.evaluator.Evaluator`.
    """

    def __init__(self, steps: "CompiledSteps"):
        self.steps = steps

    def evaluate(self, mutable, frozen, tasks, position, step=None, before_batch=None) -> list[SeedEvaluation]:
        """Evaluates variables on all test images.

        Args:
          tasks: a number is returned for each.
          position: its `end` bounds the classes that are detected.
          step: a compiled step that replaces `CompiledSteps.evaluation_step`.
          before_batch: called before each batch. An exception of the call ends the evaluation soon.

        Returns:
          The evaluation of the one seed. `accuracy` is the AP of the categories of each task. Extra metrics are the
          numbers of COCO over all classes of `tasks`, with the AP of the classes of the last task (`AP new`) and of
          those before (`AP old`), without numbers that no object determines.
        """
        found = self.detections(mutable, frozen, position, step, before_batch)
        rows, extra_metrics, details = {}, {}, {}
        for network, detections in found.items():
            evaluation = self.measure(detections, tasks)
            rows[network] = [_percent(evaluation, task.classes)["AP"] for task in tasks]
            numbers = _percent(evaluation, None)
            numbers["AP new"] = rows[network][-1]
            if earlier := [number for task in tasks[:-1] for number in task.classes]:
                numbers["AP old"] = _percent(evaluation, earlier)["AP"]
            extra_metrics |= {f"{network}/{name}": value for name, value in numbers.items() if value >= 0}
            classes = [number for task in tasks for number in task.classes]
            details[network] = detection_details(evaluation, detections, classes, self.steps.experiment.stream.test)
        return [SeedEvaluation(rows, {}, extra_metrics, {}, details, {})]

    def detections(self, mutable, frozen, position, step=None, before_batch=None) -> dict[str, Detections]:
        """Returns the detections of each network in all test images.

        The arguments are those of `evaluate`.
        """
        experiment, loader = self.steps.experiment, self.steps.test_loader
        size, step = experiment.config.augment.group_size, step or self.steps.evaluation_step
        groups = experiment.config.eval.batch_size // size
        parts = []
        with self.steps.mesh_context():
            for host_batch in loader.test_batches(*canvases.evaluation_rows(len(experiment.stream.test), groups, size)):
                if before_batch:
                    before_batch()
                outputs = step(mutable, frozen, loader.data, host_batch, position)
                batch_columns = self.steps.replicate({name: host_batch[name] for name in ("rows", "weight")})
                parts.append(jax.device_get({name: {**x, **batch_columns} for name, x in outputs.items()}))
        return {name: Detections.collect(part[name] for part in parts) for name in parts[0]}

    def measure(self, detections: Detections, tasks) -> coco.Evaluation:
        """Returns precision and recall for the categories of tasks, see `coco.evaluate`."""
        data, classes = self.steps.experiment.stream.test, {number for task in tasks for number in task.classes}
        categories = {number: name for number, name in data.categories.items() if number in classes}
        return coco.evaluate(dataclasses.replace(data, categories=categories), detections)


def detection_details(
    evaluation: coco.Evaluation, detections: Detections, classes: Sequence[int], data: DetectionSet
) -> dict[str, Any]:
    """Returns what the report shows of a detector beside COCO's numbers; JSON only.

    Args:
      evaluation: of the detections.
      detections: in all images.
      classes: category ids in stream order.
      data: the images.

    Returns:
      `class_ap`: percent of each class. `curves`: precision at 101 recalls from 0 to 1, as a mean over classes at the
      IoU thresholds `0.5` and `0.75`, and `classes`: of each class at 0.5. None stands for classes without objects.
      `examples`: the detections with a score of at least `MIN_SCORE` in `example_rows`; each has its `row`, `label`
      (category id), `score` and `box` (x, y, width, height) in pixels.
    """
    positions, class_curves = [*evaluation.categories], evaluation.curves(0.5)
    values = [_percent(evaluation, [number])["AP"] for number in classes]
    return {
        "class_ap": [None if value == coco.MISSING else value for value in values],
        "curves": {
            "0.5": _rounded(evaluation.mean_curve(0.5)),
            "0.75": _rounded(evaluation.mean_curve(0.75)),
            "classes": [_rounded(class_curves[positions.index(number)]) for number in classes],
        },
        "examples": _examples(detections.select(example_rows(data), MIN_SCORE)),
    }


def example_rows(data: DetectionSet) -> np.ndarray:
    """Returns the rows of at most `NUM_EXAMPLES` images with targets.

    The images are evenly spaced over the set.
    """
    rows = np.unique(data.objects.rows[data.trainable])
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(NUM_EXAMPLES, len(rows))).round().astype(int))]


def _examples(found):
    low, high = np.split(found.boxes.astype(np.float64), 2, axis=1)
    boxes = np.concatenate([low, high - low], axis=1).round(2).tolist()
    columns = (found.rows.tolist(), found.labels.tolist(), found.scores.astype(np.float64).round(4).tolist(), boxes)
    return [dict(zip(("row", "label", "score", "box"), values, strict=True)) for values in zip(*columns, strict=True)]


def _rounded(curve):
    """Returns the precision of a curve with 4 decimals.

    None: the class has no objects.
    """
    return None if (curve == coco.MISSING).any() else curve.round(4).tolist()


def _percent(evaluation, categories):
    numbers = evaluation.numbers(categories)
    return {name: 100 * value if value != coco.MISSING else value for name, value in numbers.items()}
