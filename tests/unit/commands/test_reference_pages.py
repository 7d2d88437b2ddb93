"""The generated reference pages are complete: every config key with its meaning, every metric, every API page."""

import ast
import importlib.util
import itertools
import re
from pathlib import Path

import pytest

from cdl_jax import config, plugins
from cdl_jax.evaluation import metrics

ROOT = Path(__file__).parents[3]
# Sections of a config that hold a network; their keys are listed as `network.`.
NETWORKS = ("teacher", "student", "network")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(hooks):
    return hooks.pages()


def rows(page):
    """Returns the cells of every table row whose first cell is a key or a name."""
    return [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.splitlines() if line.startswith("| `")]


def known_keys():
    """Returns every key of every default config, without the keys that select a plug-in."""
    configs = [
        config.default("cdl", data="glyph_mini", learner=learner, distill=scheme)
        for learner, scheme in itertools.zip_longest(
            plugins.list_plugins("models.learners"), plugins.list_plugins("distill"), fillvalue="l2p"
        )
        if scheme != "l2p"
    ]
    configs += [config.default(method, data="glyph_mini") for method in plugins.list_plugins("methods")]
    configs += [config.default("cdl", data=source) for source in plugins.list_plugins("data.sources")]
    keys = {key for one in configs for key in config.flatten(one)}
    return {re.sub(rf"^({'|'.join(NETWORKS)})\.", "network.", key) for key in keys}


def test_every_config_key_has_a_row_with_a_meaning(pages):
    table = rows(pages["reference/config.md"])
    listed = {row[0].strip("`") for row in table}
    selectors = {"method", "data.name", "learner.name", "distill.name", "network.family", "network.weights"}
    assert sorted(known_keys() - listed - selectors) == []
    assert [row[0] for row in table if len(row) < 3 or not row[2].strip()] == ["`teacher.weights`"]


def test_defaults_are_those_of_the_program(pages):
    cells = {row[0].strip("`"): row[1].strip("`") for row in rows(pages["reference/config.md"])}
    defaults = config.flatten(config.DEFAULTS)
    assert cells["train.epochs"] == repr(defaults["train.epochs"]) and cells["checkpoint.keep"] == "2"
    assert cells["cdl.query"] == "'student'"


def test_options_that_may_change_on_resume_are_marked(pages):
    marked = [row[0].strip("`") for row in rows(pages["reference/config.md"]) if "may change on resume" in row[-1]]
    assert "checkpoint.keep" in marked and "train.epochs" not in marked
    assert all(key.startswith(config.RESUMABLE_KEYS) for key in marked)


def test_every_metric_has_its_formula(pages):
    cells = {row[0].strip("`"): row[1].replace("\\|", "|") for row in rows(pages["reference/metrics.md"])}
    assert cells == {name: " ".join(text.split()) for name, text in {**metrics.FORMULAS, **metrics.SERIES}.items()}


def test_comments_are_read_from_the_source(hooks, tmp_path):
    module = tmp_path / "options.py"
    module.write_text(
        "PART = {\n    'b': 2,  # second\n}\n"
        "OPTIONS = {\n    # first,\n    # in two lines\n    'a': 1,\n    **PART,\n"
        "    'deep': {'c': 3, 'd': 4},  # of d\n}\n"
    )
    spec = importlib.util.spec_from_file_location("options", module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    assert hooks.option_table(loaded) == [
        ("a", 1, "first, in two lines"),
        ("b", 2, "second"),
        ("deep.c", 3, ""),
        ("deep.d", 4, "of d"),
    ]


def test_every_page_of_the_menu_exists(pages):
    menu = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1])
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(set(menu) - written - set(pages)) == []
    assert sorted((written | set(pages)) - set(menu)) == []


def test_every_command_is_listed(pages):
    for command in ("cdl_jax.main", "cdl_jax.report", "cdl_jax.fetch"):
        assert f"python -m {command}" in pages["reference/command_line.md"]


def test_the_keys_of_results_json_are_described():
    tree = ast.parse((ROOT / "cdl_jax" / "run" / "results.py").read_text(encoding="utf-8"))
    (collect,) = [node for node in tree.body if getattr(node, "name", "") == "collect"]
    dicts = [node for node in ast.walk(collect) if isinstance(node, ast.Dict)]
    keys = {key.value for node in dicts for key in node.keys if isinstance(key, ast.Constant)}
    page = (ROOT / "docs" / "reference" / "results_json.md").read_text(encoding="utf-8")
    assert len(keys) > 25 and sorted(key for key in keys if f"`{key}`" not in page) == []


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
)
def test_config_keys_in_commands_exist(page, pages):
    text = (ROOT / page).read_text(encoding="utf-8")
    listed = {row[0].strip("`") for row in rows(pages["reference/config.md"])} | known_keys()
    named = set(re.findall(r"--config\.([a-z_0-9.]+)=", text)) - {"section.key"}
    named = {re.sub(rf"^({'|'.join(NETWORKS)})\.", "network.", key) for key in named}
    selectors = {"data.name", "learner.name", "network.weights"}
    assert sorted(named - listed - selectors) == []
