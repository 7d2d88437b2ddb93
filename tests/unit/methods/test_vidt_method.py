"""vidt: published parameter counts, trained parameters, distances from the past."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax import config_files
from cdl_jax.errors import UserError
from cdl_jax.methods import vidt
from cdl_jax.methods.base import StreamInfo, split
from cdl_jax.methods.shared import detection_losses, detection_teachers
from cdl_jax.run import describe, results
from cdl_jax.training import detection
from cdl_jax.training.compiled import CompiledSteps
from tests.end_to_end.tiny_detection import TINY
from tests.support.contexts import context

INFO = StreamInfo(4, (2, 2), tuple("abcd"), 20, (2, 5, 3, 8))
RNG = np.random.default_rng(0)


def make_config(distill="none", **changes):
    config = base.default("vidt", data="coco", distill=distill)
    config.student.update({**TINY, "dropout": 0.0})
    if distill != "none":
        config.teacher.update({**TINY, "embed_dim": 16})
    config.augment.group_size = 2
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


def make(distill="none", info=INFO, **changes):
    return vidt.build(make_config(distill, **changes), info)


def make_batch(labels=((2, 5), (5, 5))):
    boxes = np.float32(RNG.uniform(0.2, 0.4, (2, 2, 4)))
    sizes = np.full((2, 2), 64, np.int32)
    return {
        "images": np.float32(RNG.normal(size=(2, 64, 64, 3))), "sizes": sizes, "extents": sizes, "boxes": boxes,
        "labels": np.int32(labels), "valid": np.ones((2, 2), bool),
    }  # fmt: skip


@pytest.fixture(scope="module")
def shapes():
    """Shapes of each network's variables, traced once for all tests of plans."""
    return functools.cache(lambda module: jax.eval_shape(lambda: init(module, jax.random.key(0))))


init = detection_teachers.init


@pytest.fixture
def zeros_of_shapes(shapes, monkeypatch):
    """Lets plans have zeros of the shapes as initial variables of networks."""

    def zeros(module, key):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes(module))

    monkeypatch.setattr(detection_teachers, "init", zeros)


@pytest.mark.usefixtures("zeros_of_shapes")
@pytest.mark.parametrize(
    ("size", "published", "projectors"),
    [("nano", 15_728_677, 16_124_965), ("tiny", 37_962_901, 38_359_189), ("small", 60_465_061, 60_861_349)],
)
def test_published_detectors_have_the_published_numbers_of_parameters_without_the_data(size, published, projectors):
    config = config_files.load(config_files.find("coco_vidt"), f"student={size},distill=projected_tokens")
    data, note = describe.load_or_placeholder(config.data, 0)
    experiment, _ = describe.build_experiment(config, data)
    assert "planned with published sizes" in note
    counts = experiment.method.published_parameters(experiment.variable_shapes)
    assert counts == {"student": published, "teacher": 99_959_635}
    of_projectors = results.parameters(experiment)["distill"]["trainable"]
    assert counts["student"] + of_projectors == projectors


@pytest.mark.usefixtures("zeros_of_shapes")
@pytest.mark.parametrize(
    ("size", "published", "narrow", "wide"),
    [
        ("nano", "15,728,677", 30.5, 37.7),
        ("tiny", "37,962,901", 94.3, 116.7),
        ("small", "60,465,061", 172.9, 213.2),
        ("base", "99,959,635", 298.3, 368.0),
    ],
)
def test_the_plan_has_the_published_parameters_and_operations(size, published, narrow, wide):
    """The published 10^9 multiply-adds are of images of 800 x 1056 and 800 x 1328."""
    config = config_files.load(config_files.find("coco_vidt"), f"student={size}")
    data, _ = describe.load_or_placeholder(config.data, 0)
    experiment, _ = describe.build_experiment(config, data)
    lines = list(describe._networks(experiment))
    assert lines[1].endswith(f"{published} with those without use in the authors' code")
    (forward,) = (line for line in lines if line.startswith("a test image of 800 x 1056 pixels: "))
    assert forward.endswith("in student") and float(forward.split()[8]) / 2 == pytest.approx(narrow, rel=0.02)
    test = dataclasses.replace(data.test, sizes=np.full_like(data.test.sizes, (480, 800)))
    resized = dataclasses.replace(experiment, streams=(dataclasses.replace(data, test=test),))
    image_size, work = detection.image_work(resized)
    assert image_size == (800, 1328) and work.flops / 2e9 == pytest.approx(wide, rel=0.02)


def test_the_plan_counts_a_step_of_several_canvases_without_compiling_it(monkeypatch):
    monkeypatch.delattr(CompiledSteps, "compiled_step")
    config = make_config()
    config.data.num_tasks, config.train.batch_size, config.eval.batch_size = 1, 4, 4
    config.student.weights = "random"
    config.augment.update({"scales": (64,), "crop": 0.0, "eval_size": 64, "canvases": ((64, 128), (128, 64))})
    data, _ = describe.load_or_placeholder(config.data, 0)
    experiment, _ = describe.build_experiment(config, data)
    *_, forward, _, step, _ = describe.describe(experiment)
    assert forward.startswith("a test image of 64 x ")
    operations = float(step.split("epochs a task, ")[1].split()[0])
    assert "GFLOP in matrix products and convolutions on a canvas of 64 x 128; not compiled" in step
    # Four images, and two products of the backward pass for each of the forward pass. The canvas is 1.6 times as wide.
    images = 3 * 4 * float(forward.split()[8])
    assert 0.9 * images < operations < 1.6 * 1.1 * images


def test_a_frozen_teacher_is_no_part_of_the_mutable_variables():
    method = make("projected_tokens", teacher__weights="random")
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    mutable, frozen = split(shapes, lambda path: not method.is_frozen(path))
    assert set(mutable) == {"student", "distill"} and set(frozen) == {"teacher"}
    trained, rest = split(mutable, method.phases[0].updates[0].trainable)
    assert set(trained) == {"student", "distill"} and set(rest["distill"]) == {"state"}
    assert method.networks == ("student",)


def test_a_teacher_that_learns_beside_has_an_update_of_its_own_before_the_student():
    method = make("token_matching", teacher__weights="random", vidt__teacher_training="beside")
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    trained = [set(split(shapes, update.trainable)[0]) for update in method.phases[0].updates]
    assert trained == [{"teacher"}, {"student"}] and method.networks == ("teacher", "student")
    assert not split(shapes, method.is_frozen)[0]


def test_the_past_is_the_student_before_the_task():
    method = make(vidt__past_weight=1.0)
    variables = {"student": {"x": jnp.ones(2)}, "past": {"x": jnp.zeros(2)}}
    started = method.start_task(variables, context(2, 4, task=1))
    assert started["past"]["x"].tolist() == [1, 1] and "past" in method.bookkeeping
    assert make().start_task(variables, context(2, 4, task=1)) is variables


def test_only_the_current_classes_get_a_gradient_from_the_labels():
    outputs = {}
    for classes in ("all", "current"):
        method = make(vidt__classes=classes, vidt__solver="device")
        boxes, batch = np.float32(RNG.uniform(0.2, 0.5, (2, 2, 8, 4))), make_batch(labels=((3, 8), (8, 8)))

        def loss(logits, method=method, boxes=boxes, batch=batch):
            return method._label_loss({"logits": logits, "boxes": boxes}, batch, context(2, 4, task=1))[0]

        gradient = jax.jit(jax.grad(loss))(np.float32(RNG.normal(size=(2, 2, 8, 9))))
        outputs[classes] = np.abs(gradient).max(axis=(0, 1, 2)) > 0
    assert outputs["all"].all()
    assert np.flatnonzero(outputs["current"]).tolist() == [3, 8]


def pooled(labels, classes, size, out):
    """Returns each class's share in the adaptive average pooling of a label map.

    Column 0 has the share of any object.
    """
    shares = np.zeros((*out, classes))
    for i, j in np.ndindex(out):
        rows = slice(i * size[0] // out[0], -(-(i + 1) * size[0] // out[0]))
        window = labels[rows, j * size[1] // out[1] : -(-(j + 1) * size[1] // out[1])]
        shares[i, j] = [(window == c).mean() if c else (window > 0).mean() for c in range(classes)]
    return shares


def test_token_labels_add_the_focal_and_dice_losses_of_the_label_maps():
    """The extents of 48 x 64 pixels are not the canvas; the last map's stride is 64."""
    method = make(student__token_label=True, vidt__solver="device", token_labels__focal_weight=3.0)
    assert method.label_maps and not make().label_maps
    maps = np.zeros((2, 64, 64), np.uint8)
    maps[0, :40, :64], maps[1, :48, :50] = RNG.choice([0, 2, 8], (40, 64)), RNG.choice([0, 5], (48, 50))
    batch = {**make_batch(), "label_maps": maps, "extents": np.int32([[48, 64]] * 2)}
    batch["sizes"] = np.int32([[40, 64], [48, 50]])
    batch["images"] = np.where(np.arange(64)[None, :, None, None] < 40, batch["images"], 0)

    @jax.jit
    def compute(key):
        variables = method.init(key)
        out = detection_teachers.apply(method.student, variables["student"], batch)
        of_queries, _ = detection_losses.detection_loss(method.options, out, batch)
        loss, outcome = method.student_loss(variables, batch, context(0, 2))
        return out["token_logits"], out["inside"], loss - of_queries, outcome.metrics

    logits, inside, of_tokens, metrics = jax.device_get(compute(jax.random.key(0)))
    assert [z.shape for z in logits] == [(2, 8, 8, 9), (2, 4, 4, 9), (2, 2, 2, 9), (2, 1, 1, 9)]
    focal = dice = 0.0
    for z, counts, stride in zip(logits, inside, (8, 16, 32, 64), strict=True):
        out = -(-48 // stride), -(-64 // stride)
        assert counts.sum() == 2 * out[0] * out[1]
        for i in range(2):
            y = pooled(maps[i], 9, (48, 64), out)
            p = 1 / (1 + np.exp(-np.float64(z[i, : out[0], : out[1]])))
            p_t, alpha = p * y + (1 - p) * (1 - y), 0.25 * y + 0.75 * (1 - y)
            terms = -alpha * (1 - p_t) ** 2 * (y * np.log(p) + (1 - y) * np.log(1 - p))
            focal += terms.mean(axis=(0, 1)).sum() / 4  # objects
            dice += (1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)) / 4
    assert metrics["loss_token_focal"] == pytest.approx(focal, rel=1e-5)
    assert metrics["loss_token_dice"] == pytest.approx(dice, rel=1e-5)
    assert of_tokens == pytest.approx(3 * focal + 2 * dice, rel=1e-4)


def test_token_labels_of_the_current_classes_get_a_gradient_and_column_0_too():
    batch = {**make_batch(labels=((3, 8), (8, 8))), "label_maps": np.full((2, 64, 64), 8, np.uint8)}
    out = {
        "logits": jnp.float32(RNG.normal(size=(2, 2, 8, 9))),
        "boxes": jnp.float32(RNG.uniform(0.2, 0.5, (2, 2, 8, 4))),
        "inside": (jnp.ones((2, 2, 3), bool),),
    }
    columns = {}
    for classes in ("all", "current"):
        method = make(vidt__classes=classes, vidt__solver="device")

        @jax.jit
        def gradient(z, method=method):
            return jax.grad(
                lambda z: method._label_loss({**out, "token_logits": (z,)}, batch, context(2, 4, task=1))[0]
            )(z)

        found = gradient(jnp.float32(RNG.normal(size=(2, 2, 3, 9))))
        columns[classes] = np.flatnonzero(np.abs(found).max(axis=(0, 1, 2)))
    assert columns["all"].tolist() == [*range(9)] and columns["current"].tolist() == [0, 3, 8]


def test_a_teacher_beside_with_token_labels_needs_label_maps_and_a_frozen_one_does_not():
    for training, needed in (("beside", True), ("frozen", False)):
        changes = {"teacher__token_label": True, "teacher__weights": "random", "vidt__teacher_training": training}
        assert make("token_matching", **changes).label_maps is needed


def test_the_distance_from_past_predictions_is_the_divergence_of_old_classes_and_weighted_boxes():
    shape = (2, 3, 4, 5)
    z, zp = (RNG.normal(size=shape) for _ in range(2))
    b, bp = (RNG.uniform(size=(*shape[:3], 4)) for _ in range(2))
    columns = np.array([True, False, True, False, False])
    p, q = (1 / (1 + np.exp(-x)) for x in (zp, z))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    boxes = p[..., columns].max(axis=-1) * np.abs(b - bp).sum(axis=-1)
    expected = (divergence[..., columns].sum(axis=-1) + boxes).sum(axis=-1).mean()
    student, past = ({"logits": jnp.float32(x), "boxes": jnp.float32(y)} for x, y in ((z, b), (zp, bp)))
    assert vidt.prediction_distance(student, past, columns) == pytest.approx(expected, rel=1e-5)
    assert vidt.prediction_distance(past, past, columns) == pytest.approx(0, abs=1e-6)


def test_the_distance_from_past_tokens_is_the_mean_smooth_l1_of_both_kinds():
    student = {"body_tokens": jnp.array([[[0.0, 3.0]]]), "neck_tokens": jnp.array([[[[0.5, 0.0]]]])}
    past = jax.tree.map(jnp.zeros_like, student)
    assert vidt.token_distance(student, past) == pytest.approx(2.5 / 2 + 0.125 / 2)


def test_the_past_has_no_weight_in_the_first_task_and_hides_new_classes():
    # A program with SciPy's callback is in no cache of compiled programs.
    method = make(vidt__past_weight=1.0, vidt__past_tokens_weight=1.0, vidt__solver="device")
    variables = jax.jit(method.init)(jax.random.key(0))
    other = jax.tree.map(lambda x: x + 0.01, variables["student"])
    batch = make_batch()
    loss = jax.jit(method.student_loss)
    for task, at in ((0, context(0, 2, task=0)), (1, context(2, 4, task=1))):
        metrics = loss({**variables, "past": other}, batch, at)[1].metrics
        assert (metrics["loss_past"] > 0) == (metrics["loss_past_tokens"] > 0) == bool(task)
        assert metrics["loss"] >= metrics["loss_past"]


def test_binary_logits_without_neck_give_the_probabilities_of_the_softmax():
    logits = jnp.float32(RNG.normal(size=(3, 5)))
    np.testing.assert_allclose(jax.nn.sigmoid(vidt.binary_logits(logits)), jax.nn.softmax(logits)[:, :-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("distill", "changes", "message"),
    [
        ("none", {"student__neck": False}, "student.neck=False needs vidt.class_loss='softmax'"),
        ("none", {"vidt__class_loss": "softmax"}, "student.neck=True needs vidt.class_loss='focal'"),
        ("none", {"vidt__teacher_training": "beside"}, "needs a scheme: name it after distill="),
        ("token_matching", {"teacher__weights": ""}, "config.teacher.weights is empty"),
        ("token_matching", {"teacher__cross_scale_fusion": True, "teacher__weights": "random"}, "set them equal"),
        ("token_matching", {"teacher__dim": 64, "teacher__weights": "random"}, "token_matching needs equal widths"),
        ("token_matching", {"teacher__queries": 9, "teacher__weights": "random"}, "9 detection tokens, the student 8"),
    ],
)
def test_options_that_do_not_fit_are_refused(distill, changes, message):
    with pytest.raises(UserError, match=message):
        make(distill, **changes)


def test_the_past_needs_several_tasks_and_sigmoids():
    with pytest.raises(UserError, match="a stream of one task has no past"):
        make(info=StreamInfo(4, (4,), tuple("abcd"), 20, (2, 5, 3, 8)), vidt__past_weight=1.0)
    with pytest.raises(UserError, match="vidt.classes='current' needs a sigmoid for each class"):
        make(student__neck=False, vidt__class_loss="softmax", vidt__classes="current")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student=huge", "known: base, nano, small, tiny"),
        ("teacher=nano", "known: base, small"),
        ("distill=token_matchin", "did you mean 'token_matching'"),
        ("layout=neck", "layout='neck'"),
        ("epochs=-5", "is not a number of epochs"),
        ("division=40-40", "sizes of tasks such as 40"),
    ],
)
def test_mistakes_in_the_arguments_of_the_config_are_one_line(text, message):
    with pytest.raises(UserError, match=message):
        config_files.load(config_files.find("coco_vidt"), text)


def test_a_division_gives_the_tasks():
    data = config_files.load(config_files.find("coco_vidt"), "division=70+10").data
    assert (data.num_tasks, data.task_sizes) == (2, (70, 10))


@pytest.mark.parametrize(("division", "sizes"), [("", ()), ("10+10", (10, 10)), ("15+5", (15, 5)), ("19+1", (19, 1))])
def test_voc_has_its_divisions(division, sizes):
    config = config_files.load(config_files.find("voc_vidt"), f"division={division}")
    assert (config.data.task_sizes, config.data.num_tasks) == (sizes, max(len(sizes), 1))
    assert (config.vidt.classes, config.vidt.past_weight, config.distill.name) == ("all", 0.0, "none")


def test_voc_with_past_and_teacher_trains_both_from_classifiers():
    config = config_files.load(config_files.find("voc_vidt"), "past=1.0,distill=projected_tokens,teacher=small")
    assert (config.vidt.classes, config.vidt.past_weight, config.vidt.teacher_training) == ("current", 1.0, "beside")
    assert config.teacher.weights == "swin_small_patch4_window7_224.pth"
    with pytest.raises(UserError, match=r"division='20\+0': use 10\+10, 15\+5 or 19\+1"):
        config_files.load(config_files.find("voc_vidt"), "division=20+0")
