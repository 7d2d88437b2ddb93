"""Schedules the log lines, evaluations and checkpoints of a phase by steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Call:
    """Describes one call of a compiled step.

    Attributes:
      first: number of its first step, counted from the start of the round.
      length: number of steps in the call.
      size: number of the task's own images in its batches.
      log: whether a log line follows.
      evaluate: whether an evaluation follows.
      save: whether a checkpoint follows.
    """

    first: int
    length: int
    size: int
    log: bool
    evaluate: bool
    save: bool

    @property
    def last(self) -> int:
        """Returns the number of the last step of the call."""
        return self.first + self.length - 1


@dataclass(frozen=True)
class Schedule:
    """Describes the calls that remain of a phase in a round.

    Attributes:
      steps_per_epoch: number of batches of an epoch.
      calls: in order.
    """

    steps_per_epoch: int
    calls: tuple[Call, ...]

    @classmethod
    def build(cls, config, record, sizes: Sequence[int], epochs: int, rounds: int) -> "Schedule":
        """Builds the schedule from the position of a record.

        Args:
          config: the run's; `log.every_steps`, `eval.every_epochs`, `checkpoint.every_steps` and
            `train.steps_per_call` are used.
          record: `step`, `round`, `epoch` and `step_in_epoch` are the position.
          sizes: number of images in each batch of an epoch.
          epochs: of the phase in a round.
          rounds: of a task; the last one ends with an evaluation.
        """
        steps, total = len(sizes), len(sizes) * epochs
        numbers = np.arange(record.epoch * steps + record.step_in_epoch, total)
        run_steps = record.step + 1 + np.arange(len(numbers))
        is_last, ends_epoch = numbers + 1 == total, (numbers + 1) % steps == 0
        log_due = run_steps % config.log.every_steps == 0
        save_due = np.zeros(len(numbers), bool)
        if config.checkpoint.every_steps:
            save_due = run_steps % config.checkpoint.every_steps == 0
        evaluation_due = np.zeros(len(numbers), bool)
        if every := config.eval.every_epochs:
            evaluation_due = ends_epoch & ((record.round * epochs + numbers // steps + 1) % every == 0)
        is_odd = np.not_equal(sizes, max(sizes))[numbers % steps]
        sync = log_due | save_due | evaluation_due | is_odd | np.append(is_odd[1:], False)[: len(numbers)]
        evaluation_due |= is_last & bool(config.eval.every_epochs) & (record.round + 1 == rounds)
        calls, at = [], 0
        for length in scan_lengths(sync, 1 if config.debug_nans else config.train.steps_per_call):
            end, at = at + length - 1, at + length
            size = sizes[numbers[end] % steps]
            log, evaluate, save = log_due[end] | is_last[end], evaluation_due[end], save_due[end]
            calls.append(Call(int(numbers[end]) - length + 1, length, size, bool(log), bool(evaluate), bool(save)))
        return cls(steps, tuple(calls))

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    @property
    def lengths(self) -> list[int]:
        """Returns the number of steps of each call."""
        return [call.length for call in self.calls]


def scan_lengths(sync_points: Sequence[bool], max_length: int) -> list[int]:
    """Divides steps into calls of `max_length` steps.

    Only the last step of a call may be a sync point. Steps that fill no such call are called one by one.

    >>> scan_lengths([False, False, False, True, False], max_length=2)
    [2, 2, 1]
    >>> scan_lengths([True, False, False, True, False], max_length=3)
    [1, 3, 1]
    """
    lengths, at = [], 0
    while at < len(sync_points):
        fits = at + max_length <= len(sync_points) and not np.any(sync_points[at : at + max_length - 1])
        lengths.append(max_length if fits else 1)
        at += lengths[-1]
    return lengths
