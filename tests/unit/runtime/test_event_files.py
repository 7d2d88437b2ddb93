"""metrics.jsonl line by line, and event files that the reader of TensorBoard reads."""

import json
import logging
import sys

import pytest

from cdl_jax.runtime import event_files
from tests.unit.run.test_optional_packages import TRAIN, run_without, small_run


def test_lines_are_read_as_they_were_written_with_sorted_keys(tmp_path):
    lines = event_files.JsonLines(tmp_path / "metrics.jsonl")
    assert lines.read() == []
    written = [{"step": 3, "loss": 0.1, "phase": "teacher"}, {"step": 5, "loss": 1e-9}]
    for values in written:
        lines.write(values)
    assert lines.read() == written
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[0] == '{"loss": 0.1, "phase": "teacher", "step": 3}'
    event_files.JsonLines(tmp_path / "metrics.jsonl").write({"step": 7})  # an existing file is continued
    assert [values["step"] for values in lines.read()] == [3, 5, 7]


@pytest.mark.parametrize("torn", ['{"loss": 0.5, "st', '{"step": 4}', ""])
def test_later_lines_and_an_incomplete_last_line_are_removed(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    complete = [{"step": step, "loss": step / 10} for step in (1, 2, 2, 3)]
    path.write_text("".join(json.dumps(values) + "\n" for values in complete) + torn)
    lines = event_files.JsonLines(path)
    lines.truncate(3)
    assert lines.read() == complete[:3]
    lines.write({"step": 3})  # starts a new line
    assert lines.read() == [*complete[:3], {"step": 3}]
    assert path.read_text().count("\n") == 4
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_complete_last_line_without_a_line_break_is_retained(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    lines = event_files.JsonLines(path)
    lines.truncate(2)
    lines.write({"step": 3})
    assert [values["step"] for values in lines.read()] == [1, 2, 3]


def test_a_file_without_later_lines_is_not_rewritten(tmp_path):
    lines = event_files.JsonLines(tmp_path / "metrics.jsonl")
    lines.write({"step": 1})
    before = (tmp_path / "metrics.jsonl").stat()
    lines.truncate(1)
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


EVENTS = """
    import sys
    from pathlib import Path
    from cdl_jax.runtime import event_files
    folder = sys.argv[1]
    board = event_files.tensorboard_writer(Path(folder))
    for step in (3, 6, 9):
        board.write_scalars(step, {"teacher/loss": 1 / step, "student/accuracy": 10.0 * step})
    board.flush()
    board.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
    events = EventAccumulator(folder).Reload()
    for tag in sorted(events.Tags()["tensors"]):
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        values = (f"{event.step}:{make_ndarray(event.tensor_proto):.6f}" for event in events.Tensors(tag))
        print(plugin, tag, *values)
    print(any(name.split(".")[0] == "tensorflow" and module for name, module in sys.modules.items()))
"""


# Packages called tensorflow on the path: none, one that records its import, one that cannot be imported.
TENSORFLOW = {
    "absent": None,
    "works": "import os, pathlib; pathlib.Path(os.environ['TENSORFLOW_WAS_IMPORTED']).touch()",
    "broken": "import os, pathlib; pathlib.Path(os.environ['TENSORFLOW_WAS_IMPORTED']).touch()\n"
    "raise TypeError('Descriptors cannot be created directly.')",
}


@pytest.fixture(params=TENSORFLOW)
def tensorflow(request, tmp_path, monkeypatch):
    """A state of TensorFlow for `run_without`: (absent packages, folders for the path, a file that an import makes)."""
    imported = tmp_path / "tensorflow_was_imported"
    monkeypatch.setenv("TENSORFLOW_WAS_IMPORTED", str(imported))
    if TENSORFLOW[request.param] is None:
        return ["tensorflow"], [], imported
    package = tmp_path / "site" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TENSORFLOW[request.param])
    return [], [package.parent], imported


def test_event_files_hold_the_values_and_tensorflow_is_not_imported(tensorflow, tmp_path):
    absent, path, imported = tensorflow
    folder = tmp_path / "events"
    done = run_without(absent, EVENTS, folder, path=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "scalars student/accuracy 3:30.000000 6:60.000000 9:90.000000",
        "scalars teacher/loss 3:0.333333 6:0.166667 9:0.111111",
        "False",
    ]
    assert [file.name.startswith("events.out.tfevents.") for file in folder.iterdir()] == [True]
    assert not imported.exists()


def test_a_training_writes_event_files_and_does_not_import_tensorflow(tensorflow, tmp_path):
    absent, path, imported = tensorflow
    done = run_without(absent, TRAIN, *small_run(tmp_path / "run"), path=path)
    assert done.returncode == 0, done.stderr
    assert "no TensorBoard files" not in done.stderr
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert not imported.exists()


def test_the_fake_tensorflow_is_importable(tensorflow):
    absent, path, imported = tensorflow
    done = run_without(absent, "import tensorflow", path=path)
    assert imported.exists() == bool(path)
    assert (done.returncode == 0) == bool(path and "TypeError" not in done.stderr)


def test_without_a_folder_the_writer_discards_all_values(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        board = event_files.tensorboard_writer(None)
    board.write_scalars(1, {"loss": 1.0})
    board.flush()
    board.close()
    assert list(tmp_path.iterdir()) == [] and caplog.messages == []


def test_a_missing_library_is_reported_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "clu", None)
    with caplog.at_level(logging.WARNING):
        event_files.tensorboard_writer(tmp_path / "tensorboard").write_scalars(1, {"loss": 1.0})
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("no TensorBoard files: ")
    assert list(tmp_path.iterdir()) == []
