"""CLIP's image encoder: files of the model, of the encoder alone, refused files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax.errors import UserError
from cdl_jax.models import clip, regnet, weights
from cdl_jax.models.modules import families
from tests.support.sections import checked

TINY = {"image_size": 8, "patch_size": 4, "dim": 6, "depth": 1, "heads": 2, "output_dim": 5, "dtype": "float32"}
KEY = "teacher.weights"


def build(num_classes=0, **changes):
    module = clip.build(
        checked("teacher", families.network_options("clip_vit_b32"), **{**TINY, **changes}), num_classes
    )
    images = jnp.zeros((1, module.image_size, module.image_size, 3))
    return module, jax.eval_shape(module.init, jax.random.key(0), images)


def state_dict(**changes):
    """Returns the image encoder's random state dict under OpenAI's names."""
    block = "transformer.resblocks.0"
    shapes = {
        "class_embedding": (6,), "positional_embedding": (5, 6), "proj": (6, 5), "conv1.weight": (6, 3, 4, 4),
        f"{block}.attn.in_proj_weight": (18, 6), f"{block}.attn.in_proj_bias": (18,),
        f"{block}.attn.out_proj.weight": (6, 6), f"{block}.attn.out_proj.bias": (6,),
        f"{block}.mlp.c_fc.weight": (24, 6), f"{block}.mlp.c_fc.bias": (24,),
        f"{block}.mlp.c_proj.weight": (6, 24), f"{block}.mlp.c_proj.bias": (6,),
        **{f"{norm}.{leaf}": (6,) for norm in ("ln_pre", "ln_post", f"{block}.ln_1", f"{block}.ln_2")
           for leaf in ("weight", "bias")},
    }  # fmt: skip
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in {**shapes, **changes}.items()}


def complete(state):
    """Returns the state dict of a complete CLIP, with a text encoder of the same kind."""
    text = {name: np.ones((2, 2), np.float32) for name in (
        "positional_embedding", "text_projection", "token_embedding.weight", "logit_scale",
        "transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0.ln_1.weight",
    )}  # fmt: skip
    return text | {f"visual.{name}": array for name, array in state.items()}


def test_files_of_the_complete_model_and_of_the_encoder_give_the_same_variables(tmp_path):
    state, (module, shapes) = state_dict(), build()
    loaded = []
    for name, content in (("complete", complete(state)), ("encoder", state)):
        np.savez(tmp_path / f"{name}.npz", **content)
        loaded.append(weights.load_network(tmp_path / f"{name}.npz", shapes, KEY, clip.torch_name)["params"])
    assert jax.tree.all(jax.tree.map(np.array_equal, *loaded))
    params = loaded[0]
    assert {path: leaf.shape for path, leaf in flatten_dict(params).items()} == {
        path: leaf.shape for path, leaf in flatten_dict(shapes["params"]).items()
    }
    assert np.array_equal(params["projection"]["kernel"], state["proj"])
    assert np.array_equal(params["pos_embed"][0], state["positional_embedding"])
    assert np.array_equal(params["patch_embed"]["kernel"][1, 2], state["conv1.weight"][:, :, 1, 2].T)
    logits, out = module.apply({"params": params}, jnp.ones((2, 8, 8, 3)))
    assert logits is out["features"] and np.isfinite(logits).all()


def test_a_head_is_new(tmp_path):
    np.savez(tmp_path / "clip.npz", **complete(state_dict()))
    _, shapes = build(num_classes=3)
    params = weights.load_network(tmp_path / "clip.npz", shapes, KEY, clip.torch_name)["params"]
    assert params["head"] == shapes["params"]["head"]
    assert shapes["params"]["head"]["kernel"].shape == (5, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 2}, r"patch_embed/kernel expected \[2, 2, 3, 6\] found \[4, 4, 3, 6\]"),
        ({"depth": 2}, "12 missing: params/block_1/"),
        ({"output_dim": 4}, r"params/projection/kernel expected \[6, 4\] found \[6, 5\]"),
    ],
)
def test_a_file_of_other_sizes_is_refused(tmp_path, changes, message):
    np.savez(tmp_path / "clip.npz", **complete(state_dict()))
    with pytest.raises(UserError, match=f"does not fit the model: .*{message}") as error:
        weights.load_network(tmp_path / "clip.npz", build(**changes)[1], KEY, clip.torch_name)
    assert str(error.value).endswith("the file looks like CLIP in OpenAI's layout") and "\n" not in str(error.value)


def test_another_network_refuses_a_file_of_clip(tmp_path):
    np.savez(tmp_path / "clip.npz", **complete(state_dict()))
    module = regnet.build(checked("teacher", families.network_options("regnety_004")), 2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(UserError, match="the file looks like CLIP in OpenAI's layout"):
        weights.load_network(tmp_path / "clip.npz", shapes, KEY, regnet.torch_name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"heads": 4}, "dim=6 cannot be split over heads=4"), ({"image_size": 10}, "image_size=10 is not a multiple of")],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)
