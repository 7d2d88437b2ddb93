"""A working directory: complete files, one process at a time, one config."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cdl_jax.errors import UserError
from cdl_jax.run import workdir
from cdl_jax.runtime import files

ROOT = Path(__file__).parents[3]
CONFIG = {"seed": 0, "learner": {"pool": 30, "top_k": 5}, "log": {"every_steps": 50}}


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    files.write_atomically(path, "old")
    replace, seen = os.replace, []

    def crash(source, target):
        seen.append((Path(source).read_text(), Path(target).read_text(), Path(source).parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, "new and longer")
    assert seen == [("new and longer", "old", tmp_path)]  # complete beside it, in the same file system
    assert path.read_text() == "old"
    monkeypatch.setattr(os, "replace", replace)
    files.write_atomically(path, "newest")
    assert path.read_text() == "newest"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def hold(folder) -> subprocess.Popen:
    """Another process that holds the lock until it is killed."""
    code = (
        "import sys, time; from pathlib import Path; from cdl_jax.run import workdir\n"
        "with workdir.locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_locked_directory_is_refused_until_its_process_is_killed(tmp_path):
    folder = tmp_path / "new" / "run"
    holder = hold(folder)
    try:
        message = refusal(lambda: workdir.locked(folder).__enter__())
        assert message.startswith(f"--workdir {folder} is in use by process {holder.pid} on {socket.gethostname()}: ")
        assert holder.poll() is None
    finally:
        holder.kill()
        assert holder.wait(timeout=10) == -signal.SIGKILL
    with workdir.locked(folder):
        assert (folder / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_lock_ends_with_its_block_even_by_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), workdir.locked(tmp_path):
        assert "is in use by" in refusal(lambda: workdir.locked(tmp_path).__enter__())
        raise ZeroDivisionError
    with workdir.locked(tmp_path):
        pass


def test_a_file_system_without_locks_has_its_own_message(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", no_locks)
    message = refusal(lambda: workdir.locked(tmp_path).__enter__())
    assert message.startswith(f"--workdir {tmp_path} cannot be locked (No locks available): ")


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / "seed_3").mkdir()
    begun = [tmp_path / ".report.html.4242", tmp_path / "seed_3" / ".results.json.7", tmp_path / ".w.npz.7.tmp",
             tmp_path / ".metrics.csv.12", tmp_path / ".wandb_run.json.3"]  # fmt: skip
    for path in (*begun, tmp_path / ".hidden", tmp_path / "results.json"):
        path.write_text("{")
    with workdir.locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "lock", "results.json", "seed_3"]
        assert list((tmp_path / "seed_3").iterdir()) == []


def test_the_files_and_folders_of_the_user_stay(tmp_path):
    (tmp_path / "seed_0").mkdir()
    (tmp_path / "seed_notes").write_text("")
    names = [
        ".notes.2024",
        ".python.3.12",
        ".results.json.2024-bak",
        ".config.json.1.orig",
        ".results.json.",
        ".env.1x",
    ]
    names += [".data.npz.7", ".results.csv.7", ".features_x.png.7", "results.json.7"]
    users = [folder / name for folder in (tmp_path, tmp_path / "seed_0") for name in names]
    for path in users:
        path.write_text("mine")
    (tmp_path / ".results.json.12").mkdir()
    (tmp_path / ".report.html.12").symlink_to(users[0])
    begun = [".config.json.1", ".metrics.jsonl.22", ".nonfinite.json.3", ".analysis.json.4", ".features_teacher.svg.5"]
    for name in begun:
        (tmp_path / name).write_text("{")
    with workdir.locked(tmp_path):
        assert [path for path in users if path.read_text() != "mine"] == []
        assert (tmp_path / ".results.json.12").is_dir() and (tmp_path / ".report.html.12").is_symlink()
        assert [name for name in begun if (tmp_path / name).exists()] == []


def test_a_seed_of_an_unfinished_run_of_several_is_no_run_of_its_own(tmp_path):
    several, own = tmp_path / "run", tmp_path / "run" / "seed_3"
    own.mkdir(parents=True)
    workdir.write_config(several, {**CONFIG, "seeds": [0, 3]})
    workdir.write_config(own, {**CONFIG, "seed": 3})
    assert f"belongs to the run of several seeds in {several}" in refusal(workdir.check_seeds, own, ())
    (own / "results.json").write_text('{"status": "running"}')
    assert "go on with its command there" in refusal(workdir.check_seeds, own, ())
    (own / "results.json").write_text('{"status": "finished"}')
    workdir.check_seeds(own, ())  # logged, and nothing is trained
    workdir.check_seeds(several, (0, 3))
    workdir.check_seeds(several / "seed_4", ())  # none of that run's


def test_several_seeds_do_not_take_over_a_run_of_one(tmp_path):
    single = tmp_path / "sweep" / "seed_0"
    single.mkdir(parents=True)
    workdir.write_config(single, CONFIG)
    assert f"{single} holds a run of its own" in refusal(workdir.check_seeds, tmp_path / "sweep", (0, 1))
    workdir.check_seeds(tmp_path / "sweep", (1, 2))
    workdir.check_seeds(single, ())


def test_a_path_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        message = refusal(lambda place=place: workdir.locked(place).__enter__())
        assert message.startswith(f"--workdir {place} cannot be written (") and message.endswith("choose another")


def test_another_config_is_refused_by_its_differences(tmp_path):
    workdir.check_config(tmp_path, CONFIG)  # nothing there yet
    workdir.write_config(tmp_path, CONFIG)
    workdir.check_config(tmp_path, {**CONFIG, "log": {"every_steps": 1}, "devices": 4})
    message = refusal(workdir.check_config, tmp_path, {**CONFIG, "seed": 2, "learner": {"pool": 10, "top_k": 5}})
    assert "(learner.pool: 30 -> 10; seed: 0 -> 2)" in message
    many = {**CONFIG, **{f"option_{i}": i for i in range(11)}}
    message = refusal(workdir.check_config, tmp_path, many)
    assert "option_6: 'absent' -> 6; and 3 more)" in message and message.count("'absent'") == 8


def test_config_versions_and_command_are_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", "--config", "a b.py", "--workdir=x"])
    workdir.write_config(tmp_path, CONFIG)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["config"] == CONFIG
    assert stored["command"] == "python -m cdl_jax.main --config 'a b.py' --workdir=x"
    assert stored["versions"]["python"] == sys.version.split()[0]
    assert stored["versions"]["jax"] == __import__("jax").__version__
    workdir.write_config(tmp_path, {"seed": 9})
    assert json.loads((tmp_path / "config.json").read_text()) == stored


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository of one commit in the folder `project`.

    Returns:
        (the folder, a function that runs git in the folder).
    """
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "project"
    folder.mkdir()

    def git(*arguments):
        command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    (folder / "README").write_text("A project.")
    git("add", "README")
    git("commit", "-qm", "First")
    return folder, git


def commit_of(folder, monkeypatch):
    """Returns the result of `commit()` for a copy of the package in `folder`."""
    package = folder / "cdl_jax"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(workdir, "__file__", str(package / "run" / "workdir.py"))
    return workdir.commit()


def test_the_commit_is_that_of_the_repository_that_tracks_the_package(repository, monkeypatch):
    folder, git = repository
    assert commit_of(folder, monkeypatch) is None  # at the top of a repository that does not track it
    git("add", "cdl_jax")
    git("commit", "-qm", "The package")
    assert commit_of(folder, monkeypatch) == git("rev-parse", "HEAD")
    monkeypatch.setenv("PATH", "")
    assert workdir.commit() is None


@pytest.mark.parametrize("place", [".venv/lib/python3.11/site-packages", "third_party"])
@pytest.mark.parametrize("tracked", [False, True])
def test_the_commit_is_not_that_of_a_repository_around_the_package(repository, monkeypatch, place, tracked):
    folder, git = repository
    commit_of(folder / place, monkeypatch)
    if tracked:
        git("add", "-A")
        git("commit", "-qm", "Everything")
    assert commit_of(folder / place, monkeypatch) is None


def test_there_is_no_commit_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert commit_of(tmp_path / "site-packages", monkeypatch) is None
