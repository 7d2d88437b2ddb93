"""Tables and pictures of the documentation are made anew from the results that lie beside them."""

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


def table(page, rows, folder, *more):
    """The Markdown table of a page's runs."""
    runs = [*(DOCS / "results" / page / row for row in rows)]
    words = [str(run) for row in runs for run in sorted(row.iterdir())]
    assert report.main([*words, "--headline", "--out", str(folder / "table.md"), *more]) == 0
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
