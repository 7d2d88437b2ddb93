"""A killed run goes on with the same command and ends with the same bits."""

import random
import signal
import time

import numpy as np
import pytest

from tests.end_to_end.command import TINY, last_weights, matrices, run, start

ARGUMENTS = ("--config", TINY, "--config.train.epochs=3")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run(*ARGUMENTS, "--workdir", workdir)
    return workdir


def kill_at_line(workdir, lines, number, arguments=ARGUMENTS):
    """Starts the run and sends it the signal once metrics.jsonl has so many lines."""
    process = start(*arguments, "--workdir", workdir)
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.002)
    return process, process.communicate(timeout=60)[1]


def assert_same(workdir, whole):
    assert matrices(workdir) == matrices(whole)
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, wanted = last_weights(workdir, 4), last_weights(whole, 4)
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_killed_at_three_random_moments_it_ends_with_the_same_bits(uninterrupted, tmp_path):
    total = (uninterrupted / "metrics.jsonl").read_bytes().count(b"\n")
    moments = sorted(random.sample(range(2, total - 2), 3))
    killed = 0
    for moment in moments:
        process, _ = kill_at_line(tmp_path, moment, signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 1, f"the run ended before any of the moments {moments}"
    run(*ARGUMENTS, "--workdir", tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_asked_to_end_it_saves_says_so_and_goes_on(uninterrupted, tmp_path):
    process, err = kill_at_line(tmp_path, 5, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saved after step" in err.splitlines()[-1]
    run(*ARGUMENTS, "--workdir", tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_killed_between_rounds_it_keeps_both_optimizers_and_what_no_optimizer_trains(tmp_path):
    # APT's merged prompts are state; with turns of an epoch the other network's optimizer waits within a task.
    arguments = (
        "--config",
        f"{TINY}:learner=apt",
        "--config.cdl.schedule=interleaved_epochs",
        "--config.train.epochs=3",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(*arguments, "--workdir", whole)
    total = (whole / "metrics.jsonl").read_bytes().count(b"\n")
    process, _ = kill_at_line(killed, random.randrange(total // 3, 2 * total // 3), signal.SIGKILL, arguments)
    assert process.returncode == -signal.SIGKILL
    run(*arguments, "--workdir", killed)
    assert_same(killed, whole)
