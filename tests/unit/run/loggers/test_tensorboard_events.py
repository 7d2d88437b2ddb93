"""Event files in TensorBoard's reader: scalars, hyperparameters, a resumed run.

A resumed run has no duplicates.
"""

import pytest

from cdl_jax.run.loggers import tensorboard_events
from tests.support.logger_lines import LINES, run_info
from tests.unit.run.test_optional_packages import TRAIN, run_without, small_run

EVENTS = """
    import sys
    from pathlib import Path
    from cdl_jax.run.loggers import tensorboard_events
    from tests.support.logger_lines import log_killed_and_resumed
    folder = Path(sys.argv[1])
    log_killed_and_resumed(tensorboard_events, folder)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
    events = EventAccumulator(str(folder)).Reload()
    for tag in sorted(events.Tags()["tensors"]):
        plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
        values = (f"{event.step}:{make_ndarray(event.tensor_proto)}" for event in events.Tensors(tag))
        print(plugin, tag, *(values if plugin == "scalars" else ()))
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
    """A state of TensorFlow for `run_without`.

    Returns:
        (absent packages, folders for the path, a file that an import makes).
    """
    imported = tmp_path / "tensorflow_was_imported"
    monkeypatch.setenv("TENSORFLOW_WAS_IMPORTED", str(imported))
    if TENSORFLOW[request.param] is None:
        return ["tensorflow"], [], imported
    package = tmp_path / "site" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TENSORFLOW[request.param])
    return [], [package.parent], imported


def test_a_resumed_run_has_each_number_once_and_tensorflow_is_not_imported(tensorflow, tmp_path):
    absent, path, imported = tensorflow
    folder = tmp_path / "events"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.out.tfevents.1").write_bytes(b"of an earlier version")
    done = run_without(absent, EVENTS, folder, path=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "hparams _hparams_/session_start_info",
        "scalars cost/seconds/student 4:1.25",
        "scalars student/accuracy 4:90.0 6:70.0",
        "scalars student/accuracy/task_0 4:90.0 6:60.0",
        "scalars student/forgetting_max 6:30.0",
        "scalars student/loss 4:0.25 6:0.125",
        "scalars teacher/loss 2:1.5",
        "False",
    ]
    assert [file.name.startswith("events.out.tfevents.") for file in folder.iterdir()] == [True]
    assert not imported.exists()


def test_a_training_writes_event_files_and_does_not_import_tensorflow(tensorflow, tmp_path):
    absent, path, imported = tensorflow
    done = run_without(absent, TRAIN, *small_run(tmp_path / "run"), path=path)
    assert done.returncode == 0, done.stderr
    assert "logger" not in done.stderr
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 1
    assert not imported.exists()


def test_the_fake_tensorflow_is_importable(tensorflow):
    absent, path, imported = tensorflow
    done = run_without(absent, "import tensorflow", path=path)
    assert imported.exists() == bool(path)
    assert (done.returncode == 0) == bool(path and "TypeError" not in done.stderr)


def test_the_hparams_plugin_finds_the_name_and_the_options_of_the_run(tmp_path):
    folder = tmp_path / "kd" / "seed_3"
    folder.mkdir(parents=True)
    tensorboard_events.open(run_info(folder), LINES).close(True)

    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.plugins.hparams import metadata

    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.group_name == "kd, seed 3"
    assert start.hparams["optim.learning_rate"].number_value == 0.5
    assert start.hparams["optim.betas"].string_value == "[0.9, 0.99]"
    assert start.hparams["log.report"].bool_value and start.hparams["method"].string_value == "cdl"
