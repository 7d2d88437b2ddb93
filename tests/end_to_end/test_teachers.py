"""Schedules of a teacher, and teachers that other runs have trained."""

import json
import shutil

import numpy as np
import pytest

from tests.end_to_end.command import TINY, last_weights, matrices, run_in_process

ARGUMENTS = ("--config", f"{TINY}:learner=coda,distill=fitnets", "--config.data.class_order=0,1,2,3,4,5,6,7,8,9")


@pytest.fixture(scope="module")
def teacher_first(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("first")
    run_in_process(*ARGUMENTS, "--workdir", workdir)
    return workdir


def student_weights(workdir):
    weights = last_weights(workdir, 4)
    return {name: value for name, value in weights.items() if name.startswith(("['student']", "['distill']"))}


def difference(one, other):
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_a_teacher_of_another_run_gives_the_student_of_a_teacher_trained_here(teacher_first, tmp_path):
    run_in_process(*ARGUMENTS, f"--config.cdl.teacher_runs=('{teacher_first}',)", "--workdir", tmp_path)
    assert matrices(tmp_path)["teacher"] == matrices(teacher_first)["teacher"]
    assert difference(student_weights(tmp_path), student_weights(teacher_first)) < 1e-6
    # Nothing of the teacher is trained or saved with each task; it has no forward transfer of its own here.
    assert not any("teacher" in name for name in last_weights(tmp_path, 4))
    network = json.loads((tmp_path / "results.json").read_text())["networks"]["teacher"]
    assert network["metrics"]["forward_transfer"] is None


def test_a_student_resumes_and_is_evaluated_after_its_teacher_has_moved(teacher_first, tmp_path):
    before, after, student = tmp_path / "before", tmp_path / "after", tmp_path / "student"
    shutil.copytree(teacher_first, before)
    out, _ = run_in_process(*ARGUMENTS, f"--config.cdl.teacher_runs=('{before}/',)", "--workdir", student)
    before.rename(after)
    moved = f"--config.cdl.teacher_runs=('{after}',)"
    again, _ = run_in_process(*ARGUMENTS, moved, "--workdir", f"{student}/")
    assert again.splitlines()[-8:] == out.splitlines()[-8:]
    shutil.rmtree(student / "checkpoints" / "tasks" / "4")  # stopped before its last task
    (student / "results.json").unlink()
    run_in_process(*ARGUMENTS, moved, "--workdir", student)
    out, _ = run_in_process(*ARGUMENTS, moved, "--workdir", student, "--mode=eval")
    assert "equal to the run's accuracy matrix" in out and "NOT" not in out
    other = tmp_path / "other"
    shutil.copytree(after, other)
    (other / "checkpoints" / "frozen.json").unlink()
    next((other / "checkpoints" / "tasks").rglob("_METADATA")).write_text("{}")
    _, err = run_in_process(*ARGUMENTS, f"--config.cdl.teacher_runs=('{other}',)", "--workdir", student, expect=2)
    assert "cdl.teacher_runs" in err and "with SHA-256" in err


def test_a_student_distills_from_the_mean_of_its_teachers(teacher_first, tmp_path):
    """One teacher twice is that teacher; two different ones are neither."""
    other = tmp_path / "other"
    run_in_process(*ARGUMENTS, "--config.seed=1", "--workdir", other)
    weights = {}
    for name, folders in (("one", [teacher_first]), ("twice", [teacher_first] * 2), ("two", [teacher_first, other])):
        teachers = tuple(map(str, folders))
        run_in_process(*ARGUMENTS, f"--config.cdl.teacher_runs={teachers!r}", "--config.cdl.teacher_checkpoint=last",
            "--workdir", tmp_path / name)  # fmt: skip
        weights[name] = student_weights(tmp_path / name)
    assert difference(weights["one"], weights["twice"]) < 1e-6
    assert difference(weights["one"], weights["two"]) > 1e-3
    assert difference(weights["one"], student_weights(teacher_first)) > 1e-3  # it knows all tasks from the start


def test_an_interleaved_schedule_changes_the_student_and_not_its_teacher(teacher_first, tmp_path):
    run_in_process(*ARGUMENTS, "--config.cdl.schedule=interleaved_epochs", "--workdir", tmp_path)
    ours, theirs = last_weights(tmp_path, 4), last_weights(teacher_first, 4)
    teacher = [name for name in ours if name.startswith("['teacher']")]
    assert difference({n: ours[n] for n in teacher}, {n: theirs[n] for n in teacher}) < 1e-6
    assert difference(student_weights(tmp_path), student_weights(teacher_first)) > 1e-3
    phases = [json.loads(line).get("phase") for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    turns = [phase for phase, before in zip(phases, [None, *phases], strict=False) if phase and phase != before]
    assert turns == ["teacher", "student"] * 2 * 5  # epochs, tasks


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.cdl.teacher_runs=('nowhere',)"], "no run with results in the teacher's folder nowhere"),
        (["--config.cdl.teacher_runs=('{run}',)", "--config.data.class_order_seed=1",
          "--config.data.class_order=shuffle"],
         "other classes, or in another order"),
        (["--config.cdl.teacher_runs=('{run}',)", "--config.data.num_tasks=2"], "has 5 tasks, this one has 2"),
        (["--config.cdl.teacher_runs=('{run}',)", "--config.cdl.teacher_network=tutor"], "has no network 'tutor'"),
        (["--config.cdl.teacher_runs=('{run}',)", "--config.cdl.schedule=interleaved"], "which are not trained"),
        (["--config.cdl.schedule=interleaved_epochs", "--config.cdl.teacher_epochs=3"], "must be a multiple"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused_in_one_line(teacher_first, tmp_path, changes, message):
    changes = [change.replace("{run}", str(teacher_first)) for change in changes]
    _, err = run_in_process(*ARGUMENTS, *changes, "--workdir", tmp_path / "run", expect=2)
    lines = [line for line in err.splitlines() if not line.startswith("WARNING")]
    assert len(lines) == 1 and message in lines[0], err
    assert not (tmp_path / "run" / "config.json").exists()
