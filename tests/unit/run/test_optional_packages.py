"""The program starts and trains without its optional packages."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OPTIONAL = ("tensorflow", "tensorflow_datasets", "grain", "wandb", "mlflow")


def run_without(absent, code, *arguments, folder=ROOT, path=()) -> subprocess.CompletedProcess:
    """Runs `code` in a fresh interpreter without the packages `absent`.

    Packages in the folders `path` can be found. `None` in sys.modules is what Python itself takes for "not installed":
    an import raises ModuleNotFoundError, of a submodule too, and importlib.util.find_spec returns None.
    """
    block = f"import sys; sys.modules.update(dict.fromkeys({tuple(absent)!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", block + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))},
    )


def test_the_blocker_hides_a_package_that_is_installed():
    code = """
        import importlib.util
        assert importlib.util.find_spec("numpy") is None
        try:
            import numpy.linalg
        except ModuleNotFoundError:
            print("hidden")
    """
    assert run_without(["numpy"], code).stdout == "hidden\n"
    assert run_without([], "import numpy; print('there')").stdout == "there\n"


# Every module, because main imports most of them only when they are needed.
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "cdl_jax").rglob("*.py")
    if path.stem != "__main__"
)


@pytest.mark.parametrize("absent", [OPTIONAL, (*OPTIONAL, "matplotlib", "sklearn", "huggingface_hub", "torch")])
def test_the_program_can_be_imported(absent):
    code = f"""
        import importlib
        for name in {MODULES}:
            importlib.import_module(name)
        print(sorted(name for name in {absent} if sys.modules.get(name)))
    """
    done = run_without(absent, code)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


TRAIN = f"""
    from cdl_jax.main import main
    code = main(sys.argv[1:])
    print(sorted(name for name in {OPTIONAL} if sys.modules.get(name)))
    sys.exit(code)
"""


def small_run(folder) -> list[str]:
    """Returns the arguments of a training in `folder`.

    The training has one task, and one epoch of 40 images in batches of 16.
    """
    small = {"data.num_tasks": 1, "data.max_train_per_class": 2, "data.max_test_per_class": 1, "train.epochs": 1}
    small |= {"student.depth": 1, "checkpoint.every_steps": 0}
    flags = ["--config=tests/end_to_end/tiny.py:distill=none", f"--workdir={folder}"]
    return flags + [f"--config.{key}={value}" for key, value in small.items()]


def test_a_task_is_trained_without_optional_packages(tmp_path):
    folder = tmp_path / "run"
    done = run_without(OPTIONAL, TRAIN, *small_run(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
    content = json.loads((folder / "results.json").read_text())
    assert content["status"] == "finished"
    assert [len(row) for row in content["networks"]["student"]["accuracy_matrix"]] == [1]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2
