"""A run is resumed, evaluated and analyzed by its working directory alone.

A config with overrides began the run.
"""

import json
import signal

import pytest

from cdl_jax import config, main
from tests.end_to_end.command import ROOT, TINY, matrices, run_in_process, signal_at_line, start

OVERRIDES = ("--config.train.epochs=1", "--config.learner.top_k=1", "--config.eval.forward_transfer=False",
             "--config.log.to=()", "--config.seed=3")  # fmt: skip
BEGIN = ("--config", f"{TINY}:distill=kd", *OVERRIDES)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a run that was stopped and went on with --workdir alone."""
    workdir = tmp_path_factory.mktemp("resumed")
    process = start(*BEGIN, "--workdir", workdir)
    signal_at_line(process, workdir, 6, signal.SIGTERM)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM and "SIGTERM: saved after step" in err
    run_in_process("--workdir", workdir)
    return workdir


def test_the_resumed_run_equals_one_that_was_not_stopped(resumed, tmp_path):
    run_in_process(*BEGIN, "--workdir", tmp_path)
    assert matrices(resumed) == matrices(tmp_path)
    assert (resumed / "metrics.jsonl").read_bytes() == (tmp_path / "metrics.jsonl").read_bytes()


def test_the_overrides_of_its_first_command_hold(resumed):
    stored = config.flatten(json.loads((resumed / "config.json").read_text())["config"])
    assert (stored["train.epochs"], stored["learner.top_k"], stored["seed"]) == (1, 1, 3)


def main_in_process(capsys, monkeypatch, *arguments):
    """(exit code, stdout, stderr) of the command line."""
    monkeypatch.chdir(ROOT)
    code = main.main(list(map(str, arguments)))
    return code, *capsys.readouterr()


def test_evaluation_needs_the_working_directory_alone(resumed, capsys, monkeypatch):
    code, out, _ = main_in_process(capsys, monkeypatch, "--workdir", resumed, "--mode", "eval")
    assert code == 0 and "equal to the run's accuracy matrix" in out
    code, out, _ = main_in_process(capsys, monkeypatch, "--workdir", f"{resumed}/", "--mode=eval", "--task=1")
    assert code == 0 and "student after task 1: " in out


def test_analysis_needs_the_working_directory_alone(resumed, capsys, monkeypatch):
    code, out, _ = main_in_process(capsys, monkeypatch, "--workdir", resumed, "--mode", "analyze")
    assert code == 0 and f"report: {resumed / 'report.html'}" in out
    content = json.loads((resumed / "analysis.json").read_text())
    last = {name: rows[-1] for name, rows in matrices(resumed).items()}
    assert content["tasks"] == 5
    assert {name: row["accuracy"] for name, row in content["predictions"]["unchanged"].items()} == last


def test_an_override_that_fits_goes_with_it_and_another_is_refused(resumed):
    assert "student" in run_in_process("--workdir", resumed, "--config.log.every_steps=9")[0]  # finished: its results
    err = run_in_process("--workdir", resumed, "--config.train.epochs=2", expect=2)[1]
    assert "train.epochs: 1 -> 2" in err and len(err.splitlines()) == 1
