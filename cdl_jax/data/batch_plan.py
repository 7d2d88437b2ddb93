"""Plans which training images form each step of a run.

The plan is a pure function of stream, config and seed, so nothing is saved to resume. The one exception is a memory
that a network chooses (see `data.herding`): it is saved with the network's variables and is an argument here.

Learners may have streams of their own. They share one set of images and differ in their class orders. Row orders then
have an axis of learners.

A `phase` is a `methods.base.Phase`: `replay`, `num_public`, `sequential`, `balanced` and `order` of it are read here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdl_jax.data import replay, sampling
from cdl_jax.data.detection import canvases
from cdl_jax.data.stream import Stream
from cdl_jax.errors import UserError

# Parts of a random purpose, larger than the number of any learner, so that no purpose occurs twice.
_MEMORY, _PUBLIC = 1_000_000, 1_000_001


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """Lists the rows of each batch of a run.

    stream: the tasks.
    train: for each learner and task int32 `[n]`, rows of the training split.
    test: for each learner and task int32 `[n]`, rows of the test split.
    multi_learner: whether learners have streams of their own.
    batch_size: the task's images in a batch.
    num_public: number of training images that all learners may use without labels.
    last_batch: "drop" or "keep", for an incomplete last batch of an epoch.
    accumulate: batches per step of the optimizer; batches that do not fill a step are dropped.
    repeats: how often an image appears in a row, see `sampling.epoch_order`.
    group_size: images of a group of a batch, see `canvases.epoch_rows`; 0: batches have no groups.
    """

    stream: Stream
    train: tuple[tuple[np.ndarray, ...], ...]
    test: tuple[tuple[np.ndarray, ...], ...]
    multi_learner: bool
    batch_size: int
    num_public: int = 0
    last_batch: str = "drop"
    accumulate: int = 1
    repeats: int = 1
    group_size: int = 0

    @classmethod
    def build(
        cls,
        stream: Stream,
        batch_size: int,
        learner_orders: Sequence[Sequence[int]] = (),
        num_public: int = 0,
        last_batch: str = "drop",
        *,
        accumulate: int = 1,
        repeats: int = 1,
        group_size: int = 0,
    ) -> "BatchPlan":
        """Builds the plan of a stream.

        Args:
          stream: the tasks.
          batch_size: the task's images in a batch.
          learner_orders: for each learner all labels of the stream, in the order in which the learner meets them. Its
            tasks have the sizes of the stream's tasks. (): one learner, with the order of the stream.
          num_public, last_batch, accumulate, repeats, group_size: see `BatchPlan`.
        """

        def split_by_task(labels, order):
            rank = np.argsort(order)[labels]
            bounds = [(task.first, task.end) for task in stream.tasks]
            return tuple(np.flatnonzero((rank >= first) & (rank < end)).astype(np.int32) for first, end in bounds)

        if not learner_orders:
            train = (tuple(task.train for task in stream.tasks),)
            test = (tuple(task.test for task in stream.tasks),)
        else:
            train = tuple(split_by_task(stream.train.labels, order) for order in learner_orders)
            test = tuple(split_by_task(stream.test.labels, order) for order in learner_orders)
        options = (num_public, last_batch, accumulate, repeats, group_size)
        return cls(stream, train, test, bool(learner_orders), batch_size, *options)

    def images_per_step(self, phase: Any) -> int:
        """Returns the number of images in a step, with replay and public images."""
        return self.batch_size + (phase.replay.batch if phase.replay else 0) + phase.num_public

    def check(self, phase: Any) -> None:
        """Checks that the batches of a phase can be filled.

        Raises:
          UserError: a task has fewer images than a batch, or an incomplete batch cannot be kept.
        """
        count, task = min((len(rows), task) for tasks in self.train for task, rows in enumerate(tasks))
        if self.last_batch == "keep":
            if self.multi_learner or self.images_per_step(phase) > self.batch_size:
                raise UserError(
                    "config.train.last_batch='keep' cannot be combined with streams for each learner, nor with replay "
                    "or public images in a batch: use 'drop'"
                )
            if self.accumulate > 1:
                raise UserError(
                    "config.train.last_batch='keep' cannot be combined with optim.accumulate above 1: use 'drop'"
                )
        elif count < self.batch_size * self.accumulate and not (phase.sequential or phase.balanced):
            times = f" times config.optim.accumulate={self.accumulate}" if self.accumulate > 1 else ""
            raise UserError(
                f"config.train.batch_size={self.batch_size}{times} is larger than the {count} training images of task "
                f"{task}: choose a smaller batch, or train.last_batch='keep'"
            )

    def first_mismatch(self, other: "BatchPlan", phases: Sequence[Any]) -> int | None:
        """Returns the first task with other image or batch counts than another plan.

        None if all tasks agree.
        """

        def counts(plan, task):
            image_counts = [len(rows[task]) for rows in (*plan.train, *plan.test)]
            return image_counts, [plan.batch_sizes(task, phase) for phase in phases]

        return next((t for t in range(self.stream.num_tasks) if counts(self, t) != counts(other, t)), None)

    def steps_per_epoch(self, task: int, phase: Any) -> int:
        """Returns the number of batches in an epoch."""
        return len(self.batch_sizes(task, phase))

    def batch_sizes(self, task: int, phase: Any) -> list[int]:
        """Returns the number of the task's images in each batch of an epoch.

        Sequential phases use every image and pad the last batch. Other phases use only batches that all learners can
        fill, rounded down to a multiple of `accumulate`. Balanced phases have at least one batch, and their counts
        include all images.
        """
        if phase.balanced:
            limits = self._herded_limits(task, phase)
            available = np.bincount(self.stream.train.labels, minlength=len(limits))[: len(limits)]
            full_steps = int(np.minimum(available, limits).sum()) // (self.batch_size * self.accumulate)
            return [self.batch_size] * (self.accumulate * max(full_steps, 1))
        num_full, remainder = divmod(min(len(tasks[task]) for tasks in self.train), self.batch_size)
        if self.group_size:  # the images are repeated until all groups have the same number
            groups = self.batch_size // self.group_size
            num_full, remainder = -(-len(self.train[0][task]) // groups) // self.group_size, 0
        if phase.sequential:
            return [self.batch_size] * (num_full + (remainder > 0))
        num_full -= num_full % self.accumulate
        return [self.batch_size] * num_full + [remainder] * (remainder > 0 and self.last_batch == "keep")

    def order(self, task: int, phase: Any, epochs: range, seed: int, memory: np.ndarray | None = None) -> np.ndarray:
        """Returns the rows of a phase's steps.

        The first `batch_size` rows of a step are the task's; -1 pads an incomplete batch. Replay rows follow, then
        public rows, which are the same for all learners. A balanced phase has replay rows alone.

        Args:
          task: index of the task.
          phase: of the method.
          epochs: which of the task's epochs.
          seed: of the run.
          memory: int32 `[classes, width]`, a herded memory (see `data.herding`); for one learner only.

        Returns:
          int32 `[steps, images]`, or `[steps, images, learners]` for learners with streams of their own.
        """
        if phase.replay and phase.replay.balance == "herding":
            replay_rows = replay.herded_rows(memory, self._herded_limits(task, phase))
            purpose = task, phase.order
            if phase.balanced:
                steps = self.steps_per_epoch(task, phase) * len(epochs)
                return replay.memory_order(replay_rows, steps, self.batch_size, seed, (*purpose, epochs.start, _MEMORY))
            return self._learner_order(0, task, phase, epochs, seed, purpose, replay_rows)
        if not self.multi_learner:
            return self._learner_order(0, task, phase, epochs, seed, (task, phase.order))
        learners = range(len(self.train))
        orders = [self._learner_order(i, task, phase, epochs, seed, (task, phase.order, i)) for i in learners]
        return np.stack(orders, axis=-1)

    def replay_rows(self, learner: int, task: int, options: Any, seed: int) -> np.ndarray:
        """Returns the rows of earlier tasks in a learner's memory while it learns a task.

        Args:
          learner: index of the learner.
          task: index of the task.
          options: a `methods.base.Replay`.
          seed: of the run.

        Returns:
          int32 `[n]`.
        """
        earlier = self.train[learner][:task]
        if options.balance == "class":
            labels = self.stream.train.labels
            rows = replay.memory_rows_by_class(earlier, labels, options.capacity, seed, learner)
        else:
            rows = replay.memory_rows(earlier, options.capacity, seed, learner)
        return np.concatenate(rows)

    def public_rows(self, seed: int) -> np.ndarray:
        """Draws the rows of the public images from the training split.

        Returns:
          int32 `[num_public]`, or all rows of a smaller split.
        """
        count = len(self.stream.train)
        return sampling.epoch_order(count, min(self.num_public, count), seed=seed, purpose=(_PUBLIC,))[0]

    def _herded_limits(self, task, phase):
        """Returns the most rows of each class from a herded memory in a task's phase."""
        current = self.stream.tasks[task]
        num_classes = current.end if phase.balanced else current.first
        return replay.herded_lengths(phase.replay.capacity, num_classes, phase.replay.per_class)

    def _learner_order(self, learner, task, phase, epochs, seed, purpose, replay_rows=None):
        task_rows = self.train[learner][task]
        steps = self.steps_per_epoch(task, phase)
        step_size = self.batch_size * self.accumulate  # the small batches of a step are parts of one large batch
        orders = []
        for epoch in epochs:
            draw = {"seed": seed, "purpose": (*purpose[:2], epoch, *purpose[2:])}
            if self.group_size:
                groups = self.batch_size // self.group_size
                order = canvases.epoch_rows(len(task_rows), groups, self.group_size, **draw)
            else:
                order = sampling.epoch_order(
                    len(task_rows), step_size, last_batch=self.last_batch, repeats=self.repeats, **draw
                )
            orders.append(order.reshape(-1, self.batch_size)[:steps])
        order = np.concatenate(orders)
        parts = [np.where(order < 0, order, task_rows[order])]
        if phase.replay:
            rows = self.replay_rows(learner, task, phase.replay, seed) if replay_rows is None else replay_rows
            memory_purpose = (*purpose, epochs.start, _MEMORY)
            parts.append(replay.memory_order(rows, len(order), phase.replay.batch, seed, memory_purpose))
        if phase.num_public:
            public_purpose, rows = (task, phase.order, epochs.start, _PUBLIC), self.public_rows(seed)
            parts.append(replay.memory_order(rows, len(order), phase.num_public, seed, public_purpose))
        return np.concatenate(parts, axis=1)
