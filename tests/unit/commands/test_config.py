"""Configs: arguments, sections, checks, and differences that affect the results."""

import itertools
import json
import runpy
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from cdl_jax import config, config_files, main, plugins
from cdl_jax.errors import UserError


@pytest.fixture(scope="module")
def default():
    return config.default("cdl", data="glyph_mini", teacher="mini_teacher", student="mini_student", distill="dkd")


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arguments_have_the_types_of_their_defaults():
    result = config.arguments(
        "learner=coda,seed=3,rate=1e-2,deep=TRUE", learner="l2p", seed=0, rate=0.1, deep=False, k=7
    )
    assert result == {"learner": "coda", "seed": 3, "rate": 0.01, "deep": True, "k": 7}
    assert [type(result[name]) for name in ("seed", "rate", "deep")] == [int, float, bool]
    assert config.arguments("", seed=1) == config.arguments(None, seed=1) == {"seed": 1}
    assert config.arguments("path=a=b", path="") == {"path": "a=b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerner=l2p", "config argument 'lerner=l2p' is unknown: did you mean 'learner'? known: deep, learner, seed"),
        ("learner", "config argument 'learner' has no value: write learner=VALUE, such as learner=l2p"),
        ("seed=1.5", "config argument seed='1.5' is not of type int"),
        ("deep=yes", "config argument deep='yes' is not of type bool"),
    ],
)
def test_a_wrong_argument_gets_a_suggestion(text, message):
    assert refusal(lambda: config.arguments(text, learner="l2p", seed=0, deep=False)) == message


def test_default_has_the_common_sections_and_those_of_the_method(default):
    assert set(default) == {*config.OPTIONS, "method", "data", "augment", "optim", "cdl", "learner", "distill"} | {
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
    assert (other.train.epochs, other.optim.betas, config.OPTIONS["train"]["epochs"].default) == (20, (0.9, 0.999), 20)
    message = refusal(lambda: one.train.update(epochs="many"))
    assert message == "config.train.epochs='many' must be of type int, as 99 is"


def test_an_unknown_plug_in_gets_a_suggestion():
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
        ("data.num_workers", -2, "config.data.num_workers=-2 must not be negative"),
        ("seed", -1, "config.seed=-1 must not be negative"),
        ("seed", 2**31, "config.seed=2147483648 must be a number less than 2147483648"),
    ],
)
def test_values_out_of_range_are_refused(default, key, value, message):
    changed = default.copy_and_resolve_references()
    changed.update_from_flattened_dict({key: value})
    assert refusal(config.check, changed) == message
    changed.update_from_flattened_dict({key: 1})
    config.check(changed)


@pytest.mark.parametrize(
    ("seeds", "problem"),
    [
        ((1, 1), "must be different integers"),
        ((-1, 2), "must not be negative"),
        ((0.5, 1), "must be integers"),
        ((True, 2), "must be integers"),
        (("a",), "must be integers"),
    ],
)
def test_seeds_must_be_different_integers(default, seeds, problem):
    changed = default.copy_and_resolve_references()
    changed.seeds = seeds
    assert refusal(config.check, changed) == f"config.seeds={seeds} {problem}"


def test_seeds_fit_int32_and_affect_the_results(default):
    changed = default.copy_and_resolve_references()
    changed.seeds = (0, 2**31)
    assert "config.seeds=(0, 2147483648) must be a number less than" in refusal(config.check, changed)
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


def test_differences_list_the_keys_that_affect_the_results():
    old = {
        "seed": 0,
        "learner.pool": 30,
        "dropped": 1,
        "devices": 1,
        "data.num_workers": 0,
        "log.every_steps": 50,
        "data.path": "a",
    }
    new = {
        "seed": 0,
        "learner.pool": 10,
        "added": "x",
        "devices": 8,
        "data.num_workers": 4,
        "log.every_steps": 1,
        "data.path": "b",
    }
    free = {"checkpoint.every_steps": 7, "log.to": (), "eval.batch_size": 3}
    assert config.differences(old, {**new, **free}) == [
        "added: 'absent' -> 'x'",
        "dropped: 1 -> 'absent'",
        "learner.pool: 30 -> 10",
    ]
    batchwise = {"learner.batchwise": True, "eval.batch_size": 2}
    assert config.differences(batchwise, {**batchwise, **free, "log.every_steps": 1}) == ["eval.batch_size: 2 -> 3"]
    assert config.differences({"train.batch_size": 1}, {"train.batch_size": 2}) == ["train.batch_size: 1 -> 2"]


def test_a_stored_config_is_read_or_reported_as_damaged(tmp_path):
    assert config.read(tmp_path) is None
    (tmp_path / "config.json").write_text('{"config": {"seed": 4}}')
    assert config.read(tmp_path) == {"config": {"seed": 4}, "schema": 2}
    (tmp_path / "config.json").write_text('{"config": {"se')
    assert refusal(config.read, tmp_path).startswith(f"{tmp_path / 'config.json'} is damaged (")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert refusal(config.read, tmp_path).startswith(f"{tmp_path / 'config.json'} cannot be read (Is a directory)")


@pytest.mark.parametrize(
    ("key", "value", "stored"),
    [
        ("optim.learning_rate", np.float32(0.5), 0.5),
        ("optim.learning_rate", np.array(0.25), 0.25),
        ("optim.learning_rate", 1, 1.0),
        ("train.epochs", np.int64(7), 7),
        ("train.epochs", 3.0, 3),
        ("log.report", np.bool_(False), False),
        ("seeds", [0, 1], (0, 1)),
        ("seeds", np.arange(3), (0, 1, 2)),
        ("seeds", (np.int32(4), 5), (4, 5)),
        ("augment.mean", np.array([0.5, 0.25, 0.125]), (0.5, 0.25, 0.125)),
        ("data.path", Path("folder") / "file.npz", "folder/file.npz"),
        ("data.class_order", (5, 0, 7), "5,0,7"),
        ("data.class_order", np.array([5, 0, 7]), "5,0,7"),
        ("cdl.teacher_runs", [Path("runs/a")], ("runs/a",)),
    ],
)
def test_values_of_python_numpy_and_pathlib_are_converted_to_the_type_of_the_option(default, key, value, stored):
    changed = default.copy_and_resolve_references()
    section, _, name = key.rpartition(".")
    (changed[section] if section else changed)[name] = value
    result = changed[section][name] if section else changed[name]
    assert result == stored and type(result) is type(stored)
    config.check_keys(changed)
    assert json.loads(json.dumps(config.flatten(changed)))[key] == (list(stored) if type(stored) is tuple else stored)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("epochs", 2.5, "int"),
        ("epochs", np.float64(2.5), "int"),
        ("epochs", True, "int"),
        ("epochs", np.array([1, 2]), "int"),
        ("epochs", None, "int"),
        ("last_batch", 3, "str"),
        ("last_batch", (0.5, 1.0), "str"),
        ("last_batch", (1, 2), "str"),
    ],
)
def test_a_value_of_another_type_is_refused_at_its_assignment(default, key, value, kind):
    changed = default.copy_and_resolve_references()
    message = refusal(lambda: changed.train.update({key: value}))
    assert message.startswith(f"config.train.{key}={' '.join(repr(value).split())} must be of type {kind}, as ")


def test_class_ids_become_text_only_for_the_class_order(default):
    changed = default.copy_and_resolve_references()
    for section, key in (("data", "path"), ("optim", "name"), ("teacher", "weights")):
        assert f"config.{section}.{key}=(1, 2) must be of type str" in refusal(changed[section].update, {key: (1, 2)})
    assert "config.method=(3,) must be of type str" in refusal(changed.update, {"method": (3,)})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("log.report", "false", "config.log.report='false' must be of type bool, such as True"),
        ("log.report", 1, "config.log.report=1 must be of type bool, such as True"),
        ("optim.learning_rate", True, "config.optim.learning_rate=True must be of type float, such as 0.001"),
        ("train.epochs", "3", "config.train.epochs='3' must be of type int, such as 20"),
        ("train.epochs", 3.0, "config.train.epochs=3.0 must be of type int, such as 20"),
        ("train.epochs", None, "config.train.epochs=None must be of type int, such as 20"),
        ("teacher.weights", None, "config.teacher.weights=None must be of type str, such as ''"),
        ("seeds", "0,1", "config.seeds='0,1' must be of type tuple, such as ()"),
        ("seeds", (None,), "config.seeds=(None,) must be of type tuple, such as ()"),
        ("seeds", ({0: 1},), "config.seeds=({0: 1},) must be of type tuple, such as ()"),
        ("method", None, "config.method=None must be of type str, the name of a plug-in"),
        ("data.name", 3, "config.data.name=3 must be of type str, the name of a plug-in"),
        ("train.foo", {}, "unknown key config.train.foo: "),
        ("distill.foo", {"bar": {}}, "unknown key config.distill.foo: "),
        ("train.early_stoping", {}, "unknown key config.train.early_stoping: did you mean 'train.early_stopping'?"),
        ("train", 3, "config.train=3 replaces a section of options by one value: set its options, such as config.tr"),
        ("train.early_stopping", 3, "config.train.early_stopping=3 replaces a section of options by one value"),
        ("seed", {}, "config.seed is one value, not a section: set it to a value such as 0"),
        ("seed", {"a": 1}, "config.seed is one value, not a section: set it to a value such as 0"),
    ],
)
def test_the_types_of_a_plain_config_are_checked(default, key, value, message):
    plain = default.to_dict()
    *sections, name = key.split(".")
    section = plain
    for part in sections:
        section = section[part]
    section[name] = value
    assert refusal(config.check_keys, ml_collections.ConfigDict(plain, type_safe=False)).startswith(message)
    assert refusal(config.check_keys, config.Config(plain, type_safe=False)).startswith(message)


@pytest.mark.parametrize("stored", [{"method": None, "data": {"name": 3}}, {"method": "cdl", "data": {"name": 3}}, {}])
def test_a_stored_config_with_nulls_is_reported_as_one_line(stored):
    filled = config.with_defaults(stored)
    refusal(config.check_keys, ml_collections.ConfigDict(config.copy_with_tuples(filled)))


def test_a_plain_config_of_the_defaults_is_accepted(default):
    plain = ml_collections.ConfigDict(default.to_dict(), type_safe=False)
    plain.optim.learning_rate, plain.seeds = 1, [0, 1]
    config.check_keys(plain)


def test_a_section_and_a_value_do_not_replace_each_other(default):
    changed = default.copy_and_resolve_references()
    message = refusal(setattr, changed, "train", 3)
    assert message.startswith("config.train=3 replaces a section of options by one value: set its options, such as ")
    assert refusal(setattr, changed, "seed", {"a": 1}).startswith("config.seed is one value, not a section")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("del config.seed", "config.seed is missing, an option of config.method='cdl' and of every config: begin the "),
        ("config.train.epoch = 1", "unknown key config.train.epoch: did you mean 'train.epochs'?"),
        (
            "config.distill.tempreature = 4.0",
            "unknown key config.distill.tempreature of config.distill.name='kd': did you mean 'distill.temper",
        ),
        ("config.trian = {'epochs': 3}", "unknown key config.trian.epochs: did you mean 'train.epochs'?"),
        ("config.notes = ''", "unknown key config.notes: "),
        (
            "config.learner.update(name='coda')",
            "config.learner.layers is missing, an option of config.learner.name='coda'",
        ),
        ("del config.train.epochs", "config.train.epochs is missing, an option of config.method='cdl'"),
        ("del config.data.name", "config.data.name is missing: begin the config with cdl_jax.config.default("),
        ("config = base.Config()", "config.method is missing: begin the config with cdl_jax.config.default("),
    ],
)
def test_a_config_file_has_the_keys_of_its_plug_ins(line, message, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from cdl_jax import config as base\n\n\ndef get_config(text=''):\n"
        f"    config = base.default('cdl', data='glyph_mini')\n    {line}\n    return config\n"
    )
    assert refusal(main.parse, ["cdl_jax", "--config", str(path)]).startswith(message)


CHOICES = {
    "learner": ("models.learners", ()),
    "distill": ("distill", ("deit",)),
    "method": (None, ("okddip", "dml", "one", "cl_ilr", "individual", "kd", "supervised")),
    "row": (None, ("nearest_mean", "probe", "finetune", "biggan", "kd_dlgan", "vkd", "da", "replaced")),
    "baseline": (None, ("naive", "replay", "lwf", "eeil", "joint")),
    "part": (None, ("teacher", "student", "20")),
    "base": (None, ("branch", "network")),
    "network": (None, ("vit_s16", "resnet20", "vgg16", "densenet40_12", "deit_ti_conv", "efficientnet_lite0")),
    "reference": (None, ("true",)),
}


@pytest.mark.parametrize("name", [*config_files.shipped_configs(), "tiny"])
def test_keys_of_shipped_configs_with_their_arguments_are_known(name, monkeypatch):
    path = {**config_files.shipped_configs(), "tiny": Path(__file__).parents[2] / "end_to_end" / "tiny.py"}[name]
    get_config = runpy.run_path(str(path))["get_config"]
    arguments, known_arguments = config.arguments, {}
    monkeypatch.setattr(
        config, "arguments", lambda text, **known: known_arguments.update(known) or arguments(text, **known)
    )
    config.check_keys(get_config())
    options = [
        [f"{key}={value}" for value in ((*plugins.list_plugins(folder), *more) if folder else more)]
        for key, (folder, more) in CHOICES.items()
        if key in known_arguments
    ]
    pairs = [
        ",".join(pair) for one, other in itertools.combinations(options, 2) for pair in itertools.product(one, other)
    ]
    accepted = 0
    for text in [*itertools.chain(*options), *pairs]:
        try:
            result = get_config(text)
        except UserError:
            continue  # a pair that the config refuses
        config.check_keys(result)
        accepted += 1
    assert accepted >= len(options)


@pytest.mark.parametrize("family", plugins.list_plugins("models"))
def test_networks_of_a_family_have_the_same_options(family):
    module = plugins.load_plugin("models", family)
    assert all(module.OPTIONS.keys() >= size.keys() for size in module.SIZES.values())


def test_a_stored_config_is_completed_with_missing_options():
    complete = config.default("supervised", data="glyph_mini", network="mini_student").to_dict()
    stored = config.copy_with_tuples(complete)
    del stored["supervised"]["trained"], stored["data"]["validation_fraction"], stored["train"]["steps_per_call"]
    stored["supervised"]["label_smoothing"] = 0.5
    complete["supervised"]["label_smoothing"] = 0.5
    assert config.with_defaults(stored) == complete


def test_a_class_order_of_names_is_text_with_a_name_a_line():
    built = config.default("supervised", data="digits")
    built.data.class_order = ("7", "great white shark, white shark")
    assert built.data.class_order == "7\ngreat white shark, white shark"
    built.data.class_order = (5, 0)
    assert built.data.class_order == "5,0"
