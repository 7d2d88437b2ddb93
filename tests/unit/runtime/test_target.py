"""Devices, and the dtype and the attention that are chosen for them."""

import pytest

from cdl_jax.errors import UserError
from cdl_jax.models.modules import attention
from cdl_jax.runtime import target
from cdl_jax.runtime.target import Target

H200, V100, CPU = Target("H200", "cuda", (9, 0)), Target("V100", "cuda", (7, 0)), Target("cpu", "cpu")
MI300 = Target("MI300", "gpu")


@pytest.mark.parametrize(
    ("device", "dtype"), [(H200, "bfloat16"), (V100, "float32"), (CPU, "float32"), (MI300, "float32")]
)
def test_auto_is_bfloat16_on_gpus_that_have_it(device, dtype):
    with target.assume(device):
        assert target.compute_dtype("auto") == dtype
        assert [target.compute_dtype(given) for given in ("float32", "bfloat16")] == ["float32", "bfloat16"]


def test_the_device_of_this_process_is_a_cpu_again_after_an_assumption():
    with pytest.raises(ZeroDivisionError), target.assume(H200):
        assert target.current() is H200
        raise ZeroDivisionError
    assert target.current() == CPU


@pytest.mark.parametrize(
    ("device", "dtype", "width", "chosen"),
    [
        (H200, "bfloat16", 64, "cudnn"),
        (H200, "bfloat16", 128, "cudnn"),
        (H200, "float32", 64, "xla"),
        (H200, "bfloat16", 60, "xla"),  # no multiple of 8
        (H200, "bfloat16", 256, "xla"),
        (V100, "bfloat16", 64, "xla"),
        (CPU, "bfloat16", 64, "xla"),
    ],
)
def test_fused_attention_is_chosen_where_it_exists(device, dtype, width, chosen):
    with target.assume(device):
        assert attention.choose("auto", dtype, width) == chosen
        assert attention.choose("xla", dtype, width) == "xla"
        if chosen == "cudnn":
            assert attention.choose("cudnn", dtype, width) == "cudnn"
        else:
            with pytest.raises(UserError, match=f"here: {device.name}, {dtype} and {width}.: use 'auto'$"):
                attention.choose("cudnn", dtype, width)
