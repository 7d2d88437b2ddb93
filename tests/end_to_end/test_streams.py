"""Runs of a domain-incremental stream in folders and of an online blurry stream.

Nothing compiles again.
"""

import json

import jax.monitoring
import numpy as np
import pytest
from PIL import Image

import cdl_jax
from cdl_jax.data import stream
from cdl_jax.data.sources import glyph_mini
from cdl_jax.run import loop
from tests.end_to_end.command import TINY, run_in_process

CLASSES = 4
STYLES = {"plain": lambda x: x, "inverse": lambda x: 255 - x, "turned": lambda x: np.rot90(x, axes=(0, 1))}


def write_domains(root):
    """Writes folders of images of four characters in three styles.

    A character has 16 training and 4 test images in each style.
    """
    data = glyph_mini.load({"part": "incremental"})
    for part, split, count in (("train", data.train, 16), ("test", data.test, 4)):
        for label in range(CLASSES):
            for row in np.flatnonzero(split.labels == label)[:count]:
                for name, change in STYLES.items():
                    path = root / name / part / f"char_{label}" / f"{row}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.ascontiguousarray(change(split.images[row]))).save(path)


def run(folder, monkeypatch, config, *changes):
    """Returns results.json, and the number of compiled programs after each task."""
    compiled, after, save = [], [], loop.Checkpoints.save_task
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    monkeypatch.setattr(loop.Checkpoints, "save_task", lambda *a: (save(*a), after.append(len(compiled))))
    run_in_process("--config", f"{TINY}:{config}", "--workdir", folder, *changes)
    return json.loads((folder / "results.json").read_text(encoding="utf-8")), after


def test_domains_are_tasks_of_the_same_classes(tmp_path, monkeypatch):
    write_domains(tmp_path / "styles")
    changes = [f"--config.data.path={tmp_path / 'styles'}", "--config.data.num_tasks=0"]
    changes += ["--config.data.domains=('turned','plain','inverse')", "--config.train.epochs=1"]
    results, after = run(tmp_path / "run", monkeypatch, "data=domain_folder,learner=l2p,distill=kd", *changes)
    tasks = results["stream"]["tasks"]
    assert [task["domain"] for task in tasks] == ["turned", "plain", "inverse"]
    assert [(task["first"], task["train"], task["test"]) for task in tasks] == [(0, 64, 16)] * 3
    assert all(task["classes"] == [f"char_{label}" for label in range(CLASSES)] for task in tasks)
    for network in results["networks"].values():
        assert [len(row) for row in network["accuracy_matrix"]] == [1, 2, 3]
        # Each accuracy is a count of 16 images, over all four classes.
        assert all((accuracy * 0.16) % 1 == pytest.approx(0, abs=1e-6) for accuracy in network["accuracy_matrix"][2])
        assert network["metrics"]["forward_transfer"] is not None
    assert len(after) == 3 and after[0] > 0 and after[1] == after[2]
    network = cdl_jax.load(tmp_path / "run").network("student")
    for position, style in enumerate(("turned", "plain", "inverse")):
        files = sorted((tmp_path / "styles" / style / "test").glob("*/*.png"))
        names = [file.parent.name for file in files]
        predicted = np.array(network.class_names)[network(files).logits[:, :CLASSES].argmax(axis=1)]
        right = 100 * (predicted == names).mean()
        assert results["networks"]["student"]["accuracy_matrix"][2][position] == pytest.approx(right, abs=1e-6)


def test_an_online_blurry_stream_passes_once_over_its_images(tmp_path, monkeypatch):
    changes = ["--config.data.kind=blurry", "--config.data.online=true", "--config.data.blurry_share=0.5"]
    changes += ["--config.train.epochs=1", "--config.data.num_tasks=4"]
    results, after = run(tmp_path / "run", monkeypatch, "learner=l2p,distill=none", *changes)
    made = stream.load(
        {"name": "glyph_mini", "kind": "blurry", "blurry_share": 0.5, "num_tasks": 4, "max_train_per_class": 16,
         "max_test_per_class": 8}
    )  # fmt: skip
    steps = [len(task.train) // 16 for task in made.tasks]
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][
        -1
    ]
    assert last["step"] == sum(steps) and np.unique(np.concatenate([task.train for task in made.tasks])).size == 320
    assert [task["test"] for task in results["stream"]["tasks"]] == [40] * 4
    seen = [len(task["classes"]) for task in results["stream"]["tasks"]]
    assert seen == sorted(seen) and seen[0] > 5 and seen[-1] == 20
    assert len(after) == 4 and after[1] == after[3]
    _, message = run_in_process(
        "--config", f"{TINY}:learner=l2p,distill=kd", "--workdir", tmp_path / "other", *changes, expect=2
    )
    assert "data.online=True has one pass" in message and "teacher: 1, student: 1" in message
