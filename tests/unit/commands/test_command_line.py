"""The command line finds configs and names working directories.

It also prints usage, version and list.
"""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cdl_jax
from cdl_jax import config, config_files, main, plugins
from cdl_jax.errors import UserError
from cdl_jax.options import Option, defaults
from cdl_jax.published import cdl
from cdl_jax.run import listing, progress, workdir

ROOT = Path(cdl_jax.__file__).parents[1]


@pytest.mark.parametrize("text", ["quickstart", "quickstart.py", "configs/quickstart", "configs/quickstart.py"])
def test_shipped_configs_are_found_by_name_from_any_folder(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find(text).resolve() == ROOT / "configs" / "quickstart.py"


def test_a_file_of_the_user_precedes_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart.py").write_text("")
    assert config_files.find("quickstart.py").resolve() == tmp_path / "quickstart.py"


def test_the_path_of_a_config_may_contain_colons(tmp_path):
    path = tmp_path / "a:b=1" / "c.py"
    path.parent.mkdir()
    path.write_text("")
    assert config_files.split_arguments(f"{path}") == (str(path), "")
    assert config_files.split_arguments(f"{path}:seed=3,text=x:y") == (str(path), "seed=3,text=x:y")
    assert config_files.split_arguments(f"file://{path}:seed=3") == (f"file://{path}", "seed=3")
    assert config_files.find(f"file://{path}") == path
    assert config_files.split_arguments("file:///absent.py:seed=3") == ("file:///absent.py", "seed=3")
    assert config_files.split_arguments("quickstart") == ("quickstart", "")
    assert config_files.split_arguments("quickstart:distill=none") == ("quickstart", "distill=none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("QuickStart", "did you mean 'quickstart'?"),
        ("n" * 256, "is longer than 255 bytes"),
        ("tests", "config file tests is a folder: name a file in it"),
    ],
)
def test_the_message_about_a_config_file_has_its_cause(name, message):
    with pytest.raises(UserError) as error:
        config_files.find(name)
    assert message in str(error.value)


def test_an_unknown_config_gets_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'cifar100_l2p'"):
        config_files.find("cifar100_l2")


@pytest.mark.parametrize(
    ("path", "arguments", "expected"),
    [
        ("configs/cifar100_l2p.py", "", "runs/cifar100_l2p"),
        ("quickstart.py", "distill=none,seed=3", "runs/quickstart-distill=none-seed=3"),
        ("dkt.py", "teacher=runs/dkt/joint", "runs/dkt-teacher=runs-dkt-joint"),
    ],
)
def test_the_default_workdir_is_named_after_the_config(path, arguments, expected):
    assert main.default_workdir(Path(path), arguments) == expected


def test_version_usage_and_list(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cdl_jax {cdl_jax.__version__}\n"
    assert main.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: python -m cdl_jax.main --config CONFIG")
    assert main.main(["--list"]) == 0
    listed = capsys.readouterr().out
    words = {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}
    for folder in ("methods", "models.learners", "distill", "data.sources", "models"):
        assert set(plugins.list_plugins(folder)) <= words
    assert set(config_files.shipped_configs()) <= words
    assert "vit_b16" in listed and "resnet152" in listed


@pytest.mark.parametrize("data", ["cifar100", "imagenet_r"])
@pytest.mark.parametrize("learner", ["l2p", "dualprompt", "coda", "apt"])
def test_named_configs_have_the_published_settings(data, learner):
    module = _get_config(f"{data}_{learner}")
    for text, choices in (
        ("", {}),
        ("distill=kd_token,student=vit_b16", {"distill": "kd_token", "student": "vit_b16"}),
    ):
        built = config.flatten(module(text))
        expected_config = config.flatten(cdl.build(data=data, learner=learner, **choices))
        other = {key for key in expected_config if built[key] != expected_config[key]}
        assert other == {"teacher.weights", "student.weights"}
    assert built["student.weights"] == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    assert built["teacher.weights"] == "vit_large_patch16_224.augreg_in21k_ft_in1k"


@pytest.mark.parametrize(
    ("name", "of"), [("cifar100_okddip", "okddip"), ("cifar100_dkt", "dkt"), ("imagenet_vkd", "vkd")]
)
def test_configs_of_the_other_systems_have_the_published_settings(name, of):
    built, expected_config = (config.flatten(_get_config(each)("")) for each in (name, of))
    assert {key for key in expected_config if built[key] != expected_config[key]} <= {"teacher.weights"}


@pytest.mark.parametrize("name", sorted(config_files.shipped_configs()))
def test_every_shipped_config_has_a_summary_for_the_list(name):
    assert len(config_files.summary(config_files.shipped_configs()[name])) > 20


def _get_config(name):
    space = {"__file__": str(config_files.shipped_configs()[name]), "__name__": name}
    exec(compile(config_files.shipped_configs()[name].read_text(), name, "exec"), space)
    return space["get_config"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = (", ", line 1: SyntaxError: '(' was never closed"),
        ("def get_config(text=''):\n    return absent", ", line 2: NameError: name 'absent' is not defined"),
        ("import absent_module", ", line 1: ModuleNotFoundError: No module named 'absent_module'"),
        ("", ": it does not define get_config(text)"),
        ("raise SystemExit('no GPU')", ", line 1: SystemExit: no GPU"),
        ("import sys\nsys.exit()", ", line 2: SystemExit"),
        ("def get_config(text=''):\n    return {}", ": get_config returns dict, not a ConfigDict"),
    ],
)
def test_a_mistake_in_a_config_file_is_reported_with_its_line(tmp_path, capsys, text, expected):
    (tmp_path / "mine.py").write_text(text)
    assert main.main(["--config", str(tmp_path / "mine.py"), "--workdir", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cdl_jax: config file {tmp_path / 'mine.py'}{expected}")
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_a_file_that_a_config_imports_has_its_own_place(tmp_path):
    (tmp_path / "broken_part.py").write_text("x = 1\ny = (")
    text = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\ntry:\n    import broken_part\n"
    text += "finally:\n    del sys.path[0]"
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as error:
        config_files.load(tmp_path / "mine.py", "")
    place = f"config file {tmp_path / 'mine.py'}, line 4: SyntaxError: '(' was never closed (broken_part.py, line 2)"
    assert str(error.value) == place


def _own_config(folder, line):
    """Returns the path of a config file with the defaults of `cdl` and one more line."""
    (folder / "own.py").write_text(
        "import ml_collections\nfrom cdl_jax import config as base\n\n\ndef get_config(text=''):\n"
        f"    config = base.default('cdl', data='glyph_mini')\n    {line}\n    return config\n"
    )
    return str(folder / "own.py")


@pytest.mark.parametrize(
    ("line", "flags", "message"),
    [
        ("config[3] = 4", [], "the key 3 is not the name of an option: use names such as 'epochs'"),
        ("config.train[3] = {}", [], "the key 3 of config.train is not the name of an option"),
        ("config = ml_collections.ConfigDict({3: 4})", [], "the key 3 is not the name of an option"),
        ("config['train.epochs'] = 4", [], "ConfigDict does not accept dots in field names"),
        (
            "config.train.epochs = ml_collections.config_dict.required_placeholder(int)",
            ["--config.train.epochs=1"],
            "config.train.epochs is a required placeholder: set its value in the file",
        ),
        (
            "config.train.epochs = ml_collections.config_dict.placeholder(int)",
            [],
            "config.train.epochs=None must be of type int, such as 20",
        ),
        ("pass", ["-config.foo=1"], "unknown key config.foo: python -m cdl_jax.main --config ... --mode=describe"),
        ("pass", ["--noconfig.foo"], "unknown key config.foo: "),
        ("pass", ["--noconfig.train.epochs"], "config.train.epochs is not true or false: write --config.train.epochs"),
        ("pass", ["--config.train=3"], "config.train is a section of options: set one of them, such as --config.tra"),
        ("pass", ["--config.seeds={0:1}"], "config.seeds={0:1} is of type dict: write a tuple, such as '(0,1)'"),
        ("pass", ["--config.seeds", "({0: 1})"], "config.seeds=({0: 1}) is of type dict"),
        ("pass", ["--config.seeds={0,1}"], "config.seeds={0,1} is of type set"),
        ("pass", ["--config.seeds=b'ab'"], "config.seeds=b'ab' is of type bytes"),
        ("pass", ["--config.zzzz=1"], "--mode=describe --show_config shows all keys"),
        ("pass", ["--zzzz=1"], "--mode=describe --show_config shows all keys"),
        ("pass", ["--config.KD=1"], "unknown key config.KD: did you mean 'distill.name'?"),
    ],
)
def test_a_mistake_in_keys_and_values_is_one_line(line, flags, message, tmp_path):
    with pytest.raises(UserError) as error:
        main.parse(["cdl_jax", "--config", _own_config(tmp_path, line), *flags])
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "flags", "epochs", "report"),
    [
        ("config = ml_collections.FrozenConfigDict(config)", ["--config.train.epochs=3"], 3, True),
        (
            "config.train.epochs = ml_collections.config_dict.placeholder(int)",
            ["--config.train.epochs=3"],
            3,
            True,
        ),
        ("pass", ["-config.train.epochs=3", "--noconfig.log.report"], 3, False),
    ],
)
def test_unusual_configs_and_flags_are_read(line, flags, epochs, report, tmp_path):
    config = main.parse(["cdl_jax", "--config", _own_config(tmp_path, line), *flags]).config
    assert (config.train.epochs, config.log.report) == (epochs, report)


def test_an_unknown_empty_section_is_refused():
    built = config.default("cdl", data="glyph_mini")
    built.trian = {}
    with pytest.raises(UserError, match="unknown key config.trian: did you mean 'train'"):
        config.check_keys(built)


def test_fetch_downloads_missing_files_and_leaves_other_mistakes_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CDL_DATA", str(tmp_path / "data"))
    fetched = []
    monkeypatch.setattr("cdl_jax.fetch.get", fetched.append)
    built = _get_config("cifar100_l2p")("")
    main.fetch_missing(built)
    names_of_weights = [f"vit_{size}_patch16_224.augreg_in21k_ft_in1k" for size in ("base", "small")]
    assert sorted(fetched) == ["cifar100", *names_of_weights]
    fetched.clear()
    built.teacher.weights = str(tmp_path)  # a folder without weights, such as a teacher's run
    built.distill.name = "none"
    main.fetch_missing(built)
    assert sorted(fetched) == ["cifar100", names_of_weights[1]]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("mode", "more"), [("train", "device: cpu, all networks in float32\n"), ("eval", "")])
def test_the_first_of_several_processes_prints_the_working_directory(index, mode, more, tmp_path, monkeypatch, capsys):
    joined = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cdl_jax.runtime.distributed.initialize", joined.append)
    monkeypatch.setattr("jax.process_index", lambda: index if joined else pytest.fail("called before jax has started"))
    monkeypatch.setattr("cdl_jax.run.loop.train", lambda *_: [])
    monkeypatch.setattr("cdl_jax.report.run_page.summary", lambda seeds: "done")
    experiment = SimpleNamespace(config=None, method=None, info=None, stream=None)
    monkeypatch.setattr("cdl_jax.run.start.build_experiment", lambda config, *_: experiment)
    monkeypatch.setattr("cdl_jax.training.compatibility.check_new_run", lambda *_: None)
    monkeypatch.setattr("cdl_jax.training.dtypes.describe", lambda config: "device: cpu, all networks in float32")
    monkeypatch.setattr(main, "_evaluate", lambda *_: 0)
    assert main.main(["--config", "quickstart", "--mode", mode, "--distributed=auto"]) == 0
    assert joined == ["auto"]
    printed = "" if index else f"workdir: runs/quickstart\n{more}"
    assert capsys.readouterr().out.removesuffix("done\n") == printed


@pytest.mark.parametrize("stored", [25.0, 24.0])
def test_an_evaluation_of_a_detector_prints_its_numbers(stored, monkeypatch, capsys):
    numbers = {"student/AP": 25.0, "student/AP50": 50.5}
    student = {"now": [25.0], "stored": [stored], "numbers": numbers, "class_ap": [("cat", 25.0), ("dog", None)]}
    found = {"task": 0, "metric": "AP", "networks": {"student": student}}
    monkeypatch.setattr(main, "_stored_run", lambda *_: None)
    monkeypatch.setattr("cdl_jax.run.loop.evaluate", lambda *_: found)
    assert main._evaluate(None, None, 0) == (stored != 25.0)
    first, head, ap, ap50, *_, cat, dog, last = capsys.readouterr().out.splitlines()
    assert first == "student after task 0: 25.00" and head.split() == ["student", "%"]
    assert ap.split() == ["AP", "25.00"] and ap50.split() == ["AP50", "50.50"]
    assert cat.split() == ["cat", "25.00"] and dog.split() == ["dog", "-"]
    assert last == f"{'equal' if stored == 25.0 else 'NOT equal'} to the run's AP matrix"


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), workdir.locked(tmp_path / "runs" / "a"):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("")
    with pytest.raises(UserError), workdir.locked(tmp_path / "mine"):
        raise UserError("refused")
    assert (tmp_path / "mine" / "note").exists()


def test_a_stored_config_of_an_earlier_version_is_completed_with_defaults():
    stored = {"method": "cdl", "train": {"epochs": 3}}
    filled = config.with_defaults(stored)
    assert filled["train"] == {**defaults(config.OPTIONS)["train"], "epochs": 3}
    assert config.differences(config.flatten(stored), config.flatten(filled)) == []
    assert config.differences({"train.epochs": 3}, {"train.epochs": 4}) == ["train.epochs: 3 -> 4"]


def test_progress_is_written_as_lines_to_a_log(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.Lines(total=200, initial=50, interval=0.01) as lines:
        lines.update(50)
        lines.set_postfix_str("task 0, student, loss 1.500")
        deadline = 2000
        while log.getvalue().count("\n") < 4 and deadline:
            lines._ended.wait(0.005)
            deadline -= 1
    written = log.getvalue().splitlines()
    assert len(written) >= 4  # one of the phase, two of the clock, and the last
    assert written[-1].startswith("step 100 of 200 (50 %), ") and written[-1].endswith("; task 0, student, loss 1.500")


def test_a_phase_without_a_loss_has_a_line_of_its_own_and_no_line_is_repeated_at_the_end(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.Lines(total=4, initial=0) as lines:
        for phase, means in (("student", {"loss": np.array([0.5])}), ("student_fit", {"images": np.array([2.0])})):
            lines.update(2)
            lines.set_postfix_str(progress.position_text(0, phase, means))
    written = [line.split("; ")[1] for line in log.getvalue().splitlines()]
    assert written == ["task 0, student, loss 0.500", "task 0, student_fit"]


def test_progress_is_shown_as_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.show(10, 0, primary=True) as bar:
        bar.update(1)
    assert not isinstance(bar, progress.Lines) and bar.n == 1


def test_help_with_a_config_lists_its_options(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    command = ["--config", "quickstart:distill=dkd", "--config.distill.alpha=0.25", "--help"]
    assert main.main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("Runs an experiment.") and "--workdir DIR" in text
    lines = text.split("options of this config: --config.KEY=VALUE\n")[1].splitlines()
    assert max(map(len, lines)) <= 100
    keys = [line.split()[0] for line in lines if not line.startswith("   ")]
    assert keys == sorted(keys) and {"distill.other_weight", "train.early_stopping.patience", "method"} <= set(keys)
    (alpha,) = (number for number, line in enumerate(lines) if line.split()[0] == "distill.alpha")
    shown = " ".join(" ".join(lines[alpha : alpha + 3]).split())
    assert shown.startswith(
        "distill.alpha 0.25 weight of the distillation loss; the cross-entropy with the labels has "
    )
    assert "weight 1 - alpha ([0, 1])" in shown


def test_help_shows_an_open_range_without_double_parentheses():
    option = Option(0.5, "exponent", above=0, below=2)
    assert listing._option_lines("distill.sharpness", 1.0, option, 20).endswith("  exponent, in (0, 2)")


def test_help_alone_names_no_config(capsys):
    assert main.main(["--help"]) == 0
    assert "options of this config" not in capsys.readouterr().out


def test_images_of_a_repeated_flag_are_all_kept():
    words = ["cdl_jax", "--images", "a.png", "b.png", "--mode=predict", "--images=c.png", "--task=1"]
    assert main._split_paths(words, "images") == (
        ["cdl_jax", "--mode=predict", "--task=1"],
        ["a.png", "b.png", "c.png"],
    )
    assert main._split_paths(["cdl_jax", "--task=1"], "images") == (["cdl_jax", "--task=1"], None)
