"""Representations of test images: similarity of layers, t-SNE, and their report."""

import json
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.evaluation import similarity
from cdl_jax.models.modules.features import named_features
from cdl_jax.run import analysis, loop, representations
from cdl_jax.training.experiment import Experiment
from tests.end_to_end.command import last_weights

get_config = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "dkt.py"))["get_config"]


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory):
    """(program, folder, analysis) of two tiny learners of two tasks."""
    config = get_config("data=glyph_mini,tasks=2,epochs=1")
    config.network = ConfigDict({"family": "tests.support.tiny_network", "pooled": True, "dim": 4, "image_size": 32})
    config.data.update(max_train_per_class=8, max_test_per_class=4)
    config.augment.update(mean=(), std=())
    config.train.batch_size = 16
    config.dkt.replay = 0
    config.log.to = ()
    program = Experiment.build(config, stream.load(config.data))
    folder = tmp_path_factory.mktemp("representations")
    loop.train(program, folder)
    content = analysis.analyze(program, folder)
    analysis.write(folder, content)
    return program, folder, content


def test_layers_are_compared_within_and_between_learners(analyzed):
    program, folder, content = analyzed
    found = content["cka"]
    assert found["images"] == 80
    assert found["layers"] == {f"learner_{i}": ["features", "cl", "st"] for i in range(2)}
    assert list(found["pairs"]) == ["learner_0/learner_0", "learner_0/learner_1", "learner_1/learner_1"]
    for name in ("learner_0", "learner_1"):
        own = np.array(found["pairs"][f"{name}/{name}"])
        np.testing.assert_allclose(np.diag(own), 1, rtol=1e-9)
        np.testing.assert_allclose(own, own.T, rtol=1e-9)
        assert 0 < own[1, 2] < 1  # both heads read the same features and differ
    assert json.loads((folder / "analysis.json").read_text())["cka"] == found


def test_the_alignment_is_that_of_the_features_of_the_last_checkpoint(analyzed):
    program, folder, content = analyzed
    live, images = last_weights(folder, 1), program.stream.test.images / np.float32(255)
    seen = []
    for learner in ("learner_0", "learner_1"):
        part = f"['{learner}']['params']['backbone']['Dense_0']"
        pixels = images[:, 4::8, 4::8].reshape(len(images), 16, 3)
        seen.append(np.tanh(pixels @ live[f"{part}['kernel']"] + live[f"{part}['bias']"]).mean(axis=1))
    wanted = similarity.cka([([seen[0]], [seen[1]])])[0, 0]
    assert content["cka"]["pairs"]["learner_0/learner_1"][0][0] == pytest.approx(wanted, rel=1e-3)


def test_images_of_ten_classes_are_embedded_and_reported(analyzed):
    pytest.importorskip("sklearn")
    program, folder, content = analyzed
    places = content["tsne"]
    assert len(places["classes"]) == 10 and np.bincount(places["labels"]).tolist() == [4] * 10
    assert set(places["classes"]) <= set(program.stream.class_names) and places["missing"] == ""
    page = (folder / "report.html").read_text()
    for name, points in places["networks"].items():
        assert np.shape(points) == (40, 2) and np.isfinite(points).all()
        assert (folder / f"features_{name}.svg").read_text() in page
    assert set(places["networks"]) == {"learner_0", "learner_1"}
    assert page.count("linear centered kernel alignment on 80 test images") == 3
    assert page.index("<h2>Analysis</h2>") < page.index("linear centered kernel alignment") < page.index("<h2>Training")


def test_batches_are_full_and_have_images_of_all_tasks():
    requested = []

    def outputs(rows):
        for i in range(0, len(rows), 8):
            requested.append(rows[i : i + 8])
            yield {
                "a": {"x": np.sin(requested[-1][:, None] * np.arange(1, 4))},
                "b": {"x": np.ones((8, 2)), "y": requested[-1] % 7},
            }

    found = representations._compare_layers(outputs, np.arange(100, 130), 8)
    assert found["images"] == 24 and [len(rows) for rows in requested] == [8] * 3
    assert len(set(np.concatenate(requested))) == 24
    assert all(rows.min() < 105 and rows.max() > 124 for rows in requested)
    assert found["layers"] == {"a": ["x"], "b": ["x", "y"]}
    assert found["pairs"]["a/b"][0][0] is None and found["pairs"]["b/b"][1][1] == pytest.approx(1)
    assert representations._compare_layers(outputs, np.arange(3), 8) == {}


def test_layers_are_compared_without_scikit_learn(analyzed, monkeypatch):
    program, folder, content = analyzed

    def absent(*_):
        raise UserError("t-SNE needs scikit-learn: pip install scikit-learn")

    monkeypatch.setattr(similarity, "tsne", absent)
    again = analysis.analyze(program, folder)
    assert again["cka"] == content["cka"]
    assert again["tsne"]["networks"] == {} and "pip install scikit-learn" in again["tsne"]["missing"]


def test_layers_keep_the_order_of_the_network():
    tokens = jnp.arange(24.0).reshape(2, 3, 4)
    out = {"patches": tokens, "block_0/tokens": tokens, "block_10/tokens": 2 * tokens, "class_token": tokens[:, 1]}
    found = named_features(out)
    assert list(found) == ["block_0", "block_10", "features"]
    np.testing.assert_array_equal(found["block_10"], 2 * tokens[:, 0])
    np.testing.assert_array_equal(found["features"], tokens[:, 1])
    assert list(named_features({"layer1": tokens, "shared": tokens, "stage2": tokens, "features": tokens})) == [
        "layer1", "stage2", "features",
    ]  # fmt: skip
    assert named_features({"logits": tokens}) == {}
