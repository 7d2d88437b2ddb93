"""Declared options: permitted values, and their text in a message and in a table."""

import pytest

from cdl_jax import config as configs
from cdl_jax import options, plugins
from cdl_jax.data.transforms import augment, mixing
from cdl_jax.errors import UserError
from cdl_jax.options import Option

FOLDERS = ("methods", "distill", "models", "models.learners", "data.sources")
NAN, INFINITE = float("nan"), float("inf")


def shipped():
    """Returns (name, options) of every section of every plug-in, and of every run."""
    sections = [("config", configs.OPTIONS), ("augment", augment.OPTIONS), ("mixing", mixing.OPTIONS)]
    for folder in FOLDERS:
        for name in plugins.list_plugins(folder):
            sections.append((f"{folder}.{name}", plugins.load_plugin(folder, name).OPTIONS))
    for method in plugins.list_plugins("methods"):
        sections.append((method, configs.declared(configs.default(method, data="glyph_mini"))))
    return sections


@pytest.mark.parametrize(("name", "declared"), shipped(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_shipped_option_has_a_short_meaning_and_a_valid_default(name, declared):
    for key, option in options.rows(declared):
        assert 2 < len(option.meaning) <= 200, key
        assert not option.meaning.endswith(".") and "\n" not in option.meaning, key
        assert option.problem(option.default) == "", key
    options.check(declared, options.defaults(declared), name)


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        (Option(1), 0, ""),
        (Option(1), -1, " must not be negative"),
        (Option(1), -0.5, " must not be negative"),
        (Option(1), NAN, " must be a number less than 2147483648"),
        (Option(1.0), INFINITE, " must be a number less than 2147483648"),
        (Option(1), 2**31, " must be a number less than 2147483648"),
        (Option(1), 2**31 - 1, ""),
        (Option(1.0, minimum=None), -5.0, ""),
        (Option(1.0, minimum=None), -INFINITE, " must be a number less than 2147483648"),
        (Option(1.0, minimum=None, maximum=3), 3.5, " must be at most 3"),
        (Option(1, minimum=-1), -2, " must be at least -1"),
        (Option(1, minimum=2), 1, " must be at least 2"),
        (Option(2, minimum=2, reason="one is too few"), 1, " must be at least 2: one is too few"),
        (Option(0.5, maximum=1), 1, ""),
        (Option(0.5, maximum=1), 1.5, " must lie in [0, 1]"),
        (Option(0.5, below=1), 1.0, " must lie in [0, 1)"),
        (Option(0.5, above=0, maximum=1), 0.0, " must lie in (0, 1]"),
        (Option(0.5, above=0), 0.0, " must be above 0"),
        (Option(0.5, above=0), 1e-9, ""),
        (Option(True), False, ""),
        (Option("a", choices=("a", "b")), "c", ": use 'a' or 'b'"),
        (Option("a", choices=("a", "b", "c")), "d", ": use 'a', 'b' or 'c'"),
        (Option("one", choices=("one", "two", "four", "five")), "tow",
         ": did you mean 'two'? known: five, four, one, two"),
        (Option("a", choices=("a",)), "b", ": use 'a'"),
        (Option(()), ("a", 1, -2), " must not be negative"),
        (Option((), item_type=int), (0.5,), " must be integers"),
        (Option((), item_type=int), (True,), " must be integers"),
        (Option((), item_type=str), (1,), " must be text that is not empty"),
        (Option(("a",)), ("b", ""), " must be text that is not empty"),
        (Option((0.5, 1)), (1, 2), ""),
        (Option((0.5, 1)), ("a", 2), " must be numbers"),
        (Option((0.5, 1), lengths=(2,)), (1,), " must have 2 items"),
        (Option((), lengths=(0, 3)), (1, 2), " must have 0 or 3 items"),
        (Option((0.5, 0.9), below=1), (0.5, 1.0), " must lie in [0, 1)"),
        (Option("full"), ((0, 1), (1, 0)), ""),
    ],
)  # fmt: skip
def test_the_problem_of_a_value(option, value, problem):
    assert option.problem(value) == problem


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (Option(1), "at least 0"),
        (Option(1.0, minimum=None), "any number"),
        (Option(1.0, minimum=None, below=2), "below 2"),
        (Option(1.0, above=1), "above 1"),
        (Option(1.0, minimum=0.01, maximum=1000), "[0.01, 1000]"),
        (Option(False), "True or False"),
        (Option(""), ""),
        (Option("b", choices=("", "b")), "'' or 'b'"),
        (Option((), item_type=int, minimum=1), "at least 1"),
        (Option(()), ""),
    ],
)
def test_the_range_as_text(option, text):
    assert option.range == text


def test_a_message_has_the_sections_of_the_key_and_the_value():
    declared = {"train": {"early": {"patience": Option(0)}}, "rate": 0.1}
    options.check(declared, {"train": {"early": {"patience": 3, "unknown": -1}}})
    with pytest.raises(UserError, match="^config.train.early.patience=-3 must not be negative$"):
        options.check(declared, {"train": {"early": {"patience": -3}}})
    with pytest.raises(UserError, match="^config.own.rate=-1 must not be negative$"):
        options.check(declared, {"rate": -1}, "own")
    with pytest.raises(UserError, match=r"^config.own.rates=\(-1,\) must not be negative$"):
        options.check({"rates": Option(())}, {"rates": [-1]}, "own")


def test_defaults_and_changed_defaults():
    declared = {"rate": Option(0.1, "a rate", above=0), "plain": 3, "part": {"kind": Option("a")}}
    assert options.defaults(declared, plain=4) == {"rate": 0.1, "plain": 4, "part": {"kind": "a"}}
    changed = options.change_defaults(declared, rate=0.5, plain=5)
    assert options.defaults(changed) == {"rate": 0.5, "plain": 5, "part": {"kind": "a"}}
    assert changed["rate"] == Option(0.5, "a rate", above=0) and declared["rate"].default == 0.1
    with pytest.raises(KeyError):
        options.change_defaults(declared, rat=0.5)


def test_resumable_keys_are_those_that_change_no_result():
    resumable = {"log.every_steps", "checkpoint.keep_tasks", "data.path", "eval.batch_size", "train.on_nonfinite"}
    assert all(map(configs.is_resumable, resumable))
    assert not any(map(configs.is_resumable, ("train.epochs", "eval.every_epochs", "device_data_limit_mb", "dataset")))


def test_a_network_of_a_user_has_the_ranges_that_its_file_declares():
    config = configs.default("supervised", data="glyph_mini", network="mini_student")
    config.network.update(family="tests.support.tiny_network", dim=0)  # a ViT has at least 1
    configs.check(config)
    config.network.dim = -1
    with pytest.raises(UserError, match="^config.network.dim=-1 must not be negative$"):
        configs.check(config)
