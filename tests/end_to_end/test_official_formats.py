"""The published configs run end to end on tiny archives in the official formats, with weights in timm's format."""

import gzip
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.sources import imagenet_r
from cdl_jax.models import pretrained, vit
from tests.end_to_end.command import results, run

SMALL = [
    *(f"--config.{net}.{key}={value}" for net in ("teacher", "student")
      for key, value in {"dim": 24, "depth": 1, "heads": 3, "patch_size": 16, "image_size": 32}.items()),
    "--config.train.epochs=1", "--config.train.batch_size=4", "--config.eval.batch_size=16",
    "--config.learner.pool=5", "--config.learner.length=2", "--config.eval.forward_transfer=False",
]  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    import jax

    model = vit.ViT(dim=24, depth=1, heads=3, patch_size=16, image_size=32)
    params = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    pretrained.save_timm(tmp_path / "vit.safetensors", params)
    return [f"--config.{network}.weights={tmp_path / 'vit.safetensors'}" for network in ("teacher", "student")]


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def test_split_cifar100_from_the_python_archive(tmp_path, weights):
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        for split, each in (("train", 1), ("test", 1)):
            labels = np.tile(np.arange(100), each)
            content = {
                b"data": rng.integers(0, 256, (len(labels), 3072), np.uint8),
                b"fine_labels": labels.tolist(),
                b"coarse_labels": (labels // 5).tolist(),
                b"filenames": [b"x.png"] * len(labels),
            }
            add(archive, f"cifar-100-python/{split}", pickle.dumps(content, protocol=2))
        names = {b"fine_label_names": [f"class{i}".encode() for i in range(100)], b"coarse_label_names": [b"c"] * 20}
        add(archive, "cifar-100-python/meta", pickle.dumps(names, protocol=2))
    run("--config", "configs/cdl.py", "--workdir", tmp_path / "run", f"--config.data.path={tmp_path}",
        *SMALL, *weights)  # fmt: skip
    content = results(tmp_path / "run")
    assert [len(row) for row in content["networks"]["student"]["accuracy_matrix"]] == list(range(1, 11))
    assert content["stream"]["tasks"][3]["classes"] == [f"class{i}" for i in range(30, 40)]
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (resolved["distill"]["alpha"], resolved["distill"]["temperature"]) == (0.5, 2.0)
    assert (resolved["optim"]["name"], resolved["optim"]["learning_rate"]) == ("adam", 1e-3)


def test_split_imagenet_r_from_its_folder(tmp_path, weights):
    lists = Path(imagenet_r.__file__).parents[1] / "imagenet_r_split.json.gz"
    test_names = json.loads(gzip.decompress(lists.read_bytes()))["test"]
    rng = np.random.default_rng(0)
    originals = []
    for i, size in enumerate(((40, 52), (64, 36))):
        originals.append(tmp_path / f"{i}.jpg")
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(originals[-1])
    wnids = sorted({name.split("/")[0] for name in test_names})
    for wnid in wnids:
        (tmp_path / "imagenet-r" / wnid).mkdir(parents=True)
    train_names = [f"{wnid}/made_up_{i}.jpg" for wnid in wnids for i in range(120)]
    for i, name in enumerate([*train_names, *test_names]):  # 30,000 names of two pictures
        os.link(originals[i % 2], tmp_path / "imagenet-r" / name)
    run("--config", "configs/cdl.py:data=imagenet_r", "--workdir", tmp_path / "run", f"--config.data.path={tmp_path}",
        "--config.data.max_train_per_class=2", "--config.data.max_test_per_class=1", *SMALL, *weights)  # fmt: skip
    content = results(tmp_path / "run")
    assert [len(row) for row in content["networks"]["student"]["accuracy_matrix"]] == list(range(1, 11))
    assert [task["train"] for task in content["stream"]["tasks"]] == [40] * 10
    assert content["stream"]["tasks"][0]["classes"][:3] == ["n02165456", "n03594945", "n02325366"]
