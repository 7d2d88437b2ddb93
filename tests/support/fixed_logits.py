"""Evaluations of networks whose logits are tables with a row for each test image."""

from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data.stream import Task
from cdl_jax.data.transforms import augment
from cdl_jax.methods.base import StreamInfo
from cdl_jax.options import defaults
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.state import position
from cdl_jax.training.steps import evaluation_step
from tests.support.methods import FixedMethod


class RowSource:
    """Loads images that are row numbers, to look up a method's predictions.

    labels: int `[n]` of all rows.
    """

    crops_on_host = True

    def __init__(self, labels):
        self.labels, self.data = labels, {}

    def read(self, data, batch):
        images = jnp.broadcast_to(batch["rows"][:, None, None, None], (len(batch["rows"]), 1, 1, 3))
        return images, jnp.asarray(self.labels)[batch["rows"]]

    @staticmethod
    def test_batches(rows, weight):
        return ({"rows": r, "weight": w} for r, w in zip(rows, weight, strict=True))


def evaluate(tables, labels, task_sizes, num_tasks, batch_size, method=FixedMethod, **attributes):
    """Returns `Evaluator.evaluate` after the first tasks.

    Args:
      tables: network -> logits `[n, classes]`.
      labels: int `[n]`.
      task_sizes: number of classes of each task.
      num_tasks: number of tasks that were trained.
      batch_size: of evaluation.
      method: a class of methods, built with a prediction and `attributes`.
    """
    unit = defaults(augment.OPTIONS, mean=(0.0,) * 3, std=(1.0,) * 3)

    def predict(variables, images, context):
        rows = jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)
        return {name: jnp.asarray(table)[rows] for name, table in tables.items()}, {}

    bounds = np.cumsum([0, *task_sizes]).tolist()
    tasks = [
        Task(t, tuple(range(first, end)), first, np.arange(0), np.flatnonzero((labels >= first) & (labels < end)))
        for t, (first, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    method, source = method(prediction=predict, **attributes), RowSource(labels)
    experiment = SimpleNamespace(
        config=SimpleNamespace(eval=SimpleNamespace(batch_size=batch_size), seeds=()),
        method=method,
        stream=SimpleNamespace(tasks=tasks),
        plan=SimpleNamespace(multi_learner=bool(method.streams)),
        axis=SimpleNamespace(
            rows=lambda tasks, part: np.concatenate([task.test for task in tasks]), unstack=lambda tree: [tree]
        ),
    )
    steps = SimpleNamespace(
        experiment=experiment,
        test_loader=source,
        mesh_context=nullcontext,
        evaluation_step=jax.jit(evaluation_step(method, source, unit, StreamInfo(bounds[-1], tuple(task_sizes)))),
    )
    return Evaluator(steps).evaluate({}, {}, tasks[:num_tasks], position(tasks[num_tasks - 1]))[0]
