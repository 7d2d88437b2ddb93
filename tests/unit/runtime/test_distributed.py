"""A wrong --distributed, a missing cluster and an idle GPU end in one line each."""

import warnings

import jax
import pytest

from cdl_jax.errors import UserError
from cdl_jax.runtime import distributed


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("spec", ["on", "", "host:1", "host:1,2", "host:1,two,0", "host:1,2,0,0", "auto,off"])
def test_an_unknown_form_of_distributed_is_refused_before_jax_starts(spec, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("started"))
    expected = f"--distributed={spec!r}: use off, auto or HOST:PORT,NUM_PROCESSES,PROCESS_ID"
    assert refusal(distributed.initialize, spec) == expected


def test_numbers_are_passed_to_jax_and_a_failure_is_reported(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    for spec in ("off", "auto", "host:12,4,3"):
        distributed.initialize(spec)
    arguments_to_jax = {"coordinator_address": "host:12", "num_processes": 4, "process_id": 3}
    assert calls == [{"heartbeat_timeout_seconds": 30}, {**arguments_to_jax, "heartbeat_timeout_seconds": 30}]

    def fail(**_):
        raise RuntimeError("no\n  answer")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    assert refusal(distributed.initialize, "host:12,4,3") == "--distributed=host:12,4,3: no answer"


@pytest.mark.parametrize(
    ("variables", "error", "ending"),
    [
        ({}, ValueError("coordinator_address should be defined."), "address should be defined.; start under"),
        ({}, KeyError("job-name"), "auto: KeyError: 'job-name'; start under srun, mpirun or a Kubernetes job, or use"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ValueError("none"), "none; in Kubernetes jax needs pip install "),
    ],
)
def test_a_missing_cluster_is_reported_in_one_line_with_a_remedy(monkeypatch, variables, error, ending):
    def fail(**_):
        warnings.warn("\nKubernetes environment detected", stacklevel=1)
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings(record=True) as shown:
        assert ending in refusal(distributed.initialize, "auto")
    assert shown == []


@pytest.mark.parametrize(
    ("variables", "platform", "devices", "message"),
    [
        ({}, "cpu", 1, None),
        ({"SLURM_GPUS_ON_NODE": "0"}, "cpu", 1, None),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, "gpu", 1, None),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "1"}, "gpu", 8, None),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, "gpu", 1, "4 processes of this node use 1"),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_NODEID": "1"}, "gpu", 1, "2 processes"),
        ({"SLURM_GPUS_ON_NODE": "4"}, "cpu", 1, "jax runs on cpu"),
    ],
)
def test_a_job_that_leaves_gpus_idle_is_refused(variables, platform, devices, message):
    if message is None:
        distributed.check_gpus(variables, platform, devices)
    else:
        with pytest.raises(UserError, match=message):
            distributed.check_gpus(variables, platform, devices)
