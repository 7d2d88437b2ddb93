"""Tests the search for weights by file, by folder and by timm name.

`python -m cdl_jax.fetch` stores weights by timm name.
"""

import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save_file

from cdl_jax import fetch
from cdl_jax.errors import MissingWeightsError, UserError
from cdl_jax.methods.shared import finished_run
from cdl_jax.models import vit, weights
from cdl_jax.models.modules import families
from cdl_jax.models.weights.pretrained import save_timm, to_timm
from cdl_jax.options import defaults
from cdl_jax.runtime import paths
from tests.support.vit_weights import assert_same, param_shapes, random_params
from tests.unit.models.test_state_dicts import checkpoint_zip

NAME = "vit_base_patch16_224.augreg_in21k_ft_in1k"
KEY = "teacher.weights"


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """Returns a file where fetch stores it, and its parameters."""
    params = random_params()
    monkeypatch.setenv("CDL_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm" / NAME).mkdir(parents=True)
    file = tmp_path / "timm" / NAME / "model.safetensors"
    save_timm(file, params)
    return file, params


def test_a_timm_name_with_or_without_its_prefix_a_folder_and_a_file_are_the_same(fetched, monkeypatch):
    file, params = fetched
    monkeypatch.setenv("HOME", str(file.parent.parent))
    for reference in (NAME, f"timm/{NAME}", file, file.parent, f"{file.parent}/", f"file://{file}", f"~/{NAME}"):
        assert weights.find(str(reference), KEY).resolve() == file
        assert_same(weights.load(str(reference), param_shapes(), KEY), params)


def test_a_folder_may_have_a_file_of_torch_or_of_a_run(tmp_path):
    for name in ("weights.npz", "pytorch_model.bin", "model.safetensors"):  # in order of increasing priority
        (tmp_path / name).touch()
        assert weights.find(str(tmp_path), KEY) == tmp_path / name


@pytest.mark.parametrize("reference", [NAME, f"timm/{NAME}"])
def test_a_timm_name_that_is_not_fetched_gives_the_command(tmp_path, monkeypatch, reference):
    monkeypatch.setenv("CDL_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        MissingWeightsError, match=f"config.{KEY}={reference!r}.*`python -m cdl_jax.fetch {NAME}`"
    ) as error:
        weights.find(reference, KEY)
    assert error.value.fetch_name == NAME


@pytest.mark.parametrize("reference", ["absent.npz", "vit_base_patch16_224", "folder/absent", "vit.pth", f"a/b/{NAME}"])
def test_a_name_that_cannot_be_fetched_is_a_missing_file(tmp_path, monkeypatch, reference):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file or folder") as error:
        weights.find(reference, KEY)
    assert not isinstance(error.value, MissingWeightsError)


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("vit_bse_patch16_224.augreg_in21k", "did you mean 'vit_base_patch16_224.augreg_in21k'"),
        ("vit_base_patch16_224", "needs its tag, as in vit_base_patch16_224.augreg_in21k"),
        ("deit_small_patch16_224.fb_in1k ", "did you mean 'deit_small_patch16_224.fb_in1k'"),
        ("google/vit-base-patch16-224", "`hf download google/vit-base-patch16-224 --local-dir FOLDER`, name FOLDER"),
        ("hf_hub:google/vit-base-patch16-224", "`hf download google/vit-base-patch16-224 --local-dir FOLDER`"),
        (f"hf_hub:timm/{NAME}", f"did you mean 'timm/{NAME}'"),
        (f"hf-hub:timm/{NAME}", f"did you mean 'timm/{NAME}'"),
        ("Random", "did you mean 'random'"),
        ("none", "did you mean 'random'"),
        (
            "folder/regnety_160-a5fe301d.pth",
            "download it from https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth",
        ),
    ],
)
def test_a_name_of_no_file_gives_the_way_on(tmp_path, monkeypatch, reference, hint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CDL_DATA", raising=False)
    with pytest.raises(UserError) as error:
        weights.find(reference, KEY)
    assert f"config.{KEY}={reference!r}" in str(error.value) and hint in str(error.value)
    assert "\n" not in str(error.value)


def test_hints_are_the_models_that_fetch_lists():
    assert weights.TIMM_MODELS == fetch.WEIGHTS


@pytest.mark.parametrize("reference", ["x" * 300, "/".join("y" * 3000), "ö" * 200])
def test_a_text_too_long_for_a_path_is_refused_in_one_line(reference):
    for load in (weights.find, lambda text, key: weights.load(text, param_shapes(), key), paths.resolve):
        with pytest.raises(UserError, match="is longer than") as error:
            load(reference, KEY)
        assert len(str(error.value)) < 200


def test_weights_may_be_a_path_and_nothing_else(fetched):
    file, params = fetched
    assert_same(weights.load(file, param_shapes(), KEY), params)
    assert_same(weights.load(file.parent, param_shapes(), KEY), params)
    assert_same(weights.load_network(file, {"params": param_shapes()}, KEY)["params"], params)
    for value in (5, True, 1.5, [str(file)]):
        with pytest.raises(UserError, match="is not a path: name a file or folder of weights") as error:
            weights.load(value, param_shapes(), KEY)
        assert f"config.{KEY}={value!r}" in str(error.value)
    with pytest.raises(UserError, match=f"config.{KEY} is empty"):
        weights.load(None, param_shapes(), KEY)


def test_a_name_that_the_package_lacks_lists_those_that_it_has():
    for name in ("package:nope", "package:../__init__", "package:"):
        with pytest.raises(UserError, match="known: glyph_mini_student, glyph_mini_teacher"):
            weights.load(name, param_shapes(), KEY)


def test_a_family_without_names_of_torch_reads_files_of_this_program_only(tmp_path):
    network = {"params": {"stem": {"kernel": np.ones((3, 3, 3, 4), np.float32)}}, "batch_stats": {}}
    state = {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
    save_file(state, tmp_path / "w.safetensors")
    checkpoint_zip(tmp_path / "w.pth", state)
    for name, kind in (("w.safetensors", "a .safetensors file"), ("w.pth", "a file of torch")):
        with pytest.raises(UserError, match=f"is {kind}, and this network is read only from a .npz that this program"):
            weights.load_network(str(tmp_path / name), network, KEY)
    for name, message in (("package:glyph_mini_teacher", "is a ViT"), ("package:nope", "are not in this package")):
        with pytest.raises(UserError, match=message):
            weights.load_network(name, network, KEY)


def test_a_folder_without_a_file_of_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="has none of model.safetensors, pytorch_model.bin"):
        weights.find(str(tmp_path), KEY)
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(UserError, match="weights in several files"):
        weights.find(str(tmp_path), KEY)


def test_a_folder_of_the_hub_is_not_a_run(tmp_path):
    assert not any(finished_run.is_run(folder) for folder in ("", "random", "package:glyph", str(tmp_path)))
    (tmp_path / "config.json").touch()
    assert finished_run.is_run(str(tmp_path))
    np.savez(tmp_path / "weights.npz", x=np.zeros(1))
    assert finished_run.is_run(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert not finished_run.is_run(str(tmp_path))


def test_weights_key_selects_a_network_of_a_checkpoint(tmp_path):
    one, other = random_params(0), random_params(1)
    state = {f"model.{name}": array for name, array in to_timm(one).items()}
    state |= {f"model_ema.{name}": array for name, array in to_timm(other).items()}
    file = str(tmp_path / "w.safetensors")
    save_file(state, file)
    section = ml_collections.ConfigDict(defaults(vit.OPTIONS, weights=file, weights_key="model_ema"))
    assert_same(weights.load(weights.from_section(section), param_shapes(), KEY), other)
    section.weights_key = "model"
    assert_same(weights.load(weights.from_section(section), param_shapes(), KEY), one)
    section.weights_key = ""
    with pytest.raises(UserError, match="has several networks: choose one with weights_key"):
        weights.load(weights.from_section(section), param_shapes(), KEY)
    section.update(weights="random", weights_key="model")
    with pytest.raises(UserError, match="weights_key='model' needs a checkpoint"):
        weights.from_section(section)


def test_every_network_has_the_option_weights_key():
    assert all(
        families.network_options(name)["weights_key"].default == ""
        for family in families.FAMILIES
        for name in family.SIZES
    )


def test_every_named_network_builds():
    for family in families.FAMILIES:
        for name in family.SIZES:
            section = ml_collections.ConfigDict(defaults(families.network_options(name)))
            family.build(section) if family is vit else family.build(section, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path, arrays: np.savez(path, **{**arrays, "params/w": np.full(3, np.nan, np.float32)}),
            "finite numbers",
        ),
        (lambda path, arrays: np.savez(path, **{**arrays, "params/w": np.zeros(3, np.int32)}), "finite numbers"),
        (lambda path, arrays: path.write_bytes(path.read_bytes()[:-40]), "cannot be read"),
        (lambda path, arrays: np.savez(path, **{**arrays, "params/w": np.zeros(4, np.float32)}), "1 arrays do not fit"),
    ],
    ids=["not finite", "integers", "cut off", "another shape"],
)
def test_damaged_weights_of_a_run_are_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "weights.npz"
    network = {"params": {"w": np.ones(3, np.float32)}, "batch_stats": {"mean": np.zeros(2, np.float32)}}
    arrays = {"params/w": network["params"]["w"], "batch_stats/mean": network["batch_stats"]["mean"]}
    np.savez(path, **arrays)
    loaded = weights.load_network(str(path), network, KEY)
    np.testing.assert_array_equal(loaded["params"]["w"], network["params"]["w"])
    change(path, arrays)
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        weights.load_network(str(path), network, KEY)
    assert KEY in str(error.value) and message in str(error.value)
