"""The baselines of continual learners, and the authors' own L2P and DualPrompt.

The tests use the command line.
"""

import json
import signal
import time

import numpy as np
import pytest

from tests.end_to_end.command import TINY, last_weights, matrices, results, run, run_in_process, start

REFERENCE = "configs/reference.py:row="
SMALL = (
    "--config.data.max_train_per_class=20", "--config.data.max_test_per_class=8", "--config.train.batch_size=16",
    "--config.eval.batch_size=32", "--config.checkpoint.every_steps=2", "--config.log.every_steps=1",
)  # fmt: skip
TWO = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def images_per_task(workdir):
    """Returns the number of images of each task's means, read from the log."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    tasks = {line["task"] for line in lines if "images" in line}
    return [sum(line["images"] for line in lines if line.get("task") == task and "images" in line) for task in tasks]


def test_class_means_go_on_after_a_kill_and_are_the_same_on_two_devices(tmp_path):
    first, killed, two = (tmp_path / name for name in ("whole", "killed", "two"))
    arguments = ("--config", REFERENCE + "nearest_mean", *SMALL, "--config.train.batch_size=32")
    run_in_process(*arguments, "--workdir", first)
    content = results(first)
    assert images_per_task(first) == [task["train"] for task in content["stream"]["tasks"]]  # no last batch was dropped
    assert images_per_task(first)[0] % 32 != 0
    metrics = content["networks"]["network"]["metrics"]
    assert metrics["last"] > 70  # of 20 characters; chance is 5
    assert content["cost"]["parameters"]["network"]["trainable"] == 20 * 48 + 20

    process, moment = start(*arguments, "--workdir", killed), time.monotonic() + 200
    lines = killed / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < moment:
        if lines.exists() and lines.read_bytes().count(b"\n") >= 10:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.002)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    run_in_process(*arguments, "--workdir", killed)
    assert matrices(killed) == matrices(first) and lines.read_bytes() == (first / "metrics.jsonl").read_bytes()
    for name, value in last_weights(first, 4).items():
        np.testing.assert_array_equal(last_weights(killed, 4)[name], value, err_msg=name)

    out, _ = run_in_process(*arguments, "--workdir", first, "--mode", "eval", "--task", 2)
    assert "equal to the run's accuracy matrix" in out and "NOT" not in out
    run(*arguments, "--workdir", two, **TWO)
    for name, value in last_weights(first, 4).items():
        np.testing.assert_allclose(last_weights(two, 4)[name], value, rtol=1e-4, atol=1e-3, err_msg=name)


def test_fine_tuning_starts_from_pretrained_weights_and_forgets(tmp_path):
    arguments = ("--config", REFERENCE + "finetune,seed=1", *SMALL, "--config.train.epochs=4")
    run_in_process(*arguments, "--workdir", tmp_path)
    content = results(tmp_path)
    metrics = content["networks"]["network"]["metrics"]
    assert metrics["learning_accuracy"] > 50 and metrics["forgetting_cdl"] > 10
    counts = content["cost"]["parameters"]["network"]
    assert counts["trainable"] > 48 * 20 + 20 and counts["frozen"] == 0
    assert (tmp_path / "weights.npz").exists()


def test_a_linear_probe_trains_its_head_alone(tmp_path):
    arguments = ("--config", "configs/quickstart.py:learner=none,distill=none", *SMALL, "--config.train.epochs=3")
    run_in_process(*arguments, "--workdir", tmp_path)
    content = results(tmp_path)
    assert content["networks"]["student"]["metrics"]["last"] > 25
    trainable = content["cost"]["parameters"]["student"]["trainable"]
    assert trainable == 48 * 20 + 20


def test_learning_jointly_is_one_task_of_all_classes(tmp_path):
    arguments = ("--config", "configs/quickstart.py:joint=true,distill=none", *SMALL, "--config.train.epochs=3")
    run_in_process(*arguments, "--workdir", tmp_path)
    content = results(tmp_path)
    ((accuracy,),) = content["networks"]["student"]["accuracy_matrix"]
    assert len(content["stream"]["tasks"]) == 1 and len(content["stream"]["tasks"][0]["classes"]) == 20
    metrics = content["networks"]["student"]["metrics"]
    assert metrics["last"] == metrics["last_image_weighted"] == pytest.approx(accuracy) and accuracy > 40


def test_a_batchwise_choice_of_prompts_is_the_same_on_two_devices(tmp_path):
    # 80 and 160 test images: the last batch is padded, and its padding has no vote.
    official = ("prompt_form=tokens", "batchwise=True", "key_loss=similarity", "init_scale=0.01", "head_init=zeros")
    arguments = (
        "--config", TINY, *(f"--config.learner.{option}" for option in official), "--config.learner.length=3",
        "--config.data.num_tasks=2", "--config.train.epochs=1", "--config.eval.batch_size=48",
    )  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    run_in_process(*arguments, "--workdir", one)
    run(*arguments, "--workdir", two, **TWO)
    chosen = [results(folder)["networks"]["student"]["selection"]["layer_0"] for folder in (one, two)]
    assert chosen[0] == chosen[1] and all(sum(row) == 2 * 80 for row in chosen[0])
    for name, value in last_weights(one, 1).items():
        np.testing.assert_allclose(last_weights(two, 1)[name], value, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("learner=l2p", ("learner.prompt_form = 'tokens'", "optim.learning_rate = 0.015", "train.batch_size = 128")),
        (
            "learner=dualprompt",
            ("learner.init_from_previous_task = True", "learner.length = 5", "train.batch_size = 192"),
        ),
        ("learner=dualprompt,data=imagenet_r,joint=true", ("learner.length = 20", "learner.batchwise = False")),
    ],
)
def test_the_authors_settings_are_described_without_their_data(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CDL_DATA", "")
    small = [f"--config.{network}.depth=5" for network in ("teacher", "student")]
    small += [f"--config.student.{key}={value}" for key, value in {"dim": 48, "heads": 2}.items()]
    command = ("--config", f"configs/l2p_official.py:{arguments}", "--mode", "describe", "--show_config")
    out, _ = run_in_process(*command, *small)
    assert all(line in out for line in (*expected, "optim.clip_norm = 1.0", "optim.schedule = 'constant'"))
