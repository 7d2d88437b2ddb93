"""CONTRIBUTING.md and the maintainers' pages name existing code.

The names are those of files, functions and classes.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = ["CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / "maintainers").glob("*.md"))]


def section(title):
    """Returns the rows of the table in a section."""
    text = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


def defined(path):
    """Returns the names that a module defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for target in [*getattr(node, "targets", []), getattr(node, "target", None)]:
            if isinstance(target, ast.Name):
                names.add(target.id)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:cdl_jax|configs|docs|launch|tests|benchmarks)/[\w/.]*)`", text))
    assert named and [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in target]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []


def test_how_to_change_at_least_20_things():
    rows = section("How to change X")
    assert len(rows) >= 20
    for thing, place in rows:
        files = re.findall(r"`(cdl_jax/[\w/]+\.py)`: (.*)", place)
        for file, names in files:
            wanted = set(re.findall(r"`([A-Za-z_]+)`", names)) - {"data"}
            assert wanted <= defined(ROOT / file), thing


def test_the_nouns_are_classes():
    for noun, _, file in section("The nouns"):
        if file.endswith(".py`") and noun != "Loader":
            assert noun in defined(ROOT / file.strip("`")), noun


def test_the_glossary_has_some_40_words():
    words = [row[0] for row in section("Glossary")]
    assert 35 <= len(words) <= 50 and len(set(words)) == len(words)
