"""Loggers on threads of their own: order, failures, absent packages."""

import logging
import sys
import threading

import pytest

from cdl_jax.errors import UserError
from cdl_jax.run.loggers import background
from tests.support.logger_lines import LINES, POINTS, run_info


class Recorder:
    """A logger that fails at its line number `fails_at`."""

    def __init__(self, fails_at=None):
        self.lines, self.finished, self.fails_at = [], None, fails_at

    def write(self, line):
        if len(self.lines) == self.fails_at:
            raise OSError(28, "No space left\non device")
        self.lines.append(line)

    def close(self, finished):
        self.finished = finished


def test_lines_arrive_in_order_and_the_end_waits_for_them():
    recorder = Recorder()
    logger = background.BackgroundLogger("own", lambda: recorder)
    for line in LINES:
        logger.write(line)
    logger.close(True)
    assert recorder.lines == LINES and recorder.finished is True


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_failure_is_one_warning(fails_at, caplog):
    recorder = Recorder(fails_at)
    logger = background.BackgroundLogger("own", lambda: recorder)
    with caplog.at_level(logging.WARNING, logger="cdl_jax"):
        for line in LINES:
            logger.write(line)
        logger.close(True)
        logger.write(LINES[0])
    assert caplog.messages == [
        "the logger own has stopped (OSError: [Errno 28] No space left on device); the run continues, and "
        "metrics.jsonl and results.json have all numbers"
    ]
    assert recorder.lines == LINES[:fails_at] and recorder.finished is None


def test_a_service_that_does_not_answer_is_not_waited_for_without_end(caplog, monkeypatch):
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.05)
    answer = threading.Event()
    logger = background.BackgroundLogger("slow", lambda: answer.wait() and Recorder())
    with caplog.at_level(logging.WARNING, logger="cdl_jax"):
        logger.close(False)
    answer.set()
    assert ["slow has stopped (not complete after" in message for message in caplog.messages] == [True]


def test_csv_and_tensorboard_have_the_same_numbers(tmp_path):
    loggers = background.open_all(("csv", "tensorboard"), run_info(tmp_path), LINES[:1])
    for logger in loggers:
        for line in LINES[1:]:
            logger.write(line)
        logger.close(True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert steps == {"_hparams_/session_start_info": [0]} | {
        name: [step for step, _ in points] for name, points in POINTS.items()
    }
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + sum(map(len, POINTS.values()))


@pytest.mark.parametrize(
    ("name", "remedy"), [("tensorboard", "tensorboard"), ("wandb", "'.[wandb]'"), ("mlflow", "'.[mlflow]'")]
)
def test_an_absent_package_is_one_line(name, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as caught:
        background.check((name, "csv"))
    assert str(caught.value) == (
        f"config.log.to=('{name}', 'csv'): the package {name} is not installed: pip install {remedy}, or leave "
        f"{name!r} out"
    )
    background.check(("csv",))
