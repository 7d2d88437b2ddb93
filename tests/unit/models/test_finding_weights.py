"""Weights are found by file, by folder and by timm name, where `python -m cdl_jax.fetch` puts them."""

import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save_file

from cdl_jax.errors import MissingWeightsError, UserError
from cdl_jax.methods.shared import finished_run
from cdl_jax.models import vit, weights
from cdl_jax.models.modules import families
from cdl_jax.models.weights.pretrained import save_timm, to_timm
from tests.support.vit_weights import assert_same, param_shapes, random_params

NAME = "vit_base_patch16_224.augreg_in21k_ft_in1k"
KEY = "teacher.weights"


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """The file as fetch puts it; its parameters."""
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
    for given in (NAME, f"timm/{NAME}", file, file.parent, f"{file.parent}/", f"file://{file}", f"~/{NAME}"):
        assert weights.find(str(given), KEY).resolve() == file
        assert_same(weights.load(str(given), param_shapes(), KEY), params)


def test_a_folder_may_hold_what_torch_saved_or_a_run_exported(tmp_path):
    for name in ("weights.npz", "pytorch_model.bin", "model.safetensors"):  # the last found first
        (tmp_path / name).touch()
        assert weights.find(str(tmp_path), KEY) == tmp_path / name


@pytest.mark.parametrize("given", [NAME, f"timm/{NAME}"])
def test_a_timm_name_that_is_not_fetched_gives_the_command(tmp_path, monkeypatch, given):
    monkeypatch.setenv("CDL_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MissingWeightsError, match=f"config.{KEY}={given!r}.*`python -m cdl_jax.fetch {NAME}`") as error:
        weights.find(given, KEY)
    assert error.value.fetch_name == NAME


@pytest.mark.parametrize("given", ["absent.npz", "vit_base_patch16_224", "folder/absent", "vit.pth", f"a/b/{NAME}"])
def test_what_cannot_be_fetched_is_a_plain_mistake(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file or folder") as error:
        weights.find(given, KEY)
    assert not isinstance(error.value, MissingWeightsError)


def test_folders_without_one_file_of_weights(tmp_path):
    with pytest.raises(UserError, match="has none of model.safetensors, pytorch_model.bin"):
        weights.find(str(tmp_path), KEY)
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(UserError, match="weights in several files"):
        weights.find(str(tmp_path), KEY)


def test_a_folder_of_the_hub_is_no_run(tmp_path):
    assert not any(finished_run.is_run(place) for place in ("", "random", "package:glyph", str(tmp_path)))
    (tmp_path / "config.json").touch()
    assert finished_run.is_run(str(tmp_path))
    np.savez(tmp_path / "weights.npz", x=np.zeros(1))
    assert finished_run.is_run(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert not finished_run.is_run(str(tmp_path))


def test_weights_key_goes_with_a_checkpoint_and_chooses_in_it(tmp_path):
    one, other = random_params(0), random_params(1)
    state = {f"model.{name}": array for name, array in to_timm(one).items()}
    state |= {f"model_ema.{name}": array for name, array in to_timm(other).items()}
    file = str(tmp_path / "w.safetensors")
    save_file(state, file)
    section = ml_collections.ConfigDict({**vit.OPTIONS, "weights": file, "weights_key": "model_ema"})
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
        families.network_options(name)["weights_key"] == "" for family in families.FAMILIES for name in family.SIZES
    )


def test_every_named_network_is_built_from_its_section():
    for family in families.FAMILIES:
        for name in family.SIZES:
            section = ml_collections.ConfigDict(families.network_options(name))
            family.build(section) if family is vit else family.build(section, 10)
