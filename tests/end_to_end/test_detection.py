"""Detectors in the task loop: training, resume, evaluation, teachers and tasks.

The tests use glyph scenes and the command line.
"""

import json
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdl_jax
from cdl_jax.data.tools import make_glyph_scenes
from cdl_jax.evaluation import coco
from cdl_jax.report import text
from tests.end_to_end.command import last_weights, matrices, results, run, run_in_process
from tests.end_to_end.test_resume import kill_at_line
from tests.support import exports, predictions

CONFIG = "tests/end_to_end/tiny_detection.py"
# A step with SciPy's callback is in no cache of compiled programs. With optax the processes of these tests share them.
ON_DEVICE = "--config.vidt.solver=device"
ON_HOST = "--config.vidt.solver=host"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    assert make_glyph_scenes.main(["--out", str(folder), "--num-train", "32", "--num-val", "16"]) in (0, None)
    return folder


def arguments(scenes, choices="", *flags):
    return ("--config", CONFIG + (f":{choices}" if choices else ""), f"--config.data.path={scenes}", *flags)


@pytest.fixture(scope="module")
def uninterrupted(scenes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    run_in_process(*arguments(scenes), ON_DEVICE, "--workdir", workdir, "--config.log.report=True")
    return workdir


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_stream_of_two_tasks_has_the_average_precision_of_each(uninterrupted, scenes):
    content = results(uninterrupted)
    assert content["status"] == "finished"
    assert [len(row) for row in matrices(uninterrupted)["student"]] == [1, 2]
    assert [len(task["classes"]) for task in content["stream"]["tasks"]] == [5, 5]
    first, second = content["extra_metrics"]
    assert "student/AP old" not in first and 0 <= second["student/AP old"] <= 100
    assert second["student/AP old"] == matrices(uninterrupted)["student"][1][0]
    assert second["student/AP new"] == matrices(uninterrupted)["student"][1][1]
    assert second["student/AP"] == pytest.approx(np.mean(matrices(uninterrupted)["student"][1]))
    losses = [line["loss"] for line in lines(uninterrupted) if "loss" in line]
    # Two groups of 4 images: each has half of the images, rounded up.
    steps = [-(-task["train"] // 2) // 4 for task in content["stream"]["tasks"]]
    assert len(losses) == 2 * sum(steps)
    assert losses[2 * steps[0] - 1] < losses[0]
    out, _ = run_in_process(*arguments(scenes), ON_DEVICE, "--workdir", uninterrupted, "--mode=eval", "--task=0")
    assert "equal to the run's AP matrix" in out and "NOT" not in out
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    numbers = {name: rows[name] for name in coco.NUMBERS}
    assert numbers == {name: text.number(first.get(f"student/{name}")) for name in coco.NUMBERS}
    of_classes = content["networks"]["student"]["class_ap"][0]
    names = content["stream"]["tasks"][0]["classes"]
    assert [rows[name] for name in names] == [f"{ap:.2f}" for ap in of_classes] and len(names) == 5


def test_the_report_has_curves_and_images(uninterrupted):
    content = json.loads((uninterrupted / "detections.json").read_text())
    curves, ap50 = content["curves"]["student"], results(uninterrupted)["extra_metrics"][1]["student/AP50"]
    assert 100 * np.mean(curves["0.5"]) == pytest.approx(ap50, abs=0.01) and len(curves["classes"]) == 10
    assert len(content["images"]) == 6 and all(image["objects"] for image in content["images"])
    page = (uninterrupted / "report.html").read_text()
    assert "<h2>AP</h2>" in page and page.count("data:image/jpeg") == 2 * 6
    assert "accuracy" not in re.sub('base64,[^"]*', "", page.lower())


def test_a_copy_detects_as_evaluation_does_without_its_data(uninterrupted, scenes, tmp_path):
    evaluator, mutable, frozen, at = predictions.restored(uninterrupted, 0)
    wanted = evaluator.detections(mutable, frozen, at)["student"]
    data = evaluator.steps.experiment.stream.test
    files = [shutil.copy(file, tmp_path) for file in data.files]
    hidden = scenes.rename(scenes.with_name("hidden"))
    try:
        detector = predictions.copy_of(uninterrupted, tmp_path / "copy").network(task=0)
        found = detector(files, threshold=0.0)
        arrays = detector([np.asarray(Image.open(file)) for file in files[:3]], threshold=0.0)
        command = (
            "--workdir",
            tmp_path / "copy",
            "--mode=predict",
            "--task=0",
            "--threshold=0",
            "--top_k=2",
            "--images",
            *files,
        )
        run_in_process(*command, "--output", tmp_path / "boxes.csv", "--draw", tmp_path / "drawn")
    finally:
        hidden.rename(scenes)
    for row, boxes in enumerate(found):
        rows = (wanted.rows == row) & np.isin(wanted.labels, evaluator.steps.experiment.stream.tasks[0].classes)
        np.testing.assert_allclose(boxes.scores, wanted.scores[rows], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(boxes.class_ids, wanted.labels[rows])
        x0, y0, x1, y1 = wanted.boxes[rows].T
        np.testing.assert_allclose(boxes.boxes, np.stack([x0, y0, x1 - x0, y1 - y0], axis=1), atol=1e-3)
        assert {*boxes.class_names} <= {*data.categories.values()} and len(boxes) > 10
    np.testing.assert_allclose(arrays[0].scores, found[0].scores, atol=1e-5)
    middle = float(np.median(found[0].scores))
    strict = detector(files[:1], threshold=middle)[0]
    assert 0 < len(strict) < len(found[0]) and strict.scores.min() >= middle
    lines = (tmp_path / "boxes.csv").read_text().splitlines()
    assert lines[0] == "file,class,score,x,y,width,height" and len(lines) == 1 + 2 * len(files)
    assert lines[1].split(",")[1] == found[0].class_names[0]
    drawn = [np.asarray(Image.open(tmp_path / "drawn" / Path(file).with_suffix(".png").name)) for file in files[:2]]
    assert all((image != np.asarray(Image.open(file))).any() for image, file in zip(drawn, files, strict=False))


def test_an_exported_detector_needs_jax_alone(uninterrupted, scenes, tmp_path):
    copy = predictions.copy_of(uninterrupted, tmp_path / "copy").folder
    command = ("--workdir", copy, "--mode=export", "--output", tmp_path / "served")
    _, err = run_in_process(*command, expect=2)
    assert "images of this run have any size" in err and not (tmp_path / "served").exists()
    content = json.loads((copy / "config.json").read_text())
    content["config"]["augment"]["canvases"] = [[128, 64], [64, 128]]  # a canvas has no influence on results
    (copy / "config.json").write_text(json.dumps(content))
    run_in_process(*command)
    files = sorted((scenes / "val2017").iterdir())[:3]
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    images, sizes = np.zeros((3, 128, 128, 3), np.uint8), np.array([image.shape[:2] for image in pixels], np.int32)
    for canvas, image in zip(images, pixels, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    found = exports.outputs(tmp_path / "served", tmp_path, images, sizes)
    names = json.loads((tmp_path / "served" / "classes.json").read_text())["categories"]
    for i, boxes in enumerate(cdl_jax.load(uninterrupted).network(batch_size=1)(files, threshold=0.0)):
        known = np.isin(found["labels"][i], [int(number) for number in names])
        np.testing.assert_array_equal(found["labels"][i][known], boxes.class_ids)
        assert [names[str(label)] for label in found["labels"][i][known]] == list(boxes.class_names)
        np.testing.assert_allclose(found["scores"][i][known], boxes.scores, rtol=0, atol=1e-5)
        x0, y0, x1, y1 = (found["boxes"][i][known] * np.tile(sizes[i, ::-1], 2)).T
        np.testing.assert_allclose(np.stack([x0, y0, x1 - x0, y1 - y0], 1), boxes.boxes, rtol=0, atol=1e-3)  # pixels
        assert len(boxes) > 10
    card = (tmp_path / "served" / "MODEL_CARD.md").read_text()
    assert "AP after task 1 in percent" in card and f"Mean AP: {np.mean(matrices(copy)['student'][1]):.2f} %" in card
    assert "canvas[0, :height, :width] = image" in exports.python_blocks(tmp_path / "served")[1]


def test_killed_it_resumes_with_the_same_bits(uninterrupted, scenes, tmp_path):
    total = len(lines(uninterrupted))
    flags = (*arguments(scenes, "", ON_DEVICE), "--config.log.report=True")
    process, _ = kill_at_line(tmp_path, random.randrange(2, total - 2), signal.SIGKILL, flags)
    assert process.returncode == -signal.SIGKILL
    run_in_process(*flags, "--workdir", tmp_path)
    assert (tmp_path / "detections.json").read_bytes() == (uninterrupted / "detections.json").read_bytes()
    pages = [(folder / "report.html").read_text() for folder in (tmp_path, uninterrupted)]
    own = r"<title>.*?</title>|<p class=quiet>run .*?</p>|<h2>Cost and origin.*?<h2>Tasks"  # names, dates and times
    ours, wanted = (re.sub(own, "", page, flags=re.S) for page in pages)
    assert ours == wanted
    assert matrices(tmp_path) == matrices(uninterrupted)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    ours, wanted = last_weights(tmp_path, 1), last_weights(uninterrupted, 1)
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_two_devices_with_another_solver_equal_one(uninterrupted, scenes, tmp_path):
    # Groups of 4 images of a batch of 8: one on each device.
    run(*arguments(scenes), ON_HOST, "--workdir", tmp_path, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert results(tmp_path)["cost"]["device"].startswith("2 x ")
    ours, wanted = ([line["loss"] for line in lines(folder) if "loss" in line] for folder in (tmp_path, uninterrupted))
    np.testing.assert_allclose(ours, wanted, rtol=1e-4)


def test_a_student_learns_from_a_finished_run(scenes, tmp_path):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    large = ("--config.student.embed_dim=16",)
    run_in_process(*arguments(scenes, "tasks=1", *large, ON_DEVICE, "--config.train.epochs=1"), "--workdir", teacher)
    flags = (f"--config.teacher.weights={teacher}", ON_DEVICE, "--config.train.epochs=1", "--config.data.num_tasks=1")
    run_in_process(*arguments(scenes, "distill=projected_tokens", *flags), "--workdir", student)
    content = results(student)
    assert content["cost"]["parameters"]["teacher"]["trainable"] == 0
    assert list(content["networks"]) == ["student"]
    terms = [line for line in lines(student) if "loss_distil" in line]
    parts = [f"distil_{name}" for name in ("patch_1", "patch_2", "patch_3", "patch_4", "body", "neck")]
    assert terms[0]["loss_distil"] == pytest.approx(sum(terms[0][name] for name in parts), rel=1e-5)
    out, _ = run_in_process(
        *arguments(scenes, "tasks=1", *large, ON_DEVICE, "--config.train.epochs=1", "--mode=describe")
    )
    assert "10 classes in 1 tasks" in out and "with those without use in the authors' code" in out


TOKEN_LABELS = ("--config.student.token_label=True", "--config.data.segmentations=True", ON_DEVICE)


def test_token_labels_are_learned(tmp_path):
    """Every batch is one group of all eight images.

    The losses of the steps can thus be compared.
    """
    folder = tmp_path / "scenes"
    assert make_glyph_scenes.main(["--out", str(folder), "--num-train", "8", "--num-val", "8"]) == 0
    flags = (
        *TOKEN_LABELS, "--config.token_labels.focal_weight=10.0", "--config.token_labels.dice_weight=10.0",
        "--config.train.epochs=12", "--config.optim.learning_rate=3e-3", "--config.augment.flip=0.0",
        "--config.augment.group_size=8", "--config.checkpoint.every_steps=100",
    )  # fmt: skip
    run_in_process(*arguments(folder, "tasks=1", *flags), "--workdir", tmp_path / "run")
    logged = [line for line in lines(tmp_path / "run") if "loss_token_focal" in line]
    assert len(logged) == 12
    for name in ("loss_token_focal", "loss_token_dice"):
        values = [line[name] for line in logged]
        assert (np.diff(values) < 0).all()
    assert logged[-1]["loss_token_focal"] < 0.9 * logged[0]["loss_token_focal"]
    assert all(line["loss"] > 10 * (line["loss_token_focal"] + line["loss_token_dice"]) for line in logged)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "train/segmentations" in stored["data"] and results(tmp_path / "run")["status"] == "finished"


def test_with_a_teacher_beside_and_the_past_the_teacher_has_numbers_too(scenes, tmp_path):
    flags = (
        "--config.teacher.weights=random", "--config.vidt.teacher_training=beside", "--config.vidt.classes=current",
        "--config.vidt.past_weight=1.0", "--config.vidt.past_tokens_weight=1.0", ON_DEVICE, "--config.train.epochs=1",
        "--config.student.dropout=0.0",
    )  # fmt: skip
    run_in_process(*arguments(scenes, "distill=token_matching", *flags), "--workdir", tmp_path)
    assert list(results(tmp_path)["networks"]) == ["teacher", "student"]
    logged = [line for line in lines(tmp_path) if "loss_past" in line]
    by_task = [[line["loss_past"] for line in logged if line["task"] == task] for task in (0, 1)]
    assert set(by_task[0]) == {0.0}
    assert by_task[1][0] < 1e-5 < max(by_task[1])  # the first step of a task begins at the past
    assert "past" not in results(tmp_path)["cost"]["parameters"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--config.data.name=glyph_mini",), "method 'vidt' learns from images with boxes, and data.name='glyph_mini'"),
        (("--config.augment.group_size=3",), "config.train.batch_size=8 must be a multiple of augment.group_size=3"),
        (("--config.seeds=(0,1)",), "detectors are trained one seed at a time"),
        (("--config.train.last_batch=keep",), "groups of images have one size"),
        (("--config.student.weights=",), "config.student.weights is empty: name a file"),
        (("--config.student.weights=no.pth",), "config.student.weights='no.pth': no such file"),
        (("--config.augment.flip=2.0",), "config.augment.flip=2.0 must lie in [0, 1]"),
        (("--config.train.batch_size=40",), "is larger than the"),
        (("--config.student.token_label=True",), "instances_train2017.json: token labels need the segmentations of"),
    ],
)
def test_mistakes_are_one_line(scenes, tmp_path, flags, message):
    _, err = run_in_process(*arguments(scenes, "", *flags, ON_DEVICE), "--workdir", tmp_path / "run", expect=2)
    assert message in err and err.count("\n") == 1


def test_token_labels_without_segmentations_in_the_file_are_refused(scenes, tmp_path):
    copy = shutil.copytree(scenes, tmp_path / "scenes")
    path = copy / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for record in content["annotations"]:
        del record["segmentation"]  # as voc_to_coco writes them
    path.write_text(json.dumps(content))
    _, err = run_in_process(*arguments(copy, "", *TOKEN_LABELS), "--workdir", tmp_path / "run", expect=2)
    more = len(content["annotations"]) - 1
    assert "annotation with id 1: segmentation is missing, and data.segmentations=True reads that of" in err
    assert f"({more} more like this)" in err and err.count("\n") == 1


def test_a_classifier_refuses_images_with_boxes(scenes, tmp_path):
    flags = ("--config.data.name=coco", f"--config.data.path={scenes}", "--workdir", tmp_path / "run")
    _, err = run_in_process("--config", "quickstart", *flags, expect=2)
    assert "method 'cdl' learns from labeled images, and data.name='coco' has images with boxes" in err


def test_the_analysis_refuses_detectors(uninterrupted, scenes):
    _, err = run_in_process(*arguments(scenes), ON_DEVICE, "--workdir", uninterrupted, "--mode=analyze", expect=2)
    assert "--mode=analyze looks at classifiers" in err
