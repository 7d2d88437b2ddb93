"""The page on methods describes every learner and scheme.

Each has a place for the table of its options.
"""

import json
import re
import statistics
from pathlib import Path

import pytest

from cdl_jax import plugins, published

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "methods" / "cdl.md").read_text()
MODULES = [(package, name) for package in ("models.learners", "distill") for name in plugins.list_plugins(package)]
LEARNERS, SCHEMES = 14, 18
NO_OPTIONS = ("none", "simple_cil")


def section(file):
    """Returns the section that starts with a file's name."""
    heads = [part for part in re.split(r"^#{2,3} .*\n\n", PAGE, flags=re.MULTILINE) if part.startswith(f"`{file}`")]
    assert len(heads) == 1, file
    return heads[0]


def test_the_learners_and_schemes_are_known():
    assert len(MODULES) == LEARNERS + SCHEMES


@pytest.mark.parametrize(("package", "name"), MODULES)
def test_each_learner_and_scheme_has_a_section_with_the_place_of_its_options(package, name):
    text = section(f"cdl_jax/{package.replace('.', '/')}/{name}.py")
    assert (f"\n<!-- options: {package}.{name} -->\n" in text) == (name not in NO_OPTIONS)
    assert f"`{'distill' if package == 'distill' else 'learner'}={name}`" in text
    assert "```math" in text or name == "none"


def test_the_options_of_training_have_a_place():
    assert "\n<!-- options: methods.cdl -->\n" in section("cdl_jax/methods/cdl.py")


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_tables_of_options_are_those_of_the_declarations(page, hooks):
    """`python docs/hooks.py` writes them."""
    text = page.read_text()
    assert text == hooks.fill_tables(text)


def test_named_files_and_pages_exist():
    files = {*re.findall(r"`((?:cdl_jax|configs)/[\w/]+\.py)`", PAGE)} | {*re.findall(r"configs/\w+\.py", PAGE)}
    pages = set(re.findall(r"\]\(([\w./]+)\)", PAGE))
    assert len(files) == LEARNERS + SCHEMES + 3 and len(pages) >= 3
    assert [name for name in files if not (ROOT / name).exists()] == []
    assert [name for name in pages if not (ROOT / "docs" / "methods" / name).exists()] == []


def test_published_numbers_equal_the_stored_tables():
    cells = {tuple(cell.choices.values()): cell.values for cell in published.table("cdl").cells}
    rows = re.findall(r"^\| `(\w+)`.*? \| (v\d) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 8
    for scheme, version, text in rows:
        *published_cells, _ = text.split(" | ")
        for learner, cell in zip(("l2p", "dualprompt", "coda", "apt"), published_cells, strict=True):
            where = (version, "cifar100", learner, scheme, "" if scheme == "none" else "vit_b16", "vit_s16")
            known = cells.get(where)
            assert cell == (f"{known['accuracy']:.2f} / {known['forgetting']:.2f}" if known else "-"), where


def test_our_numbers_equal_the_stored_results():
    for scheme, version, text in re.findall(r"^\| `(\w+)`.*? \| (v\d) \| (.*) \|$", PAGE, re.MULTILINE):
        row = "kdp" if (scheme, version) == ("kd_token", "v4") else scheme
        files = (ROOT / "docs/results/glyph100/l2p" / row).glob("seed_*/results.json")
        found = [json.loads(file.read_text())["networks"]["student"]["metrics"] for file in files]
        means = [statistics.fmean(run[name] for run in found) for name in ("last", "forgetting_cdl") if found]
        assert text.split(" | ")[-1] == (" / ".join(f"{mean:.2f}" for mean in means) or "-"), row
