"""Plots contain the text that explains them."""

from cdl_jax.report import plots
from tests.support.stored_runs import LINES


def test_plots_have_titles_and_labels():
    one = plots.heat_map([[10.0], [20.0, 30.0]], "student")
    assert one.startswith("<svg") and one.rstrip().endswith("</svg>")
    for text in ("student", "10", "20", "30", "after learning task"):
        assert f"<!-- {text} -->" in one
    assert plots.heat_map([[10.0], [20.0, 31.0]], "student") != one
    shown = plots.losses(LINES)
    assert plots.losses([{**line, "class_error": 90.0} for line in LINES]) == shown
    for text in ("teacher", "student", "loss", "pool"):
        assert f"<!-- {text} -->" in shown
    assert "<!-- learning_rate -->" not in shown
    assert "<!-- prompt -->" in plots.selection([[0, 0], [1, 3]], "student")
    assert "<!-- tasks learned -->" in plots.accuracy_curves({"student": [[42.0]]})
