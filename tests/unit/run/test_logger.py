"""Results are written before the report, and a failed report is a warning."""

import json
import logging
import os
from types import SimpleNamespace

import pytest

from cdl_jax.report import run_page
from cdl_jax.run import logger, loop
from cdl_jax.run.loggers import base

CONFIG = SimpleNamespace(seeds=(), log=SimpleNamespace(report=True))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"seed": 0}}')
    return tmp_path


def run_logger(folder):
    return logger.RunLogger(base.RunInfo(folder, folder, {}), 0, SimpleNamespace(report=True, to=()))


def test_results_are_written_first(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        run_page, "write_report", lambda *_: seen.append(json.loads((folder / "results.json").read_text()))
    )
    run_logger(folder).write_results({"status": "finished", "value": 7})
    assert seen == [{"status": "finished", "value": 7}]


def test_a_report_that_fails_is_one_warning(folder, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("no font\nfound")

    monkeypatch.setattr(run_page, "write_report", fails)
    with caplog.at_level(logging.WARNING, logger="cdl_jax"):
        run_logger(folder).write_results({"status": "finished", "value": 7})
    assert json.loads((folder / "results.json").read_text())["value"] == 7
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("report.html is not drawn (RuntimeError: no font found); results.json is complete")


def test_the_same_command_draws_a_report_that_is_missing(folder, monkeypatch):
    drawn = []

    def draws(path, content, lines, config, sections):
        drawn.append(content["value"])
        path.write_text("<html>")

    monkeypatch.setattr(run_page, "write_report", draws)
    (folder / "results.json").write_text('{"status": "finished", "value": 7}')
    experiment = SimpleNamespace(config=CONFIG)
    for expected in ([7], [7]):  # once it is there, it stays as it is
        assert loop.train(experiment, folder)[0]["value"] == 7
        assert drawn == expected
    os.utime(folder / "report.html", (0, 0))  # of an unfinished run
    loop.train(experiment, folder)
    assert drawn == [7, 7]
    (folder / "analysis.json").write_text("{}")
    os.utime(folder / "report.html", (0, 0))
    loop.train(experiment, folder)
    assert drawn == [7, 7]
