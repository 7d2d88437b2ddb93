"""The case `detection`: PyTorch equals our detector, and samplings are compared."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import run
from benchmarks.cases import detection
from cdl_jax.methods.shared import detection_losses
from cdl_jax.models.detection import vidt
from configs import detection_glyph

TINY = {
    "embed_dim": 8, "depths": (1, 2, 1, 1), "heads": (1, 2, 2, 2), "dim": 32, "hidden": 32, "decoder_layers": 2,
    "queries": 6,
}  # fmt: skip


@pytest.mark.parametrize("window", [4, 5])
def test_the_torch_side_has_the_outputs_and_the_loss_of_our_detector(window):
    torch = pytest.importorskip("torch")
    from benchmarks.torch_peers.vidt import ViDT

    config = detection_glyph.get_config("size=large")
    config.student.update({**TINY, "window": window})
    rng, model = np.random.default_rng(0), vidt.build(config.student, 8)
    images = np.float32(rng.normal(size=(2, 96, 112, 3)))
    sizes, extents = np.int32([[80, 112], [96, 64]]), np.full((2, 2), (96, 112), np.int32)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: x + np.float32(rng.normal(size=x.shape) * 0.1), params)
    batch = {
        "boxes": np.float32(rng.uniform(0.2, 0.4, (2, 3, 4))),
        "labels": np.int32([[3, 7, 1], [2, 0, 0]]),
        "valid": np.array([[True, True, True], [True, False, False]]),
    }
    # The canvas is larger than the extent, in which the torch side works.
    canvas = np.pad(images, ((0, 0), (0, 32), (0, 16), (0, 0)))

    @jax.jit
    def ours(params):
        out = model.apply({"params": params}, canvas, sizes, extents)
        return out["logits"], out["boxes"], detection_losses.detection_loss(config.vidt, out, batch)[0]

    logits, boxes, loss = ours(params)
    peer = ViDT(config, {"student": {"params": jax.device_get(params)}}, classes=8)
    torch_images, mask, labels, targets = detection.torch_batch(
        _Loader(), {**batch, "images": canvas, "sizes": sizes, "extents": extents}, torch.device("cpu")
    )
    with torch.no_grad():
        found, found_boxes = peer.detector(torch_images, mask)
        total, last = peer.loss(torch_images, mask, labels, targets)
    np.testing.assert_allclose(torch.stack(found), logits, atol=2e-4)
    np.testing.assert_allclose(torch.stack(found_boxes), boxes, atol=2e-5)
    np.testing.assert_array_equal(last, found[-1])
    assert float(total) == pytest.approx(float(loss), rel=1e-4)


def test_the_torch_side_spares_vectors_and_tokens_of_the_backbone_from_decay():
    pytest.importorskip("torch")
    from benchmarks.torch_peers.vidt import ViDT

    config = detection_glyph.get_config("size=large")
    config.student.update(TINY)
    model = vidt.build(config.student, 8)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    peer = ViDT(config, {"student": {"params": jax.device_get(params)}}, classes=8)
    ((optimizer, parameters),) = peer.groups(fused=False)
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (config.optim.weight_decay, 0.0)
    names = {id(parameter): name for name, parameter in peer.detector.named_parameters()}
    assert len(parameters) == len(names) and all(names[id(p)].startswith("backbone.") for p in spared["params"])
    in_backbone = [name for name in map(names.get, map(id, decayed["params"])) if name.startswith("backbone.")]
    assert in_backbone and all(name.endswith(("weight", "table")) for name in in_backbone)
    assert not any("norm" in name or name.endswith("bias") for name in in_backbone)


def test_both_samplings_are_equal_and_the_smaller_maps_choose_products(monkeypatch, capsys):
    monkeypatch.setattr(detection, "SIZES", ((64, 64), (384, 384)))
    found = detection.sampling(argparse.Namespace(rounds=1))["maps"]
    assert [one["positions"] for one in found] == [64 + 16 + 4 + 1, 48**2 + 24**2 + 12**2 + 6**2]
    assert [one["auto"] for one in found] == ["dense", "gather"]
    assert all(one["ms"]["dense"]["median"] > 0 for one in found)
    assert "| 384 x 384 | 3,060 |" in capsys.readouterr().out


def test_a_part_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["detection", "--parts", "teacher"])
    assert "invalid choice: 'teacher'" in capsys.readouterr().err


class _Loader:
    data = None

    def read(self, data, item):
        return item
