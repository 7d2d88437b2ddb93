"""The generated reference pages are complete.

They have every config key with its meaning, every metric and every API page.
"""

import ast
import re
from pathlib import Path

import pytest

from cdl_jax import config, plugins
from cdl_jax.evaluation import metrics
from cdl_jax.methods import cdl
from cdl_jax.options import Option

ROOT = Path(__file__).parents[3]
# Sections of a config that hold a network; their keys are listed as `network.`.
NETWORKS = ("teacher", "student", "network", "measuring")


@pytest.fixture(scope="module")
def pages(hooks):
    return hooks.pages()


def rows(page):
    """Returns the cells of every table row whose first cell is a key or a name."""
    return [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in page.splitlines() if line.startswith("| `")]


def known_keys():
    """Returns every key of every default config.

    Keys of a network have the prefix `network.`.
    """
    configs = [
        config.default("cdl", data="glyph_mini", learner=learner) for learner in plugins.list_plugins("models.learners")
    ]
    configs += [config.default("cdl", data="glyph_mini", distill=scheme) for scheme in plugins.list_plugins("distill")]
    configs += [config.default(method, data="glyph_mini") for method in plugins.list_plugins("methods")]
    configs += [config.default("vidt", data="coco", distill=s) for s in plugins.list_plugins("distill.detection")]
    configs += [config.default("cdl", data=source) for source in plugins.list_plugins("data.sources")]
    keys = {key for one in configs for key in config.flatten(one)}
    return {re.sub(rf"^({'|'.join(NETWORKS)})\.", "network.", key) for key in keys}


def test_every_config_key_has_a_row_with_a_meaning(pages):
    table = rows(pages["reference/config.md"])
    listed = {row[0].strip("`") for row in table}
    selectors = {"method", "data.name", "learner.name", "distill.name", "network.family", "network.weights"}
    assert sorted(known_keys() - listed - selectors) == []
    assert [row[0] for row in table if len(row) == 4 and not row[3].strip()] == []


def test_defaults_are_those_of_the_program(pages):
    cells = {row[0].strip("`"): row[1].strip("`") for row in rows(pages["reference/config.md"])}
    assert cells["train.epochs"] == repr(config.OPTIONS["train"]["epochs"].default) and cells["checkpoint.keep"] == "2"
    assert cells["cdl.teacher_query"] == "'student'"


def test_options_that_may_change_on_resume_are_marked(pages):
    marked = [row[0].strip("`") for row in rows(pages["reference/config.md"]) if "may change on resume" in row[-1]]
    assert "checkpoint.keep" in marked and "train.epochs" not in marked
    assert all(map(config.is_resumable, marked))


def test_every_metric_has_its_formula(pages):
    cells = {row[0].strip("`"): row[1].replace("\\|", "|") for row in rows(pages["reference/metrics.md"])}
    assert cells == {name: " ".join(text.split()) for name, text in {**metrics.FORMULAS, **metrics.SERIES}.items()}


def test_a_table_has_key_default_values_and_meaning(hooks):
    declared = {
        "rate": Option(0.1, "a rate", above=0, resumable=True),
        "kind": Option("a|b", "", choices=("a|b", "c")),
        "part": {"count": 3},
    }
    assert hooks._table(declared, "own.").splitlines()[2:] == [
        "| `own.rate` | `0.1` | above 0 | a rate _(may change on resume)_ |",
        "| `own.kind` | `'a|b'` | 'a\\|b' or 'c' |  |",
        "| `own.part.count` | `3` |  |  |",
    ]


def test_a_written_page_gets_the_options_of_its_plug_ins(hooks):
    written = "before\n\n<!-- options: distill.kd -->\n\n| old |\n\nafter\n\n<!-- options: methods.cdl -->\n"
    page = hooks.fill_tables(written)
    assert [row[0] for row in rows(page)] == [
        *("`distill.alpha`", "`distill.temperature`", "`distill.classes`"), *(f"`cdl.{key}`" for key in cdl.OPTIONS)
    ]  # fmt: skip
    assert rows(page)[0][1:3] == ["`0.5`", "[0, 1]"] and "| old |" not in page
    assert page.startswith("before\n\n<!-- options: distill.kd -->\n\n| key |") and "|\n\nafter\n" in page


def test_every_page_of_the_menu_exists(pages):
    menu = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1])
    written = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(set(menu) - written - set(pages)) == []
    assert sorted((written | set(pages)) - set(menu)) == []


def test_every_command_is_listed(pages):
    for command in ("cdl_jax.main", "cdl_jax.report", "cdl_jax.fetch"):
        assert f"python -m {command}" in pages["reference/command_line.md"]


@pytest.mark.parametrize(
    ("file", "function", "at_least"),
    [
        ("run/results.py", "collect", 26),
        ("run/detections.py", "collect", 6),
        ("run/detections.py", "_image", 9),
        ("training/detection.py", "detection_details", 5),
    ],
)
def test_the_keys_of_stored_results_are_described(file, function, at_least):
    tree = ast.parse((ROOT / "cdl_jax" / file).read_text(encoding="utf-8"))
    (collect,) = [node for node in tree.body if getattr(node, "name", "") == function]
    dicts = [node for node in ast.walk(collect) if isinstance(node, ast.Dict)]
    keys = {key.value for node in dicts for key in node.keys if isinstance(key, ast.Constant)}
    page = (ROOT / "docs" / "reference" / "results_json.md").read_text(encoding="utf-8")
    assert len(keys) >= at_least and sorted(key for key in keys - {"examples"} if f"`{key}`" not in page) == []


@pytest.mark.parametrize(
    "page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
)
def test_config_keys_in_commands_exist(page, pages):
    text = (ROOT / page).read_text(encoding="utf-8")
    listed = {row[0].strip("`") for row in rows(pages["reference/config.md"])} | known_keys()
    named = set(re.findall(r"--config\.([a-z_0-9.]+)=", text)) - {"section.key"}
    named = {re.sub(rf"^({'|'.join(NETWORKS)})\.", "network.", key) for key in named}
    selectors = {"data.name", "learner.name", "network.weights"}
    plugins_of_page = re.findall(r'title="mine/(\w+)\.py"\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    own = {
        f"{section}.{key}"
        for name, code in plugins_of_page
        for key in re.findall(r'^    "(\w+)": Option\(', code, re.MULTILINE)
        for section in ("distill", "learner", name)
    }
    assert sorted(named - listed - selectors - own) == []
