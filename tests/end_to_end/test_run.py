"""The main job through the command line.

The tests train, repeat, evaluate a checkpoint, refuse another config and describe.
"""

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import cdl_jax
from cdl_jax import main
from cdl_jax.data import stream
from cdl_jax.run import elsewhere
from tests.end_to_end.command import ROOT, TINY, matrices, results, run, run_in_process
from tests.support import exports, predictions

COMMAND = ("--config", TINY, "--config.log.report=True", "--workdir")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, what the command printed) of a finished run in a process of its own."""
    workdir = tmp_path_factory.mktemp("run")
    out, _ = run(*COMMAND, workdir)
    return workdir, out


def test_a_run_leaves_matrices_metrics_report_and_events(finished):
    workdir, out = finished
    content = results(workdir)
    assert content["status"] == "finished"
    for network in ("teacher", "student"):
        rows = content["networks"][network]["accuracy_matrix"]
        assert [len(row) for row in rows] == [1, 2, 3, 4, 5]
        assert all(0 <= value <= 100 for row in rows for value in row)
        assert content["networks"][network]["metrics"]["last"] == pytest.approx(sum(rows[-1]) / 5)
        chosen = content["networks"][network]["selection"]["layer_0"]
        assert [sum(row) for row in chosen] == [2 * task["test"] for task in content["stream"]["tasks"]]  # top_k = 2
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 5 * 2 * 2 * 4  # tasks, networks, epochs, batches
    assert all(line["loss"] > 0 for line in lines if "loss" in line)
    assert "<html" in (workdir / "report.html").read_text()
    assert list(workdir.glob("events.out.tfevents.*"))
    assert "student" in out and str(workdir / "report.html") in out
    assert out.splitlines()[0] == "device: cpu, all networks in float32"
    stored = json.loads((workdir / "config.json").read_text())["config"]
    assert [stored[name]["dtype"] for name in ("teacher", "student")] + [stored["frozen_dtype"]] == ["float32"] * 3
    assert content["cost"]["parameters"]["student"] == {
        "trainable": 6 * 4 * 16 + 6 * 16 + 16 * 20 + 20,
        "frozen": 18992,
    }


def test_the_same_command_again_prints_the_results_and_trains_nothing(finished):
    workdir, out = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    again, _ = run_in_process(*COMMAND, workdir)
    assert again == out
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("task", [None, 1])
def test_evaluation_of_a_checkpoint_repeats_its_row(finished, task):
    workdir, _ = finished
    flags = [] if task is None else ["--task", task]
    out, _ = run_in_process("--config", TINY, "--workdir", workdir, "--mode", "eval", *flags)
    row = matrices(workdir)["student"][-1 if task is None else task]
    assert f"student after task {len(row) - 1}: " + " ".join(f"{value:.2f}" for value in row) in out
    assert "equal to the run's accuracy matrix" in out and "NOT" not in out


def test_evaluation_on_other_images_has_files_of_its_own(finished, tmp_path):
    workdir, _ = finished
    content, command = results(workdir), ("--workdir", workdir, "--mode", "eval", "--on")
    before = (workdir / "results.json").read_bytes()
    out, _ = run_in_process(*command, "test")
    stored = json.loads((workdir / "eval" / "test-task4.json").read_text())
    for name, network in content["networks"].items():
        found = stored["networks"][name]
        assert found["accuracy"] == network["accuracy_matrix"][4]
        assert found["task_incremental"] == network["task_incremental_matrix"][4]
        assert found["class_accuracy"] == network["class_accuracy"][4]
        assert found["confusion"] == network["confusion"]
        assert f"{name}: {network['metrics']['last_image_weighted']:.2f} % of images" in out
    data = stream.load(cdl_jax.load(workdir).config.data, 0)
    for label in (2, 17):  # a learned class, and one of task 4
        (tmp_path / data.class_names[label]).mkdir()
        for row in np.flatnonzero(data.test.labels == label):
            Image.fromarray(data.test.images[row]).save(tmp_path / data.class_names[label] / f"{row}.png")
    run_in_process(*command, tmp_path, "--task=3")
    stored = cdl_jax.load(workdir).evaluations[Path(elsewhere.file_name(str(tmp_path), 3, False)).stem]
    assert stored["data"]["left_out"] == [data.class_names[17]] and stored["data"]["images"] == 8
    student = content["networks"]["student"]
    assert stored["networks"]["student"]["class_accuracy"][2] == student["class_accuracy"][3][2]
    assert stored["networks"]["student"]["accuracy"] == [student["class_accuracy"][3][2], None, None, None]
    assert (workdir / "results.json").read_bytes() == before


def test_evaluation_of_corrupted_images(finished):
    pytest.importorskip("imagecorruptions")
    workdir, _ = finished
    run_in_process("--workdir", workdir, "--mode=eval", "--corruptions=shot_noise,contrast", "--severities=1,5")
    stored = cdl_jax.load(workdir).evaluations["test-task4-corrupted"]["corruptions"]
    assert {name: list(of) for name, of in stored.items()} == {"shot_noise": ["1", "5"], "contrast": ["1", "5"]}
    assert stored["contrast"]["5"]["teacher"] != stored["contrast"]["1"]["teacher"]
    again = cdl_jax.load(workdir).evaluate(corrupted=("shot_noise",), severities=(5,))
    assert again["corruptions"]["shot_noise"]["5"] == stored["shot_noise"]["5"]


def test_a_copy_of_the_run_predicts_as_evaluation_does(finished, tmp_path):
    workdir, _ = finished
    copy = predictions.copy_of(workdir, tmp_path / "copy")
    images, logits = predictions.logits_of_evaluation(workdir, 3)
    seen = np.arange(20) < 16
    for name in ("teacher", "student"):
        network = copy.network(name, task=3)
        found = network(images, features=True)
        predictions.check_equal(found, logits[name], seen)
        assert set(found.features) == set(network.feature_names) and len(found.features["features"]) == len(images)
        single = network(images[5])
        np.testing.assert_allclose(single.logits, found.logits[5:6], atol=1e-5)
    assert copy.finished_tasks == (0, 1, 2, 3, 4) and copy.config.learner.name == "l2p"
    assert copy.networks == ("teacher", "student") and len(copy.class_names) == 20
    assert [len(task) for task in copy.tasks] == [4] * 5
    rows = matrices(workdir)["student"]
    np.testing.assert_array_equal(copy.matrices["student"][4], rows[4])
    assert np.isnan(copy.matrices["student"][1, 2:]).all() and copy.matrices["student"][1, 1] == rows[1][1]


def test_files_are_predicted_as_evaluation_on_the_host_does(finished, tmp_path, caplog):
    workdir, _ = finished
    images, logits = predictions.logits_of_evaluation(workdir, 1, device_data_limit_mb=0)
    files = [tmp_path / f"{number}.png" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    found = cdl_jax.load(workdir)
    found.results["stream"]["device_size"] = None
    predictions.check_equal(
        found.network("student", task=1, batch_size=10)(files), logits["student"], np.arange(20) < 8
    )


def test_the_examples_of_the_guide_run(finished, tmp_path, monkeypatch, capsys):
    workdir, _ = finished
    page = (ROOT / "docs" / "guides" / "python.md").read_text(encoding="utf-8")
    examples = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "cdl_jax.train" not in code]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workdir, "runs/quickstart/distilled")
    Path("photos").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 40), name == "a" and "red" or "blue").save(f"photos/{name}.png")
    exec("".join(examples), {})
    assert len(examples) == 5 and "('teacher', 'student') (0, 1, 2, 3, 4)" in capsys.readouterr().out
    commands = re.findall(r"^python -m cdl_jax.main (--mode predict .*?(?:\\\n.*?)?)$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main.main(shlex.split(command.replace("\\\n", " "))) == 0
    content = json.loads(Path("predictions.json").read_text())
    assert [len(image["classes"]) for image in content["images"]] == [3, 3] and content["task"] == 1


def test_mode_predict_writes_tables_of_image_files(finished, tmp_path):
    workdir, _ = finished
    (tmp_path / "images" / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("b.png", (32, 32)), ("a.jpg", (50, 70)), ("more/c.png", (9, 20))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / "images" / name)
    command = ("--workdir", workdir, "--mode", "predict", "--images", tmp_path / "images")
    names = [str(tmp_path / "images" / name) for name in ("a.jpg", "b.png", "more/c.png")]
    wanted = cdl_jax.load(workdir).network("student")(names)
    out, _ = run_in_process(*command, "--top_k=2")
    shown = [line.split() for line in out.splitlines()]
    assert shown[0] == ["file", "rank", "class", "probability"]
    assert [line[0] for line in shown[1:]] == [name for name in names for _ in range(2)]
    assert shown[1][2:] == [wanted.top(1)[0][0][0], f"{wanted.top(1)[0][0][1]:.4f}"]
    out, _ = run_in_process(*command, names[0], "--task=0", "--network=teacher", "--output", tmp_path / "out.csv")
    assert "4 images, teacher after task 0" in out
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(rows) == 4 * 4 and {row["class"] for row in rows} == set(cdl_jax.load(workdir).tasks[0])  # classes seen
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(4)
    run_in_process(*command, "--output", tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert (content["network"], content["task"]) == ("student", 4)
    assert [image["file"] for image in content["images"]] == names
    assert [image["classes"][0]["class"] for image in content["images"]] == wanted.names
    assert all(len(image["classes"]) == 5 for image in content["images"])


def test_predictions_refuse_mistakes_in_one_line(finished, tmp_path):
    workdir, _ = finished
    image, broken = tmp_path / "image.png", tmp_path / "broken.png"
    Image.new("RGB", (32, 32)).save(image)
    broken.write_bytes(image.read_bytes()[:40])
    (tmp_path / "empty").mkdir()
    command = ("--workdir", workdir, "--mode", "predict")
    for flags, message in (
        ((), "needs images: add --images"),
        (("--images", tmp_path / "no.png"), "no.png: no such file or folder"),
        (("--images", tmp_path / "empty"), "no images (.jpg"),
        (("--images", broken), "broken.png: cannot be read as an image"),
        (("--images", image, "--network=studnt"), "no network 'studnt': did you mean 'student'"),
        (("--images", image, "--task=7"), "no checkpoint after task 7"),
        (("--images", image, "--top_k=0"), "--top_k=0 must be 1 or more"),
        (("--images", image, "--threshold=2"), "--threshold=2.0 must be a score from 0 to 1"),
        (("--images", image, "--output=a.txt"), "--output=a.txt must end in .json or .csv"),
        (("--images", image, "--output=no/a.csv"), "there is no folder no"),
        (("--images", image, "--draw=boxes"), "'student' predicts classes, not boxes"),
        (("--images", image, "--mode=eval"), "needs --mode=predict instead of --mode=eval"),
        (("--images", image, "--config.learner.top_k=3"), "learner.top_k: 2 -> 3"),
    ):
        _, err = run_in_process(*command, *flags, expect=2)
        assert message in err and len(err.splitlines()) == 1
    for mistake, message in (
        (lambda: cdl_jax.load(tmp_path / "nowhere"), "nowhere has no run"),
        (lambda: cdl_jax.load(workdir, seed=3), "has no seed 3: choose one of 0"),
        (lambda: cdl_jax.load(workdir).network("x"), "has no network 'x': known: "),
        (lambda: cdl_jax.load(workdir).network(task=9), "(there are: 0, 1, 2, 3, 4)"),
        (lambda: cdl_jax.load(workdir).network(batch_size=0), "batch_size=0 must be 1 or more"),
        (lambda: cdl_jax.load(workdir).network()([]), "there are no images"),
        (lambda: cdl_jax.load(workdir).network()(np.zeros((4, 4, 3))), "image 0 is float64 [4, 4, 3]"),
        (lambda: cdl_jax.load(workdir).network()([image, broken]), "broken.png: cannot be read as an image"),
    ):
        with pytest.raises(cdl_jax.errors.UserError) as error:
            mistake()
        assert message in str(error.value)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_bytes((workdir / "config.json").read_bytes())
    with pytest.raises(cdl_jax.errors.UserError, match="begun has no results yet: they are written after the first"):
        cdl_jax.load(tmp_path / "begun")


def test_an_exported_network_needs_jax_alone(finished, tmp_path):
    workdir, _ = finished
    folder, network = tmp_path / "served", cdl_jax.load(workdir).network("student", task=2)
    command = ("--workdir", workdir, "--mode=export", "--task=2", "--output")
    out, _ = run_in_process(*command, folder)
    assert f"{folder}: student after task 2" in out
    loader, usage = exports.python_blocks(folder)
    assert len(loader.split("def load")[1].splitlines()) <= 11 and "jax.nn.softmax(logits)" in usage
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    wanted = network(images).logits
    for rows in (slice(None), slice(3, 4)):  # any number of images
        found = exports.outputs(folder, tmp_path, images[rows])["output"]
        np.testing.assert_allclose(found, wanted[rows], rtol=0, atol=1e-5)
    classes = json.loads((folder / "classes.json").read_text())
    assert classes["class_names"] == list(network.class_names) and sum(classes["predicted"]) == 12
    card = (folder / "MODEL_CARD.md").read_text()
    assert (
        f"Mean accuracy: {np.mean(matrices(workdir)['student'][2]):.2f} %" in card
        and "`student.weights`: random" in card
    )
    stored, first = json.loads((workdir / "config.json").read_text()), matrices(workdir)["student"][0][0]
    assert f"commit {stored['commit'] or 'unknown'}" in card and "License of the exported weights: " in card
    assert "- Data: glyph_mini" in card and f"| 0 | {', '.join(cdl_jax.load(workdir).tasks[0])} |" in card
    worst = [row[0] for row in matrices(workdir)["student"][:3]]
    second = [row[1] for row in matrices(workdir)["student"][1:3]]
    forgotten = [max(worst) - worst[-1], max(second) - second[-1]]
    assert first == worst[0] and f"- `forgetting_max`: {np.mean(forgotten):.2f}" in card
    names = load_file(folder / "weights.safetensors")
    assert "student.backbone.cls_token" in {name.replace(".params", "") for name in names}
    assert not any(name.startswith("teacher") for name in names)  # the student alone


def test_an_export_without_its_folder_or_package_is_one_line(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    _, err = run_in_process("--workdir", workdir, "--mode=export", expect=2)
    assert "--mode=export needs a folder: add --output FOLDER" in err
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    _, err = run_in_process("--workdir", workdir, "--mode=export", "--output", tmp_path / "out", expect=2)
    assert "--mode=export needs the package flatbuffers" in err and not (tmp_path / "out").exists()


def test_training_from_python_is_training_by_the_command(finished, tmp_path):
    workdir, _ = finished
    config = cdl_jax.load(workdir).config
    config.log.report = False
    ours = cdl_jax.train(config, tmp_path / "run")
    assert matrices(tmp_path / "run") == matrices(workdir)
    assert ours.results["command"] == f"python -m cdl_jax.main --workdir {tmp_path / 'run'}"
    again, _ = run_in_process("--workdir", tmp_path / "run")
    assert "student" in again and (tmp_path / "run" / "lock").exists()
    with pytest.raises(cdl_jax.errors.UserError, match="holds a run of another config"):
        cdl_jax.train(TINY + ":learner=coda", tmp_path / "run")


def test_a_workdir_of_another_config_is_refused_with_the_difference(finished):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*.json*")}
    _, err = run_in_process("--config", TINY, "--workdir", workdir, "--config.learner.top_k=3", expect=2)
    assert "learner.top_k: 2 -> 3" in err and len(err.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in workdir.rglob("*.json*")}


def test_describe_trains_nothing_and_counts_parameters(tmp_path):
    out, _ = run_in_process("--config", TINY, "--mode", "describe")
    assert "glyph_mini_incremental: 20 classes in 5 tasks" in out
    assert "student: 820 trainable, 18,992 frozen" in out
    assert "GFLOP" in out and "train.batch_size" not in out
    assert "trainable arrays of student" in out and "| head/linear/kernel | (" in out
    out, _ = run_in_process("--config", TINY, "--mode", "describe", "--show_config")
    assert out.index("GFLOP") < out.index("train.batch_size = 16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", ["cifar100", "imagenet_r"])
def test_a_published_config_is_described_without_its_data(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CDL_DATA", "")
    small = [f"--config.{network}.depth=1" for network in ("teacher", "student")]
    config = f"configs/cdl.py:data={data}"
    out, _ = run_in_process("--config", config, "--mode", "describe", *small)
    assert "the data is not here" in out and f"python -m cdl_jax.fetch {data}" in out
    assert "task 9: " in out and "teacher: " in out and "GFLOP" in out
