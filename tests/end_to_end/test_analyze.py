"""Tests measures beside accuracy, and the analysis of a finished run.

The tests use the command line.
"""

import json
import warnings

import numpy as np
import pytest

from cdl_jax import main
from tests.end_to_end.command import ROOT, TINY, results, run, run_in_process

SHORT = ("--config.train.epochs=1", "--config.eval.forward_transfer=False", "--config.log.to=()")


def trained(folder, distill, analyze):
    """Trains a run with this scheme and analyzes it.

    Returns:
        (arguments, output of the analysis, analysis.json, results.json).
    """
    arguments = ("--config", f"{TINY}:distill={distill}", "--workdir", folder, *SHORT)
    run_in_process(*arguments)
    out = analyze(*arguments, "--mode", "analyze")
    return arguments, out, json.loads((folder / "analysis.json").read_text()), results(folder)


def analyze_alone(*arguments):
    """Returns the output of the command in a process of its own, without a warning."""
    out, err = run(*arguments)
    assert "Warning" not in err
    return out


def analyze_here(*arguments):
    """Returns the output of the command in this process.

    A warning that Python shows by default is an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        return run_in_process(*arguments)[0]


@pytest.fixture(scope="module")
def kd(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("kd"), "kd", analyze_alone)


@pytest.fixture(scope="module")
def kd_token(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("kd_token"), "kd_token", analyze_here)


def test_results_hold_calibration_and_likeness_after_each_task(kd):
    _, _, _, content = kd
    for network in content["networks"].values():
        assert [len(row) for row in network["ece_matrix"]] == [1, 2, 3, 4, 5] and len(network["ece_seen"]) == 5
        assert network["metrics"]["ece_last"] == network["ece_seen"][-1]
        assert network["ece_matrix"][0][0] == pytest.approx(network["ece_seen"][0])  # one task is all that is seen
    pair = content["pairs"]["teacher/student"]
    assert pair["metrics"]["agreement_last"] == pytest.approx(np.mean(pair["agreement_matrix"][-1]))
    assert pair["metrics"]["kl_learning"] == pytest.approx(np.mean([row[-1] for row in pair["kl_matrix"]]))
    assert all(0 < value < 10 for row in pair["kl_matrix"] for value in row)
    assert all(value * 32 / 100 == round(value * 32 / 100) for row in pair["agreement_matrix"] for value in row)
    metrics = {*content["networks"]["teacher"]["metrics"], *pair["metrics"]}
    assert metrics | {*content["networks"]["teacher"]["per_task"]} == set(content["formulas"])
    assert content["networks"]["teacher"]["metrics"]["forgetting_cdl"] is not None


@pytest.mark.parametrize("scheme", ["kd", "kd_token"])
def test_a_checkpoint_predicts_as_it_did_and_its_teacher_of_now_is_that_of_the_run(scheme, request):
    _, out, analysis, content = request.getfixturevalue(scheme)
    assert analysis["tasks"] == 5
    for name, network in content["networks"].items():
        assert analysis["predictions"]["unchanged"][name]["accuracy"] == network["accuracy_matrix"][-1]
        assert f"{network['metrics']['last']:.2f}" in out
    rows = analysis["distillation_forgetting"]["teacher/student"]
    assert [len(row) for row in rows] == [1, 2, 3, 4, 5]
    stored = content["pairs"]["teacher/student"]["kl_matrix"]
    np.testing.assert_allclose([row[-1] for row in rows], [row[-1] for row in stored], atol=1e-5)
    # Before the diagonal the teacher is another one, and the classes are fewer.
    assert np.abs(np.subtract(rows[-1][:-1], stored[-1][:-1])).min() > 1e-5


def test_probes_are_those_that_the_scheme_has_a_meaning_for(kd, kd_token):
    plain, branch = kd[2], kd_token[2]
    assert list(plain["predictions"]) == ["unchanged", "prompts_off"] and plain["sweeps"] == {}
    assert list(branch["predictions"]) == ["unchanged", "prompts_off", "distillation_off"]
    assert set(branch["predictions"]["prompts_off"]) == {"teacher", "student"}
    assert set(branch["predictions"]["distillation_off"]) == {"student"}
    for analysis in (plain, branch):
        unchanged, off = (analysis["predictions"][name]["student"] for name in ("unchanged", "prompts_off"))
        assert unchanged["accuracy"] != off["accuracy"]
        assert off["mean"] == pytest.approx(np.mean(off["accuracy"]))


def test_the_usual_weight_of_two_heads_predicts_as_the_run_did(kd_token):
    _, out, analysis, _ = kd_token
    sweep = analysis["sweeps"]["second_head_weight"]
    assert [each["value"] for each in sweep["values"]] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert (sweep["network"], sweep["usual"]) == ("student", 0.5)
    unchanged = analysis["predictions"]["unchanged"]["student"]
    assert {k: v for k, v in sweep["values"][5].items() if k != "value"} == unchanged
    assert len({tuple(each["accuracy"]) for each in sweep["values"]}) > 1
    assert f"student, second_head_weight: {unchanged['mean']:.2f} with 0.5" in out


def test_the_prompts_chosen_are_those_of_the_last_evaluation(kd):
    _, _, analysis, content = kd
    for network in ("teacher", "student"):
        found = analysis["selection"][network]["layer_0"]
        assert found["counts"] == content["networks"][network]["selection"]["layer_0"]
        shares = [np.array(row) / sum(row) for row in found["counts"]]
        bits = [-(p[p > 0] * np.log2(p[p > 0])).sum() for p in shares]
        assert found["entropy_bits"] == pytest.approx(bits, abs=1e-12) and len(bits) == 5


def test_the_page_shows_the_analysis_and_the_run_is_unchanged(kd):
    arguments, out, _, content = kd
    page = (arguments[3] / "report.html").read_text()
    assert "<h2>Analysis</h2>" in page and "<h2>Teacher and student</h2>" in page and "tasks learned since" in page
    assert content["status"] == "finished" and f"report: {arguments[3] / 'report.html'}" in out
    assert analyze_here(*arguments, "--mode", "analyze") == out


def answer(capsys, monkeypatch, *arguments):
    """(exit code, stderr) of the command line inside this process."""
    monkeypatch.chdir(ROOT)
    code = main.main([str(a) for a in arguments])
    return code, "\n".join(line for line in capsys.readouterr().err.splitlines() if not line.startswith("WARNING:"))


def test_what_cannot_be_analyzed_is_refused_in_one_line(kd, tmp_path, capsys, monkeypatch):
    arguments, *_ = kd
    mode = ("--mode", "analyze")
    for wrong, expected in (
        (("--config", TINY, "--workdir", tmp_path / "none", *mode), "has no run"),
        ((*arguments, *mode, "--config.learner.top_k=3"), "learner.top_k: 2 -> 3"),
        ((*arguments, *mode, "--distributed=auto"), "--mode=analyze runs in one process"),
    ):
        code, err = answer(capsys, monkeypatch, *wrong)
        assert code == 2 and expected in err and len(err.splitlines()) == 1, err
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_bytes((arguments[3] / "config.json").read_bytes())
    code, err = answer(capsys, monkeypatch, *arguments[:3], begun, *SHORT, *mode)
    assert code == 2 and "has no finished task" in err and len(err.splitlines()) == 1, err


def test_class_tokens_of_both_networks_are_compared(kd):
    arguments, out, analysis, _ = kd
    layers = ["block_0", "block_1", "features"]
    assert analysis["cka"]["layers"] == {"teacher": layers, "student": layers}
    assert list(analysis["cka"]["pairs"]) == ["teacher/teacher", "teacher/student", "student/student"]
    own = np.array(analysis["cka"]["pairs"]["teacher/teacher"])
    np.testing.assert_allclose(np.diag(own), 1, rtol=1e-6)
    assert f"teacher/student: linear CKA of features {analysis['cka']['pairs']['teacher/student'][2][2]:.3f}" in out
    assert set(analysis["tsne"]["networks"]) == {"teacher", "student"}
    page = (arguments[3] / "report.html").read_text()
    assert (arguments[3] / "features_student.svg").read_text() in page


def test_without_a_teacher_what_needs_one_is_absent(tmp_path):
    _, out, analysis, content = trained(tmp_path, "none", analyze_here)
    assert content["pairs"] == analysis["distillation_forgetting"] == analysis["sweeps"] == {}
    assert list(analysis["predictions"]["prompts_off"]) == ["student"] and "KL" not in out
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Analysis</h2>" in page and "<h2>Teacher and student</h2>" not in page
