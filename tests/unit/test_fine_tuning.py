"""A pretrained network goes into method `supervised` without its head, and all of it learns."""

import jax
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax.methods import supervised
from cdl_jax.methods.base import StreamInfo
from cdl_jax.models import pretrained


@pytest.mark.parametrize("classes", [0, 9], ids=["no head", "a head of other classes"])
def test_the_backbone_is_loaded_and_the_head_is_new(tmp_path, classes):
    config = base.default("supervised", data="glyph_mini", network="mini_student")
    config.network.update(dim=8, depth=1, heads=2, image_size=16, weights=str(tmp_path / "weights.npz"))
    method = supervised.build(config, StreamInfo(5, (3, 2)))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    saved = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)["network"]["params"]
    saved["head"] = {"kernel": rng.normal(size=(8, classes)), "bias": rng.normal(size=classes)}
    pretrained.save_timm(
        tmp_path / "weights.npz", {name: leaf for name, leaf in saved.items() if classes or name != "head"}
    )
    loaded = method.load(shapes)["network"]["params"]
    assert loaded["head"]["kernel"].shape == (8, 5)
    assert isinstance(loaded["head"]["kernel"], jax.ShapeDtypeStruct)  # to be drawn
    for part in set(saved) - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, loaded[part], saved[part])
    (update,) = method.phases[0].updates
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert len(paths) > 15 and all(update.trainable(tuple(key.key for key in path)) for path in paths)
