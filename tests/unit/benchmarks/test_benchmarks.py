"""Quartiles, turns, refusals, operations and bytes; a command without PyTorch."""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from benchmarks import cdl_sizes, comparison, roofline, run, timing, torch_peers
from benchmarks.cases import cdl, dkt, okddip, profile, startup, vkd
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.models import vit
from cdl_jax.options import defaults
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment

ROOT = Path(__file__).parents[3]


def test_medians_have_quartiles_and_a_ratio_to_the_base():
    found = timing.compare({"ours": [3.0, 1.0, 2.0, 5.0, 4.0], "theirs": [6.0, 9.0, 7.0]}, "ours")
    assert found["ours"] == {"median": 3.0, "q1": 2.0, "q3": 4.0, "rounds": 5, "ratio": 1.0}
    assert found["theirs"] == {"median": 7.0, "q1": 6.5, "q3": 8.0, "rounds": 3, "ratio": pytest.approx(7 / 3)}
    assert timing.summary([2.5]) == {"median": 2.5, "q1": 2.5, "q3": 2.5, "rounds": 1}


def test_every_round_begins_with_another_way():
    called = []
    ways = {name: lambda name=name: called.append(name) or float(len(called)) for name in "abc"}
    assert timing.alternate(ways, 3) == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}
    assert "".join(called) == "abcbcacab"


@pytest.mark.parametrize("loss", [1.002, float("nan")])
def test_unequal_losses_are_not_timed(loss):
    differences = timing.loss_differences({"ours": 1.0, "same": 1.0 + 5e-6, "other": loss}, "ours")
    assert differences["same"] == pytest.approx(5e-6, rel=1e-3)
    with pytest.raises(UserError, match="'other' differs by .*not timed") as refusal:
        timing.check_equal("the loss", differences, dict.fromkeys(differences, 1e-4))
    assert "\n" not in str(refusal.value)
    timing.check_equal("the loss", {"same": differences["same"]}, {"same": 1e-4})


def test_work_of_a_vit_is_that_of_its_products():
    options = ConfigDict(defaults(vit.OPTIONS, dim=8, depth=2, heads=2, patch_size=4, image_size=8))
    tokens = 3 * (1 + 4)  # of three images
    dense = 2 * tokens * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
    patches = 2 * 3 * 4 * 48 * 8
    first, second = 3 * 4 * 5 * (5 + 7) * 8, 3 * 4 * 5 * 5 * 8  # seven keys of prompts in the first block
    assert roofline.forward(options, 3, prompts=[7]).flops == patches + 2 * dense + first + second
    assert roofline.training(options, 3, prompts=[7]).flops == patches + 4 * dense + 3 * (first + second)
    assert roofline.product(3, 5, 7, size=2) == roofline.Work(2 * 3 * 5 * 7, 2 * (15 + 35 + 21))


def test_the_nearer_ceiling_bounds_the_time():
    ceiling = roofline.Ceiling(flops=100e9, bandwidth=10e9)
    work = roofline.efficiency(roofline.Work(flops=50e9, bytes=1e9), ceiling, seconds=2.0)
    assert work["bound"] == "compute" and work["least_ms"] == pytest.approx(500)
    assert work["mfu"] == pytest.approx(0.25) and work["of_roof"] == pytest.approx(0.25)
    work = roofline.efficiency(roofline.Work(flops=50e9, bytes=20e9), ceiling, seconds=4.0)
    assert work["bound"] == "memory" and work["least_ms"] == pytest.approx(2000)
    assert work["mfu"] == pytest.approx(0.125) and work["of_roof"] == pytest.approx(0.5)


def test_a_step_of_cdl_counts_the_query_the_teacher_and_the_student():
    config = cdl_sizes.config("b_s", "l2p", "kd_token")
    assert cdl_sizes.keys(config, 12) == [50] + [0] * 11
    query = roofline.forward(config.student, 64)
    teacher = roofline.forward(config.teacher, 64, prompts=[50])
    student = roofline.training(config.student, 64, 1, [50] + [3] * 11)
    assert cdl_sizes.work(config, "student").flops == (query + teacher + student).flops
    # ViT-S and ViT-B forward: 4.6 and 17.6 billion multiply-adds an image at 224 pixels (DeiT's paper)
    assert query.flops / 64 / 2e9 == pytest.approx(4.6, rel=0.01)
    assert roofline.forward(config.teacher, 64).flops / 64 / 2e9 == pytest.approx(17.6, rel=0.01)


def test_a_plan_has_every_pair_and_runs_nothing(capsys):
    found = cdl.plan()["plan"]
    assert len(found) == 4 * 4 * 2 and len(capsys.readouterr().out.splitlines()) == 2 + len(found)
    work = {(one["size"], one["learner"], one["scheme"]): one["student"]["flops"] for one in found}
    assert work["l_b", "apt", "kd"] < work["l_b", "l2p", "kd"] < work["l_b", "l2p", "kd_token"]


def test_a_profile_sums_blocks_and_directions():
    program = """
  %fusion.1 = f32[2] fusion(%a), metadata={op_name="jit(step)/jit(learn)/jvp(ViT)/block_0/mlp/fc1/dot_general"}
  %fusion.2 = f32[2] fusion(%a), metadata={op_name="jit(step)/jit(learn)/jvp(ViT)/block_3/mlp/fc1/dot_general"}
  ROOT %dot.7 = f32[2] dot(%a), metadata={op_name="jit(step)/transpose(jvp(ViT))/block_3/mlp/fc1/dot_general"}
  %copy.12 = f32[2] copy(%a)
"""
    spent = {"fusion.1": 1.0, "fusion.2": 2.0, "dot.7": 4.0, "copy.12": 8.0, "ThunkExecutor::Execute": 99.0}
    expected = {"mlp/fc1/dot_general": 3.0, "backward mlp/fc1/dot_general": 4.0, "copy": 8.0}
    assert profile.grouped(Counter(spent), profile.sources(program)) == expected


def test_the_list_needs_neither_torch_nor_jax():
    forbid = (
        "import sys; sys.modules['torch'] = sys.modules['jax'] = None; from benchmarks import run; run.main(['--list'])"
    )
    done = subprocess.run([sys.executable, "-c", forbid], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert set(listed) == {path.stem for path in (ROOT / "benchmarks" / "cases").glob("[a-z]*.py")} >= {"cdl", "peers"}
    assert listed["whole_run"].startswith("A whole small run")


def test_without_torch_or_with_an_unknown_case_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch_peers.importlib.util, "find_spec", lambda name: None)
    for arguments, expected in ((["cdl"], "PyTorch"), (["cdll"], "did you mean 'cdl'")):
        with pytest.raises(SystemExit) as ended:
            run.main(arguments)
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert ended.value.code == 2 and expected in line


def test_figures_are_stored_with_machine_and_command(tmp_path, capsys):
    run.main(["cdl", "--plan", "--out", str(tmp_path / "plan.json")])
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["command"].startswith("python -m benchmarks.run cdl --plan --out")
    assert found["cores"] >= 1 and found["versions"]["jax"] and len(found["plan"]) == 32
    assert "| l_b | apt | kd_token | 32 |" in capsys.readouterr().out


def test_the_documents_show_the_stored_figures(capsys):
    files = sorted((ROOT / "docs" / "results" / "benchmarks").glob("cdl_*.json"))
    run.main(["cdl", "--read", *map(str, files)])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) >= 2 * len(files) > 0
    assert set(rows) <= set((ROOT / "docs" / "maintainers" / "benchmarks.md").read_text().splitlines())


def test_the_cpu_clock_stands_still_during_sleep_and_counts_child_processes():
    try:
        timing.choose_clock("cpu")
        cpu, wall = timing.now(), time.perf_counter()
        time.sleep(0.2)
        assert timing.now() - cpu < time.perf_counter() - wall
        busy = "import time\nwhile time.process_time() < 0.1: pass"
        cpu = timing.now()
        subprocess.run([sys.executable, "-c", busy], check=True)
        assert timing.now() - cpu > 0.09
    finally:
        timing.choose_clock("wall")


def test_a_run_that_never_takes_a_step_has_no_time_to_its_first(tmp_path):
    with pytest.raises(UserError, match=r"benchmarks: the run failed: .*configs/absent\.py"):
        startup.first_step("configs/absent.py", tmp_path / "run", tmp_path / "programs")
    with pytest.raises(UserError, match="benchmarks: -c 1/0 failed: ZeroDivisionError"):
        startup.command("-c", "1/0")


@pytest.mark.parametrize("case", [okddip, dkt, vkd], ids=["okddip", "dkt", "vkd"])
def test_the_configs_of_the_cases_can_be_stepped(case, monkeypatch):
    monkeypatch.setattr(comparison, "measure", lambda what, config, *of, **options: config)
    parser = argparse.ArgumentParser()
    case.arguments(parser)
    config = case.measure(parser.parse_args([]))
    program = Experiment.build(config, stream.load(config.data))
    state = CompiledSteps(program).abstract_state
    assert program.method.image_size == 32 and "steps" in state.metric_sums[0] and len(state.metric_sums[0]) > 2
