"""Other programs' checkpoints give equal parameters in all wrappers and layouts."""

import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from cdl_jax.errors import UserError
from cdl_jax.models.weights.pretrained import load_vit, to_timm
from cdl_jax.models.weights.state_dicts import looks_like, read_state
from tests.support.vit_weights import DIM, assert_same, param_shapes, random_params
from tests.unit.models.test_state_dicts import checkpoint_zip


def save(path, state, **more):
    save_file({name: np.ascontiguousarray(array) for name, array in {**state, **more}.items()}, path)
    return path


def hugging_face(timm):
    """Returns the arrays by the names of transformers' ViTForImageClassification.

    The names are written independently of the reader.
    """
    state = {}
    for name, array in timm.items():
        block = re.match(r"blocks\.(\d+)\.(.*)\.(weight|bias)", name)
        if not block:
            state[
                {
                    "cls_token": "vit.embeddings.cls_token",
                    "pos_embed": "vit.embeddings.position_embeddings",
                    "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
                    "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
                    "norm.weight": "vit.layernorm.weight",
                    "norm.bias": "vit.layernorm.bias",
                    "head.weight": "classifier.weight",
                    "head.bias": "classifier.bias",
                }[name]
            ] = array
            continue
        number, part, leaf = block.groups()
        layer = f"vit.encoder.layer.{number}"
        if part == "attn.qkv":
            for k, letter in enumerate(("query", "key", "value")):
                state[f"{layer}.attention.attention.{letter}.{leaf}"] = array[k * DIM : (k + 1) * DIM]
            continue
        theirs = {
            "attn.proj": "attention.output.dense",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }
        state[f"{layer}.{theirs[part]}.{leaf}"] = array
    return state


def torchvision(timm, mlp=("0", "3")):
    """Returns the arrays by the names of torchvision's VisionTransformer.

    The names are written independently of the reader.
    """
    pairs = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj.": "conv_proj.",
        "norm.": "encoder.ln.",
        "head.": "heads.head.",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj.": "self_attention.out_proj.",
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "mlp.fc1.": f"mlp.{mlp[0]}.",
        "mlp.fc2.": f"mlp.{mlp[1]}.",
    }
    state = {}
    for name, array in timm.items():
        block, inside = re.fullmatch(r"(blocks\.\d+\.)?(.*)", name).groups()
        ours = next(prefix for prefix in pairs if inside.startswith(prefix))
        number = f"encoder.layers.encoder_layer_{block[7:-1]}." if block else ""
        state[number + inside.replace(ours, pairs[ours], 1)] = array
    return state


def chunked(timm):
    """Returns DINOv2's names for chunks of one block, with consecutive block numbers."""
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name): array for name, array in timm.items()}


@pytest.mark.parametrize(
    "layout",
    [hugging_face, torchvision, lambda timm: torchvision(timm, ("linear_1", "linear_2")), chunked],
    ids=["hugging_face", "torchvision", "torchvision_before_0.14", "chunked"],
)
def test_each_layout_gives_the_same_parameters(tmp_path, layout):
    params = random_params()
    path = save(tmp_path / "w.safetensors", layout(to_timm(params)))
    assert_same(load_vit(path, param_shapes()), params)
    assert_same(
        load_vit(path, param_shapes(num_classes=0)), {name: leaf for name, leaf in params.items() if name != "head"}
    )


def test_the_pooler_of_a_hugging_face_model_is_left_out(tmp_path, caplog):
    params = random_params(num_classes=0)
    state = {name.removeprefix("vit."): array for name, array in hugging_face(to_timm(params)).items()}
    pooler = {f"pooler.dense.{leaf}": np.ones(DIM, np.float32) for leaf in ("weight", "bias")}
    assert_same(load_vit(save(tmp_path / "w.safetensors", state, **pooler), params), params)
    assert "ignored pooler.dense.weight, pooler.dense.bias" in caplog.text


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "model.", "backbone.", "teacher.", "student.", "_orig_mod.", "base_encoder.", "state_dict.",
        "model_ema.", "module.base_encoder.", "_orig_mod.module.", "model.backbone.", "teacher.module.backbone.",
        "vit.", "encoder.", "module.encoder.", "feature_extractor.", "image_encoder.", "trunk.", "visual.trunk.",
        "vit_model.", "learner.", "0.", "model.0.", "any.other.name.",
    ],
)  # fmt: skip
def test_prefixes_are_removed(tmp_path, prefix):
    params = random_params()
    state = {prefix + name: array for name, array in to_timm(params).items()}
    assert_same(load_vit(save(tmp_path / "w.safetensors", state), param_shapes()), params)


def test_the_classifier_beside_a_backbone_is_loaded_and_a_self_supervised_head_is_not(tmp_path):
    params = random_params()
    state = {n if n.startswith("head.") else f"backbone.{n}": array for n, array in to_timm(params).items()}
    more = {"dino_head.mlp.0.weight": np.ones(3, np.float32), "dino_head.last_layer.weight_g": np.ones(3, np.float32)}
    assert_same(load_vit(save(tmp_path / "w.safetensors", state, **more), param_shapes()), params)


@pytest.mark.parametrize(
    ("raw", "averaged"),
    [
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("student", "teacher"),
        ("base_encoder", "momentum_encoder"),
    ],
)
def test_the_config_chooses_between_raw_and_averaged_weights(tmp_path, raw, averaged):
    one, other = random_params(0), random_params(1)
    state = {f"{raw}.{name}": array for name, array in to_timm(one).items()}
    state |= {f"{averaged}.module.{name}": array for name, array in to_timm(other).items()}
    path = save(tmp_path / "w.safetensors", state)
    with pytest.raises(UserError, match="has several networks: choose one with .*weights_key") as error:
        load_vit(path, param_shapes())
    assert raw in str(error.value) and averaged in str(error.value)
    assert_same(load_vit(path, param_shapes(), raw), one)
    assert_same(load_vit(path, param_shapes(), averaged), other)
    with pytest.raises(UserError, match=f"has no network 'best': weights_key must be one of .*{averaged}"):
        load_vit(path, param_shapes(), "best")


def prefixed(prefix, state):
    return {prefix + name: array for name, array in state.items()}


AVERAGES = ["ema_weights", "model_ema_state_dict", "ema_state", "ema_net", "averaged_model", "best_state_dict",
            "model_teacher", "swa"]  # fmt: skip


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("form", ["torch", "wrapped", "safetensors"])
def test_averaged_weights_of_any_name_need_a_choice(tmp_path, average, form):
    one, other = random_params(0), random_params(1)
    raw, averaged = to_timm(one), to_timm(other)
    if form == "safetensors":
        path = save(tmp_path / "w", prefixed("model.", raw), **prefixed(f"{average}.", averaged))
    else:
        inner = {"module": averaged} if form == "wrapped" else averaged
        path = checkpoint_zip(tmp_path / "w", {"epoch": 3, "model": raw, average: inner})
    with pytest.raises(UserError, match="has several networks: choose one with weights_key=") as error:
        load_vit(path, param_shapes())
    assert "model" in str(error.value) and average in str(error.value)
    assert_same(load_vit(path, param_shapes(), "model"), one)
    assert_same(load_vit(path, param_shapes(), average), other)
    with pytest.raises(UserError, match=f"has no network 'best': weights_key must be one of .*{average}"):
        load_vit(path, param_shapes(), "best")


@pytest.mark.parametrize("name", ["ema_weights", "backbone_state", "anything"])
def test_the_only_network_needs_no_choice_whatever_its_name(tmp_path, name):
    params = random_params()
    path = checkpoint_zip(tmp_path / "w.pth", {name: to_timm(params), "epoch": 3})
    assert_same(load_vit(path, param_shapes()), params)
    assert_same(load_vit(path, param_shapes(), name), params)


def test_a_network_beside_the_tensors_of_another_needs_a_choice(tmp_path):
    one, other = random_params(0), random_params(1)
    path = checkpoint_zip(tmp_path / "w.pth", {**to_timm(one), "ema": to_timm(other)})
    with pytest.raises(UserError, match=r"several networks: .*it has \., ema \('\.' is the network without a prefix\)"):
        load_vit(path, param_shapes())
    assert_same(load_vit(path, param_shapes(), "."), one)
    assert_same(load_vit(path, param_shapes(), "ema"), other)


def test_networks_at_two_levels_are_selected_by_their_full_names(tmp_path):
    networks = [random_params(seed) for seed in range(3)]
    raw, raw_teacher, averaged = map(to_timm, networks)
    path = checkpoint_zip(
        tmp_path / "w.pth", {"model": {"a": raw, "b": raw_teacher}, "ema": {"a": {"module": averaged}}}
    )
    with pytest.raises(UserError, match="it has model.a, model.b, ema"):
        load_vit(path, param_shapes())
    with pytest.raises(UserError, match="has no network 'a': weights_key must be one of model.a, model.b, ema"):
        load_vit(path, param_shapes(), "a")
    for key, params in zip(("model.a", "b", "ema"), networks, strict=True):
        assert_same(load_vit(path, param_shapes(), key), params)


def test_an_average_of_some_parameters_needs_a_choice(tmp_path):
    params = random_params()
    state = to_timm(params)
    parts = {"head.weight": state["head.weight"] + 1, "head.bias": state["head.bias"]}
    without_dots = {name.replace(".", ""): array for name, array in state.items()} | {"decay": np.ones(1, np.float32)}
    for number, average in enumerate((parts, without_dots)):
        path = save(
            tmp_path / f"inner_{number}",
            prefixed("state.model.", state),
            **prefixed("state.model_ema.module.", average),
        )
        with pytest.raises(UserError, match="has several networks: .*it has model, model_ema"):
            load_vit(path, param_shapes())
        path = save(tmp_path / str(number), prefixed("model.", state), **prefixed("model_ema.", average))
        with pytest.raises(UserError, match="has several networks: .*it has model, model_ema"):
            load_vit(path, param_shapes())
        assert_same(load_vit(path, param_shapes(), "model"), params)


@pytest.mark.parametrize("shadow", [lambda arrays: {"shadow_params": arrays}, lambda arrays: dict(enumerate(arrays))])
def test_an_average_without_names_is_not_left_out_in_silence(tmp_path, shadow):
    params = random_params()
    average = [array + 1 for array in to_timm(params).values()]
    path = checkpoint_zip(tmp_path / "w.pth", {"model": to_timm(params), "ema": shadow(average)})
    with pytest.raises(UserError, match="has several networks: .*it has model, ema"):
        load_vit(path, param_shapes())
    assert_same(load_vit(path, param_shapes(), "model"), params)
    with pytest.raises(UserError, match="the tensors of ema have no names"):
        load_vit(path, param_shapes(), "ema")


def test_an_adapter_beside_the_network_is_refused(tmp_path):
    adapter = {"lora.blocks.0.A": np.ones((2, 2), np.float32)}
    path = save(tmp_path / "w.safetensors", prefixed("model.", to_timm(random_params())), **adapter)
    with pytest.raises(UserError, match=r"has a LoRA adapter beside the network \(lora.blocks.0.A\)"):
        load_vit(path, param_shapes())


def with_second_source(case):
    state, other = to_timm(random_params(0, layer_scale=1.0)), to_timm(random_params(1, layer_scale=1.0))
    if case == "restarting numbers of chunks":
        state = to_timm(random_params(0, depth=4))
        return {
            re.sub(r"^blocks\.(\d)", lambda n: f"blocks.{int(n[1]) // 2}.{int(n[1]) % 2}", n): a
            for n, a in state.items()
        }
    if case == "two names of the last norm":
        return {**state, "layernorm.weight": other["norm.weight"], "layernorm.bias": other["norm.bias"]}
    if case == "two names of a layer scale":
        return {**state, "blocks.0.gamma_1": other["blocks.0.ls1.gamma"]}
    if case == "head inside the backbone and beside it":
        return {**prefixed("backbone.", state), "head.weight": other["head.weight"]}
    if case == "joined and separate queries":
        parts = np.split(other["blocks.0.attn.qkv.weight"], 3)
        return state | {f"blocks.0.attn.{n}.weight": a for n, a in zip(("query", "key", "value"), parts, strict=True)}
    other = hugging_face(to_timm(random_params(1)))
    return {**to_timm(random_params(0)), **{name.removeprefix("vit."): array for name, array in other.items()}}


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("restarting numbers of chunks", "blocks.0.attn.proj.bias: blocks.0.0.attn.proj.bias and blocks.1.0.attn.proj"),
        ("two names of the last norm", "norm.bias: layernorm.bias and norm.bias"),
        ("two names of a layer scale", "blocks.0.ls1.gamma: blocks.0.gamma_1 and blocks.0.ls1.gamma"),
        ("head inside the backbone and beside it", "head.weight: backbone.head.weight and head.weight"),
        ("joined and separate queries", "blocks.0.attn.qkv.weight: blocks.0.attn.qkv.weight and blocks.0.attn.query"),
        ("two layouts", "cls_token: cls_token and embeddings.cls_token"),
    ],
)
def test_two_tensors_for_one_parameter_are_refused(tmp_path, case, name):
    path = save(tmp_path / "w.safetensors", with_second_source(case))
    with pytest.raises(UserError, match=f"has two tensors for {name}") as error:
        read_state(path)
    assert "\n" not in str(error.value)


def test_two_networks_of_google_in_one_file_are_refused(tmp_path):
    kernel = np.ones((4, 4, 3, 12), np.float32)
    np.savez(tmp_path / "w.npz", **{"embedding/kernel": kernel, "opt/target/embedding/kernel": kernel})
    with pytest.raises(UserError, match="two tensors for patch_embed.proj.weight"):
        read_state(tmp_path / "w.npz")


def test_a_key_for_a_file_of_one_network_is_refused(tmp_path):
    path = save(tmp_path / "w.safetensors", to_timm(random_params()))
    with pytest.raises(UserError, match="has no network 'model_ema': it holds one network, so leave weights_key empty"):
        load_vit(path, param_shapes(), "model_ema")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_quantized_weights_are_refused(tmp_path, dtype):
    state = to_timm(random_params())
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"].astype(dtype)
    path = save(tmp_path / "w.safetensors", state)
    with pytest.raises(UserError, match=rf"is quantized \(blocks.0.attn.qkv.weight is {np.dtype(dtype)}\)"):
        load_vit(path, param_shapes())
    scale = {"blocks.0.attn.qkv.weight_scale": np.ones(1, np.float32)}
    with pytest.raises(UserError, match=r"is quantized \(blocks.0.attn.qkv.weight_scale is float32\)"):
        load_vit(save(path, to_timm(random_params()), **scale), param_shapes())


def test_eight_bit_floats_are_refused(tmp_path):
    state = to_timm(random_params())
    state["norm.weight"] = state["norm.weight"].astype(ml_dtypes.float8_e4m3fn)
    path = save(tmp_path / "w.safetensors", state)
    with pytest.raises(UserError, match=r"is quantized \(norm.weight is F8_E4M3\): take the checkpoint in float32"):
        load_vit(path, param_shapes())


def test_integers_are_not_weights(tmp_path):
    state = {name: array.astype(np.int32) for name, array in to_timm(random_params()).items()}
    with pytest.raises(UserError, match="no floating-point numbers: "):
        load_vit(save(tmp_path / "w.safetensors", state), param_shapes())


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "CLIP in Hugging Face's layout"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", "CLIP in OpenAI's layout"),
        ("layers.0.blocks.1.attn.qkv.weight", "a Swin Transformer"),
        ("blocks.0.mlp.w12.weight", "a ViT with SwiGLU blocks"),
        ("layer1.0.conv1.weight", "a ResNet in torch's layout"),
        ("features.0.weight", "a VGG or DenseNet in torchvision's layout"),
        ("base_layer.lora_A.weight", "a LoRA adapter, not a network"),
    ],
)
def test_the_message_names_the_layout_of_another_network(tmp_path, name, layout):
    assert looks_like([name]) == layout
    path = save(tmp_path / "w.safetensors", {name: np.ones((2, 2), np.float32)})
    with pytest.raises(UserError, match="does not fit the model: 30 missing: .*1 unexpected: ") as error:
        load_vit(path, param_shapes(num_classes=0, depth=2))
    assert str(error.value).endswith(f"; the file looks like {layout}") and name in str(error.value)


def test_buffers_are_not_parameters(tmp_path):
    path = save(
        tmp_path / "w.safetensors", {"x": np.ones(2, np.float32), "bn.num_batches_tracked": np.ones(1, np.int64)}
    )
    assert list(read_state(path)) == ["x"]
