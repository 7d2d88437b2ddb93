"""Plug-ins by name: the package's, a user's by dotted path, and wrong ones.

Wrong plug-ins have messages.
"""

import sys
from types import ModuleType

import pytest

from cdl_jax import config, main, plugins
from cdl_jax.errors import UserError
from cdl_jax.methods import cdl


@pytest.fixture
def user_package(tmp_path, monkeypatch):
    """Yields a function that writes `{file: text}` as an importable package.

    The package is called `userpart`.
    """

    def write(**files):
        folder = tmp_path / "userpart"
        folder.mkdir()
        for name, text in {"__init__": "", **files}.items():
            (folder / f"{name}.py").write_text(text)

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "userpart"]:
        del sys.modules[name]


def test_a_name_without_a_dot_is_a_plug_in_of_the_package():
    from cdl_jax.distill import kd

    assert plugins.load_plugin("distill", "kd") is kd
    assert plugins.load_plugin("models.learners", "l2p").__name__ == "cdl_jax.models.learners.l2p"
    assert {"kd", "dkd", "none"} <= set(plugins.list_plugins("distill"))
    assert "l2p" in plugins.list_plugins("models.learners") and "learners" not in plugins.list_plugins("models")


def test_a_dotted_path_is_a_module_of_the_user(user_package):
    user_package(scheme="from cdl_jax.distill.kd import OPTIONS, build\nANSWER = 42")
    module = plugins.load_plugin("distill", "userpart.scheme")
    assert isinstance(module, ModuleType) and module.ANSWER == 42


def test_a_name_that_is_not_text_is_refused():
    with pytest.raises(UserError, match="the name of a module in methods must be text, not None; known: cdl, "):
        plugins.load_plugin("methods", None)


def test_a_mistyped_name_gets_a_suggestion():
    with pytest.raises(UserError) as caught:
        plugins.load_plugin("distill", "dkdd")
    assert str(caught.value).startswith("no module 'dkdd' in distill: did you mean 'dkd'? known: ")
    for absent in ("", "userpart_absent.scheme", "cdl_jax.absent", "cdl_jax.distill.absent", "json.absent.deeper"):
        with pytest.raises(UserError, match=f"no module '{absent}' in distill"):
            plugins.load_plugin("distill", absent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import not_installed_anywhere", "line 1: ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("import userp", "line 1: ModuleNotFoundError: No module named 'userp'"),
        (
            "import json\nfrom userpart import absent",
            "line 2: ImportError: cannot import name 'absent' from 'userpart'",
        ),
        ("OPTIONS = {}\n1 / 0", "line 2: ZeroDivisionError: division by zero"),
        ("OPTIONS = {", "line 1: SyntaxError: '{' was never closed"),
        ("raise SystemExit(0)", "line 1: SystemExit: 0"),
    ],
)
def test_a_user_module_that_fails_on_import_is_reported_with_file_and_line(user_package, text, message):
    user_package(scheme=text)
    with pytest.raises(UserError, match="^plug-in .*userpart.scheme.py, ") as caught:
        plugins.load_plugin("distill", "userpart.scheme")
    assert message in str(caught.value)


KD = "from cdl_jax.distill.kd import OPTIONS, build\nfrom cdl_jax.options import Option\n"
POOL = "from cdl_jax.models.learners.l2p import OPTIONS, build\n"


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        ("distill", "OPTIONS = {}", "is not a plug-in of distill: {file} does not define build; a plug-in of this "
         "folder defines OPTIONS and build(options, teacher, student)"),
        ("distill", "def build(options, teacher, student): ...", "{file} does not define OPTIONS; "),
        ("distill", KD + "OPTIONS = ['alpha']", "{file}: OPTIONS must be a dict of options and their defaults, but it "
         "is of type list"),
        ("distill", KD + "build = 3", "{file}: build must be a function of (options, teacher, student), but it is of "
         "type int"),
        ("distill", KD + "def build(options): ...", "{file}: function build has the arguments (options), but is called "
         "with (options, teacher, student): too many positional arguments"),
        ("models.learners", POOL + "def build(options, dim): ...", "is called with (options, *, dim, key_dim, depth, "
         "num_tasks): got an unexpected keyword argument 'key_dim'"),
        ("methods", "def build(config): ...\ndef defaults(): ...", "(config), but is called with (config, info)"),
        ("methods", "def build(config, info): ...\ndef defaults(network): ...",
         "missing a required argument: 'network'"),
        ("models", "def build(options): ...", "(options), but is called with (options, num_classes)"),
        ("models", "from cdl_jax.models.vgg import OPTIONS, SIZES, build", "{file} does not define torch_name; "),
        ("data.sources", "OPTIONS = {}\ndef load(): ...", "function load has the arguments (), but is called with "),
        ("data.sources", "OPTIONS = {}\ndef load(options): ...\ndef placeholder(): ...",
         "function placeholder has the arguments (), but is called with (options)"),
        ("distill", KD + "OPTIONS = {'norm': Option('l3', choices=('l1', 'l2', 'cosine', 'none'))}", "{file}: OPTIONS: "
         "the default norm='l3': did you mean 'l2'? known: cosine, l1, l2, none"),
        ("distill", KD + "OPTIONS = {'log': {'offset': -1.0}}", "{file}: OPTIONS: the default log.offset=-1.0 must not "
         "be negative"),
        ("distill", KD + "PRESET = None", "{file}: PRESET must be a dict of options and their defaults, but it is of "
         "type NoneType"),
    ],
)  # fmt: skip
def test_a_user_module_that_breaks_the_contract_is_refused_with_file_and_function(user_package, folder, text, message):
    user_package(part=text)
    with pytest.raises(UserError) as caught:
        plugins.load_plugin(folder, "userpart.part")
    file = sys.modules["userpart.part"].__file__
    assert message.format(file=file) in str(caught.value) and file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine/cosine.py", "did you mean 'mine.cosine'? a file is named by its dotted path"),
        ("{folder}/mine/cosine.py", "did you mean 'mine.cosine'? a file is named by its dotted path"),
        ("mine/deep/cosine", "did you mean 'mine.deep.cosine'? a file is named by its dotted path"),
        ("../other/cosine.py", "name a file by its dotted path, such as other.cosine, and put the folder of other on "
         "PYTHONPATH"),
        ("cosine.py", "put the file into a folder, such as mine, and name it by its dotted path, mine.cosine"),
    ],
)  # fmt: skip
def test_a_path_of_a_file_gets_its_dotted_path_as_a_suggestion(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    name = name.format(folder=tmp_path)
    with pytest.raises(UserError) as caught:
        plugins.load_plugin("distill", name)
    assert str(caught.value) == f"no module {name!r} in distill: {message}"


METHOD = "def build(config, info): ...\ndef defaults():\n    return "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'penalty': 0.5}", "must return {section: {option: default}}, but returns float in 'penalty'"),
        ("['own']", "must return {section: {option: default}}, but returns list"),
        ("{'own': {'penalty': -0.5}}", ": the default own.penalty=-0.5 must not be negative"),
    ],
)
def test_defaults_of_a_user_method_are_sections_of_options(user_package, text, message):
    user_package(method=METHOD + text)
    with pytest.raises(UserError) as caught:
        config.default("userpart.method", data="glyph_mini")
    assert str(caught.value).startswith(sys.modules["userpart.method"].__file__ + ": function defaults")
    assert str(caught.value).endswith(message)


def test_another_method_on_the_command_line_needs_a_config_file_of_its_own(user_package, capsys):
    user_package(method=METHOD + "{'own': {'penalty': 0.5}}")
    assert main.main(["--config", "quickstart", "--config.method=userpart.method", "--mode=describe"]) == 2
    assert capsys.readouterr().err == (
        "cdl_jax: config.own.penalty is missing, an option of config.method='userpart.method': write a config file "
        "with cdl_jax.config.default('userpart.method', data='glyph_mini')\n"
    )


@pytest.mark.parametrize(("word", "known"), [("scheme", "distill"), ("prompt", "learner"), ("architecture", "student")])
def test_words_for_arguments_of_a_config_are_translated(word, known):
    with pytest.raises(UserError, match=f"config argument '{word}=x' is unknown: did you mean '{known}'?"):
        config.arguments(f"{word}=x", learner="l2p", distill="kd", student="mini_student", seed=0)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("{'teachr': {'depth': 2}}", "PRESET['teachr'] is no section of a config: did you mean 'teacher'?"),
        ("{'cdl': 'interleaved'}", "PRESET['cdl'] must be a dict of options and their defaults, not 'interleaved'"),
    ],
)
def test_a_preset_of_a_user_scheme_that_fits_no_section_is_refused(user_package, preset, message):
    user_package(part=f"{KD}PRESET = {preset}")
    with pytest.raises(UserError) as caught:
        cdl.defaults(distill="userpart.part")
    assert f"{sys.modules['userpart.part'].__file__}: {message}" in str(caught.value)


def test_a_preset_of_a_user_scheme_replaces_defaults(user_package):
    user_package(part=f"{KD}PRESET = {{'cdl': {{'schedule': 'interleaved', 'unknown': 1}}}}")
    section = cdl.defaults(distill="userpart.part")["cdl"]
    assert section["schedule"].default == "interleaved" and "unknown" not in section


def test_an_optional_part_is_none_where_a_plug_in_lacks_it():
    assert plugins.optional_part("data.sources", "cifar100", "placeholder") is not None
    assert plugins.optional_part("data.sources", "digits", "placeholder") is None
    with pytest.raises(KeyError, match="no optional part of distill"):
        plugins.optional_part("distill", "kd", "placeholder")


def test_the_problem_of_a_users_method_is_a_known_one(user_package):
    method = "def defaults(): return {}\ndef build(config, info): pass\nPROBLEM = "
    user_package(detector=method + "'detection'", segments=method + "'segmentation'")
    assert plugins.load_plugin("methods", "userpart.detector").PROBLEM == "detection"
    with pytest.raises(UserError, match="PROBLEM='segmentation': use 'classification' or 'detection' or 'generation'"):
        plugins.load_plugin("methods", "userpart.segments")


def test_functions_of_c_and_with_defaults_fulfill_a_contract(user_package):
    user_package(part=KD + "def build(options, teacher, student, more=1): ...")
    assert plugins.load_plugin("distill", "userpart.part")
    plugins.check_arguments(dict.fromkeys, "keys")


def test_a_hint_names_the_closest_word_and_lists_at_most_30():
    assert plugins.did_you_mean("stduent", ["teacher", "student"]) == "did you mean 'student'? known: student, teacher"
    assert plugins.did_you_mean("xyz", ["teacher", "student"]) == "known: student, teacher"
    many = [f"class_{i}" for i in range(31)]
    assert plugins.did_you_mean("class_30x", many) == "did you mean 'class_30'? "
    assert plugins.did_you_mean("zzz", many[:30]).count(",") == 29
    assert plugins.did_you_mean("zzz", many).startswith("the nearest of 31: class_")
    keys = [*many, "data.name"]
    assert plugins.did_you_mean("zzz", keys).endswith("--mode=describe --show_config shows all keys")


def test_helpers_packages_and_private_files_are_not_plug_ins():
    assert not {"base", "shared", "__init__"} & set(plugins.list_plugins("methods"))
    assert not {"modules", "peers", "learners", "weights"} & set(plugins.list_plugins("models"))
    for name in ("base", "shared", "early_stopping"):
        with pytest.raises(UserError, match=f"no module '{name}' in methods: "):
            plugins.load_plugin("methods", name)


def test_plug_ins_are_found_by_the_names_of_their_files(tmp_path, monkeypatch):
    from cdl_jax import distill

    for name in ("fresh", "_helper", "base"):
        (tmp_path / f"{name}.py").write_text("not even Python")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    monkeypatch.setattr(distill, "__path__", [str(tmp_path)])
    assert plugins.list_plugins("distill") == ["fresh"]


@pytest.mark.parametrize("folder", ["methods", "distill", "models", "models.learners", "data.sources", "published"])
def test_every_listed_plug_in_loads_and_fulfills_its_contract(folder):
    assert plugins.list_plugins(folder)
    more = ("IDENTITY",) if folder == "published" else ()
    for name in plugins.list_plugins(folder):
        module = plugins.load_plugin(folder, name)
        plugins._check_contract(module, folder, name)
        assert all(hasattr(module, part) for part in more)


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
def test_words_of_other_projects_are_translated_to_options(word, known):
    keys = config.flatten(config.default("cdl", data="glyph_mini"))
    assert plugins.did_you_mean(word, keys) == f"did you mean {known!r}? "
    assert plugins.did_you_mean(word, [f"config.{key}" for key in keys]) == f"did you mean 'config.{known}'? "


@pytest.mark.parametrize(
    ("folder", "word", "known"),
    [("distill", "KD", "kd"), ("distill", "hinton", "kd"), ("models.learners", "CODAPrompt", "coda"),
     ("models.learners", "L2P", "l2p"), ("methods", "finetune", "supervised"), ("methods", "NCM", "nearest_mean"),
     ("data.sources", "ImageNet-R", "imagenet_r"), ("models", "ViT", "vit")],
)  # fmt: skip
def test_names_of_other_projects_are_translated_to_plug_ins(folder, word, known):
    with pytest.raises(UserError, match=f"no module '{word}' in {folder}: did you mean '{known}'?"):
        plugins.load_plugin(folder, word)


def test_every_synonym_belongs_to_a_key_a_flag_or_a_name():
    from cdl_jax import main

    suggestions = {*main._FLAGS, "data", "tasks", "network", "student", "distill", "learner"}
    for method in plugins.list_plugins("methods"):
        suggestions |= {*config.flatten(config.default(method, data="glyph_mini"))}
    for folder in plugins._CONTRACTS:
        suggestions |= {*plugins.list_plugins(folder)}
    assert {*plugins._SYNONYMS} <= suggestions
    assert all(words == words.casefold() for words in plugins._SYNONYMS.values())


def test_an_empty_name_is_not_suggested():
    assert plugins.did_you_mean("xyz", ["", "naive"]) == "known: naive"


def test_an_error_in_a_users_plug_in_is_one_line_with_its_place(user_package, capsys, tmp_path):
    learner = (
        "import jax\n"
        "from cdl_jax.models.learners.base import Pool, Selection\n"
        "OPTIONS = {}\n\n\n"
        "class Mine(Pool):\n"
        "    def __call__(self, query, context, train):\n"
        "        if context.task:\n"
        "            pass\n"
        "        return Selection({}, 0.0, {})\n\n\n"
        "def build(options, *, dim, key_dim, depth, num_tasks):\n"
        "    return Mine()\n"
    )
    source = "OPTIONS = {}\n\n\ndef load(options):\n    return {}['images']\n"
    scheme = "from cdl_jax.distill.kd import OPTIONS\n\ndef build(options, teacher, student):\n    options.alhpa\n"
    helper = "def load(options):\n    return None.images\n"
    calls = "from userpart import helper\nOPTIONS = {}\nload = helper.load\n"
    user_package(learner=learner, source=source, scheme=scheme, helper=helper, calls=calls)
    common = ["--workdir", str(tmp_path / "run"), "--mode", "describe"]
    tiny = "tests/end_to_end/tiny.py:distill=none"
    for flags, file, line, text in (
        ([f"{tiny},learner=userpart.learner"], "learner.py", 8, "TracerBoolConversionError"),
        ([tiny, "--config.data.name=userpart.source"], "source.py", 5, "KeyError: 'images'"),
        ([tiny, "--config.data.name=userpart.calls"], "helper.py", 2, "AttributeError: 'NoneType'"),
        (["quickstart:distill=userpart.scheme"], "scheme.py", 4, "AttributeError: 'alhpa' Did you mean \"alpha\" "),
    ):
        assert main.main(["--config", *flags, *common]) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith(f"cdl_jax: plug-in {tmp_path / 'userpart' / file}, line {line}: {text}"), message


def test_a_module_that_is_found_nowhere_is_named_as_a_file():
    with pytest.raises(
        UserError, match=r"no module 'mine.cosine' in distill: mine/cosine.py is neither in the current"
    ):
        plugins.load_plugin("distill", "mine.cosine")


def test_a_users_module_lies_in_the_current_folder(tmp_path, monkeypatch):
    """An installed command starts without the current folder on the Python path."""
    (tmp_path / "minehere").mkdir()
    (tmp_path / "minehere" / "scheme.py").write_text("from cdl_jax.distill.kd import OPTIONS, build\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert plugins.load_plugin("distill", "minehere.scheme").__file__ == str(tmp_path / "minehere" / "scheme.py")
