"""Each named config runs end to end on tiny data in the official formats.

The settings are the published ones. Networks, tasks and images are few; every other option is the config's own. L2P
learns all ten tasks, the others two. The other learners on ImageNet-R, which differ from those on CIFAR-100 in the data
alone, are built and not trained.
"""

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cdl_jax import config as configs
from cdl_jax import config_files, main
from cdl_jax.data import stream
from cdl_jax.data.sources import imagenet_r
from cdl_jax.models import regnet, vit, weights
from cdl_jax.models.weights import pretrained
from cdl_jax.options import defaults
from cdl_jax.training.experiment import Experiment
from tests.end_to_end.command import ROOT, results

VIT = {"dim": 24, "depth": 1, "heads": 3, "patch_size": 16, "image_size": 32}
REGNET = {"depth": 3, "w0": 8, "wa": 8.0, "wm": 2.0, "group_width": 8, "stem_width": 8, "image_size": 32}
FEW = {"train.epochs": 1, "train.batch_size": 4, "eval.batch_size": 16, "eval.forward_transfer": False}
LEARNERS = {
    "l2p": {"pool": 5, "length": 2},
    "dualprompt": {"length": 2, "general_length": 2, "general_layers": 0, "expert_layers": 1},
    "coda": {"layers": 1, "length": 2, "pool": 10},
    "apt": {},
}
CIFAR_CLASSES = [f"class{i}" for i in range(100)]


@pytest.fixture(scope="module")
def vit_weights(tmp_path_factory):
    """A file of a small ViT's weights in timm's names."""
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    params = vit.ViT(**VIT).init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    pretrained.save_timm(path, params)
    return path


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """CIFAR-100's Python archive with one training and one test image a class."""
    folder, rng = tmp_path_factory.mktemp("cifar100"), np.random.default_rng(0)
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as archive:
        for split in ("train", "test"):
            labels = np.arange(100)
            content = {
                b"data": rng.integers(0, 256, (len(labels), 3072), np.uint8),
                b"fine_labels": labels.tolist(),
                b"coarse_labels": (labels // 5).tolist(),
                b"filenames": [b"x.png"] * len(labels),
            }
            add(archive, f"cifar-100-python/{split}", pickle.dumps(content, protocol=2))
        names = {b"fine_label_names": [name.encode() for name in CIFAR_CLASSES], b"coarse_label_names": [b"c"] * 20}
        add(archive, "cifar-100-python/meta", pickle.dumps(names, protocol=2))
    return folder


@pytest.fixture(scope="module")
def imagenet_r_folder(tmp_path_factory):
    """Returns ImageNet-R's folder with the test names of the official list.

    Training names are made up, 120 of each class. All names are links to two images.
    """
    folder = tmp_path_factory.mktemp("imagenet_r")
    lists = Path(imagenet_r.__file__).parents[1] / "imagenet_r_split.json.gz"
    test_names = json.loads(gzip.decompress(lists.read_bytes()))["test"]
    rng = np.random.default_rng(0)
    originals = []
    for i, size in enumerate(((40, 52), (64, 36))):
        originals.append(folder / f"{i}.jpg")
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(originals[-1])
    wnids = sorted({name.split("/")[0] for name in test_names})
    for wnid in wnids:
        (folder / "imagenet-r" / wnid).mkdir(parents=True)
    train_names = [f"{wnid}/made_up_{i}.jpg" for wnid in wnids for i in range(120)]
    for i, name in enumerate([*train_names, *test_names]):  # 30,000 names
        os.link(originals[i % 2], folder / "imagenet-r" / name)
    return folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Returns three classes of ImageNet as the user unpacks them.

    The folders are train/<synset>/ and val/<synset>/.
    """
    folder, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, each in (("train", 4), ("val", 2)):
        for wnid in ("n01440764", "n01443537", "n01484850"):
            (folder / split / wnid).mkdir(parents=True)
            for i in range(each):
                image = Image.fromarray(rng.integers(0, 256, (48, 60, 3), np.uint8))
                image.save(folder / split / wnid / f"{wnid}_{i}.JPEG")
    return folder


def check_settings(name, resolved, changes):
    """Asserts that a resolved config has the named config's own options.

    The keys `changes` and automatic values may differ. tests/unit/commands/test_command_line.py asserts that these
    options are the published settings.
    """
    space = {"__file__": str(config_files.shipped_configs()[name]), "__name__": name}
    exec(config_files.shipped_configs()[name].read_text(), space)
    resolved, published = configs.flatten(resolved), configs.flatten(space["get_config"](""))
    changed = {key for key in resolved if resolved[key] != published[key]}
    assert {key for key in changed if not configs.is_automatic(key, published[key])} <= set(changes)


def words(name, changes):
    """The command line of a named config with `changes` ({key: value})."""
    return ["--config", name, *(f"--config.{key}={value}" for key, value in changes.items())]


def train(name, workdir, monkeypatch, changes):
    """Trains a named config with `changes` ({key: value}); returns results.json."""
    monkeypatch.chdir(ROOT)
    changes = {**changes, "log.report": False, "log.to": (), "checkpoint.every_steps": 0}
    assert main.main([*words(name, changes), "--workdir", str(workdir)]) == 0
    check_settings(name, json.loads((workdir / "config.json").read_text())["config"], changes)
    return results(workdir)


def small(learner, data, tasks, vit_weights):
    """Changes for a prompt config: one block of 24 dimensions, few images."""
    networks = {f"{net}.{key}": value for net in ("teacher", "student") for key, value in VIT.items()}
    networks |= {f"{net}.weights": vit_weights for net in ("teacher", "student")}
    own = {f"learner.{key}": value for key, value in LEARNERS[learner].items()}
    return FEW | networks | own | {"data.path": data, "data.num_tasks": tasks, "train.batch_size": 40 // tasks}


@pytest.mark.parametrize(("learner", "tasks"), [("l2p", 10), ("dualprompt", 2), ("coda", 2), ("apt", 2)])
def test_the_prompt_configs_on_cifar100(learner, tasks, cifar100, vit_weights, tmp_path, monkeypatch):
    changes = small(learner, cifar100, tasks, vit_weights)
    content = train(f"cifar100_{learner}", tmp_path / "run", monkeypatch, changes)
    matrix = content["networks"]["student"]["accuracy_matrix"]
    assert [len(row) for row in matrix] == list(range(1, tasks + 1))
    assert [name for task in content["stream"]["tasks"] for name in task["classes"]] == CIFAR_CLASSES
    assert [task["train"] for task in content["stream"]["tasks"]] == [100 // tasks] * tasks


FIRST = ["n02165456", "n03594945", "n02325366"]  # classes of the first task of ImageNet-R's split
IMAGES = {"data.max_train_per_class": 2, "data.max_test_per_class": 1}


def test_l2p_on_imagenet_r(imagenet_r_folder, vit_weights, tmp_path, monkeypatch):
    changes = small("l2p", imagenet_r_folder, 10, vit_weights) | IMAGES
    content = train("imagenet_r_l2p", tmp_path / "run", monkeypatch, changes)
    assert [len(row) for row in content["networks"]["student"]["accuracy_matrix"]] == list(range(1, 11))
    assert [task["train"] for task in content["stream"]["tasks"]] == [40] * 10
    assert content["stream"]["tasks"][0]["classes"][:3] == FIRST


@pytest.mark.parametrize("learner", ["dualprompt", "coda", "apt"])
def test_the_other_prompt_configs_on_imagenet_r(learner, imagenet_r_folder, vit_weights, monkeypatch):
    monkeypatch.chdir(ROOT)
    changes = small(learner, imagenet_r_folder, 2, vit_weights) | IMAGES
    config = main.parse(["cdl_jax", *words(f"imagenet_r_{learner}", changes)]).config
    check_settings(f"imagenet_r_{learner}", config, changes)
    program = Experiment.build(config, stream.load(config.data, 0))
    first, second = program.stream.tasks
    assert (len(first.train), len(first.test), len(second.train), len(second.test)) == (200, 100, 200, 100)
    assert list(program.stream.class_names[:3]) == FIRST
    live, frozen = program.abstract_variables()
    assert {"teacher", "student"} <= set(frozen) | set(live)


def test_okddip_on_cifar100(cifar100, tmp_path, monkeypatch):
    changes = {"network.depths": (1, 1, 1), "network.widths": (4, 6, 8), "train.epochs": 1, "okddip.num_branches": 3}
    changes |= {"optim.milestones": (), "optim.schedule": "constant", "data.path": cifar100}
    content = train("cifar100_okddip", tmp_path / "run", monkeypatch, changes)
    assert content["headline"] == ["leader"] and set(content["networks"]) >= {"peer_0", "peer_1", "leader"}
    assert content["stream"]["tasks"][0]["train"] == 100


def test_dkt_on_split_cifar100(cifar100, tmp_path, monkeypatch):
    changes = {"network.depths": (1, 1), "network.width": 2, "train.epochs": 1, "train.batch_size": 16}
    changes |= {"data.num_tasks": 2, "data.path": cifar100}
    content = train("cifar100_dkt", tmp_path / "run", monkeypatch, changes)
    learners = [content["networks"][f"learner_{i}"]["accuracy_matrix"] for i in range(2)]
    assert [[len(row) for row in matrix] for matrix in learners] == [[1, 2]] * 2
    assert content["streams"][0] != content["streams"][1]


def test_vkd_on_imagenet(imagenet, tmp_path, monkeypatch):
    network = regnet.build(ConfigDict({**defaults(regnet.OPTIONS), **regnet.SIZES["regnety_160"], **REGNET}), 3)
    variables = network.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    weights.save(tmp_path / "teacher.npz", jax.device_get(variables))
    changes = {f"teacher.{key}": value for key, value in REGNET.items()}
    changes |= {f"student.{key}": value for key, value in {**VIT, "stem_width": 8}.items()}
    changes |= {"teacher.weights": tmp_path / "teacher.npz", "data.path": imagenet}
    changes |= {"train.epochs": 1, "train.batch_size": 4, "eval.batch_size": 4}
    content = train("imagenet_vkd", tmp_path / "run", monkeypatch, changes)
    assert content["stream"]["tasks"] == [
        {**content["stream"]["tasks"][0], "classes": ["n01440764", "n01443537", "n01484850"], "train": 12, "test": 6}
    ]
    assert 0 <= content["networks"]["student"]["metrics"]["last"] <= 100
