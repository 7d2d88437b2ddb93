"""The folder of an export."""

import importlib.util
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.models.vit import ViT
from cdl_jax.run import export, onnx_export


def predictor_of(variables, forward=None):
    return SimpleNamespace(frozen={}, mutable=variables, forward=forward, input_size=(8, 8))


def test_a_vit_without_prompts_is_exported_with_timms_names():
    images = np.zeros((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(ViT(dim=8, depth=1, heads=2, patch_size=4, image_size=8, num_classes=3).init,
                            jax.random.key(0), images)  # fmt: skip
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)["params"]
    plain = export.plain_vit(SimpleNamespace(name="network", predictor=predictor_of({"network": {"params": params}})))
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    prompted = {"student": {"backbone": params, "learner": {}}}
    assert export.plain_vit(SimpleNamespace(name="student", predictor=predictor_of(prompted))) is None


def test_onnx_without_its_package_is_one_line(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jax2onnx" else find_spec(name))
    with pytest.raises(UserError, match=r"--onnx needs the package jax2onnx: pip install \"\.\[export_onnx\]\""):
        export.export(None, tmp_path / "served", onnx=True)
    assert not (tmp_path / "served").exists()


def linear(variables, images):
    return images.reshape(images.shape[0], -1).astype(np.float32) @ variables["kernel"]


def test_an_onnx_file_computes_the_logits_of_any_number_of_images():
    pytest.importorskip("jax2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    kernel = np.linspace(-1, 1, 8 * 8 * 3 * 2, dtype=np.float32).reshape(-1, 2)
    content = onnx_export.convert(predictor_of({"kernel": kernel}, linear))
    session = onnxruntime.InferenceSession(content)
    images = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    for count in (1, 2):
        (logits,) = session.run(["logits"], {"images": images[:count]})
        np.testing.assert_allclose(logits, images[:count].reshape(count, -1) @ kernel, rtol=1e-5)


def test_an_onnx_file_with_other_logits_is_refused():
    pytest.importorskip("jax2onnx")
    calls = []

    def changing(variables, images):
        calls.append(images)
        return linear(variables, images) + len(calls)

    with pytest.raises(UserError, match="the logits of the converted network differ by"):
        onnx_export.convert(predictor_of({"kernel": np.zeros((8 * 8 * 3, 2), np.float32)}, changing))


def test_an_export_replaces_no_other_files(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    with pytest.raises(UserError, match="has files that are no export"):
        export.export(None, tmp_path)
    assert readme.read_text() == "mine"


def test_an_export_into_a_file_is_refused_before_work(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "served"):
        with pytest.raises(UserError, match="file is not a folder: choose another folder"):
            export.export(None, folder)
