"""Tables and pictures of the documentation are made anew from the results that lie beside them."""

from pathlib import Path

import pytest

from cdl_jax import report

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "peers": ("supervised", "kd", "individual", "cl_ilr", "one", "dml", "okddip", "okddip_network"),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_report_makes_table_and_picture_of_a_page_again(page, tmp_path, capsys):
    rows = PAGES[page]
    runs = [str(DOCS / "results" / page / row / f"seed_{seed}") for row in rows for seed in range(3)]
    words = ["--headline", "--out", str(tmp_path / "table.md"), "--svg", str(tmp_path / "plot.svg")]
    assert report.main([*runs, *words]) == 0
    table = (tmp_path / "table.md").read_text().removeprefix("## Runs\n\n")
    assert len(table.splitlines()) == 2 + len(rows)
    assert table in (DOCS / f"{page}.md").read_text()
    assert (tmp_path / "plot.svg").read_bytes() == (DOCS / f"{page}.svg").read_bytes()
