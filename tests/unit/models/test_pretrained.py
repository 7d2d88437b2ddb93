"""Tests equal parameters from weights of all layouts, and messages of refusal."""

import os
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from cdl_jax.errors import UserError
from cdl_jax.models.weights.pretrained import load_vit, resize_positions, save_timm, to_timm
from tests.support.vit_weights import CLASSES, DEPTH, DIM, HEADS, PATCH, assert_same, param_shapes, random_params


def google_names(params):
    """Returns the layout of Google's .npz files, written independently of the reader."""
    flat = flatten_dict(params, sep="/")
    state = {
        "cls": flat["cls_token"],
        "embedding/kernel": flat["patch_embed/kernel"].reshape(PATCH, PATCH, 3, DIM),
        "embedding/bias": flat["patch_embed/bias"],
        "Transformer/posembed_input/pos_embedding": flat["pos_embed"],
        "Transformer/encoder_norm/scale": flat["norm/scale"],
        "Transformer/encoder_norm/bias": flat["norm/bias"],
        "head/kernel": flat["head/kernel"],
        "head/bias": flat["head/bias"],
    }
    for i in range(DEPTH):
        ours, theirs = f"block_{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for k, part in enumerate(("query", "key", "value")):
            columns = slice(k * DIM, (k + 1) * DIM)
            state[f"{attention}/{part}/kernel"] = flat[f"{ours}/attn/qkv/kernel"][:, columns].reshape(DIM, HEADS, -1)
            state[f"{attention}/{part}/bias"] = flat[f"{ours}/attn/qkv/bias"][columns].reshape(HEADS, -1)
        state[f"{attention}/out/kernel"] = flat[f"{ours}/attn/proj/kernel"].reshape(HEADS, -1, DIM)
        state[f"{attention}/out/bias"] = flat[f"{ours}/attn/proj/bias"]
        for a, b in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            state[f"{theirs}/{b}/scale"], state[f"{theirs}/{b}/bias"] = (
                flat[f"{ours}/{a}/scale"],
                flat[f"{ours}/{a}/bias"],
            )
        for a, b in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            for leaf in ("kernel", "bias"):
                state[f"{theirs}/MlpBlock_3/{b}/{leaf}"] = flat[f"{ours}/mlp/{a}/{leaf}"]
    return state


def dinov2_names(params):
    """Returns Hugging Face's names of DINOv2, written independently of the reader."""
    flat = flatten_dict(params, sep="/")
    kernel = flat["patch_embed/kernel"].reshape(PATCH, PATCH, 3, DIM)
    state = {
        "embeddings.cls_token": flat["cls_token"],
        "embeddings.mask_token": np.zeros((1, DIM), np.float32),
        "embeddings.position_embeddings": flat["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": np.einsum("rcio->oirc", kernel),
        "embeddings.patch_embeddings.projection.bias": flat["patch_embed/bias"],
        "layernorm.weight": flat["norm/scale"],
        "layernorm.bias": flat["norm/bias"],
    }
    for i in range(DEPTH):
        ours, theirs = f"block_{i}", f"encoder.layer.{i}"
        for k, part in enumerate(("query", "key", "value")):
            columns = slice(k * DIM, (k + 1) * DIM)
            name = f"{theirs}.attention.attention.{part}"
            state[f"{name}.weight"] = flat[f"{ours}/attn/qkv/kernel"][:, columns].T
            state[f"{name}.bias"] = flat[f"{ours}/attn/qkv/bias"][columns]
        for a, b in (("attn/proj", "attention.output.dense"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")):
            state[f"{theirs}.{b}.weight"] = flat[f"{ours}/{a}/kernel"].T
            state[f"{theirs}.{b}.bias"] = flat[f"{ours}/{a}/bias"]
        for n in (1, 2):
            state[f"{theirs}.norm{n}.weight"] = flat[f"{ours}/norm{n}/scale"]
            state[f"{theirs}.norm{n}.bias"] = flat[f"{ours}/norm{n}/bias"]
            state[f"{theirs}.layer_scale{n}.lambda1"] = flat[f"{ours}/layer_scale{n}/scale"]
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


LAYOUTS = {
    "timm": to_timm,
    "timm in DataParallel": lambda params: {f"module.{name}": array for name, array in to_timm(params).items()},
    "google": google_names,
    "google with optimizer state": lambda params: {
        **{f"opt/target/{name}": array for name, array in google_names(params).items()},
        "opt/state/step": np.ones(1, np.int32),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_parameters(tmp_path, layout):
    params = random_params()
    state = LAYOUTS[layout](params)
    np.savez_compressed(tmp_path / "w.npz", **state)
    save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, tmp_path / "w.safetensors")
    assert_same(load_vit(tmp_path / "w.npz", param_shapes()), params)
    assert_same(load_vit(tmp_path / "w.safetensors", param_shapes()), params)


def test_dinov2_of_hugging_face(tmp_path):
    params = random_params(num_classes=0, layer_scale=1.0)
    save_file(dinov2_names(params), tmp_path / "w.safetensors")
    assert_same(load_vit(tmp_path / "w.safetensors", params), params)


def test_layer_scale_of_facebook_and_of_deit3(tmp_path):
    params = random_params(num_classes=0, layer_scale=1.0)
    state = to_timm(params)
    assert state["blocks.1.ls2.gamma"].shape == (DIM,)
    save_file(state, tmp_path / "dino.safetensors")
    save_file({n.replace("ls1.", "").replace("gamma", "gamma_1") if ".ls1." in n else n: a for n, a in state.items()},
              tmp_path / "deit3.safetensors")  # fmt: skip
    assert_same(load_vit(tmp_path / "dino.safetensors", params), params)
    assert_same(load_vit(tmp_path / "deit3.safetensors", params), params)


def test_to_timm_gives_torch_layouts():
    params = random_params()
    state = to_timm(params)
    assert state["patch_embed.proj.weight"].shape == (DIM, 3, PATCH, PATCH)
    row, column, channel, out = 1, 3, 2, 7
    expected = params["patch_embed"]["kernel"][(row * PATCH + column) * 3 + channel, out]
    assert state["patch_embed.proj.weight"][out, channel, row, column] == expected
    np.testing.assert_array_equal(state["blocks.1.attn.qkv.weight"], params["block_1"]["attn"]["qkv"]["kernel"].T)
    np.testing.assert_array_equal(state["blocks.0.norm2.weight"], params["block_0"]["norm2"]["scale"])
    np.testing.assert_array_equal(state["head.weight"], params["head"]["kernel"].T)
    assert len(state) == len(jax.tree.leaves(params)) == 8 + 12 * DEPTH


@pytest.mark.parametrize("name, dtype", [
    ("a.npz", "float32"), ("a.npz", "float16"), ("a.safetensors", "float32"), ("a.safetensors", "bfloat16"),
])  # fmt: skip
def test_saved_file_reads_back_bit_equal(tmp_path, name, dtype):
    params = random_params(layer_scale=1.0)
    save_timm(tmp_path / name, params, dtype)
    rounding = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    expected = jax.tree.map(lambda a: a.astype(rounding).astype(np.float32), params)
    assert_same(load_vit(tmp_path / name, params), expected)
    assert os.listdir(tmp_path) == [name]


def test_a_failed_save_leaves_the_old_file_unchanged(tmp_path):
    params = random_params()
    save_timm(tmp_path / "a.npz", params)
    huge = jax.tree.map(lambda a: a * 1e30, params)
    with pytest.raises(UserError, match="NaN or infinity in .*use float32"):
        save_timm(tmp_path / "a.npz", huge, "float16")
    assert_same(load_vit(tmp_path / "a.npz", params), params)
    for name, dtype, message in [("a.bin", "float32", "use the suffix"), ("a.npz", "bfloat16", "float32, float16")]:
        with pytest.raises(UserError, match=message):
            save_timm(tmp_path / name, params, dtype)
    assert os.listdir(tmp_path) == ["a.npz"]


def test_the_head_is_loaded_dropped_or_refused(tmp_path):
    params = random_params()
    path = tmp_path / "a.npz"
    np.savez(path, **to_timm(params), **{"pre_logits.fc.weight": np.eye(DIM, dtype=np.float32)})
    without = {name: leaf for name, leaf in params.items() if name != "head"}
    assert_same(load_vit(path, param_shapes(num_classes=0)), without)
    with pytest.raises(UserError, match="1 unexpected: pre_logits.fc.weight"):
        load_vit(path, params)
    save_timm(path, params)
    with pytest.raises(
        UserError, match=r"2 wrong shape: head/bias expected \[9\] found \[5\], head/kernel expected \[12, 9\]"
    ):
        load_vit(path, param_shapes(num_classes=9))
    save_timm(path, without)
    with pytest.raises(UserError, match="2 missing: head/bias, head/kernel. Check"):
        load_vit(path, params)


def test_one_line_lists_all_parameters_that_do_not_fit(tmp_path):
    params = flatten_dict(random_params(), sep="/")
    del params["norm/scale"]
    state = to_timm(unflatten_dict(params, sep="/"))
    state["blocks.0.attn.q_norm.weight"] = np.ones(4, np.float32)
    state["blocks.1.mlp.fc2.bias"] = np.ones(DIM + 1, np.float32)
    state["patch_embed.proj.weight"] = np.ones((DIM, 48), np.float32)[:, :47]
    save_file({n: np.ascontiguousarray(a) for n, a in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        load_vit(tmp_path / "w.safetensors", param_shapes(depth=3))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(tmp_path / "w.safetensors"))
    assert "13 missing: block_2/attn/proj/bias, " in message and "and 8 more" in message
    assert "1 unexpected: blocks.0.attn.q_norm.weight;" in message
    assert (
        "2 wrong shape: block_1/mlp/fc2/bias expected [12] found [13], patch_embed/kernel expected [48, 12] found"
        in message
    )


@pytest.mark.parametrize("shape", [(3, 2, 8), (12, 2, 2), (1, 12, 4), (48,), (4, 4, 3)])
def test_a_patch_kernel_of_another_geometry_is_refused(tmp_path, shape):
    state = to_timm(random_params())
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].reshape(DIM, *shape)
    save_file(state, tmp_path / "w.safetensors")
    found = re.escape(
        f"patch_embed/kernel expected [48, 12] found {[DIM, *shape]}, a file of this model has [12, 3, 4, 4]"
    )
    with pytest.raises(UserError, match=f"1 wrong shape: {found}"):
        load_vit(tmp_path / "w.safetensors", param_shapes())


def test_a_missing_layer_scale_is_refused(tmp_path):
    save_timm(tmp_path / "w.npz", random_params())
    with pytest.raises(UserError, match="4 missing: block_0/layer_scale1/scale"):
        load_vit(tmp_path / "w.npz", param_shapes(layer_scale=1e-5))
    save_timm(tmp_path / "w.npz", random_params(layer_scale=1.0))
    with pytest.raises(UserError, match="4 unexpected: blocks.0.ls1.gamma"):
        load_vit(tmp_path / "w.npz", param_shapes())


def test_incomplete_attention_is_listed_by_its_parts(tmp_path):
    state = google_names(random_params())
    del state["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias"]
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(UserError, match="1 missing: block_1/attn/qkv/bias; 2 unexpected: blocks.1.attn.query.bias"):
        load_vit(tmp_path / "w.npz", param_shapes())


def test_positions_resize_as_torch_bicubic():
    # One axis from [0, 1] to four points, by hand from Keys' kernel with a = -0.75 and repeated borders.
    line = np.array([-0.10546875, 0.2265625, 0.7734375, 1.10546875])
    rows, columns = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 1.0], [0.0, 1.0]])
    resized = resize_positions(np.stack([rows.ravel(), columns.ravel(), np.full(4, 7.0)], axis=1), 4).reshape(4, 4, 3)
    np.testing.assert_allclose(resized[:, :, 0], np.tile(line[:, None], (1, 4)), atol=1e-6)
    np.testing.assert_allclose(resized[:, :, 1], np.tile(line[None], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(resized[:, :, 2], 7.0, atol=1e-6)


def test_positions_of_another_grid_are_resized_except_that_of_the_class_token(tmp_path):
    params = random_params()
    save_timm(tmp_path / "w.npz", params)
    loaded = load_vit(tmp_path / "w.npz", param_shapes(image_size=5 * PATCH))
    assert loaded["pos_embed"].shape == (1, 26, DIM)
    np.testing.assert_array_equal(loaded["pos_embed"][0, 0], params["pos_embed"][0, 0])
    np.testing.assert_array_equal(loaded["pos_embed"][0, 1:], resize_positions(params["pos_embed"][0, 1:], 5))
    assert_same({**loaded, "pos_embed": params["pos_embed"]}, params)


def test_positions_without_a_class_row_get_a_row_of_zeros(tmp_path):
    params = random_params()
    save_file({**to_timm(params), "pos_embed": params["pos_embed"][:, 1:].copy()}, tmp_path / "w.safetensors")
    position = load_vit(tmp_path / "w.safetensors", param_shapes())["pos_embed"]
    np.testing.assert_array_equal(position[0, 0], np.zeros(DIM))
    np.testing.assert_array_equal(position[0, 1:], params["pos_embed"][0, 1:])


def test_positions_that_are_not_a_square_grid_are_refused(tmp_path):
    params = random_params()
    save_file({**to_timm(params), "pos_embed": np.ones((1, 7, DIM), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"pos_embed expected \[1, 5, 12\] found \[1, 7, 12\]"):
        load_vit(tmp_path / "w.safetensors", param_shapes())


def test_distillation_parts_of_deit_are_named_and_left_out(tmp_path, caplog):
    params = random_params()
    state = to_timm(params)
    first, patches = params["pos_embed"][:, :1], params["pos_embed"][:, 1:]
    state["pos_embed"] = np.concatenate([first, np.full((1, 1, DIM), 99, np.float32), patches], axis=1)
    state["dist_token"] = np.ones((1, 1, DIM), np.float32)
    state["head_dist.weight"], state["head_dist.bias"] = (
        np.ones((CLASSES, DIM), np.float32),
        np.ones(CLASSES, np.float32),
    )
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level("WARNING", logger="absl"):
        loaded = load_vit(tmp_path / "w.safetensors", param_shapes())
    assert_same(loaded, params)
    assert "ignored dist_token, head_dist.weight, head_dist.bias" in caplog.text


def test_nan_is_refused(tmp_path):
    params = random_params()
    params["norm"]["bias"][3] = np.nan
    np.savez(tmp_path / "w.npz", **to_timm(params))
    with pytest.raises(UserError, match="NaN or infinity in norm/bias"):
        load_vit(tmp_path / "w.npz", param_shapes())


def test_missing_file_names_the_path_and_the_way_to_get_it(tmp_path):
    path = tmp_path / "none.safetensors"
    with pytest.raises(UserError) as caught:
        load_vit(path, param_shapes())
    assert str(path) in str(caught.value) and "python -m cdl_jax.fetch" in str(caught.value)
