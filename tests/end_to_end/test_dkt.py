"""Learners with a stream each: a run, a killed run, and a run of two processes.

The tests use the command line.
"""

import json
import signal
import time

import numpy as np
import pytest

from tests.end_to_end.command import last_weights, results, run_in_process, run_in_two, start
from tests.support import predictions

EXCHANGE = "epochs=1,unit=steps,order=independent,kd=0.5"
COMMON = (
    "--config.optim.learning_rate=0.002", "--config.data.class_order=natural", "--config.data.num_tasks=2",
    "--config.data.max_train_per_class=12", "--config.data.max_test_per_class=4", "--config.train.batch_size=16",
    "--config.log.every_steps=1", "--config.checkpoint.every_steps=3", "--config.log.to=()",
)  # fmt: skip
ARGUMENTS = (
    "--config", f"configs/dkt_glyph.py:{EXCHANGE},replay=20,classes=all",
    "--config.network.width=2", "--config.network.depths=(1, 1)", *COMMON,
)  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dkt")
    run_in_process(*ARGUMENTS, "--workdir", folder)
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_results_have_every_learner_in_its_own_class_order(uninterrupted):
    content = results(uninterrupted)
    assert content["streams"][0] == list(range(20)) and sorted(content["streams"][1]) == list(range(20))
    assert content["streams"][1] != content["streams"][0]
    networks = {f"learner_{i}{head}" for i in range(2) for head in ("", "_st", "_both")} | {"ensemble"}
    assert set(content["networks"]) == networks
    steps = [line for line in lines(uninterrupted) if "loss" in line]
    assert [line["phase"] for line in steps] == ["together"] * 7 + ["together_replay"] * 7
    assert all(line["messages"] == 2 for line in steps)
    last = content["extra_metrics"][-1]
    live = last_weights(uninterrupted, 1)
    bytes_of_one = sum(value.nbytes for name, value in live.items() if name.startswith("['learner_0']"))
    assert last["rounds"] == 14 and last["exchanged_mb"] == pytest.approx(28 * bytes_of_one / 1e6)
    assert last["exchanged_mb_per_round"] == pytest.approx(2 * bytes_of_one / 1e6)
    assert content["mean_over_learners"]["mean"]["metrics"]["last"] == pytest.approx(
        np.mean([content["networks"][f"learner_{i}"]["metrics"]["last"] for i in range(2)])
    )
    for network in content["networks"].values():  # tasks of equal size: every image and every task has the same weight
        assert [len(row) for row in network["stream_matrix"]] == [2, 2]
        assert network["stream_matrix"][1] == network["accuracy_matrix"][1]
        assert network["per_task"]["stream_accuracy"] == pytest.approx([np.mean(r) for r in network["stream_matrix"]])


def test_each_learner_predicts_the_classes_of_its_own_stream(uninterrupted, tmp_path):
    run = predictions.copy_of(uninterrupted, tmp_path / "copy")
    images, logits = predictions.logits_of_evaluation(uninterrupted, 0)
    for name in run.networks:  # the loss, and so the prediction, is over all classes
        predictions.check_equal(run.network(name, task=0)(images), logits[name], np.ones(20, bool))
    predictions.check_program(run.network(name, task=0), images)


def test_killed_it_ends_with_the_same_bits(uninterrupted, tmp_path):
    process = start(*ARGUMENTS, "--workdir", tmp_path)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "metrics.jsonl").exists() and len(lines(tmp_path)) >= 10:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    run_in_process(*ARGUMENTS, "--workdir", tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    wanted = last_weights(uninterrupted, 1)
    for name, value in last_weights(tmp_path, 1).items():
        np.testing.assert_array_equal(value, wanted[name], err_msg=name)


def test_two_processes_with_a_learner_each_equal_one(uninterrupted, tmp_path):
    run_in_two(*ARGUMENTS, "--config.peer_devices=2", workdir=tmp_path)
    one, two = ([line["loss"] for line in lines(folder) if "loss" in line] for folder in (uninterrupted, tmp_path))
    np.testing.assert_allclose(two[:4], one[:4], rtol=1e-6)
    np.testing.assert_allclose(two, one, rtol=1e-3)


def test_prompt_learners_exchange_prompts_and_heads(tmp_path):
    prompts = ("--config", f"configs/dkt_glyph.py:{EXCHANGE},learner=l2p,replay=0,topology=ring", *COMMON)
    run_in_process(*prompts, "--workdir", tmp_path)
    content, live = results(tmp_path), last_weights(tmp_path, 1)
    assert {name.split("'")[1] for name in live} == {"learner_0", "learner_1", "published", "exchange"}
    assert not any("backbone" in name for name in live)
    own = sum(value.nbytes for name, value in live.items() if name.startswith("['learner_0']"))
    assert content["extra_metrics"][-1]["exchanged_mb"] == pytest.approx(2 * 14 * own / 1e6)
    assert own < 4 * content["cost"]["parameters"]["shared"]["frozen"]  # its own head and prompts, not the backbone
    losses = [line["learner_1/class_loss"] for line in lines(tmp_path) if "loss" in line]
    assert losses[6] < losses[0] - 0.05 and losses[-1] < losses[7] - 0.05
