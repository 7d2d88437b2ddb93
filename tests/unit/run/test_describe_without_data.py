"""Every shipped config is planned without data and weights; damage is an error."""

import importlib.util

import pytest

from cdl_jax import config as configs
from cdl_jax import config_files
from cdl_jax.errors import UserError
from cdl_jax.models import weights
from cdl_jax.run import describe
from cdl_jax.training import dtypes
from cdl_jax.training.experiment import Experiment

pytestmark = pytest.mark.usefixtures("nowhere")

ARGUMENTS = [(name, "") for name in config_files.shipped_configs()]
ARGUMENTS += [
    ("okddip", "data=imagenet,network=resnet18"),
    ("emoji", "label=subgroup"),
    ("pretrain_glyph", "data=emoji_file"),
    ("reference", "data=emoji_file"),
    ("reference", "data=glyph_file,network=glyph_student"),
    ("vkd_glyph", "part=teacher"),
]


def read(name, arguments):
    path = config_files.shipped_configs()[name]
    spec = importlib.util.spec_from_file_location(f"shipped_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arguments)


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_every_shipped_config_has_a_plan(name, arguments):
    config = read(name, arguments)
    data, note = describe.load_or_placeholder(config.data, configs.seeds_of(config)[0])
    assert data.num_tasks >= 1 and all(len(task.train) and len(task.test) for task in data.tasks)
    assert note == "" or note.startswith("planned with published sizes") and note.count("\n") == 1


@pytest.mark.parametrize(("name", "arguments"), ARGUMENTS)
def test_every_shipped_config_has_an_experiment_without_its_weights(name, arguments):
    config = read(name, arguments)
    data, _ = describe.load_or_placeholder(config.data, configs.seeds_of(config)[0])
    experiment, note = describe.build_experiment(config, data)
    assert experiment.config == dtypes.resolve(config)
    assert note == "" or note.startswith("planned with random weights") and note.count("\n") == 1


def plan(config):
    data, _ = describe.load_or_placeholder(config.data, 0)
    return describe.build_experiment(config, data)


def test_the_published_teacher_is_planned_and_training_names_its_address():
    config = read("imagenet_vkd", "")
    experiment, note = plan(config)
    assert experiment.config.teacher.weights == "regnety_160-a5fe301d.pth"
    address = "download it from https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth and name its path"
    assert address in note
    with pytest.raises(UserError, match=f"config.teacher.weights='regnety_160-a5fe301d.pth'.*{address}"):
        Experiment.build(config, experiment.stream)
    with pytest.raises(UserError, match=address):
        weights.load_network(config.teacher.weights, {"params": {}}, "teacher.weights")


def test_weights_that_are_absent_keep_other_mistakes_of_a_config(tmp_path):
    config = read("imagenet_vkd", "")
    config.teacher.weights_key = "model_ema"
    assert plan(config)[1] != ""
    config.distill.teacher_feature = "layer9"
    with pytest.raises(UserError, match="'layer9' is no output of the teacher"):
        plan(config)


def test_a_folder_without_weights_is_an_error(tmp_path):
    config = read("imagenet_vkd", "")
    config.teacher.weights = str(tmp_path / "home")
    with pytest.raises(UserError, match="has none of model.safetensors"):
        plan(config)


@pytest.mark.parametrize(
    ("name", "arguments", "classes", "train", "test"),
    [
        ("imagenet_vkd", "", 1000, 1_281_167, 50_000),
        ("okddip", "data=imagenet,network=resnet18", 1000, 1_281_167, 50_000),
        ("glyph100", "", 100, 10_000, 2_000),
        ("emoji", "", 400, 1_200, 400),
        ("emoji", "label=subgroup", 65, 4_669, 1_159),
        ("pretrain_glyph", "data=emoji_file", 1_194, 3_582, 1_194),
        ("vkd_glyph", "", 20, 4_000, 2_000),
    ],
)
def test_the_sizes_are_those_of_the_documented_data(name, arguments, classes, train, test):
    config = read(name, arguments)
    data, _ = describe.load_or_placeholder(config.data, 0)
    assert (data.num_classes, len(data.train), len(data.test)) == (classes, train, test)


def test_data_that_is_there_and_damaged_is_an_error(tmp_path):
    config = read("glyph100", "")
    config.data.path = str(tmp_path / "glyph100.npz")
    assert describe.load_or_placeholder(config.data, 0)[0].num_classes == 100  # nothing is there
    (tmp_path / "glyph100.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be read as .npz"):
        describe.load_or_placeholder(config.data, 0)
