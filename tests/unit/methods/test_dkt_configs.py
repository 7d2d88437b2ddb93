"""Configs of DKT's experiments and baselines, and students of finished runs."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as configs
from cdl_jax import main, plugins
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo, join
from cdl_jax.methods.shared import dkt_losses
from cdl_jax.methods.shared.finished_run import find_teacher
from cdl_jax.models.modules.conv import apply
from cdl_jax.run import loop
from cdl_jax.training.experiment import Experiment
from tests.support.contexts import context

get_config = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "dkt.py"))["get_config"]
INFO = StreamInfo(100, (10,) * 10)


def small(text):
    """Returns the config for two glyph tasks: a small network, one epoch, no memory."""
    config = get_config(f"{text},data=glyph_mini,tasks=2,epochs=1")
    config.network.update(width=2, depths=(1, 1), image_size=32)
    config.data.update(max_train_per_class=8, max_test_per_class=4)
    config.augment.update(mean=(), std=())
    config.train.batch_size = 16
    config[config.method].replay = 0
    config.log.to = ()
    return config


def test_the_weight_of_the_st_loss_falls_by_a_negative_step_of_the_command_line():
    options = ["kd_rel=0.3", "kd_step=-0.1", "kd_every=1"]
    config = main.parse(
        ["cdl_jax", "--config", "configs/dkt_glyph.py", "--workdir=unused"]
        + [f"--config.dkt.{option}" for option in options]
    ).config
    configs.check(config)
    weights = [float(dkt_losses.kd_weight(config.dkt, task, 5)) for task in range(5)]
    after_three = 0.3 - 0.1 - 0.1 - 0.1
    assert after_three != 0  # so that the weight does not stop
    expected = [0.3 - 0.1, 0.3 - 0.1 - 0.1, after_three, after_three - 0.1, after_three - 0.1 - 0.1]
    assert weights == [float(np.float32(weight)) for weight in expected]
    config.dkt.kd_rel = -0.1
    with pytest.raises(UserError, match="config.dkt.kd_rel=-0.1 must not be negative"):
        configs.check(config)


def program(config):
    return Experiment.build(config, stream.load(config.data))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The working directory of a finished run of Learning without Forgetting."""
    folder = tmp_path_factory.mktemp("teacher")
    (results,) = loop.train(program(small("baseline=lwf")), folder)
    assert results["status"] == "finished"
    return folder


@pytest.mark.parametrize(
    ("text", "method", "epochs", "rates", "memory"),
    [
        ("", "dkt", 800, (0.01, 0.01), 2000),
        ("reference=true", "dkt", 800, (0.01, 0.01), 2000),
        ("baseline=naive", "supervised", 150, (0.001, 0.001), 0),
        ("baseline=replay", "supervised", 150, (0.001, 0.001), 2000),
        ("baseline=lwf", "lwf", 50, (0.01, 0.001), 2000),
        ("baseline=lwf,network=resnet32_padded,epochs=90", "lwf", 90, (0.01, 0.0001), 2000),
        ("baseline=joint", "supervised", 200, (0.1, 0.001), 0),
    ],
)
def test_configs_without_a_teacher(text, method, epochs, rates, memory):
    config = get_config(text)
    built = plugins.load_plugin("methods", config.method).build(config, INFO)
    phase = built.phases[-1]
    assert (config.method, phase.epochs, phase.replay.capacity if phase.replay else 0) == (method, epochs, memory)
    rate = phase.updates[-1].optimizer.learning_rate
    assert [float(rate(jnp.float32(e))) for e in (0, epochs - 1)] == pytest.approx(rates, rel=1e-5)
    assert built.predict_over == "all" and config.data.class_order == "shuffle"
    assert config.network.width == (64 if "joint" in text else 16 if "resnet32" in text else 20)


@pytest.mark.parametrize("reference", [False, True])
def test_the_eeil_config_is_the_best_of_the_authors_grid(reference):
    config = get_config("baseline=eeil,reference=true" if reference else "baseline=eeil")
    built = plugins.load_plugin("methods", config.method).build(config, INFO)
    first, later, tuned = built.phases
    assert (later.epochs, later.replay.capacity, later.replay.batch, built.predict_over) == (70, 3000, 128, "seen")
    rates = [[float(p.updates[0].optimizer.learning_rate(jnp.float32(e))) for e in (0, 29)] for p in (first, tuned)]
    np.testing.assert_allclose(rates, [[0.1, 0.1], [0.01, 0.0001]], rtol=1e-5)
    assert (tuned.since, tuned.replay.per_class) == ((3, 30) if reference else (1, 0))
    assert (config.eeil.softmax_over, config.eeil.active) == (
        ("batch", "last") if reference else ("classes", "all_seen")
    )
    assert (config.network.width, config.network.depths, config.eeil.temperature) == (16, (5, 5, 5), 3.0)


@pytest.mark.parametrize("reference", [False, True])
def test_reference_selects_the_authors_settings(teacher, reference):
    word = ",reference=true" if reference else ""
    first = small(f"experiment=joint_teacher,teacher={teacher}{word}")
    assert (first.dkt.kd_rel, first.optim.learning_rate, first.dkt.cutmix) == (5.0, 0.001, 0.5)
    assert (first.dkt.cutmix_ramp, first.dkt.cutmix_labels) == (
        ("as_coded", "original") if reference else ("linear", "mixed")
    )
    assert (first.dkt.teacher_checkpoint, first.dkt.stream_order) == ("last", "same")
    second = small(f"experiment=continual_teacher,teacher={teacher}{word}")
    assert (second.dkt.kd_rel, second.optim.learning_rate, second.dkt.cutmix) == (0.5, 0.01, 0.0)
    assert (second.dkt.teacher_checkpoint, second.dkt.stream_order) == ("same_task", "shuffled")
    third = plugins.load_plugin("methods", "dkt").build(get_config(f"{word}".lstrip(",")), INFO)
    assert [phase.name for phase in third.phases] == (
        ["learner_0", "learner_0_replay", "learner_1", "learner_1_replay"] if reference else
        ["together", "together_replay"]
    )  # fmt: skip
    assert third.options.kd_rel == 0.01 and third.options.teacher_bn == ("batch" if reference else "running")
    lwf = get_config(f"baseline=lwf{word}").lwf
    assert (lwf.lwf_active, lwf.previous_bn) == (("last", "batch") if reference else ("all_seen", "running"))


@pytest.mark.parametrize("use_batch_statistics", [False, True])
def test_the_teacher_of_a_finished_run_is_its_network_after_the_same_task(teacher, use_batch_statistics):
    info = program(small("baseline=lwf")).info
    run_teacher = find_teacher(str(teacher), "", "same_task", info, {}, use_batch_statistics=use_batch_statistics)
    variables = jax.tree.map(jnp.asarray, run_teacher.load_pretrained())
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 32, 32, 3)), jnp.float32)
    outputs = []
    for task, (first, end) in enumerate(((0, 10), (10, 20))):
        task_variables = join(variables["frozen"], jax.tree.map(lambda x, task=task: x[task], variables["tasks"]))
        step_context = context(first, end, task=task)
        (logits, _), _ = apply(
            run_teacher.method.backbone, task_variables["network"], images, use_batch_statistics, step_context.key
        )
        outputs.append(run_teacher.outputs(variables, images, step_context)["logits"])
        np.testing.assert_allclose(outputs[-1], logits, atol=1e-5)
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 1e-3


def test_a_student_of_a_finished_run_has_its_own_stream(teacher, tmp_path):
    config = small(f"experiment=continual_teacher,teacher={teacher},reference=true")
    (results,) = loop.train(program(config), tmp_path)
    assert results["status"] == "finished" and results["streams"][0] != list(range(20))
    assert set(results["networks"]) == {"learner_0", "learner_0_st", "learner_0_both"}
    lines = (tmp_path / "metrics.jsonl").read_text()
    metrics = [json.loads(line) for line in lines.splitlines() if "kd_weight" in line]
    assert metrics and all(
        line["learner_0/kd_weight"] == 0.5 and line["learner_0/student_loss"] > 0 for line in metrics
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("experiment=joint_teacher", "needs teacher=WORKDIR of a finished run: train baseline=joint first"),
        ("experiment=continual_teacher", "train baseline=lwf or baseline=eeil first"),
        ("teacher=runs/a", "two_learners teach each other"),
        ("experiment=continual", "did you mean 'continual_teacher'"),
        ("baseline=eil", "did you mean 'eeil'"),
    ],
)
def test_invalid_choices_are_refused_in_one_line(text, message):
    with pytest.raises(UserError) as error:
        get_config(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_without_batch_statistics_is_refused(teacher, monkeypatch):
    from cdl_jax.methods import lwf

    monkeypatch.setattr(lwf.LwF, "supports_batch_statistics", False)
    with pytest.raises(UserError, match="of method 'lwf', supports running statistics only"):
        find_teacher(str(teacher), "", "last", program(small("baseline=lwf")).info, {}, use_batch_statistics=True)
