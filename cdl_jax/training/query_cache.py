"""Caches the queries of test images on the devices.

See `methods.base.CachesQueries`.
"""

from typing import TYPE_CHECKING

import jax
import numpy as np

from cdl_jax.data import sampling
from cdl_jax.methods.base import CachesQueries
from cdl_jax.runtime import sharding

if TYPE_CHECKING:
    from cdl_jax.training.compiled import CompiledSteps


class QueryCache:
    """Holds the test loader's data with the queries of all tasks evaluated so far.

    The cache is in no checkpoint. After a restart the same compiled function recomputes it, so results have the same
    bits.
    """

    def __init__(self, steps: "CompiledSteps"):
        self._steps, self._data = steps, steps.test_loader.data
        self._queries, self._cached_tasks = {}, set()
        self._cached_rows = np.zeros(0, np.int32)

    def data(self, frozen, tasks) -> dict:
        """Returns the data of the test loader, with `queries` for the images of `tasks`.

        Queries are computed task by task, so that those of an image are the same whichever tasks are evaluated
        together; all at once where the seeds have different tasks.
        """
        experiment = self._steps.experiment
        if not isinstance(experiment.method, CachesQueries):
            return self._data
        rows = {task.index: task.test for task in tasks}
        if experiment.axis.per_seed_classes:
            rows = {0: np.arange(len(experiment.stream.test), dtype=np.int32)}
        missing = {index: value for index, value in rows.items() if index not in self._cached_tasks}
        if not missing:
            return self._data
        for value in missing.values():
            if len(new := np.setdiff1d(value, self._cached_rows)):  # tasks may share test images
                self._compute(frozen, new)
            self._cached_rows = np.union1d(self._cached_rows, value)
        self._cached_tasks |= set(missing)
        copies = {name: values.copy() for name, values in self._queries.items()}  # the originals are filled further
        queries = sharding.shard(experiment.mesh, copies)
        self._data = {**self._steps.test_loader.data, "queries": queries}
        return self._data

    def _compute(self, frozen, rows):
        experiment, loader = self._steps.experiment, self._steps.test_loader
        order, weight = sampling.sequential_order(len(rows), experiment.config.eval.batch_size)
        parts = [
            self._steps.query_step(frozen, loader.data, batch) for batch in loader.test_batches(rows[order], weight)
        ]
        queries = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(parts))
        for name, values in queries.items():
            shape = len(experiment.stream.test), *values.shape[1:]
            self._queries.setdefault(name, np.zeros(shape, values.dtype))[rows] = values[: len(rows)]
