"""EEIL: losses, gradient noise, outputs as a teacher, a killed and resumed run."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax import options
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy
from cdl_jax.methods import eeil
from cdl_jax.methods.base import Replay, StreamInfo, join, split
from cdl_jax.methods.shared.finished_run import find_teacher
from cdl_jax.models.modules.conv import apply
from cdl_jax.run import loop, memory
from cdl_jax.training.experiment import Experiment
from tests.end_to_end.command import last_weights
from tests.support.contexts import context
from tests.support.manual_steps import quick

INFO = StreamInfo(6, (2, 1, 2, 1))
TINY = {
    "family": "tests.support.tiny_network", "pooled": True, "norm": True, "dim": 4, "image_size": 8,
    "weights": "random",
}  # fmt: skip
get_config = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "dkt.py"))["get_config"]


def build(info=INFO, network=TINY, **changes):
    config = configs.default("eeil", data="glyph_mini", network="glyph_student")
    config.network = ConfigDict(network)
    config.eeil.update({"replay": 21, **changes})
    config.train.update(epochs=3, batch_size=6)
    options.check(eeil.OPTIONS, config.eeil, "eeil")
    return eeil.build(config, info)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {"images": rng.normal(size=(6, 8, 8, 3)).astype(np.float32), "labels": np.array([3, 4, 3, 0, 1, 2])}


def random_variables(method):
    """Variables of a network that differs from the previous one, after 40 steps."""
    init = quick(lambda key: method.init(key))
    current, previous = (jax.device_get(init(jax.random.key(seed))) for seed in (0, 1))
    memory = {**current["memory"], "steps": np.int32(40)}
    return {**current, "previous": previous["network"], "memory": memory}


def logits_of_both(method, variables, data):
    """Returns logits in training mode, and the previous network's in evaluation mode."""
    backbone, key = method.backbone, jax.random.key(0)
    forward = quick(lambda v, train: apply(backbone, v, data["images"], train, key)[0][0], static_argnums=1)
    current, previous = forward(variables["network"], True), forward(variables["previous"], False)
    return np.asarray(current, np.float64), np.asarray(previous, np.float64)


@pytest.fixture(scope="module")
def variables():
    return random_variables(build())


@pytest.fixture(scope="module")
def both_logits(variables, data):
    return logits_of_both(build(), variables, data)


def softmax(z, axis):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def expected_distillation(both_logits, columns, kind):
    """The distillation loss by its formula, at temperature 2."""
    current, previous = (z[:, columns] / 2 for z in both_logits)
    if kind == "classes":
        p, q = softmax(previous, 1), softmax(current, 1)
        return (p * np.log(p / q)).sum(axis=1).mean()
    p, q = softmax(previous, 0), softmax(current, 0)
    return -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean(axis=0).sum()


@pytest.mark.parametrize("kind", ["classes", "batch"])
@pytest.mark.parametrize(
    ("active", "tuning", "columns"),
    [("all_seen", False, [0, 1, 2]), ("last", False, [2, 3]), ("all_seen", True, [3, 4])],
)
def test_loss_distills_the_previous_network(variables, data, both_logits, kind, active, tuning, columns):
    info, step_context, num_seen = INFO, context(3, 5, task=2), 5
    if active == "last":  # a softmax over the one class of INFO's second task has no gradient, and is refused
        info, step_context, num_seen = StreamInfo(6, (2, 2, 2)), context(4, 6, task=2), 6
    method = build(info, alpha=1.5, softmax_over=kind, active=active)
    loss = method.finetune_loss if tuning else method.loss
    total, outcome = quick(lambda v, b: loss(v, b, step_context))(variables, data)
    distillation = expected_distillation(both_logits, columns, kind)
    mask = np.arange(6) < num_seen  # the classifier has not grown to later classes yet
    class_loss = float(quick(cross_entropy)(both_logits[0], data["labels"], mask))
    assert float(outcome.metrics["previous_loss"]) == pytest.approx(distillation, rel=1e-4, abs=1e-6)
    assert float(outcome.metrics["class_loss"]) == pytest.approx(class_loss, rel=1e-4)
    assert float(total) == float(outcome.metrics["loss"]) == pytest.approx(class_loss + 1.5 * distillation, rel=1e-4)
    assert set(outcome.variables["network"]) == {"batch_stats"}
    steps = outcome.variables.get("memory", {}).get("steps")
    assert steps is None if tuning else int(steps) == 41


def test_first_task_has_no_distillation_and_spans_its_own_classes(variables, data, both_logits):
    first_task = {**data, "labels": data["labels"] % 2}
    _, outcome = quick(lambda v, b: build().loss(v, b, context(0, 2)))(variables, first_task)
    assert float(outcome.metrics["previous_loss"]) == 0
    log_p = np.log(softmax(both_logits[0][:, :2], 1))
    expected = -log_p[np.arange(6), np.asarray(first_task["labels"])].mean()
    assert float(outcome.metrics["class_loss"]) == pytest.approx(expected, rel=1e-4)
    _, over_all = quick(lambda v, b: build(classes="all").loss(v, b, context(0, 2)))(variables, first_task)
    assert float(over_all.metrics["class_loss"]) > float(outcome.metrics["class_loss"]) + 0.1


def test_noise_changes_gradients_and_not_the_loss_and_decays_over_the_run(data):
    wide, step_context = {**TINY, "dim": 200}, context(3, 5, task=2)
    variables = random_variables(build(network=wide))

    def gradients(**changes):
        method = build(network=wide, **changes)
        (update,) = method.phases[1].updates
        trained, rest = split(variables, update.trainable)
        assert set(trained) == {"network"} and set(trained["network"]) == {"params"}
        loss = lambda t: update.loss(join(rest, t), data, step_context)[0]  # noqa: E731
        value, gradient = quick(jax.value_and_grad(loss))(trained)
        return float(value), np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])

    (loss, plain), size = gradients(noise=0.0), 0.3 / 41**0.55
    for kind, deviation in (("deviation", size), ("variance", size**0.5)):
        noisy_loss, noisy = gradients(noise=0.3, noise_unit=kind)
        assert loss == pytest.approx(noisy_loss, rel=1e-6)
        assert (noisy - plain).std() == pytest.approx(deviation, rel=0.1)


def test_last_phase_has_equally_many_images_of_each_class():
    first, later, tuned = build().phases
    assert (first.name, first.tasks, first.replay, first.herding_network) == ("network", "first", None, "network")
    assert (later.name, later.tasks, later.herding_network) == ("network_replay", "later", "network")
    assert later.replay == Replay(21, 6, "herding") and later.updates[0].optimizer is first.updates[0].optimizer
    assert (tuned.balanced, tuned.epochs_of(0), tuned.epochs_of(1)) == (True, 0, 30)
    assert tuned.replay == Replay(21, 0, "herding", per_class=0)
    rate = tuned.updates[0].optimizer.learning_rate
    assert [float(rate(jnp.float32(e))) for e in (0, 9, 10, 29)] == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    as_authors = build(finetune_start_task=3, finetune_share="all").phases[-1]
    assert [as_authors.epochs_of(task) for task in range(5)] == [0, 0, 0, 30, 30]
    assert as_authors.replay.per_class == 21 // 6
    assert len(build(finetune_epochs=0).phases) == 2
    assert build().init(jax.random.key(0))["memory"]["rows"].shape == (6, 11)


def test_network_that_selects_the_memory_becomes_the_previous_network(variables):
    rows = np.arange(66, dtype=np.int32).reshape(6, 11)
    after = build().update_memory(variables, rows)
    np.testing.assert_array_equal(after["memory"]["rows"], rows)
    assert int(after["memory"]["steps"]) == 40
    for part in ("network", "previous"):
        jax.tree.map(np.testing.assert_array_equal, after[part], variables["network"])


def test_teacher_outputs_have_the_smallest_logit_for_unseen_classes(variables, data):
    method, step_context = build(), context(3, 5, task=2)
    teacher_outputs = quick(lambda v: method.teacher_outputs("network", v, data["images"], step_context)["logits"])
    forward = quick(lambda v: apply(method.backbone, v, data["images"], False, step_context.key)[0][0])
    outputs, logits = jax.device_get((teacher_outputs(variables), forward(variables["network"])))
    np.testing.assert_allclose(outputs[:, :5], logits[:, :5], atol=1e-6)
    np.testing.assert_allclose(outputs[:, 5], logits[:, :5].min(axis=1), atol=1e-6)
    assert np.abs(outputs[:, 5] - logits[:, 5]).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"softmax_over": "batches"}, "eeil.softmax_over='batches': use 'classes' or 'batch'"),
        ({"active": "lst"}, "eeil.active='lst': use 'all_seen' or 'last'"),
        ({"classes": "current"}, "eeil.classes='current'"),
        ({"noise_unit": "devation"}, "eeil.noise_unit='devation': use 'deviation' or 'variance'"),
        ({"temperature": 0.0}, "eeil.temperature=0.0"),
        ({"alpha": -1.0}, "eeil.alpha=-1.0 must not be negative"),
        ({"label_smoothing": 2.0}, "eeil.label_smoothing=2.0 must lie in [0, 1)"),
        ({"noise": -1.0}, "eeil.noise=-1.0 must not be negative"),
        ({"replay": 5}, "eeil.replay=5: at least one image of each of the 6 classes"),
        ({"finetune_start_task": 0}, "eeil.finetune_start_task=0 must be at least 1: the first task has no memory"),
        ({"finetune_learning_rate": 0.0}, "eeil.finetune_learning_rate=0.0 must be above 0"),
    ],
)
def test_invalid_options_give_a_message_of_one_line(changes, message):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def experiment():
    """Two tasks of five glyphs."""
    config = get_config("baseline=eeil,data=glyph_mini,tasks=2,epochs=1")
    config.network = ConfigDict({**TINY, "image_size": 32})
    config.data.update(max_train_per_class=8, max_test_per_class=4, num_tasks=0, task_sizes=(5, 5))
    config.data.class_order = ",".join(map(str, range(10)))
    config.augment.update(mean=(), std=())
    config.train.batch_size = 8
    config.eeil.update(replay=24, finetune_epochs=2)
    config.log.update(to=(), report=False, every_steps=1)
    config.checkpoint.every_steps = 2
    return Experiment.build(config, stream.load(config.data))


@pytest.fixture(scope="module")
def finished(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eeil")
    (results,) = loop.train(experiment, folder)
    assert results["status"] == "finished"
    return folder


def log_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_memory_holds_images_of_each_learned_class(experiment, finished):
    phases = [line["phase"] for line in log_lines(finished) if "loss" in line]
    assert phases == ["network"] * 5 + ["network_replay"] * 5 + ["balanced"] * 6  # 24 images: 3 batches per epoch
    early, late = (last_weights(finished, task)["['memory']['rows']"] for task in range(2))
    assert early.shape == (10, 5) and (early[5:] == -1).all() and np.array_equal(late[:5], early[:5])
    for label, rows in enumerate(late):
        assert len(set(rows)) == 5 and (experiment.stream.train.labels[rows] == label).all()
    assert last_weights(finished, 1)["['memory']['steps']"] == 10


def test_killed_run_resumes_with_the_same_bits(experiment, finished, tmp_path, monkeypatch):
    def dying(function, at, calls):
        def call(*arguments):
            calls.append(0)
            if len(calls) == at:
                raise Killed
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:  # after the last step before a selection
        patch.setattr(memory, "select", dying(memory.select, 2, []))
        with pytest.raises(Killed):
            loop.train(experiment, tmp_path)
    with monkeypatch.context() as patch:  # during fine-tuning
        patch.setattr(loop.TaskLoop, "_log_training", dying(loop.TaskLoop._log_training, 5, []))
        with pytest.raises(Killed):
            loop.train(experiment, tmp_path)
    assert log_lines(tmp_path)[-1].get("phase") == "balanced"
    loop.train(experiment, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    expected = last_weights(finished, 1)
    for name, value in last_weights(tmp_path, 1).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_finished_run_is_a_teacher(experiment, finished):
    teacher = find_teacher(str(finished), "", "same_task", experiment.info, {})
    variables = jax.tree.map(jnp.asarray, teacher.load_pretrained())
    images = np.random.default_rng(0).normal(size=(6, 32, 32, 3)).astype(np.float32)
    teacher_outputs = quick(lambda v, step_context: teacher.outputs(v, images, step_context)["logits"])
    outputs = [np.asarray(teacher_outputs(variables, context(0, end, task=i))) for i, end in ((0, 5), (1, 10))]
    assert np.isfinite(outputs).all() and np.abs(outputs).max() < 100  # small enough for a squared error
    np.testing.assert_allclose(outputs[0][:, 5:], outputs[0][:, :5].min(axis=1, keepdims=True).repeat(5, axis=1))
    assert (np.ptp(outputs[1][:, 5:], axis=1) > 0).all()
