"""The section of generators: curves of distances with a floor, sheets of samples."""

from cdl_jax.report import generation_section, run_page

RESULTS = {"lower_is_better": True, "extra_metrics": [{"generator/fd_net_floor": 2.0}]}
LINES = [
    {"step": step, "generator/fd_net": 10.0 - step, "generator/fd_net_floor": 2.0, "headline": 10.0 - step}
    for step in (1, 2)
]


def test_a_run_of_classifiers_has_no_section(tmp_path):
    assert generation_section.html_parts(tmp_path, {"lower_is_better": False}, LINES) == []


def test_the_sheets_are_the_first_the_last_and_some_between(tmp_path):
    folder = tmp_path / generation_section.FOLDER
    folder.mkdir()
    for step in range(1, 22):
        (folder / f"step_{step:08d}.png").write_bytes(b"png")
    page = "".join(generation_section.html_parts(tmp_path, RESULTS, LINES))
    assert page.count("data:image/png;base64,cG5n") == 8
    assert "step_00000001" in page and "step_00000021" in page
    assert "generator/fd_net at each evaluation; dotted" in page
    assert page.count("<figcaption") == 8 + 1  # the floor has no plot of its own


def test_arrows_of_distances_point_down_and_those_of_transfer_stay():
    names = ("last", "worst_task", "forgetting_max", "backward_transfer", "forward_transfer")
    assert [run_page._arrow(name, lower_is_better=True) for name in names] == ["↓", "↓", "↓", "↑", "↑"]
    assert [run_page._arrow(name) for name in names] == ["↑", "↑", "↓", "↑", "↑"]
