"""Evaluates networks on test images.

Evaluations have accuracy by task, calibration, agreement and logits.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from cdl_jax.data import sampling
from cdl_jax.evaluation import calibration, confusion
from cdl_jax.training import steps as steps_of
from cdl_jax.training.query_cache import QueryCache

if TYPE_CHECKING:
    from cdl_jax.training.compiled import CompiledSteps


class SeedEvaluation(NamedTuple):
    """The measurements of one seed; JSON only, except the sheet.

    Attributes:
      accuracy: network -> the number of each task: `Experiment.metric`.
      counts: network -> name -> numbers of each task.
      extra_metrics: name -> mean over images; or `<network>/<number of COCO>` -> percent.
      calibration: see `calibration.finalize`.
      detection: network -> what only detectors have, see `training.detection.detection_details`.
      classification: network -> what only classifiers have: `task_incremental`, percent on each task where the task of
        an image is given; `class_accuracy`, percent on each class seen, None without images; `confusion`, see
        `evaluation.confusion`. Classes are numbered in the class order of the network.
      sheet: what only generators have: samples with the same noise in each evaluation, uint8 `[height, width, 3]`.
    """

    accuracy: dict[str, list[float]]
    counts: dict[str, dict[str, list]]
    extra_metrics: dict[str, float]
    calibration: dict[str, Any]
    detection: dict[str, dict[str, Any]]
    classification: dict[str, dict[str, Any]]
    sheet: np.ndarray | None = None


class Evaluator:
    """Evaluates with the compiled steps of an experiment.

    The evaluator caches the queries of test images.
    """

    def __init__(self, steps: "CompiledSteps"):
        self.steps, self._cache = steps, QueryCache(steps)

    def evaluate(self, mutable, frozen, tasks, position, step=None, before_batch=None) -> list[SeedEvaluation]:
        """Evaluates variables on the test images of tasks.

        Args:
          position: its `end` bounds the classes that predictions choose from.
          step: a compiled step that replaces `CompiledSteps.evaluation_step`.
          before_batch: called before each batch. At most two batches are in flight, so an exception of the call ends
            the evaluation soon.

        Returns:
          The evaluation of each seed. Its extra metrics are those of the method and each network's accuracy as a mean
          over batches (some published programs report it; images of an incomplete last batch count for more). Where
          learners have streams of their own, extra metrics are over the images of all tasks, and calibration has
          `stream`: accuracy on each task of the stream.
        """
        experiment, loader = self.steps.experiment, self.steps.test_loader
        step = step or self.steps.evaluation_step
        multi_learner = experiment.plan.multi_learner
        evaluated = experiment.stream.tasks if multi_learner else tasks  # learners have seen different classes
        rows = experiment.axis.rows(evaluated, "test")
        order, weight = sampling.sequential_order(len(rows), experiment.config.eval.batch_size)
        host_batches = loader.test_batches(rows[order], weight)
        with self.steps.mesh_context():
            data, parts = self._cache.data(frozen, evaluated), []
            for host_batch in host_batches:
                if before_batch:
                    jax.block_until_ready(parts[-2:-1])
                    before_batch()
                parts.append(step(mutable, frozen, data, host_batch, position))
        parts_by_seed = experiment.axis.unstack(jax.device_get(parts))
        return [
            _aggregate(experiment.method, seed_parts, tasks, multi_learner, int(position["end"]))
            for seed_parts in parts_by_seed
        ]

    def logits(self, mutable, frozen, task, position) -> dict[str, np.ndarray]:
        """Returns the logits of each network, for one seed and one process.

        Returns:
          `{network: logits [test images of the task, classes]}`.
        """
        data = self._cache.data(frozen, [task])
        return self.predict(
            self.steps.logits_step, mutable, frozen, self.steps.test_loader, task.test, position, data=data
        )

    def predict(self, *arguments, **options):
        """Returns what `each_batch` yields, concatenated over images."""
        axis = 1 if self.steps.experiment.config.seeds else 0
        parts = self.each_batch(*arguments, **options)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=axis), *parts)

    def each_batch(self, step, mutable, frozen, loader, rows, position, size: int = 0, data=None):
        """Yields the outputs of a `CompiledSteps.predict_step` for each batch.

        The outputs are NumPy arrays without padding.

        Args:
          rows: images of the loader.
          size: of a batch; 0: eval.batch_size.
          data: replaces the loader's data.

        Yields:
          Trees of arrays `[batch, ...]`; `[seeds, batch, ...]` where there are several seeds.
        """
        seeds, size = self.steps.experiment.config.seeds, size or self.steps.experiment.config.eval.batch_size
        data = loader.data if data is None else data
        order, weight = sampling.sequential_order(len(rows), size)
        for number, host_batch in enumerate(loader.test_batches(rows[order], weight)):
            with self.steps.mesh_context():
                outputs = jax.device_get(step(mutable, frozen, data, host_batch, position))
            count = min(size, len(rows) - number * size)
            yield jax.tree.map(lambda x, n=count: x[:, :n] if seeds else x[:n], outputs)


def _aggregate(method, parts, tasks, all_tasks, end) -> SeedEvaluation:
    """Returns the evaluation of a seed from the outputs of the evaluation step.

    end: number of classes seen.
    """
    by_image = [{name: part.pop(name) for name in ("labels", "predictions")} for part in parts]
    by_image = jax.tree.map(lambda *leaves: np.concatenate(leaves), *by_image)
    *measured, task_incremental = calibration.aggregate_batches(parts, tasks, all_tasks)
    classification = {}
    for network, predictions in by_image["predictions"].items():
        labels, ranks = by_image["labels"], steps_of.label_ranks(method, network)
        if ranks is not None:
            labels, predictions = np.where(labels < 0, -1, ranks[labels]), ranks[predictions]
        counts = confusion.count_predictions(labels, predictions, end, max(end, int(predictions.max()) + 1))
        classification[network] = {
            "task_incremental": task_incremental[network],
            "class_accuracy": confusion.class_accuracy(counts),
            "confusion": confusion.to_rows(counts),
        }
    return SeedEvaluation(*measured, {}, classification)
