"""Operations and bytes of matrix products and convolutions, counted from shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from cdl_jax.runtime.operations import Work, count


def shape(*sides, dtype="float32"):
    return jax.ShapeDtypeStruct(sides, dtype)


X, W = shape(5, 3), shape(3, 7)  # a product has 2 * 5 * 3 * 7 = 210 operations


def product_of(x, w):
    return x @ w


def test_products_count_two_operations_a_multiply_add_and_each_array_once():
    assert count(product_of, X, W) == Work(210, 4 * (15 + 21 + 35))
    batched = count(lambda x, y: jnp.einsum("bhqc,bhkc->bhqk", x, y), shape(2, 3, 4, 8), shape(2, 3, 5, 8))
    assert batched == Work(2 * 2 * 3 * 4 * 5 * 8, 4 * 6 * (32 + 40 + 20))
    half = count(product_of, shape(5, 3, dtype="bfloat16"), shape(3, 7, dtype="bfloat16"))
    assert half == Work(210, 2 * (15 + 21 + 35))


def test_convolutions_count_the_kernel_at_each_position():
    def convolve(x, kernel, groups=1):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    full = count(convolve, shape(1, 9, 9, 6), shape(3, 3, 6, 4))  # 4 x 4 positions
    assert full.flops == 2 * 16 * 9 * 6 * 4
    grouped = count(lambda x, k: convolve(x, k, 2), shape(1, 9, 9, 6), shape(3, 3, 3, 4))
    assert grouped.flops == 2 * 16 * 9 * 3 * 4


def test_programs_within_a_program_count():
    @jax.custom_vjp
    def custom(x, w):
        return x @ w

    custom.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].T @ g))
    for function in (jax.jit(product_of), jax.jit(jax.jit(product_of)), custom, jax.checkpoint(product_of)):
        assert count(function, X, W).flops == 210


def test_a_gradient_has_two_products_for_each_and_a_recomputed_one_a_third():
    def loss(x, w, function):
        return (function(jnp.sin(function(x, w)), w.T) ** 2).sum()

    both = jax.grad(loss, argnums=(0, 1))
    assert count(lambda x, w: loss(x, w, product_of), X, W).flops == 420
    assert count(lambda x, w: both(x, w, product_of), X, W).flops == 3 * 420
    recomputed = jax.checkpoint(lambda x, w: product_of(jnp.sin(product_of(x, w)), w.T))
    gradient = jax.grad(lambda x, w: (recomputed(x, w) ** 2).sum(), argnums=(0, 1))
    # The second product is recomputed only if the backward pass needs its result, which it does not.
    assert count(gradient, X, W).flops == 3 * 420 + 210


def test_a_scan_counts_as_often_as_it_repeats_and_a_condition_as_its_largest_branch():
    square = shape(3, 3)

    def repeated(x, w):
        return jax.lax.scan(lambda carry, _: (carry @ w, None), x, length=11)[0]

    assert count(repeated, X, square).flops == 11 * 2 * 5 * 3 * 3
    assert count(lambda x, w: jax.lax.map(lambda row: row @ w, x), X, square).flops == 2 * 5 * 3 * 3
    branches = (lambda x, w: x, lambda x, w: x @ w @ w, lambda x, w: x @ w)
    assert count(lambda i, x, w: jax.lax.switch(i, branches, x, w), shape(dtype="int32"), X, square).flops == 180


def test_products_without_influence_on_the_result_are_not_counted():
    def unused(x, w):
        product_of(x, w + 1)
        return {"result": product_of(x, w), "other": x}

    assert count(unused, X, W).flops == 210
    assert count(lambda x, w: unused(x, w)["other"], X, W) == Work()


def test_work_on_the_devices_of_a_mesh_is_added_up():
    devices = jax.devices()
    mesh, rows = Mesh(np.array(devices), ("batch",)), PartitionSpec("batch")
    divided = jax.shard_map(product_of, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    assert count(divided, shape(5 * len(devices), 3), W).flops == 210 * len(devices)


def test_the_compiler_counts_the_same_for_products():
    def network(x, w):
        return product_of(x, w) @ w.T

    compiled = jax.jit(network).lower(X, W).compile().cost_analysis()
    assert compiled["flops"] == pytest.approx(count(network, X, W).flops, rel=0.01)
