"""Published checkpoints of detectors and Swin: loading, and messages of refusal."""

import argparse
import pickle
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from cdl_jax.errors import UserError
from cdl_jax.models.detection import state_dicts, vidt
from cdl_jax.options import defaults
from tests.unit.models.test_state_dicts import checkpoint_zip
from tests.unit.models.test_vidt import SMALL


def model_params(classes=5, seed=0, **changes):
    model = vidt.build(ConfigDict(defaults(vidt.OPTIONS, **{**SMALL, **changes})), classes)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


PARAMS = model_params()
STATE = state_dicts.to_torch(PARAMS)


def assert_equal_trees(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)


def test_layouts_of_arrays():
    """Written out for one array of each kind, without the functions under test."""
    backbone = PARAMS["backbone"]
    patches = backbone["patch_embed"]["proj"]["kernel"]  # [row x column x channel, features]
    np.testing.assert_array_equal(
        STATE["backbone.patch_embed.proj.weight"][2, 1, 3, 0], patches[(3 * 4 + 0) * 3 + 1, 2]
    )
    qkv = backbone["layers_1"]["blocks_1"]["attn"]["qkv"]["kernel"]
    np.testing.assert_array_equal(STATE["backbone.layers.1.blocks.1.attn.qkv.weight"], qkv.T)
    projection = PARAMS["input_proj_2"]["linear"]["kernel"]
    np.testing.assert_array_equal(STATE["input_proj.2.0.weight"], projection.T[:, :, None, None])
    attention = PARAMS["decoder_layers_1"]["self_attn"]["in_proj_kernel"]
    np.testing.assert_array_equal(STATE["transformer.decoder.layers.1.self_attn.in_proj_weight"], attention.T)
    fused = model_params(cross_scale_fusion=True)
    name = "fusion.multi_scaler.refinenet_0.resConfUnit1.conv2.weight"
    convolution = fused["fusion"]["refinenet_0_resConfUnit1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(state_dicts.to_torch(fused)[name][5, 3, 2, 1], convolution[2, 1, 3, 5])


OPTIONS = {
    "refined": {},
    "not refined": {"box_refine": False},
    "all options": {"iou_aware": True, "cross_scale_fusion": True, "token_label": True},
    "without neck": {"neck": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_names_and_layouts_go_there_and_back(options):
    params = model_params(**options)
    state = state_dicts.to_torch(params)
    assert len(state) == len(jax.tree.leaves(params))
    assert_equal_trees(state_dicts.from_torch(state, params, "the file"), params)


def published(path, state=STATE, projectors=True):
    """Writes a checkpoint of a VkD student.

    The checkpoint has copies of the heads, unused parameters, projectors and an optimizer.
    """
    unused = {name: np.ones(shape, np.float32) for name, shape in state_dicts.unused_shapes(PARAMS).items()}
    copies = {f"transformer.decoder.{name}": array for name, array in state.items() if name.startswith("bbox_embed")}
    model = {**state, **unused, **copies, "backbone.layers.0.blocks.0.attn.relative_position_index": np.ones((16, 16))}
    if projectors:
        names = ("weight", "bias", "projector.parametrizations.weight.original")
        model |= {f"{kind}.{name}": np.ones(32, np.float32) for name in names for kind in PROJECTORS}
    optimizer = {"state": {0: {"exp_avg": np.ones(6, np.float32)}}, "param_groups": [{"lr": 1, "params": [0, 1]}]}
    model = {name: np.asarray(array, np.float32) for name, array in model.items()}
    return checkpoint_zip(path, {"model": model, "optimizer": optimizer, "epoch": 49})


PROJECTORS = ("patch_projector_1", "body_det_projector", "neck_det_projector")


def test_a_student_of_vkd_can_be_a_teacher(tmp_path):
    assert_equal_trees(state_dicts.load_detector(published(tmp_path / "w.pth"), PARAMS), PARAMS)


def test_a_deep_backbone_is_not_taken_for_the_network(tmp_path):
    """More than half of the tensors of small and base have the prefix `backbone.`."""
    params = model_params(depths=(1, 1, 18, 1), decoder_layers=1)
    state = state_dicts.to_torch(params)
    assert 2 * sum(name.startswith("backbone.") for name in state) > len(state)
    path = checkpoint_zip(tmp_path / "w.pth", {"model": state})
    assert_equal_trees(state_dicts.load_detector(path, params), params)


def test_half_precision_and_prefixes_are_removed(tmp_path):
    save_file({f"module.{n}": a.astype(ml_dtypes.bfloat16) for n, a in STATE.items()}, tmp_path / "w.safetensors")
    loaded = state_dicts.load_detector(tmp_path / "w.safetensors", PARAMS)
    expected = jax.tree.map(lambda a: a.astype(ml_dtypes.bfloat16).astype(np.float32), PARAMS)
    assert_equal_trees(loaded, expected)


def test_one_head_is_stored_once_for_each_level(tmp_path):
    params = model_params(box_refine=False)
    state = state_dicts.to_torch(params)
    heads = {name: array for name, array in state.items() if "_embed.0." in name}
    copies = {name.replace(".0.", f".{k}.", 1): array for name, array in heads.items() for k in (1, 2)}
    path = checkpoint_zip(tmp_path / "w.pth", {**state, **copies})
    assert_equal_trees(state_dicts.load_detector(path, params), params)


def test_settings_of_the_program_beside_the_weights_are_left_out(tmp_path):
    """Published checkpoints have the entry `args`, an `argparse.Namespace`."""
    path = published(tmp_path / "w.pth")
    arguments = pickle.dumps(argparse.Namespace(lr=1e-4, backbone_name="swin_nano", betas=[0.9, 0.999]), protocol=2)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = members["archive/data.pkl"]
    entry = b"X\x04\x00\x00\x00args" + arguments.removeprefix(b"\x80\x02").removesuffix(b".") + b"s"
    members["archive/data.pkl"] = pickled.removesuffix(b".") + entry + b"."
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert_equal_trees(state_dicts.load_detector(path, PARAMS), PARAMS)


def changed(name, array):
    state = dict(STATE)
    if array is None:
        del state[name]
    else:
        state[name] = array
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed("class_embed.0.weight", None), "1 missing: class_embed.0.weight"),
        (changed("new.weight", np.ones(3, np.float32)), "1 unexpected: new.weight"),
        (
            changed("class_embed.0.weight", np.ones((7, 32), np.float32)),
            r"class_embed.0.weight expected \[5, 32\] found \[7, 32\]",
        ),
        (changed("tgt_proj.1.bias", np.full(32, np.nan, np.float32)), "no finite floats: tgt_proj.1.bias"),
        (
            changed("transformer.decoder.bbox_embed.1.layers.0.bias", np.zeros(32, np.float32)),
            "two tensors for bbox_embed.1.layers.0.bias",
        ),
        ({"layer1.0.conv1.weight": np.ones((2, 2), np.float32)}, "looks like a ResNet"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, state, message):
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=message) as error:
        state_dicts.load_detector(tmp_path / "w.safetensors", PARAMS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1200


def test_another_network_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        state_dicts.load_detector(tmp_path / "absent.pth", PARAMS)
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04 not a zip file")
    with pytest.raises(UserError, match="damaged"):
        state_dicts.load_backbone(tmp_path / "w.pth", PARAMS)


def classifier(seed=1):
    """A Swin classifier with the buffers of the published files."""
    backbone = model_params(seed=seed)["backbone"]
    state = state_dicts.to_torch(backbone)
    state = {n: a for n, a in state.items() if "det_" not in n and not n.startswith("layers.3.downsample")}
    extra = {"norm.weight": np.ones(32, np.float32), "head.weight": np.ones((10, 32), np.float32)}
    extra["layers.1.blocks.1.attn_mask"] = np.ones((4, 16, 16), np.float32)
    extra["layers.1.blocks.1.attn.relative_position_index"] = np.ones((16, 16), np.int64)
    return backbone, {**state, **extra}


def shift_downsample(state):
    """timm's names: a merging belongs to the stage behind it."""

    def rename(name):
        parts = name.split(".")
        return ".".join(["layers", str(int(parts[1]) + 1), *parts[2:]]) if "downsample" in parts else name

    return {rename(name): array for name, array in state.items()}


@pytest.mark.parametrize("names", [dict, shift_downsample], ids=["Swin", "timm"])
def test_a_classifier_becomes_the_backbone(tmp_path, names):
    backbone, state = classifier()
    save_file({f"model.{name}": array for name, array in names(state).items()}, tmp_path / "swin.safetensors")
    loaded = state_dicts.load_backbone(tmp_path / "swin.safetensors", PARAMS)
    assert_equal_trees({**loaded, "backbone": PARAMS["backbone"]}, PARAMS)
    expected, own = flatten_dict(backbone, sep="/"), flatten_dict(PARAMS["backbone"], sep="/")
    fresh = [name for name in own if "det_" in name or name.startswith("layers_3/downsample")]
    assert len(fresh) == 15
    for name, array in flatten_dict(loaded["backbone"], sep="/").items():
        np.testing.assert_array_equal(array, own[name] if name in fresh else expected[name], err_msg=name)


def test_a_classifier_of_another_width_is_refused(tmp_path):
    _, state = classifier()
    save_file(state, tmp_path / "swin.safetensors")
    with pytest.raises(UserError, match="wrong shape") as error:
        state_dicts.load_backbone(tmp_path / "swin.safetensors", model_params(embed_dim=8))
    assert "\n" not in str(error.value)
