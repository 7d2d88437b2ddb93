"""Dtypes that depend on the device, and those of a run resumed on another device."""

import pytest

from cdl_jax import config as configs
from cdl_jax.run import workdir
from cdl_jax.runtime import target
from cdl_jax.runtime.target import Target
from cdl_jax.training import dtypes
from tests.end_to_end import tiny

H200 = Target("NVIDIA H200", "cuda", (9, 0))


def resolved(**changes):
    """Returns (teacher's, student's, frozen dtype) of a config on an H200."""
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    with target.assume(H200):
        found = dtypes.resolve(config)
    assert config.teacher.dtype == changes.get("teacher.dtype", "auto")  # the config itself stays
    return found.teacher.dtype, found.student.dtype, found.frozen_dtype


def test_networks_compute_in_bfloat16_on_a_gpu_and_frozen_kernels_follow():
    assert resolved() == ("bfloat16", "bfloat16", "bfloat16")
    assert resolved(**{"frozen_dtype": "float32"}) == ("bfloat16", "bfloat16", "float32")
    # The teacher's kernels are not rounded in its steps.
    assert resolved(**{"teacher.dtype": "float32"}) == ("float32", "bfloat16", "float32")
    # Networks of a finished run compute as they did there.
    assert resolved(**{"cdl.teacher_runs": ("runs/a",)})[2] == "float32"


def test_networks_compute_in_float32_on_a_cpu():
    found = dtypes.resolve(tiny.get_config())
    assert (found.teacher.dtype, found.student.dtype, found.frozen_dtype) == ("float32",) * 3
    assert found.student.attention == "auto"  # no property of the run


def test_the_device_and_the_dtypes_are_named_in_one_line():
    config = tiny.get_config()
    assert dtypes.describe(dtypes.resolve(config)) == "device: cpu, all networks in float32"
    config.teacher.dtype = "bfloat16"
    assert dtypes.describe(dtypes.resolve(config)) == "device: cpu, student in float32, teacher in bfloat16"


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_run_is_resumed_in_its_own_dtypes(tmp_path, stored):
    begun = dtypes.resolve(tiny.get_config())
    begun.student.dtype = begun.teacher.dtype = begun.frozen_dtype = stored
    begun.student.attention = "xla"
    workdir.write_config(tmp_path, begun.to_dict())
    command = tiny.get_config()
    workdir.check_config(tmp_path, command.to_dict())
    for device in (H200, Target("cpu", "cpu")):
        with target.assume(device):
            found = dtypes.resolve(workdir.with_stored_dtypes(tmp_path, command))
        assert (found.student.dtype, found.teacher.dtype, found.frozen_dtype) == (stored,) * 3
        assert (found.student.attention, found.teacher.attention) == ("xla", "auto")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[stored]
    command.student.dtype = other
    with pytest.raises(workdir.UserError, match=f"student.dtype: '{stored}' -> '{other}'"):
        workdir.check_config(tmp_path, command.to_dict())


def test_runs_of_earlier_versions_keep_frozen_kernels_in_float32(tmp_path):
    begun = dtypes.resolve(tiny.get_config()).to_dict()
    del begun["frozen_dtype"]
    workdir.write_config(tmp_path, begun)
    with target.assume(H200):
        assert workdir.with_stored_dtypes(tmp_path, tiny.get_config()).frozen_dtype == "float32"
    assert configs.differences(configs.flatten(begun), configs.flatten(tiny.get_config().to_dict())) == []
