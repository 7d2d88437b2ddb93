"""Each mistake of a user is answered in one line with exit code 2.

The line appears before any work and without a traceback.
"""

import errno
import fcntl
import subprocess
import sys

import numpy as np
import pytest

from cdl_jax import main
from cdl_jax.run import loop
from cdl_jax.runtime.checkpoint import Checkpoints
from tests.end_to_end.command import ROOT, TINY, environment


def answer(capsys, monkeypatch, *arguments):
    """(exit code, stderr) of the command line inside this process."""
    monkeypatch.chdir(ROOT)
    code = main.main([str(a) for a in arguments])
    return code, "\n".join(line for line in capsys.readouterr().err.splitlines() if not line.startswith("WARNING:"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--config.learner.top_kk=3"], "did you mean 'learner.top_k'"),
        (["--config.train.epoch=3"], "did you mean 'train.epochs'"),
        (["--config.train.epochs=many"], "many"),
        (["--config.train.epochs=0"], "config.train.epochs=0 must be at least 1"),
        (["--config.train.batch_size=400"], "larger than the"),
        (["--config.learner.top_k=7"], "learner.top_k=7 of a pool of 6"),
        (["--config.learner.length=5"], "learner.length=5 must be even"),
        (["--config.learner.key_loss=median"], "learner.key_loss='median'"),
        (["--config.learner.deep=True"], "learner.deep"),
        (["--config.data.num_tasks=7"], "task_sizes"),
        (["--config.distill.temperature=0.0"], "distill.temperature=0.0"),
        (["--config.distill.alpha=1.5"], "distill.alpha=1.5"),
        (["--config.optim.name=adamm"], "did you mean 'adam'"),
        (["--config.optim.schedule=cosin"], "did you mean 'cosine'"),
        (["--config.teacher.weights="], "config.teacher.weights is empty"),
        (["--config.teacher.weights=missing.npz"], "missing.npz"),
        (["--config.teacher.heads=5"], "heads=5"),
        (["--config.teacher.patch_size=12"], "patch_size=12"),
        (["--config.student.image_size=64"], "differ"),
        (["--config.train.on_nonfinite=ignore"], "use 'stop' or 'skip'"),
        (["--config.checkpoint.keep=0"], "config.checkpoint.keep=0 must be at least 1"),
        (["--config.devices=99"], "config.devices=99"),
        (["--config.method=cdll"], "did you mean 'cdl'"),
        (["--config.cdl.teacher_query=mine"], "cdl.teacher_query='mine'"),
        (["--mode=evaluate"], "did you mean 'eval'"),
        (["--taks=3"], "did you mean 'tasks'"),
        (["--lr=0.1"], "unknown flag --lr: did you mean 'config.optim.learning_rate'?"),
        (["--config.lr=0.1"], "unknown key config.lr: did you mean 'optim.learning_rate'?"),
        (["--config.learner.name=coda"], "config.learner.layers is missing, an option of config.learner.name='coda'"),
        (["--config.student.family=resnet"], "config.student.family='resnet' does not fit config.method='cdl'"),
        (["--config.method=dkt"], "config.dkt.classes is missing, an option of config.method='dkt'"),
        (["stray"], "unexpected argument 'stray'"),
        (["--mode=eval"], "has no run"),
        (["--distributed=here"], "HOST:PORT,NUM_PROCESSES,PROCESS_ID"),
    ],
)
def test_options(overrides, expected, tmp_path, capsys, monkeypatch):
    code, err = answer(capsys, monkeypatch, "--config", TINY, "--workdir", tmp_path / "run", *overrides)
    assert code == 2
    assert expected in err and len(err.splitlines()) == 1, err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/missing.py", "configs/missing.py does not exist"),
        (TINY + ":distil=kd", "did you mean 'distill'"),
        (TINY + ":distill=dkdd", "did you mean 'dkd'"),
        (TINY + ":learner=l2q", "did you mean 'l2p'"),
        (TINY + ":distill=KD", "did you mean 'kd'"),
        ("configs/dkt.py:baseline=nave", "did you mean 'naive'? known: eeil, joint, lwf, naive, replay"),
        ("configs/okddip_glyph.py:method=cdl", "method 'cdl' has no choice 'network'"),
        (TINY + ":data=cifar10", "python -m cdl_jax.fetch cifar10"),
    ],
)
def test_config_files(config, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CDL_DATA", raising=False)
    code, err = answer(capsys, monkeypatch, "--config", config, "--workdir", tmp_path / "run")
    assert code == 2
    assert expected in err and len(err.splitlines()) == 1, err


LARGE = ["--config.teacher.image_size=64", "--config.student.image_size=64"]


@pytest.mark.parametrize("mode", ["train", "describe"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            LARGE,
            "augment.test='none' leaves 32 x 32 images, but the networks take 64 x 64; set augment.test='resize'",
        ),
        ([*LARGE, "--config.device_data_limit_mb=0"], "image 0: augment.test='none' leaves 32 x 32 images"),
        ([*LARGE, "--config.augment.train=none"], "augment.train='none' leaves 32 x 32 images"),
    ],
)
def test_images_that_the_networks_cannot_take_are_found_before_the_first_step(
    mode, changes, expected, tmp_path, capsys, monkeypatch
):
    trained = []
    monkeypatch.setattr(loop.TaskLoop, "run", lambda self: trained.append(self))
    flags = ["--config", "quickstart:joint=true", "--workdir", tmp_path / "runs" / "a", "--mode", mode, *changes]
    code, err = answer(capsys, monkeypatch, *flags)
    assert code == 2 and expected in err and len(err.splitlines()) == 1, err
    assert not trained and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--config.teacher.weights=s3://x/y"], "config.teacher.weights='s3://x/y' is a remote path"),
        (["--config.student.weights=~nobody-has-this-name/x"], "config.student.weights='~nobody-has-this-name/x': "),
        (["--config.teacher.weights="], "config.teacher.weights is empty: name a file of trained weights"),
        (["--config.student.weights="], "config.student.weights is empty: name a file of trained weights"),
        (["--distributed=x"], "--distributed='x': use off, auto or HOST:PORT,NUM_PROCESSES,PROCESS_ID"),
    ],
)
def test_describe_refuses_paths_and_flags_that_training_refuses(changes, expected, capsys, monkeypatch):
    monkeypatch.setattr("cdl_jax.run.describe.describe", lambda *_, **__: pytest.fail("described"))
    code, err = answer(capsys, monkeypatch, "--config", TINY, "--mode=describe", *changes)
    assert code == 2 and expected in err and len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (TINY, ["--config.teacher.weights=missing.npz", "--config.student.weights=/absent/x.npz"]),
        (TINY + ":distill=none", ["--config.teacher.weights="]),
        *[(f"configs/{name}.py", []) for name in ("cdl", "emoji", "glyph100", "l2p_official", "vkd", "vkd_glyph")],
        ("configs/imagenet_vkd.py", []),
    ],
)
def test_describe_needs_no_file_of_weights(config, changes, capsys, monkeypatch):
    monkeypatch.setattr("cdl_jax.run.describe.describe", lambda *_, **__: "described")
    code, err = answer(capsys, monkeypatch, "--config", config, "--mode=describe", *changes)
    assert code == 0, err


def test_a_working_directory_that_checkpoints_cannot_use_is_not_made(tmp_path, capsys, monkeypatch):
    code, err = answer(capsys, monkeypatch, "--config", TINY, "--workdir", tmp_path / "a\\b")
    assert code == 2 and "choose a name without one" in err
    assert not list(tmp_path.iterdir())


def test_flags_that_are_missing(tmp_path, capsys, monkeypatch):
    code, err = answer(capsys, monkeypatch, "--mode=eval")
    assert code == 2 and err.startswith("cdl_jax: --config is missing: add --config")
    code, err = answer(capsys, monkeypatch, "--workdir", tmp_path / "empty")
    assert code == 2 and "has no run: add --config" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "empty").exists()
    code, err = answer(capsys, monkeypatch, "--config", TINY, "--workdir", tmp_path / "run", "--task=1")
    assert code == 2 and "--task=1 needs --mode=eval" in err


def test_weights_of_another_shape(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "weights.npz", cls_token=np.zeros((1, 1, 8)), **{"norm.weight": np.zeros(8)})
    flags = ["--config", TINY, "--workdir", tmp_path / "run", f"--config.teacher.weights={tmp_path / 'weights.npz'}"]
    code, err = answer(capsys, monkeypatch, *flags)
    assert code == 2 and "weights.npz" in err and "cls_token" in err and len(err.splitlines()) == 1


def test_a_damaged_archive(tmp_path, capsys, monkeypatch):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    flags = ["--config", TINY + ":data=cifar10", "--workdir", tmp_path / "run", f"--config.data.path={tmp_path}"]
    code, err = answer(capsys, monkeypatch, *flags)
    assert code == 2 and "cifar-10-python.tar.gz" in err and len(err.splitlines()) == 1


def test_a_workdir_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    code, err = answer(capsys, monkeypatch, "--config", TINY, "--workdir", tmp_path / "file" / "run")
    assert code == 2 and "cannot be written" in err and len(err.splitlines()) == 1


def test_a_disk_that_is_full(tmp_path, capsys, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.jsonl"))

    monkeypatch.setattr(loop, "train", no_room)
    code, err = answer(capsys, monkeypatch, "--config", TINY, "--workdir", tmp_path)
    assert code == 2 and len(err.splitlines()) == 1
    assert f"{tmp_path / 'metrics.jsonl'} cannot be written: No space left on device; correct this, then rerun" in err


def test_checkpoints_without_a_config(tmp_path, capsys, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_task(0, {"x": np.zeros(2)}, {"step": 1})
    code, err = answer(capsys, monkeypatch, "--config", TINY, "--workdir", tmp_path)
    assert code == 2 and "has checkpoints, but no config.json" in err.splitlines()[-1]


def test_a_workdir_that_another_process_uses(tmp_path, capsys, monkeypatch):
    with open(tmp_path / "lock", "w") as file:
        file.write("process 4242 on otherhost\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        code, err = answer(capsys, monkeypatch, "--config", TINY, "--workdir", tmp_path)
    assert code == 2 and "in use by process 4242 on otherhost" in err


def test_the_exit_code_reaches_the_shell(tmp_path):
    command = [sys.executable, "-m", "cdl_jax.main", "--config", TINY, "--workdir", str(tmp_path), "--config.seeed=1"]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr == "cdl_jax: unknown key config.seeed: did you mean 'seed'?\n"
    assert result.stdout == ""


@pytest.mark.parametrize("flags", [("--from", "", "--task", "1"), ("--on=",), ("--output", ""), ("--images", "")])
def test_an_empty_flag_is_refused(flags, capsys, monkeypatch):
    code, err = answer(capsys, monkeypatch, "--config", TINY, *flags)
    assert code == 2 and f"{flags[0].rstrip('=')} has an empty value: name one, or omit the flag" in err
