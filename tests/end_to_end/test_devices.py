"""Neither the number of devices nor that of processes changes the result.

A change of either number on the way leaves the result equal, too.
"""

import json
import signal

import numpy as np

from tests.end_to_end.command import TINY, last_weights, matrices, run_in_process, run_in_two
from tests.end_to_end.test_resume import kill_at_line

ARGUMENTS = ("--config", TINY, "--config.data.max_test_per_class=0", "--config.log.every_steps=1")


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if "loss" in line])


def assert_alike(ours, wanted):
    np.testing.assert_allclose(losses(ours)[:20], losses(wanted)[:20], rtol=1e-5)
    np.testing.assert_allclose(losses(ours), losses(wanted), rtol=1e-3)
    for name, value in last_weights(wanted, 4).items():
        np.testing.assert_allclose(last_weights(ours, 4)[name], value, atol=1e-3, err_msg=name)
    for network, rows in matrices(wanted).items():
        for row, other in zip(rows, matrices(ours)[network], strict=True):
            np.testing.assert_allclose(row, other, atol=2.6)  # two of 80 images


def devices(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


def test_eight_devices_then_two_processes_then_one_device_equal_one_device(tmp_path):
    one, changing = tmp_path / "one", tmp_path / "changing"
    run_in_process(*ARGUMENTS, "--workdir", one)
    # Of the eight each four hold a network's larger weights in parts, of the processes each device has all of them.
    process, _ = kill_at_line(changing, 12, signal.SIGTERM, (*ARGUMENTS, "--config.fsdp_devices=4"), **devices(8))
    assert process.returncode == 128 + signal.SIGTERM
    outputs = run_in_two(*ARGUMENTS, workdir=changing, stop_at=40, **devices(2))
    (message,) = {err.splitlines()[-1] for _, err in outputs}  # both saved after the same step
    assert "SIGTERM: saved after step" in message
    run_in_process(*ARGUMENTS, "--workdir", changing)
    assert_alike(changing, one)
