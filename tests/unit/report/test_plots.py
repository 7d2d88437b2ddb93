"""Plots contain the text that explains them."""

from cdl_jax.report import comparison_plots, plots
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


def rows(plot):
    return plot.data.splitlines()


def test_losses_are_separated_where_tasks_end_and_single_points_are_shown(monkeypatch):
    shown = plots.losses(LINES)
    assert "teacher,loss,3,0.666667," in rows(shown) and "student,loss,9,0.222222," in rows(shown)
    assert not any("_" in row.split(",")[1] for row in rows(shown)[1:])  # marks have no numbers
    ends = plots._task_ends([*LINES, {"step": 20, "task": 1, "student/accuracy": 1.0}, {"step": 40, "task": 2}])
    assert ends == [9, 20, 40]
    dots = plots.losses(LINES[:1]).count("<use ")
    monkeypatch.setattr(plots, "_MAX_MARKED", 0)
    assert dots == plots.losses(LINES[:1]).count("<use ") + 2 + 2  # points of two terms, and their legend


def test_the_mean_kl_of_an_age_compares_the_same_tasks():
    # Task 0: 1, 2, 4; task 1: 5, 7; task 2: 9. Changes: (1 + 2) / 2, then 2.
    shown = rows(plots.kl_by_age([[1.0], [2.0, 5.0], [4.0, 7.0, 9.0]]))
    assert [row for row in shown if "chained mean" in row] == [
        ",chained mean,0,5,", ",chained mean,1,6.5,", ",chained mean,2,8.5,",
    ]  # fmt: skip


def test_curves_of_runs_are_means_over_seeds():
    curves = {
        "a": comparison_plots.Curve([[80.0, 60.0], [90.0, 70.0]]),
        "b": comparison_plots.Curve([[80.0, 50.0]], start=1),
    }
    assert rows(comparison_plots.run_curves(curves))[1:] == [",a,1,85,", ",a,2,65,", ",b,2,50,"]


def test_learning_rates_are_plotted_by_phase():
    assert {row.split(",")[1] for row in rows(plots.learning_rates(LINES))[1:]} == {"teacher", "student"}
    assert ",teacher,15,0.1," in rows(plots.learning_rates(LINES))


def test_numbers_at_named_ticks_have_their_names():
    shown = rows(plots.confusion([[100.0, 0.0], [25.0, 75.0]], ["a", "_b"], "net"))
    assert shown[0] == "panel,name,predicted class,class,value"
    assert shown[1:] == ["net,,a,a,100", "net,,_b,a,0", "net,,a,_b,25", "net,,_b,_b,75"]
    assert "each,61,a," in "\n".join(rows(comparison_plots.dot_plot({"a": [61.0, 62.0]}, "accuracy")))
