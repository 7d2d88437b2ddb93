"""Learners beyond prompts in the real training step.

The learners have backbone weights, adapters, fitted heads and several passes.
"""

import jax
import jax.monitoring
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax import config as base
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo, join
from cdl_jax.methods.shared import dkt_learners
from cdl_jax.run import loop
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.runtime.signals import RunInterrupted
from cdl_jax.training.compiled import CompiledSteps
from tests.support import learner_runs, tiny_learners
from tests.support.contexts import context
from tests.support.learner_runs import DIM, LABELS, linear, outputs, plain_features, take_steps, train
from tests.support.signals import After


def build(kind, distill="none", **changes):
    """Returns the experiment with one of the small learners."""
    return learner_runs.build("tests.support.tiny_learners", distill, **{"learner.kind": kind, **changes})


def test_low_rank_updates_change_the_weights_that_the_backbone_applies(tmp_path):
    experiment = build("lora")
    run = train(experiment, tmp_path)
    assert {path[:2] for path in flatten_dict(run.after)} == {("student", "prompts"), ("student", "head")}
    assert not run.before["student"]["prompts"]["b"].any()
    student = run.after["student"]
    a, b = student["prompts"]["a"], student["prompts"]["b"]
    assert np.abs(b).max() > 1e-4 and np.abs(a - run.before["student"]["prompts"]["a"]).max() > 1e-7
    weights = jax.tree.map(np.array, run.frozen["student"]["backbone"])
    for i in range(2):
        weights[f"block_{i}"]["attn"]["qkv"]["kernel"] += a[i] @ b[i]
    features, _ = plain_features(experiment, weights)
    own = join(run.frozen, run.after)["student"]
    np.testing.assert_allclose(outputs(experiment, own)["logits"], linear(own["head"], features), rtol=1e-4, atol=1e-5)
    frozen_features, _ = plain_features(experiment, run.frozen["student"]["backbone"])
    assert np.abs(features - frozen_features).max() > 1e-4


def test_adapters_change_the_residual_branches_of_their_blocks(tmp_path):
    experiment = build("adapters")
    run = train(experiment, tmp_path)
    before, after = run.before["student"]["prompts"], run.after["student"]["prompts"]
    assert all(np.abs(after[name] - before[name]).max() > 1e-5 for name in ("scale", "up", "down"))
    own = join(run.frozen, run.after)["student"]
    # A scale of the attention's output is a scale of its last layer; the bottleneck is left out.
    scaled = {**own, "prompts": {**after, "up": np.zeros_like(after["up"])}}
    weights = jax.tree.map(np.array, own["backbone"])
    for i in range(2):
        for leaf in weights[f"block_{i}"]["attn"]["proj"].values():
            leaf *= after["scale"][i]
    features, _ = plain_features(experiment, weights)
    np.testing.assert_allclose(
        outputs(experiment, scaled)["logits"], linear(own["head"], features), rtol=1e-4, atol=1e-5
    )
    # The bottleneck of the last block adds to tokens without its MLP what it computes from them.
    silent = jax.tree.map(np.array, own["backbone"])
    for leaf in silent["block_1"]["mlp"]["fc2"].values():
        leaf *= 0
    unchanged = {**after, "up": after["up"] * np.array([1, 0])[:, None, None]}
    x = outputs(experiment, {**own, "backbone": silent, "prompts": unchanged})["block_1/tokens"]
    both = outputs(experiment, {**own, "backbone": silent})["block_1/tokens"]
    added = np.maximum(x @ after["down"][1], 0) @ after["up"][1]
    np.testing.assert_allclose(both - x, added, rtol=1e-3, atol=1e-5)
    assert np.abs(added).max() > 1e-4


def ridge_kernel(features, rows):
    """Returns the solution of ridge regression to one-hot labels in float64."""
    x, y = np.asarray(features, np.float64)[rows], np.eye(4)[LABELS[rows]]
    return np.linalg.solve(x.T @ x + tiny_learners.RIDGE * np.eye(x.shape[1]), x.T @ y)


def test_a_fitted_head_is_that_of_numpy_and_compiles_nothing_in_the_second_task(tmp_path, monkeypatch):
    compiled, after_task = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    save = Checkpoints.save_task
    monkeypatch.setattr(Checkpoints, "save_task", lambda *a: (save(*a), after_task.append(len(compiled))))
    experiment = build("ridge", **{"learner.tasks": "none"})
    assert [phase.name for phase in experiment.method.phases] == ["student", "student_fit"]
    run = train(experiment, tmp_path)
    assert after_task[0] > 0 and after_task[1] == after_task[0]
    student, features = run.after["student"], plain_features(experiment, run.frozen["student"]["backbone"])[0]
    jax.tree.map(np.testing.assert_array_equal, student["prompts"], run.before["student"]["prompts"])
    kernel = ridge_kernel(features, np.arange(len(LABELS)))
    np.testing.assert_allclose(student["state"]["head"]["kernel"], kernel, rtol=1e-3, atol=1e-4)
    predicted = (features @ kernel).argmax(axis=1)
    expected = [100 * (predicted == LABELS)[LABELS // 2 == task].mean() for task in (0, 1)]
    assert run.results["networks"]["student"]["accuracy_matrix"][1] == pytest.approx(expected)
    assert run.results["cost"]["parameters"]["student"]["trainable"] == sum(
        leaf.size for leaf in jax.tree.leaves((student["prompts"], student["state"]["head"]))
    )


def test_a_network_is_trained_in_the_first_task_alone_and_fitted_in_each(tmp_path):
    experiment = build("ridge", **{"learner.tasks": "first", "train.epochs": 1})
    kernels = []
    run = train(experiment, tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        first = jax.device_get(checkpoints.restore_task(0, experiment.abstract_variables()[0]))
    jax.tree.map(np.testing.assert_array_equal, first["student"]["prompts"], run.after["student"]["prompts"])
    for variables, rows in ((first, np.flatnonzero(LABELS < 2)), (run.after, np.arange(len(LABELS)))):
        features = outputs(experiment, join(run.frozen, variables)["student"])["class_token"]
        kernels.append(variables["student"]["state"]["head"]["kernel"])
        np.testing.assert_allclose(kernels[-1], ridge_kernel(features, rows), rtol=1e-3, atol=1e-4)
    assert not kernels[0][:, 2:].any() and np.abs(kernels[1][:, 2:]).max() > 0.01


def test_a_run_that_is_stopped_in_the_pass_over_the_data_resumes_to_the_same_head(tmp_path):
    experiment = build("ridge", **{"learner.tasks": "none"})
    steps = CompiledSteps(experiment)
    complete = train(experiment, tmp_path / "complete", steps)
    for stop in (1, 3, 5, 8):  # after the first and the last batch of task 0, in its evaluation, and in task 1
        folder = tmp_path / str(stop)
        folder.mkdir()
        with pytest.raises(RunInterrupted):
            loop.train(experiment, folder, After(stop), steps)
        resumed = train(experiment, folder, steps)
        jax.tree.map(np.testing.assert_array_equal, resumed.after, complete.after)
        accuracies = [run.results["networks"]["student"]["accuracy_matrix"] for run in (resumed, complete)]
        assert accuracies[0] == accuracies[1]


def test_a_teachers_head_is_fitted_before_its_student_is_trained(tmp_path):
    experiment = build("ridge", distill="kd", **{"train.epochs": 1})
    names = [phase.name for phase in experiment.method.phases]
    assert names == ["teacher", "teacher_fit", "student", "student_fit"]
    run = train(experiment, tmp_path)
    for name in ("teacher", "student"):
        own = join(run.frozen, run.after)[name]
        statistics = own["state"]["statistics"]
        assert statistics["gram"].trace() > 1 and statistics["cross"].any(axis=0).all()
        expected = np.linalg.solve(statistics["gram"] + tiny_learners.RIDGE * np.eye(DIM), statistics["cross"])
        np.testing.assert_allclose(own["state"]["head"]["kernel"], expected, rtol=1e-3, atol=1e-4)


def test_leaves_of_the_backbone_are_trained_at_their_own_rate():
    changes = {}
    for factor in (1.0, 0.25):
        (before, after), frozen = take_steps(build("biases", **{"learner.factor": factor}), 1)
        paths = flatten_dict(before["student"]["backbone"])
        assert len(paths) > 10 and {path[-1] for path in paths} == {"bias"}
        assert {path[-1] for path in flatten_dict(frozen["student"]["backbone"])} >= {"kernel", "scale", "cls_token"}
        assert "bias" not in {path[-1] for path in flatten_dict(frozen["student"]["backbone"])}
        changes[factor] = flatten_dict(jax.tree.map(np.subtract, after["student"], before["student"]))
    for path, change in changes[1.0].items():
        scale = 0.25 if path[0] == "backbone" else 1.0
        np.testing.assert_allclose(changes[0.25][path], scale * change, rtol=1e-3, atol=1e-7)
    moved = [path for path, change in changes[1.0].items() if np.abs(change).max() > 1e-5]
    assert {path[0] for path in moved} == {"backbone", "head"}


def test_a_state_follows_the_steps_and_predictions_of_two_passes_are_averaged():
    experiment = build("ensemble")
    history, frozen = take_steps(experiment, 3)
    for old, new in zip(history, history[1:], strict=False):
        expected = jax.tree.map(
            lambda average, trained: tiny_learners.MEMORY * average + (1 - tiny_learners.MEMORY) * trained,
            old["student"]["state"]["prompts"]["average"],
            old["student"]["prompts"],
        )
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
            new["student"]["state"]["prompts"]["average"],
            expected,
        )
    own = join(frozen, history[-1])["student"]
    average = own["state"]["prompts"]["average"]
    assert np.abs(average["scale"] - own["prompts"]["scale"]).max() > 1e-6
    single = [
        outputs(experiment, {**own, "prompts": params}, train=True)["logits"] for params in (own["prompts"], average)
    ]
    probabilities = [np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True)) for z in np.asarray(single, np.float64)]
    logits = outputs(experiment, own)["logits"]
    np.testing.assert_allclose(np.exp(logits), sum(probabilities) / 2, rtol=1e-4, atol=1e-6)


def test_features_of_two_passes_are_joined(tmp_path):
    experiment = build("concatenated", **{"train.epochs": 1})
    run = train(experiment, tmp_path)
    own = join(run.frozen, run.after)["student"]
    assert own["head"]["linear"]["kernel"].shape == (2 * DIM, 4)
    plain, _ = plain_features(experiment, own["backbone"])
    adapters = build("adapters")
    adapted = outputs(adapters, {**own, "head": {"linear": {"kernel": np.zeros((DIM, 4)), "bias": np.zeros(4)}}})
    features = np.concatenate([plain, adapted["class_token"]], axis=1)
    np.testing.assert_allclose(outputs(experiment, own)["logits"], linear(own["head"], features), rtol=1e-4, atol=1e-5)
    assert np.abs(plain - adapted["class_token"]).max() > 1e-5


def test_a_prompt_is_selected_by_a_token_of_the_same_pass():
    experiment = build("one_stage")
    history, frozen = take_steps(experiment, 2)
    own = join(frozen, history[-1])["student"]
    params = own["prompts"]
    assert all(np.abs(params[name] - history[0]["student"]["prompts"][name]).max() > 1e-6 for name in params)
    _, plain = plain_features(experiment, own["backbone"])
    token = plain["block_0/tokens"][:, 0].astype(np.float64)
    scores = np.exp(token @ params["keys"].T)
    weights = scores / scores.sum(axis=1, keepdims=True)
    rows = np.einsum("bk,kld->bld", weights, params["prompts"]).astype(np.float32)
    features, _ = plain_features(
        experiment, own["backbone"], {1: tiny_learners.Prompt(prefix=(rows[:, :1], rows[:, 1:]))}
    )
    out = outputs(experiment, own, train=True)
    np.testing.assert_allclose(out["logits"], linear(own["head"], features), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["prompts"].selected["layer_1"], weights, rtol=1e-4)
    assert out["prompts"].loss == pytest.approx(-weights.max(axis=1).mean(), rel=1e-4)


def test_the_defaults_of_a_learner_are_a_linear_probe():
    learner = tiny_learners.Learner()
    variables = learner.init_variables(jax.random.key(0), np.zeros((1, DIM), np.float32), {"w": 1})
    selection = learner.apply(variables, np.zeros((2, DIM)), context(), True)
    assert variables == {} and (selection.prompts, selection.adapters, selection.selected) == ({}, {}, {})
    assert learner.passes(variables, context(), False) == (variables,)
    assert learner.adapt_backbone({"w": 1}, variables, context(), True) == {"w": 1}
    assert not learner.trains_backbone(("bias",)) and learner.learning_rate_factor(("head",)) == 1


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "biases_with_queries",
            {},
            "BiasesWithQueries trains leaves of the backbone, but queries are those of a frozen",
        ),
        ("two_features", {}, "TwoFeatures: a FittedHead needs join_features to return one array"),
        (
            "ridge",
            {"cdl.schedule": "interleaved"},
            "cdl.schedule='interleaved': the learner fits its head after its last",
        ),
    ],
)
def test_combinations_that_would_compute_something_else_are_refused(kind, changes, message):
    with pytest.raises(UserError, match=message):
        experiment = build(kind, **changes)
        experiment.abstract_variables()


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("biases", "trains_backbone and learning_rate_factor"),
        ("ensemble", "update_state"),
        ("ridge", "trained_tasks and a FittedHead"),
    ],
)
def test_dkt_refuses_parts_of_a_learner_that_it_does_not_use(kind, found):
    config = base.default("dkt", data="glyph_mini", learner="tests.support.tiny_learners", network="mini_student")
    config.learner.kind = kind
    with pytest.raises(UserError, match=f"^learner.name='tests.support.tiny_learners' has {found}: method 'dkt' "):
        dkt_learners.build(config, StreamInfo(4, (2, 2)))
    config.learner.kind = "lora"
    assert isinstance(dkt_learners.build(config, StreamInfo(4, (2, 2))).network.learner, tiny_learners.LoRA)


def test_what_is_no_learner_is_refused(monkeypatch):
    monkeypatch.setattr(tiny_learners, "build", lambda options, **sizes: "prompts")
    with pytest.raises(UserError, match=r"function .* must return a cdl_jax.models.learners.base.Learner, .* str$"):
        build("lora")
