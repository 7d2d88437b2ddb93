"""A ViT with loaded weights computes as timm's ViT, and weights go back into timm."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

import jax
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.models.vit import ViT
from cdl_jax.models.weights.pretrained import load_vit, resize_positions, to_timm

torch = pytest.importorskip("torch")

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


class _Empty(type):
    """An empty class whose members are their own names.

    timm lists members of enumerations when timm is imported.
    """

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Replaces absent torchvision: any submodule exists, any name is an empty class.

    timm imports torchvision for its data pipeline and for frozen batch normalization. Its ViT computes only with torch.
    An empty class cannot return a number, so that it cannot affect the comparison.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self._empty_class
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def _empty_class(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Empty(name, (), {})


@pytest.fixture(scope="module")
def models():
    """`timm.models`; torchvision is stood in for only while timm is being imported."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    absent = None if importlib.util.find_spec("torchvision") else _Absent()
    if absent:
        sys.meta_path.append(absent)
    try:
        import timm.models.deit
        import timm.models.vision_transformer
    finally:
        if absent:
            sys.meta_path.remove(absent)
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    return timm.models


def randomize(model, seed=0):
    """Replaces all parameters by random numbers: a zero bias or token hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def ours(**changes):
    sizes = {"dim": 48, "depth": 3, "heads": 3, "patch_size": 8, "image_size": 32, "num_classes": 7}
    model = ViT(**{**sizes, **changes})
    images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), np.float32)
    return model, jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def random_images(size=32):
    return np.random.default_rng(1).standard_normal((4, size, size, 3), dtype=np.float32)


def assert_same_logits(model, params, theirs, images):
    logits, _ = model.apply({"params": params}, images)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert logits.shape == expected.shape and np.ptp(expected) > 0.5
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5


@pytest.mark.parametrize("layer_scale", [0.0, 1e-5])
def test_logits_equal_timm(tmp_path, models, layer_scale):
    theirs = randomize(models.vision_transformer.VisionTransformer(**SIZES, init_values=layer_scale or None))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model, shapes = ours(layer_scale=layer_scale)
    assert_same_logits(model, load_vit(tmp_path / "w.pth", shapes), theirs, random_images())


def test_features_without_a_head_equal_timm(tmp_path, models):
    theirs = randomize(models.vision_transformer.VisionTransformer(**SIZES))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    theirs.reset_classifier(0)
    model, shapes = ours(num_classes=0)
    assert_same_logits(model, load_vit(tmp_path / "w.pth", shapes), theirs, random_images())


def test_weights_go_back_into_timm(models):
    model, shapes = ours(layer_scale=1e-5)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32) * 0.2, shapes)
    theirs = models.vision_transformer.VisionTransformer(**SIZES, init_values=1e-5).eval()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in to_timm(params).items()}, strict=True)
    assert_same_logits(model, params, theirs, random_images())


def test_google_npz_is_read_as_timm_reads_it(tmp_path, models):
    dim, heads = SIZES["embed_dim"], SIZES["num_heads"]
    shapes = {
        "cls": (1, 1, dim),
        "embedding/kernel": (8, 8, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, 17, dim),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
        "head/kernel": (dim, 7),
        "head/bias": (7,),
    }
    for i in range(SIZES["depth"]):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/scale": (dim,), f"{block}/{norm}/bias": (dim,)}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (dim, heads, dim // heads)
            shapes[f"{attention}/{part}/bias"] = (heads, dim // heads)
        shapes |= {f"{attention}/out/kernel": (heads, dim // heads, dim), f"{attention}/out/bias": (dim,)}
        shapes |= {f"{block}/MlpBlock_3/Dense_0/kernel": (dim, 4 * dim), f"{block}/MlpBlock_3/Dense_0/bias": (4 * dim,)}
        shapes |= {f"{block}/MlpBlock_3/Dense_1/kernel": (4 * dim, dim), f"{block}/MlpBlock_3/Dense_1/bias": (dim,)}
    rng = np.random.default_rng(3)
    np.savez(tmp_path / "w.npz", **{n: rng.standard_normal(s, dtype=np.float32) * 0.2 for n, s in shapes.items()})
    theirs = models.vision_transformer.VisionTransformer(**SIZES).eval()
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    model, shapes = ours()
    assert_same_logits(model, load_vit(tmp_path / "w.npz", shapes), theirs, random_images())


def test_distilled_deit_gives_its_plain_part(tmp_path, models, caplog):
    distilled = randomize(models.deit.VisionTransformerDistilled(**SIZES))
    torch.save({"model": distilled.state_dict()}, tmp_path / "w.pth")
    state = dict(distilled.state_dict())
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 2:]], dim=1)
    plain_vit = models.vision_transformer.VisionTransformer(**SIZES).eval()
    left = plain_vit.load_state_dict(state, strict=False)
    assert not left.missing_keys
    model, shapes = ours()
    with caplog.at_level("WARNING", logger="absl"):
        params = load_vit(tmp_path / "w.pth", shapes)
    assert all(name in caplog.text for name in left.unexpected_keys) and len(left.unexpected_keys) == 3
    assert_same_logits(model, params, plain_vit, random_images())


def test_a_timm_model_that_is_no_plain_vit_is_refused(tmp_path, models):
    theirs = models.vision_transformer.VisionTransformer(**SIZES, reg_tokens=2, qk_norm=True)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="13 unexpected: reg_token, blocks.0.attn.q_norm.weight"):
        load_vit(tmp_path / "w.pth", ours()[1])


@pytest.mark.parametrize("old, new", [(4, 7), (7, 4), (3, 16), (37, 16), (1, 3)])
def test_positions_are_resized_as_torch_interpolates(old, new):
    table = np.random.default_rng(4).standard_normal((old * old, 5), dtype=np.float32)
    square = torch.from_numpy(table.reshape(1, old, old, 5)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(
        resize_positions(table, new), expected.permute(0, 2, 3, 1).reshape(-1, 5).numpy(), atol=1e-5
    )


def test_logits_equal_timm_with_resized_positions(tmp_path, models):
    small = randomize(models.vision_transformer.VisionTransformer(**SIZES))
    torch.save(small.state_dict(), tmp_path / "w.pth")
    state = dict(small.state_dict())
    grid = state["pos_embed"][:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 36, 48)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], grid], dim=1)
    large = models.vision_transformer.VisionTransformer(**{**SIZES, "img_size": 48}).eval()
    large.load_state_dict(state)
    model, shapes = ours(image_size=48)
    assert_same_logits(model, load_vit(tmp_path / "w.pth", shapes), large, random_images(48))
