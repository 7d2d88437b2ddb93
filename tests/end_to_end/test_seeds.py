"""Several seeds in one program are the runs that each of them would be alone."""

import json
import signal

import numpy as np
import pytest

from cdl_jax import report
from tests.end_to_end.command import last_weights, matrices, results, run
from tests.end_to_end.test_resume import kill_at_line

CONFIG = "configs/quickstart.py"
SHORT = ("--config.train.epochs=1", "--config.data.num_tasks=2", "--config.data.class_order=0,1,2,3,4,5,6,7",
         "--config.data.max_train_per_class=40", "--config.data.max_test_per_class=8", "--config.log.every_steps=1",
         "--config.checkpoint.every_steps=3", "--config.log.tensorboard=False")  # fmt: skip
# CODA draws rows between tasks, and the token's own variables start at random too.
CODA = ("--config", f"{CONFIG}:learner=coda,distill=kd_token", *SHORT)
L2P = ("--config", CONFIG, *SHORT)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_are_the_single_runs(together, alone, costs=True, weights_within=1e-4):
    """`alone`: seed -> folder, in the order of the program's seeds. `costs`: whether these must be alike too.

    CODA's weights are compared less closely than losses: Adam makes whole steps of gradients that are rounding alone.
    """
    weights = last_weights(together, 1)
    for index, (seed, folder) in enumerate(alone.items()):
        own = together / f"seed_{seed}"
        assert matrices(own) == matrices(folder)
        for name, wanted in last_weights(folder, 1).items():
            assert weights[name].shape == (len(alone), *wanted.shape)
            apart = np.abs(weights[name][index] - wanted).max(initial=0)
            assert apart < weights_within * max(1, np.abs(wanted).max()), name
        ours, theirs = lines(own), lines(folder)
        assert len(ours) == len(theirs)
        for line, wanted in zip(ours, theirs, strict=True):
            assert line.pop("phase", None) == wanted.pop("phase", None)
            assert line == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        stored, wanted = (json.loads((f / "config.json").read_text())["config"] for f in (own, folder))
        assert stored == wanted
        cost, wanted = results(own)["cost"], results(folder)["cost"]
        assert cost["parameters"] == wanted["parameters"]
        if costs:
            assert cost["flops_per_step"] == pytest.approx(wanted["flops_per_step"], rel=0.01)
            assert cost["device"] == f"{wanted['device']}, shared by {len(alone)} seeds"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folders = {seed: tmp_path_factory.mktemp(f"seed{seed}") for seed in (3, 0)}
    for seed, folder in folders.items():
        run(*CODA, f"--config.seed={seed}", "--workdir", folder)
    return folders


def test_each_seed_is_the_run_that_it_is_alone_on_two_devices_too(single, tmp_path, capsys):
    for devices in (1, 2):
        together = tmp_path / str(devices)
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        out, _ = run(*CODA, "--config.seeds=(3,0)", "--workdir", together, **flags)
        assert out.count("report: ") == 2 and "±" in out
        assert_are_the_single_runs(together, single, costs=devices == 1)
    out, _ = run(*CODA, "--config.seeds=(3,0)", "--workdir", tmp_path / "1", "--mode", "eval", "--task", 0)
    assert "student, seed 0, after task 0" in out and "equal to the run's accuracy matrix" in out
    assert report.main([str(tmp_path / "1")]) == 0
    shown = capsys.readouterr().out
    last = [matrices(folder)["student"][-1] for folder in single.values()]
    assert f"{np.mean(last):.2f} ± {np.std(np.mean(last, axis=1), ddof=1):.2f}" in shown


def test_prompts_drawn_at_the_start_are_those_of_the_single_runs(tmp_path):
    alone = {seed: tmp_path / f"alone{seed}" for seed in (0, 3)}
    for seed, folder in alone.items():
        run(*L2P, f"--config.seed={seed}", "--workdir", folder)
    run(*L2P, "--config.seeds=(0,3)", "--workdir", tmp_path / "both")
    assert_are_the_single_runs(tmp_path / "both", alone, weights_within=1e-5)
    assert matrices(alone[0]) != matrices(alone[3])
    _, err = run(*L2P, "--config.seeds=(3,0)", "--workdir", tmp_path / "both", expect=2)
    assert "holds a run of another config (seeds: [0, 3] -> [3, 0])" in err
    for folder in (tmp_path / "both", tmp_path / "both" / "seed_0"):
        _, err = run(*L2P, f"--config.cdl.teachers=('{folder}',)", "--workdir", tmp_path / "taught", expect=2)
        assert f"the teacher's folder {folder} is of a run of several seeds" in err


def test_killed_and_started_again_all_seeds_end_as_they_would_have(single, tmp_path):
    arguments = (*CODA, "--config.seeds=(3,0)")
    (tmp_path / "seed_3").mkdir()
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "seed_3" / "metrics.jsonl")
    process, _ = kill_at_line(tmp_path, 9, signal.SIGKILL, arguments)
    assert process.returncode == -signal.SIGKILL
    run(*arguments, "--workdir", tmp_path)
    assert_are_the_single_runs(tmp_path, single)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.seeds=(1,1)"], "config.seeds=(1, 1) must be different integers"),
        (["--config.seeds=(-1,2)"], "none of them negative"),
        (["--config.seeds=(0,1)", "--config.student.weights=random"], "random weights would differ between seeds"),
        (["--config.seeds=(0,1)", "--config.resident_limit_mb=0"], "raise config.resident_limit_mb"),
    ],
)
def test_what_several_seeds_cannot_do_is_said_in_one_line(tmp_path, changes, message):
    _, err = run(*L2P, *changes, "--workdir", tmp_path, expect=2)
    told = [line for line in err.splitlines() if not line.startswith("WARNING")]
    assert len(told) == 1 and message in told[0]
    assert not (tmp_path / "config.json").exists()
