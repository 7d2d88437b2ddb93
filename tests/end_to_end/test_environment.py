"""Tests runs on machines without memory, disk, a platform, a home or UTF-8.

Each lack leads to one line with the remedy, or to no change.
"""

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import cdl_jax
from cdl_jax import main
from cdl_jax.run import progress
from cdl_jax.runtime import compilation_cache, environment
from tests.end_to_end.command import ROOT, TINY, run, run_in_process

FEW = ("--config", TINY, "--config.train.epochs=1", "--config.checkpoint.every_steps=0")
# Runs the command line as a user without HOME and without an entry among the system's users.
NO_HOME = """
import os, pwd, sys
os.environ.pop("HOME", None)
def absent(uid):
    raise KeyError(uid)
pwd.getpwuid = absent
from cdl_jax import main
sys.exit(main.main(sys.argv[1:]))
"""


def only_line(err: str) -> str:
    """Returns the one line of an error.

    Log lines of this program and of libraries may precede it.
    """
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("cdl_jax: ")]
    return line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of host memory: lower --config.train.batch_size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of host memory ([Errno 12] Cannot allocate memory): "),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "out of device memory (RESOURCE_EXH"),
        (RuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"), "out of device memory (INTERNAL: CUDA_"),
        (RuntimeError("can't start new thread"), "the system starts no more threads: raise the limit of processes"),
        (OSError(errno.ENOSPC, "No space left on device", "a.json"), "a.json cannot be written: No space left on dev"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "a file cannot be written: Disk quota exceeded; correct this"),
        (OSError(errno.EMFILE, "Too many open files", "a.png"), "a.png: Too many open files; raise the limit of open"),
        (RuntimeError("INTERNAL: a fault of the program"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), None),
    ],
)
def test_errors_of_the_machine_are_recognized(error, line):
    wrapped = ValueError("raised further up")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        found = environment.explain_error(each)
        assert found is None if line is None else found.startswith(line)


def test_an_array_that_no_memory_holds_is_recognized():
    with pytest.raises(MemoryError) as host:
        np.zeros(2**58, np.uint8)
    with pytest.raises(jax.errors.JaxRuntimeError) as device:
        jnp.zeros((2**29, 2**20)).block_until_ready()
    assert environment.explain_error(host.value).startswith(
        "out of host memory (Unable to allocate 256. PiB for an array"
    )
    assert environment.explain_error(device.value).startswith(
        "out of device memory (RESOURCE_EXHAUSTED: Out of memory alloc"
    )


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")]
)
def test_a_run_without_enough_memory_ends_in_one_line(error, tmp_path, capsys, monkeypatch):
    def no_memory(*_):
        raise error

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("cdl_jax.run.loop.train", no_memory)
    assert main.main([*FEW, "--workdir", str(tmp_path / "run")]) == 2
    assert "memory" in only_line(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("platform", ["cuda", "tpu", "no_such"])
@pytest.mark.parametrize("mode", ["train", "describe"])
def test_a_platform_that_jax_lacks_is_one_line(platform, mode, tmp_path):
    err = run(*FEW, "--workdir", tmp_path / "run", "--mode", mode, expect=2, JAX_PLATFORMS=platform)[1]
    assert only_line(err).startswith(f"cdl_jax: jax cannot start on JAX_PLATFORMS={platform} (")
    assert "set JAX_PLATFORMS=cpu" in only_line(err)
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_trains(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", NO_HOME, *FEW, "--workdir", "run", "--config.log.report=False"]
    done = subprocess.run(
        [*command[:4], str(ROOT / TINY), *command[5:]], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "config.compilation_cache=~/.cache/cdl_jax/compiled: this user has no home folder, set HOME" in done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_home_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    compilation_cache.enable_cache("~/.cache")
    assert "Not a directory; nothing is cached" in caplog.text


def images(folder):
    """Writes four classes of images, most with names outside ASCII."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("café", "Ωmega", "plain", "日本"):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / split / name / f"ü{i}.png")


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("locale", [ASCII, {**ASCII, "PYTHONIOENCODING": "latin-1"}], ids=["ascii", "latin-1"])
def test_another_locale_changes_nothing(locale, tmp_path):
    images(tmp_path / "bücher")
    path = f"--config.data.path={tmp_path / 'bücher'}"
    small = ("--config.data.num_tasks=2", "--config.train.batch_size=4", "--config.eval.batch_size=4")
    few = ("--config", f"{TINY}:data=folder", *FEW[2:], *small, "--config.data.max_train_per_class=0", path)
    few = (*few, "--config.log.report=True")
    out = run(*few, "--mode=describe", **locale)[0]
    assert "4 classes in 2 tasks" in out
    run(*few, "--workdir", tmp_path / "run", **locale)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    # Evaluated in a UTF-8 locale it is the same run.
    assert "equal to the run's accuracy matrix" in run_in_process(*few, "--workdir", tmp_path / "run", "--mode=eval")[0]


def test_a_working_directory_that_tensorstore_cannot_name_is_refused(tmp_path):
    err = run(*FEW, "--workdir", tmp_path / "läuft", expect=2, **ASCII)[1]
    assert "TensorStore needs paths in UTF-8, and this path is not (locale: ascii): set PYTHONUTF8=1" in err
    assert list(tmp_path.iterdir()) == []


def test_every_text_file_is_opened_as_utf_8():
    found = []
    for path in Path(cdl_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node):
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def _opens_text(call):
    """Whether a call opens a text file without an encoding."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    words = [node.value for argument in call.args for node in ast.walk(argument) if isinstance(node, ast.Constant)]
    if any(keyword.arg in ("encoding", "fileobj", "formats") for keyword in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return "utf-8" not in words
    if name != "open":
        return False
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if owner in ("Image", "tarfile", "os", "archive"):
        return False
    return not any("b" in word for word in words if isinstance(word, str))


def test_a_limit_on_file_sizes_ends_a_run_in_one_line_and_it_goes_on(tmp_path):
    """As on a full disk: each file may have 20 kB, the checkpoints need more."""
    command = [sys.executable, "-m", "cdl_jax.main", *FEW, "--workdir", str(tmp_path), "--config.log.report=False"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": ""}
    limited = ["bash", "-c", 'ulimit -f 20; exec "$@"', "bash", *command]
    done = subprocess.run(limited, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in only_line(done.stderr) and "rerun the same command to resume" in only_line(
        done.stderr
    )
    assert subprocess.run(command, cwd=ROOT, env=env, capture_output=True).returncode == 0


def test_a_full_disk_under_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cdl_jax.main", "--list"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("cdl_jax: a file cannot be written: No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly():
    command = f"{sys.executable} -m cdl_jax.main --list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_log_that_cannot_be_written_ends_no_run(monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    with progress.Lines(10, 0) as lines:
        lines.set_postfix_str("task 0, student, loss 1.5")
    assert lines.phase == "task 0, student"
