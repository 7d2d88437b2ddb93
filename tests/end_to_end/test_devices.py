"""Neither the number of devices nor that of processes changes the result."""

import json

import numpy as np

from tests.end_to_end.command import TINY, last_weights, matrices, run, run_in_two

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
            np.testing.assert_allclose(row, other, atol=2.6)  # two of 80 pictures


def test_eight_devices_and_two_processes_equal_one_device(tmp_path):
    one, eight, two = (tmp_path / name for name in ("one", "eight", "two"))
    run(*ARGUMENTS, "--workdir", one)
    # Of the eight each four hold a network's larger weights in parts.
    run(*ARGUMENTS, "--config.fsdp_devices=4", "--workdir", eight, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert_alike(eight, one)

    run_in_two(*ARGUMENTS, "--workdir", two, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert_alike(two, one)
