"""The wheel: its files, its metadata, and the quick start from an installation.

The installation is outside the repository.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[3]
SOURCES = ("cdl_jax", "configs", "LICENSE", "README.md", "pyproject.toml", "requirements.txt")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources, built without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out, source)
    (built,) = out.glob("*.whl")
    return built


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def files_of(folder: str) -> set[str]:
    """The files of a folder of the repository, by their paths in it."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT / folder)) for path in paths}


def test_the_wheel_has_every_file_of_the_package_and_every_config(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {f"cdl_jax/{name}" for name in files_of("cdl_jax")} | {
        f"cdl_jax/configs/{name}" for name in files_of("configs")
    }
    assert {"cdl_jax/py.typed", "cdl_jax/configs/quickstart.py", "cdl_jax/models/weights/packaged/README.md"} <= names


def test_the_wheel_has_its_command_python_versions_and_requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = {name.split("/")[1]: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
    assert read["entry_points.txt"].split("\n")[:2] == ["[console_scripts]", "cdl-jax = cdl_jax.main:main"]
    metadata = Parser().parsestr(read["METADATA"])
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.15"}
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert len(required) == sum(not line.startswith("#") for line in lines)
    assert {"jax<0.13,>=0.10.2", "tensorflow-datasets<5,>=4.9.9"} <= set(required)


# Import names that differ from those of their distributions.
NAMES = {"absl": "absl-py", "PIL": "pillow", "orbax": "orbax-checkpoint"}
EXTRAS = {
    "flatbuffers",
    "fontTools",
    "huggingface_hub",
    "imagecorruptions",
    "jax2onnx",
    "mlflow",
    "onnx",
    "onnxruntime",
    "resvg_py",
    "sklearn",
    "wandb",
}  # imported inside functions, with a message


def test_every_imported_package_is_a_requirement_or_an_extra():
    imported = set()
    for path in [*(ROOT / "cdl_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "cdl_jax", *EXTRAS}
    required = {
        line.split(">")[0].split("<")[0].strip().lower().replace("_", "-")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    assert {NAMES.get(name, name).lower().replace("_", "-") for name in imported} - required == set()


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> tuple[Path, dict]:
    """Installs the wheel in a separate folder.

    Returns:
        (the folder, the environment with this folder on the path).
    """
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel)
    return target, {**os.environ, "PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"}


def test_the_quick_start_runs_from_an_installed_wheel(installed, tmp_path):
    target, env = installed
    home = tmp_path / "home"
    home.mkdir()
    env = {**env, "HOME": str(home)}
    where = [sys.executable, "-c", "import cdl_jax; print(cdl_jax.__file__)"]
    file = subprocess.run(where, cwd=home, env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert file == str(target / "cdl_jax" / "__init__.py")
    run = tmp_path / "run"
    few = {"train.epochs": 1, "data.max_train_per_class": 16, "data.max_test_per_class": 4, "checkpoint.every_steps": 0}
    command = [target / "bin" / "cdl-jax", "--config", "quickstart:distill=none", "--workdir", run]
    command += [f"--config.{key}={value}" for key, value in few.items()]
    done = subprocess.run(list(map(str, command)), cwd=home, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "results.json").read_text())
    assert results["status"] == "finished"
    assert [len(row) for row in results["networks"]["student"]["accuracy_matrix"]] == [1, 2, 3, 4, 5]
    assert json.loads((run / "config.json").read_text())["commit"] is None
    assert (run / "report.html").is_file()
