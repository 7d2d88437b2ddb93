"""A convolutional teacher of another run, for two Transformers.

One Transformer is prompted, the other trains all its weights.
"""

import numpy as np
import pytest

from tests.end_to_end.command import TINY, last_weights, results, run_in_process
from tests.support import predictions

SMALL = ("--config.data.max_train_per_class=16", "--config.data.max_test_per_class=8", "--config.train.epochs=1",
         "--config.train.batch_size=16", "--config.data.class_order=0,1,2,3,4,5,6,7,8,9")  # fmt: skip
SIZES = ("depths=(1,1,1)", "widths=(4,6,12)")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    sizes = [f"--config.network.{size}" for size in SIZES]
    config = "configs/pretrain_glyph.py:network=resnet20,data=glyph_mini"
    run_in_process("--config", config, *SMALL, *sizes, "--config.optim.warmup_epochs=0", "--workdir", workdir)
    return workdir


def weight(workdir, task):
    """Returns W `[teacher, student]` of a run's Householder projector, and its start.

    W starts at the first columns of the base.
    """
    from cdl_jax.models.modules import orthogonal

    raw, base, signs = (
        next(v for k, v in last_weights(workdir, task).items() if f"['projector']['{name}']" in k)
        for name in ("raw", "base", "signs")
    )
    start = base[:, : min(raw.shape)]
    found = np.asarray(orthogonal.orthogonal_weight(raw, base, "householder", raw.shape, signs))
    return found, start if raw.shape[0] > raw.shape[1] else start.T


def check_the_network_that_becomes_a_teacher(workdir, weights):
    """Checks that another run takes the averaged student as its default teacher.

    The default is not the teacher of this run.
    """
    import jax

    from cdl_jax.losses import Context
    from cdl_jax.methods.base import StreamInfo
    from cdl_jax.methods.shared import finished_run

    (task,) = results(workdir)["stream"]["tasks"]
    info = StreamInfo(10, (10,), tuple(task["classes"]))
    assert finished_run.find_teacher(str(workdir), "", "last", info, {}).network == "student_ema"
    student = finished_run.find_teacher(str(workdir), "student", "last", info, {})
    variables = student.load_pretrained()
    head = variables["tasks"]["student"]["params"]["head"]["kernel"][0]
    np.testing.assert_array_equal(head, weights["params/head/kernel"])
    images = np.ones((2, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda v: student.outputs(v, images, Context.dummy()), variables)
    assert (shapes["logits"].shape, shapes["patch_tokens"].shape) == ((2, 10), (2, 4, 16))


def check_the_run_predicts_without_its_teacher(workdir, teacher):
    images, logits = predictions.logits_of_evaluation(workdir, 0)
    hidden = teacher.rename(teacher.with_name("hidden"))
    try:
        run = predictions.copy_of(workdir, workdir / "copy")
        seen = np.arange(len(run.class_names)) < len(run.tasks[0])
        for name in run.networks:
            predictions.check_equal(run.network(name, task=0)(images), logits[name], seen)
        predictions.check_program(run.network("student", task=0), images)
    finally:
        hidden.rename(teacher)


@pytest.mark.parametrize("method", ["cdl", "vkd"])
def test_a_student_distills_the_feature_of_a_convolutional_teacher(method, teacher, tmp_path):
    if method == "cdl":
        arguments = ["--config", f"{TINY}:learner=coda,distill=vkd", f"--config.cdl.teacher_runs=('{teacher}',)",
                     "--config.cdl.teacher_checkpoint=last"]  # fmt: skip
    else:
        arguments = ["--config", "configs/vkd.py:network=deit_ti_conv,teacher=resnet20,data=glyph_mini",
                     f"--config.teacher.weights={teacher}", "--config.augment.train=shift",
                     "--config.augment.test=none", "--config.augment.mean=()", "--config.augment.std=()",
                     *(f"--config.teacher.{size}" for size in SIZES)]  # fmt: skip
        changes = {"dim": 16, "heads": 2, "depth": 1, "image_size": 32, "stem_width": 4}
        arguments += [f"--config.student.{key}={value}" for key, value in changes.items()]
        arguments += ["--config.vkd.ema=true", "--config.optim.accumulate=2", "--config.augment.erase=0.25",
                      "--config.augment.repeats=3"]  # fmt: skip
    run_in_process(*arguments, *SMALL, "--workdir", tmp_path)
    networks = results(tmp_path)["networks"]
    teacher_accuracy = results(teacher)["networks"]["network"]["accuracy_matrix"][0][0]
    if method == "vkd":
        assert networks["teacher"]["accuracy_matrix"] == [[pytest.approx(teacher_accuracy)]]
        assert 0 <= networks["student_ema"]["metrics"]["last"] <= 100
        mean, own = np.load(tmp_path / "weights_ema.npz"), np.load(tmp_path / "weights.npz")
        assert mean.files == own.files and any((mean[name] != own[name]).any() for name in own.files)
        check_the_network_that_becomes_a_teacher(tmp_path, own)
    assert 0 <= networks["student"]["metrics"]["last"] <= 100
    check_the_run_predicts_without_its_teacher(tmp_path, teacher)
    found, start = weight(tmp_path, 4 if method == "cdl" else 0)
    side = min(found.shape)
    gram = found @ found.T if found.shape[0] < found.shape[1] else found.T @ found
    assert np.abs(gram - np.eye(side)).max() < 1e-5
    assert np.abs(found - start).max() > 1e-4
