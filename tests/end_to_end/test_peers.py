"""Peers through the command line.

The tests cover a stream, the best epoch, a stopped run, a teacher's run and many devices.
"""

import json
import signal
import time

import numpy as np
import pytest

from tests.end_to_end.command import last_weights, matrices, results, run, run_in_process, start
from tests.end_to_end.test_devices import losses
from tests.support import predictions

GLYPH = "configs/okddip_glyph.py"
SMALL = (
    "--config.data.max_train_per_class=16", "--config.data.max_test_per_class=8", "--config.train.batch_size=16",
    "--config.log.every_steps=1", "--config.checkpoint.every_steps=3",
)  # fmt: skip
# 160 images a task: eight batches of 18 and one of 16.
STREAM = ("--config", f"{GLYPH}:method=okddip,tasks=2,epochs=3", *SMALL, "--config.okddip.num_branches=3",
          "--config.train.batch_size=18", "--config.train.last_batch=keep")  # fmt: skip


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stream")
    run_in_process(*STREAM, "--workdir", workdir)
    return workdir


def test_okddip_learns_a_stream_and_keeps_its_best_epochs(stream):
    content = results(stream)
    assert content["status"] == "finished" and content["headline"] == ["leader"]
    assert list(content["networks"]) == ["peer_0", "peer_1", "leader", "ensemble"]
    leader = content["networks"]["leader"]
    assert [len(row) for row in leader["accuracy_matrix"]] == [1, 2]
    assert leader["metrics"]["learning_accuracy"] > 100 / 20 * 3  # three times chance
    lines = [json.loads(line) for line in (stream / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 * 3 * 9
    for task in (0, 1):
        within = [line for line in lines if line["task"] == task and "headline" in line]
        assert [line["epoch"] for line in within] == [0, 1, 2]
        values = [line["headline"] for line in within]
        last = max(range(3), key=lambda epoch: (values[epoch], epoch))
        best = content["best"][str(task)]
        assert (best["value"], best["epochs"]) == (values[last], last + 1)
        assert best["value"] == pytest.approx(np.mean(best["accuracy"]["leader"]))
        assert within[-1]["leader/accuracy"] == pytest.approx(np.mean(leader["accuracy_matrix"][task]))
    measured = content["extra_metrics"][-1]
    assert 0 < measured["diversity"] < 2**0.5
    # 160 images in one batch: the mean over batches equals the mean over images and over two equal tasks.
    assert measured["leader/accuracy_batch_mean"] == pytest.approx(np.mean(leader["accuracy_matrix"][-1]))
    assert leader["metrics"]["last"] <= measured["leader/top5"] <= 100
    counts = content["cost"]["parameters"]
    assert counts["attention"] == {"trainable": 2 * 32 * 4, "frozen": 0}
    # 3 x 3 convolutions, batch norms (no running statistics) and a projection, at widths 8, 16 and 32.
    tail = 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 6 * 32 + 32 * 20 + 20
    assert counts["leader"] == counts["peer_0"] == {"trainable": tail, "frozen": 0}


def test_peers_predict_as_evaluation_does(stream, tmp_path):
    run = predictions.copy_of(stream, tmp_path / "copy")
    images, logits = predictions.logits_of_evaluation(stream, 0)
    for name in ("leader", "ensemble"):
        predictions.check_equal(run.network(name, task=0)(images), logits[name], np.arange(20) < 10)
    predictions.check_program(run.network(name, task=0), images)


def test_a_stopped_run_ends_with_the_same_best_epochs_and_bits(stream, tmp_path):
    process = start(*STREAM, "--workdir", tmp_path)
    lines, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if lines.exists() and lines.read_bytes().count(b"headline") >= 2:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    run_in_process(*STREAM, "--workdir", tmp_path)
    assert results(tmp_path)["best"] == results(stream)["best"]
    assert lines.read_bytes() == (stream / "metrics.jsonl").read_bytes()
    wanted = last_weights(stream, 1)
    for name, value in last_weights(tmp_path, 1).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_a_student_learns_from_a_trained_run_or_its_file_and_refuses_another(tmp_path):
    run_in_process("--config", f"{GLYPH}:method=supervised,epochs=1", *SMALL, "--workdir", tmp_path / "teacher")
    taught = ("--config", f"{GLYPH}:method=kd,epochs=1", *SMALL)
    folders = {"run": tmp_path / "teacher", "file": tmp_path / "teacher" / "weights.npz"}
    for name, weights in folders.items():
        run_in_process(*taught, f"--config.teacher.weights={weights}", "--workdir", tmp_path / name)
        assert matrices(tmp_path / name)["teacher"] == matrices(tmp_path / "teacher")["network"]
    ours, others = (last_weights(tmp_path / name, 0) for name in folders)
    assert all(np.array_equal(value, others[name]) for name, value in ours.items())
    assert not any("teacher" in name for name in ours)
    for name, weights in folders.items():
        _, err = run_in_process(
            *taught, f"--config.teacher.weights={weights}", "--config.teacher.widths=(8,16,24)", "--workdir",
            tmp_path / "other", expect=2,
        )  # fmt: skip
        assert "of another architecture" in err and len(err.splitlines()) == 1, name


def test_networks_spread_over_devices_learn_the_same(tmp_path):
    arguments = ("--config", f"{GLYPH}:method=okddip,base=network,epochs=1", *SMALL)
    run_in_process(*arguments, "--workdir", tmp_path / "one")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    run(*arguments, "--config.peer_devices=2", "--workdir", tmp_path / "four", **flags)
    one, four = (losses(tmp_path / name) for name in ("one", "four"))
    assert len(one) == 20
    np.testing.assert_allclose(four[:5], one[:5], rtol=1e-5)
    np.testing.assert_allclose(four, one, rtol=1e-3)
    _, err = run_in_process(*arguments, "--config.peer_devices=3", "--workdir", tmp_path / "three", expect=2)
    assert "config.peer_devices=3" in err and len(err.splitlines()) == 1
