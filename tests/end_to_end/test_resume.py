"""A killed run resumes with the same command and ends with the same bits."""

import random
import signal

import numpy as np
import pytest

from benchmarks.cases.crash_storm import kill, lines
from tests.end_to_end.command import TINY, last_weights, matrices, run, run_in_process, signal_at_line, start

ARGUMENTS = ("--config", TINY, "--config.train.epochs=3")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run_in_process(*ARGUMENTS, "--workdir", workdir)
    return workdir


def kill_at_line(workdir, lines, number, arguments=ARGUMENTS, **extra):
    """Starts the run and sends it the signal once metrics.jsonl has `lines` lines."""
    process = start(*arguments, "--workdir", workdir, **extra)
    signal_at_line(process, workdir, lines, number)
    return process, process.communicate(timeout=60)[1]


def assert_same(workdir, uninterrupted):
    assert matrices(workdir) == matrices(uninterrupted)
    assert (workdir / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    ours, wanted = last_weights(workdir, 4), last_weights(uninterrupted, 4)
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def damage(folder):
    """Cuts all files with arrays of the newest checkpoint; returns its folder.

    The files that the checkpoint reads depend on when each file was written.
    """
    newest = max((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    for path in (newest / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return newest


def test_killed_at_three_random_moments_and_damaged_it_ends_with_the_same_bits(uninterrupted, tmp_path):
    """Runs a short `benchmarks.cases.crash_storm`.

    At its end the newest checkpoints and results.json are damaged too.
    """
    numbers = {"lines": lines(uninterrupted), "tasks": 5, "report": 1.0}
    hits = []
    for moment in ("training", "checkpoint", "report"):
        process = start(*ARGUMENTS, "--config.log.report=True", "--workdir", tmp_path)
        hits.append(kill(process, tmp_path, moment, numbers, random.Random()))
    assert any(hits), "the run ended before any of the moments"
    last = damage(tmp_path / "checkpoints" / "tasks")
    newest = damage(tmp_path / "checkpoints" / "latest")
    (tmp_path / "results.json").write_text('{"status": "fin')
    err = run(*ARGUMENTS, "--workdir", tmp_path)[1]
    assert f"checkpoint {last} cannot be restored" in err and "moved to" in err
    assert (tmp_path / "checkpoints" / "damaged" / f"tasks-{last.name}").exists()
    assert (tmp_path / "checkpoints" / "damaged" / f"latest-{newest.name}").exists()
    assert_same(tmp_path, uninterrupted)


def test_after_sigterm_it_saves_and_resumes(uninterrupted, tmp_path):
    process, err = kill_at_line(tmp_path, 5, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: saved after step" in err.splitlines()[-1]
    run_in_process(*ARGUMENTS, "--workdir", tmp_path)
    assert_same(tmp_path, uninterrupted)


def test_killed_between_rounds_it_keeps_both_optimizers_and_what_no_optimizer_trains(tmp_path):
    # APT's merged prompts are state; with turns of an epoch the other network's optimizer waits within a task.
    arguments = (
        "--config",
        f"{TINY}:learner=apt",
        "--config.cdl.schedule=interleaved_epochs",
        "--config.train.epochs=3",
    )
    uninterrupted, killed = tmp_path / "whole", tmp_path / "killed"
    run_in_process(*arguments, "--workdir", uninterrupted)
    total = (uninterrupted / "metrics.jsonl").read_bytes().count(b"\n")
    process, _ = kill_at_line(killed, random.randrange(total // 3, 2 * total // 3), signal.SIGKILL, arguments)
    assert process.returncode == -signal.SIGKILL
    run_in_process(*arguments, "--workdir", killed)
    assert_same(killed, uninterrupted)


def test_a_run_in_a_folder_with_a_pattern_in_its_name_is_resumed_and_evaluated(uninterrupted, tmp_path):
    workdir = tmp_path / "sweep[lr=0.005] *"
    process, _ = kill_at_line(workdir, 7, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    run_in_process(*ARGUMENTS, "--workdir", workdir)
    assert_same(workdir, uninterrupted)
    out, _ = run_in_process(*ARGUMENTS, "--workdir", workdir, "--mode=eval")
    assert "equal to the run's accuracy matrix" in out
