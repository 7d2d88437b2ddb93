"""Compares schedules with values by hand, and optimizers with textbook loops.

The textbook loops compute in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cdl_jax import optim
from cdl_jax.errors import UserError
from cdl_jax.options import check, defaults

RNG = np.random.default_rng(1)
START = {"w": RNG.normal(size=(2, 3)), "b": RNG.normal(size=3)}
GRADIENTS = [{"w": RNG.normal(size=(2, 3)), "b": RNG.normal(size=3)} for _ in range(5)]
RATE = 0.1


def options(**changes):
    return ConfigDict({**defaults(optim.OPTIONS), "learning_rate": RATE, "schedule": "constant", **changes})


def rates(num_epochs, epochs, **changes):
    schedule = optim.schedule(options(**changes), num_epochs)
    return [float(schedule(jnp.float32(epoch))) for epoch in epochs]


def test_cdl_cosine_is_constant_for_two_epochs_and_ends_near_zero():
    # epochs = 3: the angle grows by 99 pi / 400 from epoch 1 on, and nothing changes within an epoch.
    expected = [0.1, 0.1, 0.1, 0.1, 0.1 * np.cos(99 * np.pi / 400), 0.1 * np.cos(99 * np.pi / 400)]
    assert rates(3, [0, 0.9, 1, 1.99, 2, 2.5], schedule="cdl_cosine") == pytest.approx(expected, rel=1e-6)
    assert expected[-1] == pytest.approx(0.0712639, abs=1e-7)
    twenty = rates(20, range(20), schedule="cdl_cosine")
    assert twenty[:2] == pytest.approx([0.1, 0.1])
    assert twenty[10] == pytest.approx(0.1 * np.cos(9 * 99 * np.pi / 3800), rel=1e-5)
    assert twenty[19] == pytest.approx(0.1 * np.cos(18 * 99 * np.pi / 3800), rel=1e-5)
    assert twenty == sorted(twenty, reverse=True)


def test_cdl_cosine_of_one_epoch_is_the_full_rate():
    assert rates(1, [0, 0.5], schedule="cdl_cosine") == pytest.approx([0.1, 0.1])


def test_cosine_rises_linearly_and_decays_to_zero():
    epochs = [0, 1, 2, 4, 6, 8, 10]
    expected = [0, 0.05, 0.1] + [0.05 * (1 + np.cos(np.pi * x)) for x in (0.25, 0.5, 0.75, 1)]
    assert rates(10, epochs, schedule="cosine", warmup_epochs=2.0) == pytest.approx(expected, abs=1e-7)
    assert rates(10, [0, 5, 10], schedule="cosine", end_learning_rate=0.02) == pytest.approx(
        [0.1, 0.06, 0.02], abs=1e-7
    )
    assert rates(10, [0, 5, 10], schedule="cosine") == pytest.approx([0.1, 0.05, 0], abs=1e-7)
    assert rates(2, [0.25, 0.5, 1.25], schedule="cosine", warmup_epochs=0.5) == pytest.approx(
        [0.05, 0.1, 0.05], abs=1e-7
    )


def test_steps_divide_the_rate_by_ten_at_each_milestone():
    rates_of_steps = rates(6, [0, 1.99, 2, 3.5, 4, 5.5], schedule="steps", milestones=(2, 4))
    assert rates_of_steps == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-5)
    assert rates(6, [0, 5], schedule="constant") == pytest.approx([0.1, 0.1])


def train(**changes):
    """Returns the parameters after the five gradients, updated as the trainer does."""
    optimizer = optim.build(options(**changes), epochs=2)
    params, gradients = jax.tree.map(jnp.float32, (START, GRADIENTS))
    state = optimizer.transform.init(params)
    for gradient in gradients:
        direction, state = optimizer.transform.update(gradient, state, params)
        rate = optimizer.learning_rate(jnp.float32(0))
        params = optax.apply_updates(params, jax.tree.map(lambda d, rate=rate: -rate * d, direction))
    return params


def train_with(step):
    """Returns the parameters after the five gradients.

    step: torch.optim's rule, `step(name, p, gradient, memory, t) -> p`.
    """
    params, memory = dict(START), {name: {} for name in START}
    for t, gradients in enumerate(GRADIENTS, 1):
        params = {name: step(name, params[name], gradients[name], memory[name], t) for name in params}
    return params


def adam_direction(gradient, memory, t, betas=(0.9, 0.999), eps=1e-8):
    memory["m"] = betas[0] * memory.get("m", 0) + (1 - betas[0]) * gradient
    memory["v"] = betas[1] * memory.get("v", 0) + (1 - betas[1]) * gradient**2
    return memory["m"] / (1 - betas[0] ** t) / (np.sqrt(memory["v"]) / np.sqrt(1 - betas[1] ** t) + eps)


def assert_close(params, expected):
    for name in START:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-5, atol=1e-5, err_msg=name)
        assert np.abs(np.asarray(params[name]) - START[name]).max() > 0.05


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_adds_decay_to_the_gradient(decay):
    expected = train_with(lambda name, p, g, memory, t: p - RATE * adam_direction(g + decay * p, memory, t))
    assert_close(train(name="adam", weight_decay=decay), expected)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_decays_matrices_independently_of_the_gradient(decay):
    def step(name, p, g, memory, t):
        shrunk = p * (1 - RATE * decay) if name == "w" else p
        return shrunk - RATE * adam_direction(g, memory, t)

    assert_close(train(name="adamw", weight_decay=decay), train_with(step))


def test_adamw_decays_no_rows_of_biases():
    params = {name: jnp.ones((2, 3)) for name in ("down", "down_bias", "bias")}
    optimizer = optim.build(ConfigDict(defaults(optim.OPTIONS, name="adamw", weight_decay=0.5)), 1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    direction, _ = optimizer.transform.update(zeros, optimizer.transform.init(params), params)
    assert {name: float(rows.max()) for name, rows in direction.items()} == {"down": 0.5, "down_bias": 0, "bias": 0}


def test_adam_reads_betas_and_eps():
    direction = {"betas": (0.5, 0.8), "eps": 0.1}
    expected = train_with(lambda name, p, g, memory, t: p - RATE * adam_direction(g, memory, t, **direction))
    assert_close(train(name="adam", **direction), expected)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.2)])
def test_sgd_accumulates_momentum(momentum, decay):
    def step(name, p, g, memory, t):
        memory["buffer"] = momentum * memory.get("buffer", 0) + g + decay * p
        return p - RATE * memory["buffer"]

    assert_close(train(name="sgd", momentum=momentum, weight_decay=decay), train_with(step))


def test_rmsprop_divides_before_momentum():
    def step(name, p, g, memory, t):
        memory["v"] = 0.99 * memory.get("v", 0) + 0.01 * g**2
        memory["buffer"] = 0.9 * memory.get("buffer", 0) + g / (np.sqrt(memory["v"]) + 1e-8)
        return p - RATE * memory["buffer"]

    assert_close(train(name="rmsprop"), train_with(step))


def test_the_denominator_of_amsgrad_never_decreases():
    rise_and_fall = [jnp.array([g]) for g in (1.0, 4.0, 0.1, 0.1)]
    transform = optim.build(options(name="amsgrad"), 1).transform
    state, sizes = transform.init(rise_and_fall[0]), []
    m = v = highest = 0.0
    for t, gradient in enumerate(rise_and_fall, 1):
        direction, state = transform.update(gradient, state)
        m, v = 0.9 * m + 0.1 * float(gradient[0]), 0.999 * v + 0.001 * float(gradient[0]) ** 2
        highest = max(highest, v / (1 - 0.999**t))
        sizes.append(m / (1 - 0.9**t) / (np.sqrt(highest) + 1e-8))
        assert float(direction[0]) == pytest.approx(sizes[-1], rel=1e-4)  # 1 - 0.999^t cancels in float32
    assert sizes[3] != pytest.approx(m / (1 - 0.9**4) / np.sqrt(v / (1 - 0.999**4)), rel=0.05)  # plain Adam's


def test_clipping_bounds_the_global_norm_before_all_other_transforms():
    def step(name, p, g, memory, t):
        norm = np.sqrt(sum((x**2).sum() for x in GRADIENTS[t - 1].values()))
        assert norm > 0.5
        return p - RATE * (g * 0.5 / norm + 0.2 * p)

    assert_close(train(name="sgd", momentum=0.0, clip_norm=0.5, weight_decay=0.2), train_with(step))
    assert_close(train(name="sgd", clip_norm=1e3), train(name="sgd"))


@pytest.mark.parametrize("changes", [{"name": "adamw", "weight_decay": 0.3}, {"name": "sgd", "clip_norm": 0.5}])
def test_accumulated_gradients_give_the_step_of_their_mean(changes):
    params = jax.tree.map(jnp.float32, START)
    one, three = (optim.build(options(**changes, accumulate=n), epochs=2).transform for n in (1, 3))
    gradients = [jax.tree.map(jnp.float32, g) for g in GRADIENTS[:3]]
    mean = jax.tree.map(lambda *g: sum(g) / 3, *gradients)
    expected, _ = one.update(mean, one.init(params), params)
    state = three.init(params)
    for gradient in gradients[:2]:
        direction, state = three.update(gradient, state, params)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(direction))
    direction, state = three.update(gradients[2], state, params)
    for name in START:
        np.testing.assert_allclose(direction[name], expected[name], rtol=1e-6, atol=1e-7)
    assert np.abs(direction["w"]).max() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adan"}, "optim.name='adan': did you mean 'adam'?"),
        ({"schedule": "cosin"}, "optim.schedule='cosin': did you mean 'cosine'?"),
        ({"schedule": "cosine", "warmup_epochs": 5.0}, "optim.warmup_epochs=5.0 must lie in [0, epochs=5)"),
        ({"learning_rate": 0.0}, "optim.learning_rate=0.0 must be above 0"),
        ({"betas": (0.9,)}, "optim.betas=(0.9,) must have 2 items"),
        ({"betas": (0.9, 1.0)}, "optim.betas=(0.9, 1.0) must lie in [0, 1)"),
        ({"momentum": 1.0}, "optim.momentum=1.0 must lie in [0, 1)"),
        ({"milestones": (2.5,)}, "optim.milestones=(2.5,) must be integers"),
        ({"no_decay": (1,)}, "optim.no_decay=(1,) must be text that is not empty"),
        ({"no_decay": ("",)}, "optim.no_decay=('',) must be text that is not empty"),
        ({"accumulate": 0}, "optim.accumulate=0 must be at least 1"),
        ({"learning_rate": float("nan")}, "optim.learning_rate=nan must be a number less than 2147483648"),
    ],
)
def test_the_message_names_the_wrong_option(changes, message):
    with pytest.raises(UserError) as caught:
        check(optim.OPTIONS, changes, "optim")
        optim.build(options(**changes), epochs=5)
    assert str(caught.value).removeprefix("config.").startswith(message)
