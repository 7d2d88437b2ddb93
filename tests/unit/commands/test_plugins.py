"""Modules by name: the package's own, a user's by dotted path, and what is said where there is none."""

import sys
from types import ModuleType

import pytest

from cdl_jax import config, plugins
from cdl_jax.errors import UserError


@pytest.fixture
def user_package(tmp_path, monkeypatch):
    """A function that writes `{file: text}` as an importable package called `userpart`."""

    def write(**files):
        folder = tmp_path / "userpart"
        folder.mkdir()
        for name, text in {"__init__": "", **files}.items():
            (folder / f"{name}.py").write_text(text)

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "userpart"]:
        del sys.modules[name]


def test_a_bare_name_is_one_of_the_package():
    from cdl_jax.distill import kd

    assert plugins.load_plugin("distill", "kd") is kd
    assert plugins.load_plugin("models.prompts", "l2p").__name__ == "cdl_jax.models.prompts.l2p"
    assert {"kd", "dkd", "none"} <= set(plugins.list_plugins("distill"))
    assert "l2p" in plugins.list_plugins("models.prompts") and "prompts" not in plugins.list_plugins("models")


def test_a_dotted_path_is_a_user_s_module(user_package):
    user_package(scheme="from cdl_jax.distill.kd import OPTIONS, build\nANSWER = 42")
    module = plugins.load_plugin("distill", "userpart.scheme")
    assert isinstance(module, ModuleType) and module.ANSWER == 42


def test_a_mistyped_name_gets_the_nearest():
    with pytest.raises(UserError) as caught:
        plugins.load_plugin("distill", "dkdd")
    assert str(caught.value).startswith("no module 'dkdd' in distill: did you mean 'dkd'? known: ")
    for absent in ("", "userpart_absent.scheme", "cdl_jax.absent", "cdl_jax.distill.absent", "json.absent.deeper"):
        with pytest.raises(UserError, match=f"no module '{absent}' in distill"):
            plugins.load_plugin("distill", absent)


def test_what_a_user_s_module_fails_to_import_is_told_itself(user_package):
    user_package(scheme="import not_installed_anywhere", broken="from userpart import not_there", wrong="1 / 0")
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_installed_anywhere'"):
        plugins.load_plugin("distill", "userpart.scheme")
    with pytest.raises(ImportError, match="cannot import name 'not_there' from 'userpart'"):
        plugins.load_plugin("distill", "userpart.broken")
    with pytest.raises(ZeroDivisionError):
        plugins.load_plugin("distill", "userpart.wrong")


def test_a_missing_import_whose_name_begins_like_the_package_is_told_itself(user_package):
    user_package(scheme="import userp")
    with pytest.raises(ModuleNotFoundError, match="No module named 'userp'"):
        plugins.load_plugin("distill", "userpart.scheme")


def test_nearest_names_the_closest_and_lists_the_rest_where_they_are_few():
    assert plugins.did_you_mean("stduent", ["teacher", "student"]) == "did you mean 'student'? known: student, teacher"
    assert plugins.did_you_mean("xyz", ["teacher", "student"]) == "known: student, teacher"
    many = [f"class_{i}" for i in range(31)]
    assert plugins.did_you_mean("class_30x", many) == "did you mean 'class_30'? "
    assert plugins.did_you_mean("zzz", many[:30]).count(",") == 29


def test_helpers_beside_plug_ins_are_not_offered():
    assert "learners" not in plugins.list_plugins("methods") and "weights" not in plugins.list_plugins("models")
    for name in ("learners", "early_stopping"):
        with pytest.raises(UserError, match=f"no module '{name}' in methods: "):
            plugins.load_plugin("methods", name)


@pytest.mark.parametrize("folder", ["methods", "distill", "models", "models.prompts", "data.sources", "published"])
def test_each_name_that_is_offered_loads_and_has_its_contract(folder):
    assert plugins.list_plugins(folder)
    for name in plugins.list_plugins(folder):
        module = plugins.load_plugin(folder, name)
        assert all(hasattr(module, part) for part in plugins._CONTRACTS[folder])


def test_a_user_s_module_without_build_is_refused(user_package):
    user_package(empty="OPTIONS = {}")
    with pytest.raises(UserError, match="userpart.empty is no plug-in of distill: it does not define build"):
        plugins.load_plugin("distill", "userpart.empty")


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("lr", "optim.learning_rate"),
        ("optim.lr", "optim.learning_rate"),
        ("train.LR", "optim.learning_rate"),
        ("base-lr", "optim.learning_rate"),
        ("wd", "optim.weight_decay"),
        ("bs", "train.batch_size"),
        ("batch_size", "train.batch_size"),
        ("num_epochs", "train.epochs"),
        ("EPOCHS", "train.epochs"),
        ("gpus", "devices"),
        ("backbone", "student.family"),
        ("dataset", "data.name"),
        ("data_dir", "data.path"),
        ("n_tasks", "data.num_tasks"),
        ("tau", "distill.temperature"),
        ("Temperature", "distill.temperature"),
        ("optimizer", "optim.name"),
        ("pool_size", "learner.pool"),
        ("img_size", "student.image_size"),
    ],
)
def test_other_projects_words_are_translated(word, known):
    keys = config.flatten(config.default("cdl", data="glyph_mini"))
    assert plugins.did_you_mean(word, keys) == f"did you mean {known!r}? "
    assert plugins.did_you_mean(word, [f"config.{key}" for key in keys]) == f"did you mean 'config.{known}'? "


@pytest.mark.parametrize(
    ("folder", "word", "known"),
    [("distill", "KD", "kd"), ("distill", "hinton", "kd"), ("models.prompts", "CODAPrompt", "coda"),
     ("models.prompts", "L2P", "l2p"), ("methods", "finetune", "supervised"), ("methods", "NCM", "nearest_mean"),
     ("data.sources", "ImageNet-R", "imagenet_r"), ("models", "ViT", "vit")],
)  # fmt: skip
def test_other_projects_names_are_translated(folder, word, known):
    with pytest.raises(UserError, match=f"no module '{word}' in {folder}: did you mean '{known}'?"):
        plugins.load_plugin(folder, word)


def test_each_translation_is_of_a_key_a_choice_a_flag_or_a_name():
    from cdl_jax import main

    offered = {*main._FLAGS, "data", "tasks", "network", "student"}
    for method in plugins.list_plugins("methods"):
        offered |= {*config.flatten(config.default(method, data="glyph_mini"))}
    for folder in plugins._CONTRACTS:
        offered |= {*plugins.list_plugins(folder)}
    assert {*plugins._WORDS} <= offered
    assert all(words == words.casefold() for words in plugins._WORDS.values())


def test_an_empty_name_is_not_offered():
    assert plugins.did_you_mean("xyz", ["", "naive"]) == "known: naive"
