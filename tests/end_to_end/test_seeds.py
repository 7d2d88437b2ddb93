"""Many seeds in one program equal the runs of single seeds."""

import json
import signal

import jax
import numpy as np
import pytest

import cdl_jax
from cdl_jax.data import stream
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.training.experiment import Experiment
from tests.end_to_end.command import last_weights, matrices, results, run, run_in_process
from tests.end_to_end.test_resume import kill_at_line
from tests.support import predictions

CONFIG = "configs/quickstart.py"
SHORT = ("--config.train.epochs=1", "--config.data.num_tasks=2", "--config.data.class_order=shuffle",
         "--config.data.max_train_per_class=16", "--config.data.max_test_per_class=4", "--config.log.every_steps=1",
         "--config.checkpoint.every_steps=3", "--config.log.to=()",
         "--config.optim.learning_rate=5e-3")  # fmt: skip  # the rate at which the tolerances were measured
# CODA draws rows between tasks, and the token's own variables start at random too.
CODA = ("--config", f"{CONFIG}:learner=coda,distill=kd_token", *SHORT)
L2P = ("--config", CONFIG, *SHORT)
OWN = "--config.data.class_order_seed=-1"


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_are_the_single_runs(together, alone, costs=True):
    """Asserts that the seeds of one program equal the runs of single seeds.

    CODA's weights are compared less closely than losses: Adam makes full steps of gradients that are only rounding.

    Args:
        alone: seed -> folder, in the order of the program's seeds.
        costs: whether costs must be alike too. Default: True.
    """
    weights = last_weights(together, 1)
    for index, (seed, folder) in enumerate(alone.items()):
        own = together / f"seed_{seed}"
        assert matrices(own) == matrices(folder)
        for name, wanted in last_weights(folder, 1).items():
            assert weights[name].shape == (len(alone), *wanted.shape)
            difference = np.abs(weights[name][index] - wanted).max(initial=0)
            assert difference < 1e-4 * max(1, np.abs(wanted).max()), name
        ours, theirs = lines(own), lines(folder)
        assert len(ours) == len(theirs)
        for line, wanted in zip(ours, theirs, strict=True):
            assert line.pop("phase", None) == wanted.pop("phase", None)
            assert line == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        stored, wanted = (json.loads((f / "config.json").read_text())["config"] for f in (own, folder))
        if stored["data"]["class_order_seed"] == -1:  # what it stands for
            stored["data"]["class_order_seed"] = seed
        assert {**stored, "log": None} == {**wanted, "log": None}
        assert results(own)["stream"] == results(folder)["stream"]
        cost, wanted = results(own)["cost"], results(folder)["cost"]
        assert cost["parameters"] == wanted["parameters"]
        if costs:
            assert cost["flops_per_step"] == pytest.approx(wanted["flops_per_step"], rel=0.01)
            assert cost["device"] == f"{wanted['device']}, shared by {len(alone)} seeds"


def alone(seed, order, folder):
    run_in_process(*CODA, f"--config.seed={seed}", f"--config.data.class_order_seed={order}", "--workdir", folder)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """Seed -> folder of its run, all in the order of seed 0."""
    return {seed: alone(seed, 0, tmp_path_factory.mktemp(f"seed{seed}")) for seed in (3, 0)}


def test_each_seed_is_the_run_that_it_is_alone_on_two_devices(single, tmp_path, capsys):
    arguments, together = (*CODA, "--config.seeds=(3,0)", "--config.log.report=True"), tmp_path / "both"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    out, _ = run(*arguments, "--workdir", together, **flags)
    assert out.count("report: ") == 2 and "±" in out
    assert_are_the_single_runs(together, single, costs=False)
    out, _ = run_in_process(*arguments, "--workdir", together, "--mode", "eval", "--task", 0)
    assert "student, seed 0, after task 0" in out and "equal to the run's accuracy matrix" in out
    assert report_main([str(together)]) == 0
    shown = capsys.readouterr().out
    last = [matrices(folder)["student"][-1] for folder in single.values()]
    assert f"{np.mean(last):.2f} ± {np.std(np.mean(last, axis=1), ddof=1):.2f}" in shown
    _, err = run_in_process(*CODA, "--config.seeds=(0,3)", "--workdir", together, expect=2)
    assert "holds a run of another config (seeds: [3, 0] -> [0, 3])" in err
    for folder in (together, together / "seed_0"):
        _, err = run_in_process(
            *CODA, f"--config.cdl.teacher_runs=('{folder}',)", "--workdir", tmp_path / "taught", expect=2
        )
        assert f"the teacher's folder {folder} is of a run of several seeds" in err


def test_prompts_drawn_at_the_start_are_those_of_the_single_runs():
    from configs import quickstart

    drawn = []
    for seeds, seed in (((0, 3), 0), ((), 0), ((), 3)):
        config = quickstart.get_config()
        config.update(seeds=seeds, seed=seed)
        program = Experiment.build(config, stream.load(config.data))
        drawn.append(jax.device_get(program.initial_variables()[0]))
    both, *alone = drawn
    jax.tree.map(lambda together, *each: np.testing.assert_allclose(together, each, rtol=1e-6), both, *alone)
    first, second = (variables["student"]["prompts"]["prompts_0"] for variables in alone)
    assert np.abs(first - second).mean() > 0.1  # of numbers between 0 and 1


def test_killed_and_started_again_all_seeds_end_as_they_would_have_each_in_its_own_order(single, tmp_path):
    arguments, together = (*CODA, OWN, "--config.seeds=(3,0)"), tmp_path / "both"
    (together / "seed_3").mkdir(parents=True)
    (together / "metrics.jsonl").symlink_to(together / "seed_3" / "metrics.jsonl")
    process, _ = kill_at_line(together, 9, signal.SIGKILL, arguments)
    assert process.returncode == -signal.SIGKILL
    run_in_process(*arguments, "--workdir", together)
    own = {3: alone(3, 3, tmp_path / "own"), 0: single[0]}
    assert_are_the_single_runs(together, own)
    assert results(own[3])["stream"] != results(own[0])["stream"]
    images, logits = predictions.logits_of_evaluation(own[3], 1)
    for opened in (cdl_jax.load(together, seed=3), cdl_jax.load(together / "seed_3")):
        assert opened.seed == 3 and opened.class_names == cdl_jax.load(own[3]).class_names
    np.testing.assert_allclose(opened.network("student")(images).logits, logits["student"], atol=1e-2)
    other = cdl_jax.load(together)
    assert other.seed == 3 and cdl_jax.load(together, seed=0).class_names != other.class_names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--config.seeds=(1,1)"], "config.seeds=(1, 1) must be different integers"),
        (["--config.seeds=(-1,2)"], "must not be negative"),
        (["--config.seeds=(0,1)", "--config.student.weights=random"], "random weights would differ between seeds"),
        (["--config.seeds=(0,1)", "--config.device_data_limit_mb=0"], "raise config.device_data_limit_mb"),
        (["--config.seeds=(0,1)", OWN, "--config.data.max_train_per_class=0"], "has other numbers of images"),
    ],
)
def test_options_that_do_not_fit_many_seeds_are_refused_in_one_line(tmp_path, changes, message):
    _, err = run_in_process(*L2P, *changes, "--workdir", tmp_path, expect=2)
    refusals = [line for line in err.splitlines() if not line.startswith("WARNING")]
    assert len(refusals) == 1 and message in refusals[0]
    assert not (tmp_path / "config.json").exists()
