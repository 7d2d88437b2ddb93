"""Configs: arguments, sections, checks, and which differences bear on a run's results."""

import json

import pytest

from cdl_jax import config
from cdl_jax.errors import UserError


@pytest.fixture(scope="module")
def default():
    return config.default("cdl", data="glyph_mini", teacher="mini_teacher", student="mini_student", distill="dkd")


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arguments_take_the_types_of_their_defaults():
    found = config.arguments(
        "learner=coda,seed=3,rate=1e-2,deep=TRUE", learner="l2p", seed=0, rate=0.1, deep=False, k=7
    )
    assert found == {"learner": "coda", "seed": 3, "rate": 0.01, "deep": True, "k": 7}
    assert [type(found[name]) for name in ("seed", "rate", "deep")] == [int, float, bool]
    assert config.arguments("", seed=1) == config.arguments(None, seed=1) == {"seed": 1}
    assert config.arguments("path=a=b", path="") == {"path": "a=b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerner=l2p", "config argument 'lerner=l2p' is unknown: did you mean 'learner'? known: deep, learner, seed"),
        ("learner", "config argument 'learner' is unknown: did you mean 'learner'? known: deep, learner, seed"),
        ("seed=1.5", "config argument seed='1.5' is no int"),
        ("deep=yes", "config argument deep='yes' is no bool"),
    ],
)
def test_a_wrong_argument_is_named_with_the_nearest(text, message):
    assert refusal(lambda: config.arguments(text, learner="l2p", seed=0, deep=False)) == message


def test_default_has_the_common_sections_and_the_method_s(default):
    assert set(default) == {*config.COMMON, "method", "data", "augment", "optim", "cdl", "learner", "distill"} | {
        "teacher", "student",
    }  # fmt: skip
    assert (default.method, default.data.name, default.learner.name, default.distill.name) == (
        "cdl", "glyph_mini", "l2p", "dkd",
    )  # fmt: skip
    assert (default.teacher.dim, default.student.dim, default.distill.temperature) == (96, 48, 4.0)
    assert default.optim.betas == (0.9, 0.999)
    config.check(default)


def test_default_is_a_copy_and_keeps_types():
    one, other = (config.default("cdl", data="glyph_mini", teacher="mini_teacher") for _ in range(2))
    one.train.epochs = 99
    one.optim.betas = (0.5, 0.5)
    assert (other.train.epochs, other.optim.betas, config.COMMON["train"]["epochs"]) == (20, (0.9, 0.999), 20)
    with pytest.raises(TypeError):
        one.train.epochs = "many"


def test_an_unknown_part_is_named_with_the_nearest():
    assert "did you mean 'glyph_mini'?" in refusal(lambda: config.default("cdl", data="glyph_minni"))
    assert "did you mean 'cdl'?" in refusal(lambda: config.default("cdll", data="glyph_mini"))
    assert "did you mean 'l2p'?" in refusal(lambda: config.default("cdl", data="glyph_mini", learner="l2q"))
    assert "did you mean 'vit_b16'?" in refusal(lambda: config.default("cdl", data="glyph_mini", teacher="vit_b61"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochs", 0, "config.train.epochs=0 must be at least 1"),
        ("train.batch_size", -4, "config.train.batch_size=-4 must be at least 1"),
        ("eval.batch_size", 0, "config.eval.batch_size=0 must be at least 1"),
        ("log.every_steps", 0, "config.log.every_steps=0 must be at least 1"),
        ("checkpoint.every_steps", -1, "config.checkpoint.every_steps=-1 must not be negative"),
        ("devices", -1, "config.devices=-1 must not be negative"),
        ("workers", -2, "config.workers=-2 must not be negative"),
        ("seed", -1, "config.seed=-1 must not be negative"),
        ("seed", 2**31, "config: seed 2147483648 must be less than 2147483648"),
    ],
)
def test_values_out_of_range_are_refused(default, key, value, message):
    changed = default.copy_and_resolve_references()
    changed.update_from_flattened_dict({key: value})
    assert refusal(config.check, changed) == message
    changed.update_from_flattened_dict({key: 1})
    config.check(changed)


@pytest.mark.parametrize("seeds", [(1, 1), (-1, 2), (0.5, 1), (True, 2), ("a",)])
def test_seeds_are_different_integers(default, seeds):
    changed = default.copy_and_resolve_references()
    changed.seeds = seeds
    assert refusal(config.check, changed) == (f"config.seeds={seeds} must be different integers, none of them negative")


def test_seeds_fit_the_steps_and_bear_on_the_results(default):
    changed = default.copy_and_resolve_references()
    changed.seeds = (0, 2**31)
    assert "seed 2147483648 must be less than" in refusal(config.check, changed)
    changed.seeds = (0, 2**31 - 1)
    config.check(changed)
    assert config.differences({"seeds": [0, 3]}, {"seeds": [3, 0]}) == ["seeds: [0, 3] -> [3, 0]"]


def test_flatten_joins_keys_and_survives_json(default):
    tree = {"a": 1, "b": {"c": (1, 2), "d": {"e": None}}, "empty": {}}
    assert config.flatten(tree) == {"a": 1, "b.c": [1, 2], "b.d.e": None}
    flat = config.flatten(default)
    assert flat["optim.betas"] == [0.9, 0.999] and flat["teacher.dim"] == 96
    assert config.differences(json.loads(json.dumps(flat)), flat) == []
    assert config.flatten(json.loads(json.dumps(default.to_dict()))) == flat


def test_differences_name_what_bears_on_the_results():
    old = {
        "seed": 0,
        "learner.pool": 30,
        "gone": 1,
        "devices": 1,
        "workers": 0,
        "log.every_steps": 50,
        "data.path": "a",
    }
    new = {
        "seed": 0,
        "learner.pool": 10,
        "come": "x",
        "devices": 8,
        "workers": 4,
        "log.every_steps": 1,
        "data.path": "b",
    }
    free = {"checkpoint.every_steps": 7, "log.tensorboard": False, "eval.batch_size": 3}
    assert config.differences(old, {**new, **free}) == [
        "come: 'absent' -> 'x'",
        "gone: 1 -> 'absent'",
        "learner.pool: 30 -> 10",
    ]
    batchwise = {"learner.batchwise": True, "eval.batch_size": 2}
    assert config.differences(batchwise, {**batchwise, **free, "log.every_steps": 1}) == ["eval.batch_size: 2 -> 3"]
    assert config.differences({"train.batch_size": 1}, {"train.batch_size": 2}) == ["train.batch_size: 1 -> 2"]


def test_a_stored_config_is_read_or_told_to_be_damaged(tmp_path):
    assert config.read(tmp_path) is None
    (tmp_path / "config.json").write_text('{"config": {"seed": 4}}')
    assert config.read(tmp_path) == {"config": {"seed": 4}}
    (tmp_path / "config.json").write_text('{"config": {"se')
    assert refusal(config.read, tmp_path).startswith(f"{tmp_path / 'config.json'} is damaged (")
