"""The fingerprint of a run's data: moved data is equal, changed data is refused.

One line names the changed data.
"""

import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from cdl_jax import config, main
from cdl_jax.data import stream
from cdl_jax.data.sources import coco
from cdl_jax.errors import UserError
from cdl_jax.options import defaults
from cdl_jax.run import fingerprints, workdir


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), len(name)).save(path)


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    write(root, *(f"{part}/{name}/{i}.png" for part in ("train", "val") for name in ("cat", "dog") for i in range(3)))
    return root


def load(path, name="folder", **options):
    return stream.load({"name": name, "path": str(path), "num_tasks": 1, **options})


def changes(folder, found):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        workdir.check_data(folder, found)
    return str(error.value)


@pytest.fixture
def run(tmp_path, data):
    (tmp_path / "run").mkdir()
    workdir.write_config(tmp_path / "run", {"seed": 0}, load(data))
    return tmp_path / "run"


def test_config_json_has_a_line_for_each_class(run, data):
    stored = json.loads((run / "config.json").read_text())["data"]
    assert list(stored) == ["test/cat", "test/dog", "train/cat", "train/dog"]
    size = sum(path.stat().st_size for path in (data / "train" / "cat").iterdir())
    assert stored["train/cat"].startswith(f"3 images, {size} bytes, ")


def test_moved_packed_and_reordered_data_is_the_same(run, data, tmp_path):
    workdir.check_data(run, load(data))
    shutil.move(data, tmp_path / "elsewhere")
    workdir.check_data(run, load(tmp_path / "elsewhere"))
    workdir.check_data(run, load(tmp_path / "elsewhere", class_order="1,0"))
    with tarfile.open(tmp_path / "packed.tar", "w") as archive:
        archive.add(tmp_path / "elsewhere", "set")
    workdir.check_data(run, load(tmp_path / "packed.tar"))


def test_a_changed_class_is_named(run, data):
    (data / "train/cat/1.png").rename(data / "train/cat/9.png")
    message = changes(run, load(data))
    assert "the data has changed since this run began (train/cat: 3 images, " in message
    assert "dog" not in message and "choose another --workdir" in message
    (data / "train/cat/9.png").rename(data / "train/cat/1.png")
    workdir.check_data(run, load(data))
    with (data / "val/dog/0.png").open("ab") as file:
        file.write(b"more")
    assert "(test/dog: 3 images" in changes(run, load(data))
    write(data, "train/bird/0.png", "val/bird/0.png", "train/dog/7.png")
    message = changes(run, load(data))
    assert "test/bird: absent -> 1 images" in message and "and 1 more" in message


@pytest.mark.parametrize("part", ["x_train", "x_test", "y_train"])
def test_arrays_go_by_their_pixels(tmp_path, part):
    random = np.random.default_rng(0)
    arrays = {f"x_{name}": random.integers(0, 256, (6, 4, 4, 3), np.uint8) for name in ("train", "test")}
    arrays |= {f"y_{name}": np.arange(6) % 2 for name in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays)
    workdir.write_config(tmp_path, {"seed": 0}, load(tmp_path / "a.npz", "arrays"))
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    workdir.check_data(tmp_path, load(tmp_path / "b.npz", "arrays"))
    arrays[part] = arrays[part][::-1]
    np.savez(tmp_path / "a.npz", **arrays)
    assert "the data has changed" in changes(tmp_path, load(tmp_path / "a.npz", "arrays"))


def test_classes_of_one_name_are_kept_separate():
    one = stream.Split(np.array([0, 1], np.int32), images=np.arange(2 * 12, dtype=np.uint8).reshape(2, 2, 2, 3))
    made = stream.split_into_tasks(stream.Dataset("x", ("a", "a"), one, one), num_tasks=1)
    assert list(fingerprints.fingerprint_data(made)) == ["test/a (0)", "test/a (1)", "train/a (0)", "train/a (1)"]


def test_a_run_without_a_fingerprint_goes_on(run, data):
    stored = json.loads((run / "config.json").read_text())
    del stored["data"]
    (run / "config.json").write_text(json.dumps(stored))
    write(data, "train/cat/7.png")
    workdir.check_data(run, load(data))
    workdir.check_data(run / "absent", load(data))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_command_line_refuses_changed_data(tmp_path, capsys, mode):
    resolved = config.default("supervised", data="glyph_mini", network="mini_student")
    resolved.compilation_cache = ""
    content = {"config": resolved.to_dict(), "data": {"test/ x": "1 images, 1 bytes, 0"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert main.main(["--workdir", str(tmp_path), "--mode", mode]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the data has changed since this run began" in error and "test/ x: 1 images, 1 bytes, 0 -> absent" in error


def test_an_option_of_a_source_that_came_later_has_its_default_in_older_runs():
    options = {"data": {"name": "folder", "path": "x", "test_fraction": 0.2, "split_seed": 0}}
    old, new = fingerprints.align_configs(
        {"config": options}, {"data": {**options["data"], "skip_empty_classes": False}}
    )
    assert config.differences(old, new) == []
    old, new = fingerprints.align_configs(
        {"config": options}, {"data": {**options["data"], "skip_empty_classes": True}}
    )
    assert config.differences(old, new) == ["data.skip_empty_classes: False -> True"]


def test_a_detector_of_before_token_labels_resumes():
    data = {"name": "coco", "path": "x", **defaults(coco.OPTIONS)}
    options = {"method": "vidt", "data": data, "student": {"token_label": False}}
    later = {**options, "token_labels": {"focal_weight": 2.0}}
    assert config.differences(*fingerprints.align_configs({"config": options}, later)) == []
    changed = {**later, "token_labels": {"focal_weight": 3.0}}
    assert config.differences(*fingerprints.align_configs({"config": later}, changed)) == [
        "token_labels.focal_weight: 2.0 -> 3.0"
    ]


@pytest.fixture
def listed(tmp_path):
    """A list of files with equal names and sizes in two folders, and the run on it."""
    root = tmp_path / "listed"
    write(root, *(f"{name}/{i}.png" for name in "ab" for i in range(2)))
    write_list(root, "ab")
    (tmp_path / "run").mkdir()
    workdir.write_config(tmp_path / "run", {"seed": 0}, load(root / "l.csv"))
    return root


def write_list(root, order):
    rows = [f"{name}/{i}.png,{label},{part}" for name, label in zip(order, ("cat", "dog"), strict=True)
            for i, part in enumerate(("train", "test"))]  # fmt: skip
    (root / "l.csv").write_text("\n".join(rows))


def test_a_list_that_swaps_the_labels_of_files_with_one_name_is_other_data(listed, tmp_path):
    workdir.check_data(tmp_path / "run", load(listed / "l.csv"))
    shutil.move(listed, tmp_path / "elsewhere")
    workdir.check_data(tmp_path / "run", load(tmp_path / "elsewhere/l.csv"))
    write_list(tmp_path / "elsewhere", "ba")
    assert "test/cat" in changes(tmp_path / "run", load(tmp_path / "elsewhere/l.csv"))


def test_a_fingerprint_of_an_older_version_has_no_folders(listed, tmp_path):
    config_file = tmp_path / "run" / "config.json"
    stored = json.loads(config_file.read_text())
    assert all(", folders " in value for value in stored["data"].values())
    stored["data"] = {key: value.split(", folders ")[0] for key, value in stored["data"].items()}
    config_file.write_text(json.dumps(stored))
    workdir.check_data(tmp_path / "run", load(listed / "l.csv"))
    write(listed, "a/0.png.png")
    (listed / "l.csv").write_text((listed / "l.csv").read_text() + "\na/0.png.png,cat,train")
    assert "train/cat: 1 images" in changes(tmp_path / "run", load(listed / "l.csv"))


def test_data_in_class_folders_has_no_folders_in_its_fingerprint(data, tmp_path):
    assert not any(", folders " in value for value in fingerprints.fingerprint_data(load(data)).values())
    write(tmp_path / "t", *(f"{part}/{c}/images/{i}.png" for part in ("train", "test") for c in "ab" for i in range(2)))
    assert not any(", folders " in value for value in fingerprints.fingerprint_data(load(tmp_path / "t")).values())


def test_an_image_that_moves_to_another_domain_is_another_data_set():
    images = np.zeros((2, 2, 2, 3), np.uint8)

    def fingerprint(domains):
        split = stream.Split(np.zeros(2, np.int32), images=images, domains=np.array(domains, np.int32))
        data = stream.Dataset("x", ("a",), split, split, ("p", "q"))
        return fingerprints.fingerprint_data(stream.split_into_tasks(data, num_tasks=0, kind="domain"))

    assert fingerprint([0, 1]) == fingerprint([0, 1]) != fingerprint([1, 0])


def test_options_that_an_older_run_lacks_have_their_defaults():
    resolved = {"data": {"name": "digits", **defaults(stream.OPTIONS)}}
    stored = {"config": {"data": {key: value for key, value in resolved["data"].items() if key != "kind"}}}
    assert config.differences(*fingerprints.align_configs(stored, resolved)) == []
    resolved["data"]["kind"] = "blurry"
    assert config.differences(*fingerprints.align_configs(stored, resolved)) == ["data.kind: 'class' -> 'blurry'"]
