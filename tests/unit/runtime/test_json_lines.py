"""metrics.jsonl line by line."""

import json

import pytest

from cdl_jax.runtime import json_lines


def test_lines_are_read_as_they_were_written_with_sorted_keys(tmp_path):
    lines = json_lines.JsonLines(tmp_path / "metrics.jsonl")
    assert lines.read() == []
    written = [{"step": 3, "loss": 0.1, "phase": "teacher"}, {"step": 5, "loss": 1e-9}]
    for values in written:
        lines.write(values)
    assert lines.read() == written
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[0] == '{"loss": 0.1, "phase": "teacher", "step": 3}'
    json_lines.JsonLines(tmp_path / "metrics.jsonl").write({"step": 7})  # an existing file is continued
    assert [values["step"] for values in lines.read()] == [3, 5, 7]


@pytest.mark.parametrize("torn", ['{"loss": 0.5, "st', '{"step": 4}', ""])
def test_later_lines_and_an_incomplete_last_line_are_removed(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    complete = [{"step": step, "loss": step / 10} for step in (1, 2, 2, 3)]
    path.write_text("".join(json.dumps(values) + "\n" for values in complete) + torn)
    lines = json_lines.JsonLines(path)
    lines.truncate(3)
    assert lines.read() == complete[:3]
    lines.write({"step": 3})  # starts a new line
    assert lines.read() == [*complete[:3], {"step": 3}]
    assert path.read_text().count("\n") == 4
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_complete_last_line_without_a_line_break_is_retained(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    lines = json_lines.JsonLines(path)
    lines.truncate(2)
    lines.write({"step": 3})
    assert [values["step"] for values in lines.read()] == [1, 2, 3]


def test_a_file_without_later_lines_is_not_rewritten(tmp_path):
    lines = json_lines.JsonLines(tmp_path / "metrics.jsonl")
    lines.write({"step": 1})
    before = (tmp_path / "metrics.jsonl").stat()
    lines.truncate(1)
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
