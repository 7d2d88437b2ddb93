"""Selects the images of a herded memory, see `methods.base.HerdsMemory`."""

import jax
import numpy as np

from cdl_jax.data import herding
from cdl_jax.data.stream import Task
from cdl_jax.methods.base import HerdsMemory, Phase
from cdl_jax.runtime import sharding
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.state import position


def read_rows(steps: CompiledSteps, mutable) -> list[np.ndarray | None]:
    """Returns the rows of the memory of each seed.

    A method without such a memory has None for each seed.
    """
    experiment = steps.experiment
    if not isinstance(experiment.method, HerdsMemory):
        return [None] * len(experiment.seeds)
    return experiment.axis.unstack(jax.device_get(steps.replicate(experiment.method.memory_rows(mutable))))


def select(evaluator: Evaluator, mutable, frozen, phase: Phase, task: Task):
    """Selects the memory of a task's classes with the network of a phase.

    Returns:
      The mutable variables after the selection.
    """
    steps, experiment = evaluator.steps, evaluator.steps.experiment
    # Every process computes all of it. The batch is that of training: the batch size of evaluation may change while a
    # run is stopped, and with it the last bits.
    features = evaluator.predict(
        steps.features_step(phase.herding_network), mutable, frozen, steps.train_loader,
        experiment.axis.rows([task], "train"), position(task), experiment.config.train.batch_size,
    )  # fmt: skip
    parts = zip(read_rows(steps, mutable), experiment.streams, experiment.axis.unstack(features), strict=True)
    rows = []
    for memory, stream, seed_features in parts:
        images = stream.tasks[task.index].train
        rows.append(herding.update_memory(memory, images, stream.train.labels[images], seed_features))
    rows = np.stack(rows) if experiment.config.seeds else rows[0]
    return steps.update_memory_step(mutable, frozen, sharding.shard(experiment.mesh, rows))
