"""The plan of a sweep: combinations of a grid, equal teachers, and errors.

The plan has one teacher for equal teachers. Errors appear before any run.
"""

import json
from pathlib import Path

import pytest

from cdl_jax import schema, sweep
from cdl_jax.errors import UserError
from tests.end_to_end.command import TINY

TWO = ("--grid", "distill.alpha=0.1,0.5", "--grid", "--config.distill.temperature=2.0,4.0")


@pytest.fixture
def folder(tmp_path):
    return f"{tmp_path}/runs"


def planned(folder, *words, seeds="0"):
    """Returns working directory -> run, with directories relative to `folder`."""
    items = sweep.plan(sweep.parse([folder, seeds, *words]))
    return {item.workdir.removeprefix(f"{folder}/"): item for item in items}


def teachers(folder, runs):
    return {name: item.teacher.removeprefix(f"{folder}/") for name, item in runs.items()}


def test_a_grid_has_all_combinations_and_trains_one_teacher_a_seed(folder):
    runs = planned(folder, TINY, *TWO, "--", "--config.train.epochs=1", seeds="0,3")
    points = [f"tiny/distill.alpha={a},distill.temperature={t}" for a in ("0.1", "0.5") for t in ("2.0", "4.0")]
    first = points[0]
    assert teachers(folder, runs) == {
        f"{point}/seed_{seed}": "" if point == first else f"{first}/seed_{seed}" for seed in (0, 3) for point in points
    }
    words = runs[f"{points[3]}/seed_3"].words
    assert words[:4] == ("--config", TINY, "--workdir", f"{folder}/{points[3]}/seed_3")
    assert words[4:] == (
        "--config.seed=3", f"--config.compilation_cache={folder}/compiled", "--config.train.epochs=1",
        "--config.distill.alpha=0.5", "--config.distill.temperature=4.0",
        f"--config.cdl.teacher_runs=('{folder}/{first}/seed_3',)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "values", "shared"),
    [
        ("optim.learning_rate", "0.1,0.2", False),
        ("teacher.depth", "1,2", False),
        ("student.depth", "1,2", False),  # the student's backbone computes the query of the teacher
        ("train.epochs", "1,2", False),
        ("cdl.student_schedule", "constant,cosine", True),
        ("eval.batch_size", "8,16", True),
    ],
)
def test_runs_share_a_teacher_if_no_option_of_it_differs(folder, key, values, shared):
    runs = planned(folder, TINY, f"--grid={key}={values}")
    first, second = runs.values()
    assert (first.teacher, second.teacher) == ("", first.workdir if shared else "")


def test_a_teacher_with_its_own_query_does_not_depend_on_the_student(folder):
    runs = planned(folder, TINY, "--grid", "student.depth=1,2", "--", "--config.cdl.teacher_query=teacher")
    assert [bool(item.teacher) for item in runs.values()] == [False, True]


def test_configs_share_too_but_none_without_a_teacher_and_none_that_trains_it_beside(folder):
    runs = planned(folder, f"{TINY}:distill=none", TINY, f"{TINY}:distill=dkd")
    assert teachers(folder, runs) == {
        "tiny-distill=none/seed_0": "", "tiny/seed_0": "", "tiny-distill=dkd/seed_0": "tiny/seed_0"
    }  # fmt: skip
    for option in ("cdl.schedule=interleaved", "checkpoint.keep_tasks=1", "train.early_stopping.patience=2"):
        overrides = (f"--config.{option}", "--config.eval.every_epochs=1")
        runs = planned(folder, TINY, f"{TINY}:distill=dkd", "--", *overrides)
        assert {*teachers(folder, runs).values()} == {""}, option


def test_a_method_without_a_teacher_is_planned(folder):
    runs = planned(folder, "pretrain_glyph", "--grid", "optim.learning_rate=0.1,0.2")
    assert [item.teacher for item in runs.values()] == ["", ""]


def test_a_run_that_has_begun_keeps_its_teacher(folder):
    before = planned(folder, TINY, f"{TINY}:distill=dkd")
    own = Path(folder, "tiny-distill=dkd", "seed_0")
    own.mkdir(parents=True)
    config = sweep._resolve(before["tiny-distill=dkd/seed_0"]).to_dict()
    content = {"schema": schema.SCHEMA, "config": {**config, "cdl": {**config["cdl"], "teacher_runs": []}}}
    (own / "config.json").write_text(json.dumps(content))  # of a sweep without shared teachers
    after = planned(folder, TINY, f"{TINY}:distill=dkd", f"{TINY}:distill=fitnets")
    assert before["tiny-distill=dkd/seed_0"].teacher and not after["tiny-distill=dkd/seed_0"].teacher
    assert after["tiny-distill=fitnets/seed_0"].teacher == f"{folder}/tiny/seed_0"
    content["config"]["cdl"]["teacher_runs"] = [elsewhere := f"{folder}/elsewhere"]
    (own / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"seed_0 has begun with the teacher of {elsewhere}, which is incomplete and"):
        planned(folder, f"{TINY}:distill=dkd")
    for complete in (elsewhere, own):
        mark = Path(complete, "sweep_complete")
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        assert planned(folder, f"{TINY}:distill=dkd")["tiny-distill=dkd/seed_0"].teacher == elsewhere
        mark.unlink()
    Path(elsewhere, "sweep_complete").touch()
    with pytest.raises(UserError, match=r"\(train.epochs: 2 -> 99\): choose another FOLDER$"):
        planned(folder, f"{TINY}:distill=dkd", "--", "--config.train.epochs=99")


def test_the_command_prints_fields_for_the_script_and_commands_for_a_reader(folder, capsys):
    assert sweep.run([folder, "0", TINY, "--grid", "learner.pool=6,8"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split("\x1f")[:5] == [f"{folder}/tiny/learner.pool=6/seed_0", "", "--config", TINY, "--workdir"]
    assert sweep.run(["--dry-run", folder, "0", TINY, "--grid", "learner.pool=6,8"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"python -m cdl_jax.main --config {TINY} --workdir ")
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0", TINY, "--grid", "optim.lerning_rate=1"], "unknown key config.optim.lerning_rate: did you mean "),
        (["0", TINY, "--grid", "train.epochs=1,no"], "train.epochs"),
        (["0", TINY, "--grid", "train.epochs"], "--grid train.epochs: write KEY=VALUE,VALUE, such as "),
        (["0", TINY, "--grid", "seed=0,1"], "--grid seed=0,1: seeds are the second argument of the sweep"),
        (["0", TINY, "--grid", "train.epochs=1,1"], "--grid train.epochs=1,1: a value is repeated"),
        (["0", TINY, "--grid", "optim.eps=1e-3,0.001"], "--grid optim.eps=1e-3,0.001: a value is repeated"),
        (["0", TINY, "--grid", "train.epochs=(1,2"], "--grid train.epochs=(1,2: brackets are not balanced"),
        (["0", TINY, "--grid", "train.epochs=1,"], "--grid train.epochs=1,: a value is empty"),
        (["0,00", TINY], "seeds 0,00: a seed is repeated"),
        (["0,1", TINY, "--", "--config.seed=5"], "--config.seed=5 after --: the sweep sets it for each run"),
        (["0,1", TINY, "--", "--config.seeds=0,1"], "--config.seeds=0,1 after --: the sweep sets it for each run"),
        (["0", TINY, "--grid", "optim.nesterov=true,True"], "would be one run: name each config, seed and value once"),
        (["0", TINY, f"{TINY}:distill=kd"], "would be one run: name each config, seed and value once"),
        (["0", TINY, "--", "--workdir", "runs/a"], "--workdir after --: the sweep sets it for each run"),
        (["0", TINY, "--", "--mode=eval"], "--mode=eval after --: the sweep sets it for each run"),
        (
            ["0", TINY, "--grid", "train.epochs=1,2", "--", "--config.train.epochs=3"],
            "--config.train.epochs=3 after --",
        ),
        (["0", TINY, "--grid=train.epochs=1", "--grid=train.epochs=2"], "--grid train.epochs is repeated"),
        (["0", TINY, TINY], "two runs of the sweep have one working directory"),
        (["0", "absent.py"], "absent.py"),
        (["0", TINY, "--gird=train.epochs=1"], "unknown option --gird=train.epochs=1. usage: bash launch/sweep.sh "),
        (["one", TINY], "usage: bash launch/sweep.sh [-j N] "),
        (["0"], "usage: bash launch/sweep.sh [-j N] "),
    ],
)
def test_a_mistake_is_one_line(folder, words, message, capsys):
    assert sweep.run([folder, *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_grid_values_keep_their_brackets():
    assert sweep.parse(["f", "0", "c", "--grid", "dkt.topology=((0,1),(1,0)),((0,0),(0,0))"]).grid == {
        "dkt.topology": ("((0,1),(1,0))", "((0,0),(0,0))")
    }
    assert sweep.parse(["f", "0", "c", "--grid", "optim.betas=(0.9,0.99),[1,2]"]).grid == {
        "optim.betas": ("(0.9,0.99)", "[1,2]")
    }
    with pytest.raises(UserError):
        sweep.parse(["f", "0", "c", "--grid"])


@pytest.mark.parametrize(
    ("learner", "option"),
    [("apt", "--config.learner.teacher_prompts=merged"), ("lae", "--config.learner.constant_epochs=0")],
)
def test_a_teacher_that_changes_after_its_student_is_trained_in_each_run(folder, learner, option):
    runs = planned(folder, f"{TINY}:learner={learner}", "--grid=distill.alpha=0.1,0.5", "--", option)
    assert [item.teacher for item in runs.values()] == ["", ""]
    first, second = runs.values()  # begun by a version that shared such teachers
    config = sweep._resolve(second).to_dict()
    config["cdl"]["teacher_runs"] = [first.workdir]
    Path(second.workdir).mkdir(parents=True)
    Path(second.workdir, "config.json").write_text(json.dumps({"schema": schema.SCHEMA, "config": config}))
    again = planned(folder, f"{TINY}:learner={learner}", "--grid=distill.alpha=0.1,0.5", "--", option)
    assert [item.teacher for item in again.values()] == ["", first.workdir]


def test_a_live_prompt_of_apt_is_shared(folder):
    first, second = planned(folder, f"{TINY}:learner=apt", "--grid=distill.alpha=0.1,0.5").values()
    assert second.teacher == first.workdir
