"""Tables and pictures of the documentation are made anew from the results that lie beside them."""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest

from cdl_jax import report

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "peers": ("supervised", "kd", "individual", "cl_ilr", "one", "dml", "okddip", "okddip_network"),
    "vkd": (
        "none",
        "logit",
        "linear",
        "householder",
        "matrix_exp",
        "cayley",
        "householder_none",
        "householder_batch",
        "householder_whiten",
    ),  # fmt: skip
}


DKT = {
    "seen": ("alone", "together", "every_5", "every_task", "predictions", "weights", "naive"),
    "all": ("alone_all", "together_all", "every_task_all", "ignorant_all"),
    "four": ("four_alone_all", "four_ring_all", "four_ring_task_all", "four_full_task_all"),
    "eight": ("eight_alone_all", "eight_ring_task_all"),
    "four_weights": ("four_alone", "four_weights"),
    "teachers": ("one_alone_all", "of_joint_all", "of_continual_all"),
    "prompts": ("prompts_alone", "prompts_together", "prompts_weights"),
}


DKT_DRAWN = (*DKT["seen"][:-1], *DKT["all"][:-1])


def table(page, rows, folder, *more):
    """The Markdown table of a page's runs."""
    runs = [*(DOCS / "results" / page / row for row in rows)]
    words = [str(run) for row in runs for run in sorted(row.iterdir())]
    words += [] if "--traffic" in more else ["--headline"]
    assert report.main([*words, "--out", str(folder / "table.md"), *more]) == 0
    return (folder / "table.md").read_text().removeprefix("## Runs\n\n")


@pytest.mark.parametrize("page", PAGES)
def test_the_report_makes_table_and_picture_of_a_page_again(page, tmp_path):
    found = table(page, PAGES[page], tmp_path, "--svg", str(tmp_path / "plot.svg"))
    assert len(found.splitlines()) == 2 + len(PAGES[page])
    assert found in (DOCS / f"{page}.md").read_text()
    assert (tmp_path / "plot.svg").read_bytes() == (DOCS / f"{page}.svg").read_bytes()


def test_the_peers_of_one_stem_are_compared_again(tmp_path):
    assert table("peers", ("individual", "one", "cl_ilr", "okddip"), tmp_path) in (DOCS / "peers.md").read_text()


def test_features_are_compared_with_logits_alone_again(tmp_path):
    assert table("vkd", PAGES["vkd"][1:], tmp_path) in (DOCS / "vkd.md").read_text()


@pytest.mark.parametrize("rows", DKT.values(), ids=DKT)
def test_learners_of_dkt_are_compared_again(rows, tmp_path):
    found = table("dkt", rows, tmp_path, "--names")
    assert len(found.splitlines()) == 2 + len(rows)
    assert all(line.split(" | ")[2] == "3" for line in found.splitlines()[2:])
    assert found in (DOCS / "dkt.md").read_text()


def test_the_picture_of_what_was_exchanged_is_drawn_again(tmp_path):
    table("dkt", DKT_DRAWN, tmp_path, "--names", "--traffic", str(tmp_path / "plot.svg"))
    assert (tmp_path / "plot.svg").read_bytes() == (DOCS / "dkt_traffic.svg").read_bytes()


@pytest.mark.parametrize("row", ["none", "kd"])
def test_bfloat16_is_compared_again(row, tmp_path):
    runs = [
        str(DOCS / f"results/bfloat16/l2p/{name}/seed_{seed}") for name in (row, f"{row}_bf16") for seed in range(3)
    ]
    assert report.main([*runs, "--names", "--out", str(tmp_path / "table.md")]) == 0
    assert (tmp_path / "table.md").read_text().removeprefix("## Runs\n\n") in (DOCS / "results.md").read_text()


def of_dkt(row):
    return [json.loads((DOCS / f"results/dkt/{row}/seed_{seed}/results.json").read_text()) for seed in range(3)]


@pytest.mark.parametrize(
    ("row", "metric"),
    [(row, metric) for row in ("alone", "weights") for metric in ("learning_accuracy", "forgetting_cdl")]
    + [(row, metric) for row in ("alone_all", "together_all") for metric in ("learning_accuracy", "forgetting_cdl")]
    + [("every_task_all", "learning_accuracy")],
)
def test_what_learners_learn_and_forget_is_as_the_page_says(row, metric):
    mean = statistics.fmean(run["means"]["mean"]["metrics"][metric] for run in of_dkt(row))
    assert re.search(rf"\b{mean:.1f}\b", (DOCS / "dkt.md").read_text())


@pytest.mark.parametrize("row", ["together", "predictions"])
@pytest.mark.parametrize("head", ["mean", "mean_st"])
def test_how_much_of_others_classes_is_known_is_as_the_page_says(row, head):
    told = [m[f"{head}/accuracy_on_others_classes"] for run in of_dkt(row) for m in run["measures"][:-1]]
    assert f" {statistics.fmean(told):.1f} %" in (DOCS / "dkt.md").read_text().replace("\n", " ")


def grid_words():
    return ["--grid", *map(str, sorted((DOCS / "results" / "glyph100").glob("*/*/seed_*")))]


def test_the_tables_and_the_picture_of_learners_by_schemes_are_made_again(tmp_path):
    page = tmp_path / "results.md"
    shutil.copy(DOCS / "results.md", page)
    assert report.main([*grid_words(), "--into", str(page), "--svg", str(tmp_path / "plot.svg")]) == 0
    assert page.read_bytes() == (DOCS / "results.md").read_bytes()
    assert (tmp_path / "plot.svg").read_bytes() == (DOCS / "results.svg").read_bytes()
    assert "| none | " in page.read_text() and "| teacher | " in page.read_text()


def test_what_is_kept_of_runs_names_no_folder_of_a_machine():
    for word in grid_words()[1:]:
        config = json.loads((Path(word) / "config.json").read_text())["config"]
        paths = [config["data"]["path"], *config.get("cdl", {}).get("teachers", ())]
        assert not [path for path in paths if Path(path).is_absolute()]


def test_what_the_page_says_of_the_schemes_is_so_in_each_seed():
    """Six help and DKD harms everywhere, KDP learns and forgets more than KD, and nearest means are above all."""
    root = DOCS / "results" / "glyph100"

    def of(learner, scheme, metric="last"):
        files = [root / learner / scheme / f"seed_{seed}" / "results.json" for seed in range(3)]
        networks = [json.loads(file.read_text())["networks"] for file in files if file.exists()]
        return [
            next(iter(each[n] for n in ("student", "network") if n in each))["metrics"][metric] for each in networks
        ]

    learners = ("l2p", "dualprompt", "coda", "apt")
    gains = {
        scheme: [b - a for own in learners for a, b in zip(of(own, "none"), of(own, scheme), strict=False)]
        for scheme in ("prompt_mapping", "kd", "fitnets", "reviewkd", "kd_token", "kdp", "dkd")
    }
    assert all(gain < 0 for gain in gains["dkd"]) and len(gains.pop("dkd")) == 12
    assert sum(len(each) for each in gains.values()) == 69 and all(gain > 0 for each in gains.values() for gain in each)
    for learner in learners:
        for metric in ("learning_accuracy", "forgetting_cdl", "forgetting_coda", "forgetting_max"):
            assert statistics.fmean(of(learner, "kdp", metric)) > statistics.fmean(of(learner, "kd", metric))
    best = max(max(of(own.parent.name, own.name)) for own in root.glob("*/*") if own.parent.name in learners
               and own.name != "joint")  # fmt: skip
    assert best < min(of("student", "nearest_mean"))
