"""Which training pictures each step of a run sees: a pure function of stream, config and seed, so nothing is saved.
(But for a memory that a network chooses: it is saved with the network's weights, and an argument here.)

Where several learners have a stream each, all share one set of pictures and differ in the order in which they meet its
classes; row orders then have an axis of learners.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdl_jax.data import replay, sampling
from cdl_jax.data.stream import Stream
from cdl_jax.errors import UserError

# What a draw is for, where a task's and a phase's number do not tell it: above any number of a learner.
_MEMORY, _PUBLIC = 1_000_000, 1_000_001


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The batches of a run.

    train: for each learner the rows of the training split that each of its tasks has, int32.
    test: likewise of the test split.
    multi_learner: whether there are learners with streams of their own.
    batch_size: of a task's own pictures.
    num_public: rows that all learners may see without labels.
    last_batch: of an epoch, where it is incomplete: "drop" or "keep".
    accumulate: how many batches make a step of the optimizer; an epoch has none that fill no step.
    repeats: how often a picture comes in a row, see `sampling.epoch_order`.
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
    ) -> "BatchPlan":
        """The plan of a stream, or of several learners' own.

        Args:
          learner_orders: for each learner, all labels of the stream in the order in which it meets them. Its tasks
            have the sizes of the stream's tasks.
        """

        def dealt(labels, order):
            rank = np.argsort(order)[labels]
            bounds = [(task.first, task.end) for task in stream.tasks]
            return tuple(np.flatnonzero((rank >= first) & (rank < end)).astype(np.int32) for first, end in bounds)

        if not learner_orders:
            train, test = ((tuple(getattr(task, part) for task in stream.tasks),) for part in ("train", "test"))
        else:
            train = tuple(dealt(stream.train.labels, order) for order in learner_orders)
            test = tuple(dealt(stream.test.labels, order) for order in learner_orders)
        return cls(stream, train, test, bool(learner_orders), batch_size, num_public, last_batch, accumulate, repeats)

    def images_per_step(self, phase) -> int:
        """How many pictures a learner sees in a step of the phase: a batch, and what joins it."""
        return self.batch_size + (phase.replay.batch if phase.replay else 0) + phase.num_public

    def check(self, phase) -> None:
        """Raises UserError where a phase's batches cannot be filled, or an incomplete one cannot be kept."""
        count, task = min((len(rows), task) for tasks in self.train for task, rows in enumerate(tasks))
        if self.last_batch == "keep":
            if self.multi_learner or self.images_per_step(phase) > self.batch_size:
                raise UserError(
                    "config.train.last_batch='keep' does not go with learners that have streams of their own, nor with "
                    "pictures that join a batch: say 'drop'"
                )
            if self.accumulate > 1:
                raise UserError("config.train.last_batch='keep' does not go with optim.accumulate above 1: say 'drop'")
        elif count < self.batch_size * self.accumulate and not (phase.sequential or phase.balanced):
            times = f" times config.optim.accumulate={self.accumulate}" if self.accumulate > 1 else ""
            raise UserError(
                f"config.train.batch_size={self.batch_size}{times} is larger than the {count} training images of task "
                f"{task}: choose a smaller batch, or train.last_batch='keep'"
            )

    def first_mismatch(self, other: "BatchPlan", phases) -> int | None:
        """The first task that in another plan has other numbers of pictures or other batches; None where none has."""

        def sizes(plan, task):
            return [len(rows[task]) for rows in (*plan.train, *plan.test)], [plan.batch_sizes(task, p) for p in phases]

        return next((t for t in range(self.stream.num_tasks) if sizes(self, t) != sizes(other, t)), None)

    def steps_per_epoch(self, task: int, phase) -> int:
        """Batches of an epoch."""
        return len(self.batch_sizes(task, phase))

    def batch_sizes(self, task: int, phase) -> list[int]:
        """How many of the task's own pictures each batch of an epoch has, of a balanced phase how many in all.

        A plain phase has all of them, and the last batch filled up; any other what every learner can fill, and no
        batches that fill no step of the optimizer. A balanced phase has at least one.
        """
        if phase.balanced:
            lengths = self._lengths(task, phase)
            there = np.bincount(self.stream.train.labels, minlength=len(lengths))[: len(lengths)]
            whole = int(np.minimum(there, lengths).sum()) // (self.batch_size * self.accumulate)
            return [self.batch_size] * (self.accumulate * max(whole, 1))
        whole, rest = divmod(min(len(tasks[task]) for tasks in self.train), self.batch_size)
        if phase.sequential:
            return [self.batch_size] * (whole + (rest > 0))
        whole -= whole % self.accumulate
        return [self.batch_size] * whole + [rest] * (rest > 0 and self.last_batch == "keep")

    def order(self, task: int, phase, epochs: range, seed: int, memory: np.ndarray | None = None) -> np.ndarray:
        """Rows of the phase's steps, int32 `[steps, pictures]`; `[steps, pictures, learners]` where there are several.

        The first `batch_size` of a step are the task's own, behind those of an incomplete batch stands -1; then come
        those remembered, then the public ones, which are the same for all learners. All of a balanced phase are those
        remembered.

        memory: what a network has chosen, see `data.herding`; only where there is one learner.
        """
        if phase.replay and phase.replay.balance == "herding":
            kept = replay.herded_rows(memory, self._lengths(task, phase))
            place = task, phase.order
            if phase.balanced:
                steps = self.steps_per_epoch(task, phase) * len(epochs)
                return replay.memory_order(kept, steps, self.batch_size, seed, (*place, epochs.start, _MEMORY))
            return self._learner_order(0, task, phase, epochs, seed, place, kept)
        if not self.multi_learner:
            return self._learner_order(0, task, phase, epochs, seed, (task, phase.order))
        learners = range(len(self.train))
        orders = [self._learner_order(i, task, phase, epochs, seed, (task, phase.order, i)) for i in learners]
        return np.stack(orders, axis=-1)

    def _lengths(self, task, phase):
        """How many rows of each class a herded memory may bring while the task is learnt."""
        place = self.stream.tasks[task]
        classes = place.end if phase.balanced else place.first
        return replay.herded_lengths(phase.replay.capacity, classes, phase.replay.per_class)

    def _learner_order(self, learner, task, phase, epochs, seed, place, kept=None):
        *earlier, own = self.train[learner][: task + 1]
        steps = self.steps_per_epoch(task, phase)
        whole = self.batch_size * self.accumulate  # the small batches of a step are those that a large one would hold
        many = {"seed": seed, "last_batch": self.last_batch, "repeats": self.repeats}
        purposes = [(*place[:2], epoch, *place[2:]) for epoch in epochs]
        orders = [
            sampling.epoch_order(len(own), whole, purpose=purpose, **many).reshape(-1, self.batch_size)[:steps]
            for purpose in purposes
        ]
        order = np.concatenate(orders)
        joined = [np.where(order < 0, order, own[order])]
        if phase.replay:
            kept = self.replay_rows(learner, task, phase.replay, seed) if kept is None else kept
            purpose = (*place, epochs.start, _MEMORY)
            joined.append(replay.memory_order(kept, len(joined[0]), phase.replay.batch, seed, purpose))
        if phase.num_public:
            purpose = (task, phase.order, epochs.start, _PUBLIC)
            joined.append(replay.memory_order(self.public_rows(seed), len(joined[0]), phase.num_public, seed, purpose))
        return np.concatenate(joined, axis=1)

    def replay_rows(self, learner: int, task: int, options, seed: int) -> np.ndarray:
        """Rows of earlier tasks that a learner has in its memory while it learns a task."""
        earlier = self.train[learner][:task]
        if options.balance == "class":
            labels = self.stream.train.labels
            kept = replay.memory_rows_by_class(earlier, labels, options.capacity, seed, learner)
        else:
            kept = replay.memory_rows(earlier, options.capacity, seed, learner)
        return np.concatenate(kept)

    def public_rows(self, seed: int) -> np.ndarray:
        """Rows of the pictures that all learners may see without labels, drawn from the whole training split."""
        count = len(self.stream.train)
        return sampling.epoch_order(count, min(self.num_public, count), seed=seed, purpose=(_PUBLIC,))[0]
