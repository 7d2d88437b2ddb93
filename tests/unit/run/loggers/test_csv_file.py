"""metrics.csv read with the csv module."""

import csv

from cdl_jax.run.loggers import csv_file
from tests.support.logger_lines import LINES, POINTS, log_killed_and_resumed, run_info


def read(folder):
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_resumed_run_has_each_number_once(tmp_path):
    log_killed_and_resumed(csv_file, tmp_path)
    rows, points = read(tmp_path), {}
    for row in rows:
        points.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    assert points == POINTS
    assert rows[0] == {"step": "2", "task": "0", "phase": "teacher", "epoch": "0", "metric": "teacher/loss",
                       "value": "1.5"}  # fmt: skip
    assert (rows[2]["phase"], rows[2]["epoch"], rows[2]["metric"]) == ("", "", "student/accuracy")


def test_a_half_written_row_is_removed(tmp_path):
    csv_file.open(run_info(tmp_path), LINES[:1])
    with (tmp_path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("4,0,stu")
    csv_file.open(run_info(tmp_path), LINES[:1]).write(LINES[1])
    assert [row["metric"] for row in read(tmp_path)] == ["teacher/loss", "student/loss"]
