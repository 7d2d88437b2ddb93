"""Weights and teachers are compared by content, not by path."""

import hashlib
import json
import shutil
import sys

import pytest

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.models.weights import packaged_file
from cdl_jax.run import fingerprints, workdir

NAME = "vit_base_patch16_224.augreg_in21k"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Claims a run of a student with weights in a file.

    Returns:
        The function of the run's config, for other places of the weights and of the teacher runs.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "a.npz").write_bytes(b"one")
    teacher(tmp_path / "teacher")

    def config(weights="a.npz", teachers=("teacher",)):
        return {"student": {"weights": weights}, "teacher": {"weights": "random"}, "cdl": {"teacher_runs": teachers}}

    workdir.write_config(tmp_path, config())
    return config


def teacher(folder, variables=b"kernel", seed=0):
    for part in ("frozen", "tasks/0/live", "latest/7"):
        (folder / "checkpoints" / part).mkdir(parents=True)
        (folder / "checkpoints" / part / "data").write_bytes(variables)
    (folder / "config.json").write_text(json.dumps({"config": {"seed": seed}}))
    (folder / "results.json").write_text(json.dumps({"stream": {"tasks": []}, "cost": 1.5}))


def refused(folder, config):
    with pytest.raises(UserError) as error:
        workdir.check_config(folder, config)
    return str(error.value)


def test_config_json_has_the_sha256_of_each_file(run, tmp_path):
    content = json.loads((tmp_path / "config.json").read_text())["content"]
    assert content["student.weights"] == [hashlib.sha256(b"one").hexdigest()]
    assert set(content) == {"student.weights", "cdl.teacher_runs"}  # random weights have none
    assert len(content["cdl.teacher_runs"]) == 1 and len(content["cdl.teacher_runs"][0]) == 64


def test_weights_in_any_spelling_or_at_another_place_are_the_same_run(run, tmp_path):
    for weights in (
        "./a.npz",
        str(tmp_path / "a.npz"),
        f"file://{tmp_path}/a.npz",
        f"{tmp_path}/../{tmp_path.name}/a.npz",
    ):
        workdir.check_config(tmp_path, run(weights))
    (tmp_path / "timm" / NAME).mkdir(parents=True)
    (tmp_path / "home").mkdir()
    for moved in ("b.npz", "home/a.npz", f"timm/{NAME}/model.safetensors"):
        shutil.copy(tmp_path / "a.npz", tmp_path / moved)
        workdir.check_config(tmp_path, run(moved))
    (tmp_path / "a.npz").unlink()
    for moved in ("~/a.npz", f"timm/{NAME}/"):
        workdir.check_config(tmp_path, run(moved))
    workdir.check_config(tmp_path, run())  # gone: its checkpoint has what it needs


def test_a_file_of_the_package_counts_by_its_content(run, tmp_path):
    packaged = "package:glyph_mini_student"
    (digest,) = fingerprints.fingerprint_config(run(packaged))["student.weights"]
    with packaged_file(packaged) as path:
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, tmp_path / "copy.npz")
    stored = {"config": run(packaged), "content": {"student.weights": [digest]}}
    assert configs.differences(*fingerprints.align_configs(stored, run(packaged))) == []
    assert configs.differences(*fingerprints.align_configs(stored, run("copy.npz"))) == []
    before = {"config": run(packaged), "content": {}}  # a run from before this fingerprint
    assert configs.differences(*fingerprints.align_configs(before, run(packaged))) == []
    changed = {"config": run(packaged), "content": {"student.weights": ["0" * 64]}}
    (message,) = configs.differences(*fingerprints.align_configs(changed, run(packaged)))
    assert message.startswith("student.weights: 'package:glyph_mini_student with SHA-256 000000000000' -> ")
    assert fingerprints.fingerprint_config(run("package:absent"))["student.weights"] == [None]


def test_the_same_place_with_another_content_is_another_run(run, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"two")
    message = refused(tmp_path, run())
    one, two = (hashlib.sha256(content).hexdigest()[:12] for content in (b"one", b"two"))
    assert f"student.weights: 'a.npz with SHA-256 {one}' -> 'a.npz with SHA-256 {two}'" in message
    assert "student.weights" in refused(tmp_path, run("random"))
    assert "student.weights" in refused(tmp_path, run("package:glyph"))
    assert "student.weights" in refused(tmp_path, run("absent.npz"))


def test_a_teacher_that_moved_is_the_same(run, tmp_path):
    for place in ("teacher/", "./teacher", str(tmp_path / "teacher")):
        workdir.check_config(tmp_path, run(teachers=(place,)))
    shutil.move(tmp_path / "teacher", tmp_path / "archive")
    workdir.check_config(tmp_path, run(teachers=("archive/",)))
    # What a student does not take: checkpoints within a task, measured costs.
    shutil.rmtree(tmp_path / "archive" / "checkpoints" / "latest")
    (tmp_path / "archive" / "results.json").write_text(json.dumps({"stream": {"tasks": []}, "cost": 9.0}))
    workdir.check_config(tmp_path, run(teachers=("archive",)))


@pytest.mark.parametrize("change", [{"variables": b"other"}, {"seed": 1}])
def test_another_teacher_at_the_same_place_is_refused(run, tmp_path, change):
    shutil.rmtree(tmp_path / "teacher")
    teacher(tmp_path / "teacher", **change)
    assert "cdl.teacher_runs: \"['teacher'] with SHA-256 " in refused(tmp_path, run())
    assert "cdl.teacher_runs" in refused(tmp_path, run(teachers=("teacher", "teacher")))


def test_a_teacher_in_the_weights_option_is_a_run(tmp_path):
    teacher(tmp_path / "teacher")
    teacher(tmp_path / "copy")
    one, other = (
        fingerprints.fingerprint_config({"teacher": {"weights": str(tmp_path / n)}}) for n in ("teacher", "copy")
    )
    assert one == other and one["teacher.weights"] != [None]


def test_a_run_without_fingerprints_goes_by_its_paths(run, tmp_path):
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["content"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    workdir.check_config(tmp_path, run(str(tmp_path / "a.npz"), teachers=("teacher/",)))
    shutil.copy(tmp_path / "a.npz", tmp_path / "b.npz")
    assert "student.weights: 'a.npz' -> 'b.npz'" in refused(tmp_path, run("b.npz"))


def test_a_plug_in_with_other_content_is_another_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "scheme.py").write_text("OPTIONS = {}\n")
    config = {"distill": {"name": "users.scheme"}, "optim": {"name": "adam"}}
    folder = tmp_path / "run"
    folder.mkdir()
    workdir.write_config(folder, config)
    digest = hashlib.sha256(b"OPTIONS = {}\n").hexdigest()
    assert json.loads((folder / "config.json").read_text())["content"] == {"distill.name": [digest]}
    workdir.check_config(folder, config)
    (tmp_path / "users" / "scheme.py").write_text("OPTIONS = {'alpha': 1.0}\n")
    assert refused(folder, config) == (
        f"{tmp_path / 'users' / 'scheme.py'} has changed since the run in --workdir {folder} began: restore it, or "
        "choose another --workdir"
    )
    (tmp_path / "users" / "other.py").write_text("OPTIONS = {}\n#")
    other = hashlib.sha256(b"OPTIONS = {}\n#").hexdigest()
    assert refused(folder, {**config, "distill": {"name": "users.other"}}) == (
        f"--workdir {folder} holds a run of another config (distill.name: 'users.scheme with SHA-256 {digest[:12]}' -> "
        f"'users.other with SHA-256 {other[:12]}'): choose another --workdir"
    )


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    """A plug-in whose files, except `unrelated`, are each imported in another way."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "userfiles"
    texts = {
        "userfiles/scheme.py": "import jax.numpy\nfrom userfiles import first\nfrom userfiles.deep.second import X\n",
        "userfiles/first.py": "from . import third\nimport numpy, os\n",
        "userfiles/third.py": "def f():\n    import userfiles.scheme, beside_userfiles\n",
        "userfiles/deep/second.py": "from ..fourth import Y as X\nfrom cdl_jax.distill import kd\n",
        "userfiles/fourth.py": "Y = 1\n",
        "userfiles/unrelated.py": "",
        "beside_userfiles.py": "",
    }
    (folder / "deep").mkdir(parents=True)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path, [name for name in texts if "unrelated" not in name]


def test_files_that_a_plug_in_imports_are_found_without_an_import(helpers):
    folder, names = helpers
    files = fingerprints.plugin_files("userfiles.scheme")
    assert files[0] == folder / "userfiles/scheme.py" and set(files) == {folder / name for name in names}
    assert fingerprints.plugin_files("userfiles.absent") == fingerprints.plugin_files("absent_package.scheme") == []
    (own,) = fingerprints.plugin_files("cdl_jax.distill.kd")
    assert own.name == "kd.py"
    assert not any(name.startswith(("userfiles", "beside_userfiles")) for name in sys.modules)


def test_a_changed_file_that_a_plug_in_imports_is_named(helpers):
    folder, names = helpers
    config, run = {"method": "userfiles.scheme"}, folder / "run"
    run.mkdir()
    workdir.write_config(run, config)
    for name in names:
        text = (folder / name).read_text()
        (folder / name).write_text(f"{text}# changed\n")
        assert refused(run, config).startswith(f"{folder / name} has changed since the run in --workdir {run} began: ")
        (folder / name).write_text(text)
    (folder / "userfiles/unrelated.py").write_text("changed = 1")
    workdir.check_config(run, config)


def test_a_run_of_an_earlier_version_has_the_fingerprint_of_the_plug_in_alone(helpers):
    folder, _ = helpers
    config, run = {"method": "userfiles.scheme"}, folder / "run"
    run.mkdir()
    workdir.write_config(run, config)
    stored = json.loads((run / "config.json").read_text())
    stored["content"]["method"] = stored["content"]["method"][:1]
    (run / "config.json").write_text(json.dumps(stored))
    (folder / "userfiles/first.py").write_text("changed = 1")
    workdir.check_config(run, config)
