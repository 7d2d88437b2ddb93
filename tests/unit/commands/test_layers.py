"""Imports go one way.

Each part can thus be read, tested and replaced without its dependents.
"""

import ast
from pathlib import Path

import pytest

import cdl_jax

ROOT = Path(cdl_jax.__file__).parent

# A module may import from its own layer and from the layers above it. A folder includes all of its files.
LAYERS = (
    "__init__ errors schema runtime plugins options config config_files published",
    "data",
    "models losses",
    "distill",
    "optim",
    "methods",
    "evaluation",
    "training",
    "report",
    "run",
    "main __main__ fetch sweep",
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer.split()}

# The only exceptions, both in functions: `config.default` collects the defaults from the modules that define them, and
# `cdl_jax.load` and `cdl_jax.train` import jax when they are called.
COLLECTED = {("config", "data"), ("config", "optim"), ("__init__", "run")}

FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


def part_of(file):
    return file.split("/")[0].removesuffix(".py")


def imports(source: str) -> set[str]:
    """Returns the modules of cdl_jax that a source imports, also inside functions.

    The names are without the prefix `cdl_jax.`.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.removeprefix("cdl_jax.") for name in names if name.startswith("cdl_jax.")}


def top_level(source: str) -> set[str]:
    """Returns the modules of cdl_jax that a source imports at its top level."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imports(ast.unparse(tree))


def violations(file: str, source: str) -> list[str]:
    """Returns messages about imports of `file` from a later layer."""
    part_of_file, wrong = part_of(file), []
    for name in sorted(imports(source)):
        part = name.split(".")[0]
        if part.startswith("__"):  # __version__
            continue
        if (part_of_file, part) in COLLECTED and name not in top_level(source):
            continue
        if RANK[part] > RANK[part_of_file]:
            wrong.append(f"{file} imports {name}, which is in a later layer")
        if part_of_file == "methods" and part == "data" and name.startswith("data.sources"):
            wrong.append(f"{file} imports {name}: a method works with any source of data")
    return wrong


@pytest.mark.parametrize("file", FILES)
def test_imports_go_one_way(file):
    assert part_of(file) in RANK, f"{file} is new at the top level: add it to LAYERS"
    assert violations(file, (ROOT / file).read_text()) == []


def test_every_layer_exists():
    parts = {part_of(file) for file in FILES}
    assert set(RANK) - parts == set()


@pytest.mark.parametrize(
    ("file", "source", "count"),
    [
        ("models/vit.py", "from cdl_jax.methods import base", 1),
        ("models/vit.py", "def f():\n    import cdl_jax.run", 1),
        ("methods/cdl.py", "from cdl_jax import training", 1),
        ("methods/cdl.py", "from cdl_jax.data.sources import cifar100", 1),
        ("methods/cdl.py", "from cdl_jax.data.stream import Task\nfrom cdl_jax.models import vit", 0),
        ("config.py", "from cdl_jax.data import stream", 1),
        ("config.py", "def f():\n    from cdl_jax.data import stream", 0),
        ("config.py", "def f():\n    from cdl_jax import run", 1),
        ("run/loop.py", "import jax\nfrom cdl_jax import __version__, training", 0),
    ],
)
def test_a_wrong_import_is_detected(file, source, count):
    assert len(violations(file, source)) == count
