"""The session on a GPU: every section leaves a line, within its time."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks import gpu_session, run
from benchmarks.gpu_session import SECTIONS, Section
from tests.end_to_end.command import ROOT

FIGURES = "import json,sys; json.dump({'steps': []}, open(sys.argv[-1], 'w', encoding='utf-8'))"


@pytest.fixture
def program(monkeypatch):
    """Replaces `benchmarks.run` in the command of a section by a Python program."""

    def replace(text):
        call = gpu_session.call
        monkeypatch.setattr(
            gpu_session, "call", lambda words, limit: call([sys.executable, "-c", text, *words[3:]], limit)
        )

    return replace


def result(limit=60.0, **changes):
    section = Section(**{"name": "one", "seconds": 60, "words": ("cdl",), "tiny": (), **changes})
    return gpu_session.run(section, True, False, time.monotonic() + limit)


def test_the_figures_of_a_section_are_stored(program):
    program(FIGURES)
    found = result()
    assert (found["status"], found["figures"], found["command"]) == ("measured", {"steps": []}, "cdl")


def test_a_section_that_fails_leaves_its_last_line_and_its_output(program):
    program("print('a row'); raise SystemExit('no memory')")
    found = result()
    assert (found["status"], found["reason"], found["output"]) == ("failed", "no memory", "a row\nno memory\n")


def test_a_section_that_takes_too_long_is_killed_and_leaves_what_it_printed(program, monkeypatch):
    monkeypatch.setattr(gpu_session, "LEAST_SECONDS", 0)
    program("import time; print('a row', flush=True); time.sleep(60)")
    found = result(limit=1.0)
    assert (found["status"], found["reason"], found["output"]) == ("too long", "over 1 s", "a row\n")


@pytest.mark.parametrize(
    ("limit", "changes", "reason"),
    [(5.0, {}, "no time is left"), (60.0, {"needs_torch": True}, "PyTorch is missing")],
)
def test_a_section_without_time_or_without_its_other_side_is_left_out(limit, changes, reason):
    found = result(limit, **changes)
    assert (found["status"], found["reason"]) == ("left out", reason)


def test_every_section_is_a_case_with_known_options_in_both_sizes():
    import importlib
    from argparse import ArgumentParser

    for section in SECTIONS:
        name, *words = section.words
        assert name in run.known()
        parser = ArgumentParser(exit_on_error=False)
        importlib.import_module(f"benchmarks.cases.{name}").arguments(parser)
        parser.parse_args(words)
        parser.parse_args(section.tiny)
    assert [one.name for one in SECTIONS][:3] == ["attention", "steps_b_s", "steps_b_s_pytorch"]


def test_modelled_times_are_those_of_the_card(tmp_path):
    file = tmp_path / "aot.json"
    rows = [{"card": card, "phase": "teacher", "sum": {"ms": ms}} for card, ms in (("h200", 9.7), ("a100", 20.0))]
    file.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert gpu_session.modelled_ms(file, "NVIDIA H200") == {"teacher": 9.7}
    assert gpu_session.modelled_ms(file, "NVIDIA L4") == {}


def test_measured_and_modelled_times_stand_side_by_side():
    step = {"phase": "teacher", "ms": {"ours": {"median": 10.5}, "tuned": {"median": 12.25}}}
    lines = gpu_session.summary(
        {"section": "steps", "status": "measured", "seconds": 3, "figures": {"steps": [step]},
         "modelled_ms": {"teacher": 9.71}}
    ).splitlines()  # fmt: skip
    assert lines[0] == "steps: measured after 3 s"
    assert lines[3:] == ["| teacher | ours | 10.50 | 9.71 |", "| teacher | tuned | 12.25 |  |"]


def test_the_rehearsal_writes_a_line_and_without_a_gpu_the_session_ends_in_one(tmp_path):
    out = tmp_path / "session.jsonl"
    script = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--only", "attention", "--out", str(out)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([*script, "--rehearse"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    assert line["status"] == "measured" and line["figures"]["kernel"] == "xla"
    assert [row["keys"] for row in line["figures"]["attention"]] == [9]
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "benchmarks: jax finds no GPU here: add --rehearse to try the sections on this machine"
    ]
