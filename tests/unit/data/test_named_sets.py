"""Sources of published sets, from fakes of the delivered layouts."""

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data import stream
from cdl_jax.errors import MissingDataError
from tests.support import fake_sets
from tests.support.fake_sources import load, refusal

# Source -> how its fake is written, numbers of training and test images, and the sizes of the tasks.
SETS = {
    "cub200": (fake_sets.cub, 200, 200, [10] * 20),
    "tiny_imagenet": (fake_sets.tiny_imagenet, 200, 200, [100, *[10] * 10]),
    "food101": (fake_sets.food, 303, 101, [11, *[10] * 9]),
    "stanford_cars": (fake_sets.cars, 196, 196, [16, *[20] * 9]),
    "imagenet_a": (
        lambda root: fake_sets.class_folders(root, fake_sets.wnids(200), train=5, test=0),
        800,
        200,
        [20] * 10,
    ),
    "imagenet100": (lambda root: fake_sets.class_folders(root, fake_sets.wnids(100)), 200, 100, [10] * 10),
    "omnibenchmark": (lambda root: fake_sets.class_folders(root, fake_sets.wnids(300)), 600, 300, [30] * 10),
    "vtab": (lambda root: fake_sets.class_folders(root, [f"{i:02d}" for i in range(50)]), 100, 50, [10] * 5),
}


@pytest.mark.parametrize("name", SETS)
def test_named_sets_have_the_split_of_the_field(name, tmp_path):
    write, train, test, sizes = SETS[name]
    write(tmp_path / "set")
    made = stream.load({"name": name, "path": str(tmp_path / "set")})
    assert [len(task.classes) for task in made.tasks] == sizes
    assert (len(made.train), len(made.test)) == (train, test)
    assert np.unique(made.test.labels).tolist() == list(range(made.num_classes))
    other = stream.load(
        {"name": name, "path": str(tmp_path / "set"), "num_tasks": 1, "increment": 0, "base_classes": 0}
    )
    assert other.num_tasks == 1
    assert "does not exist" in refusal(name, tmp_path / "none")


def test_the_folder_is_found_by_its_name(tmp_path, monkeypatch):
    fake_sets.food(tmp_path / "food-101")
    monkeypatch.setenv("CDL_DATA", str(tmp_path))
    assert len(load("food101").train) == len(load("food101", tmp_path).train) == 303
    with pytest.raises(MissingDataError, match="run `python -m cdl_jax.fetch cub200`"):
        load("cub200")
    assert "put cars_train/, cars_test/" in refusal("stanford_cars")


def test_images_of_cars_have_the_numbers_of_the_devkit(tmp_path):
    fake_sets.cars(tmp_path)
    data = load("stanford_cars", tmp_path)
    first = {
        data.class_names[label]: file.name for label, file in zip(data.train.labels, data.train.files, strict=True)
    }
    assert first["Car 1"] == "00195.jpg" and first["Car 196"] == "00000.jpg"
    assert data.test.files[0].parent.name == "cars_test"


def test_imagenet100_by_a_list_of_classes(tmp_path):
    fake_sets.class_folders(tmp_path / "all", fake_sets.wnids(120))
    assert "has 120 classes, and ImageNet-100 has 100" in refusal("imagenet100", tmp_path / "all")
    names = fake_sets.wnids(120)[:19:-1]
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names), encoding="utf-8")
    assert load("imagenet100", tmp_path / "all", class_list=str(path)).class_names == tuple(names)
    path.write_text("n1\nn00000000\n", encoding="utf-8")
    message = refusal("imagenet100", tmp_path / "all", class_list=str(path))
    assert "1 of 2 listed classes are missing in train: n1" in message
    assert "is no file" in refusal("imagenet100", tmp_path / "all", class_list="nowhere.txt")


def test_a_delivered_split_of_imagenet_a_is_kept(tmp_path):
    fake_sets.class_folders(tmp_path, fake_sets.wnids(200), train=3)
    assert (len(load("imagenet_a", tmp_path).train), len(load("imagenet_a", tmp_path).test)) == (600, 200)


def spoil(tmp_path, case):
    """Writes a damaged set; returns its source."""
    if case == "unlisted class":
        fake_sets.food(tmp_path)
        (tmp_path / "meta/test.txt").write_text("cake/1\n")
        return "food101"
    if case == "absent image":
        fake_sets.food(tmp_path)
        (tmp_path / "images/dish_000/4.jpg").unlink()
        return "food101"
    if case == "image twice":
        fake_sets.food(tmp_path)
        (tmp_path / "meta/test.txt").write_text("dish_000/1\n")
        return "food101"
    if case == "no labels":
        fake_sets.cars(tmp_path, with_labels=False)
        return "stanford_cars"
    if case == "damaged":
        fake_sets.cars(tmp_path)
        (tmp_path / "devkit/cars_meta.mat").write_bytes(b"MATLAB 5.0")
        return "stanford_cars"
    if case == "absent folder":
        fake_sets.cub(tmp_path, classes=199)
        return "cub200"
    if case == "no test set":
        fake_sets.class_folders(tmp_path, fake_sets.wnids(200), test=0)
        return "cub200"
    if case == "empty class":
        fake_sets.class_folders(tmp_path, fake_sets.wnids(50))
        (tmp_path / "train/n00000003/0.jpg").unlink(), (tmp_path / "train/n00000003/1.jpg").unlink()
        return "vtab"
    raise ValueError(case)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unlisted class", "'cake/1' is of no class of meta/classes.txt"),
        ("absent image", "1 of the listed files are missing, first"),
        ("image twice", "lists 'dish_000/1' twice"),
        ("no labels", "cars_test_annos_withlabels.mat is missing"),
        ("damaged", "cars_meta.mat: cannot be read"),
        ("absent folder", "has 199 classes, and CUB-200-2011 has 200"),
        ("no test set", "has class folders without the test set of CUB-200-2011"),
        ("empty class", "1 classes without training images: n00000003"),
    ],
)
def test_damaged_sets_are_refused(case, message, tmp_path):
    assert message in refusal(spoil(tmp_path, case), tmp_path)


def test_core50_is_tested_on_three_sessions_after_every_task(tmp_path):
    fake_sets.core50(tmp_path / "core50_128x128")
    made = stream.load({"name": "core50", "path": str(tmp_path)})
    assert made.domains == ("s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11")
    assert made.class_names[:3] == ("o1", "o2", "o3") and made.num_classes == 50
    assert all(len(task.train) == 50 and len(task.test) == 150 for task in made.tasks)
    assert {str(file).split("/")[-3] for file in made.test.files} == {"s3", "s7", "s10"}


def test_domainnet_by_its_lists(tmp_path):
    fake_sets.domainnet(tmp_path, domains=("clipart", "infograph", "painting", "quickdraw", "real", "sketch"))
    made = stream.load({"name": "domainnet", "path": str(tmp_path), "domains": ("real", "sketch")})
    assert [len(task.train) for task in made.tasks] == [690, 690] and made.num_classes == 345
    assert all("/real/" in made.train.files[row] for row in made.tasks[0].train)
    merged = stream.load({"name": "domainnet", "path": str(tmp_path), "kind": "class", "num_tasks": 5})
    assert [len(task.train) for task in merged.tasks] == [69 * 12] * 5
    (tmp_path / "real/item_000/train_0.jpg").unlink()
    assert "real_train.txt: 1 of the listed files are missing" in refusal("domainnet", tmp_path)
    (tmp_path / "real_test.txt").unlink()
    assert "its counterpart real_test.txt is missing" in refusal("domainnet", tmp_path)
    (tmp_path / "real_train.txt").unlink()
    assert "real_train.txt and real_test.txt are missing, and another split" in refusal("domainnet", tmp_path)


def test_office_home_is_split_by_seed(tmp_path):
    fake_sets.office_home(tmp_path)
    made = stream.load({"name": "office_home", "path": str(tmp_path)})
    assert made.domains == ("Art", "Clipart", "Product", "Real World")
    assert [(len(task.train), len(task.test)) for task in made.tasks] == [(260, 65)] * 4
    assert made.class_names[:3] == ("Thing_0", "Thing_1", "Thing_2")
    (tmp_path / "Real World").rename(tmp_path / "Photos")
    assert "has no folder of the domain Real World" in refusal("office_home", tmp_path)
    assert load("domain_folder", tmp_path).domains == ("Art", "Clipart", "Photos", "Product")


def test_domains_must_have_the_same_classes(tmp_path):
    for domain in ("day", "night"):
        fake_sets.class_folders(tmp_path / domain, ["cat", "dog"])
    fake_sets.class_folders(tmp_path / "day", ["fox"])
    message = refusal("domain_folder", tmp_path)
    assert "night: 1 of 3 classes have no images in this domain: fox; add some" in message
    made = stream.load({"name": "domain_folder", "path": str(tmp_path), "missing_classes": "allow"})
    assert made.class_names == ("cat", "dog", "fox")
    assert [np.bincount(made.train.labels[task.train], minlength=3).tolist() for task in made.tasks] == [
        [2, 2, 2],
        [2, 2, 0],
    ]


def test_a_single_folder_is_no_set_of_domains(tmp_path):
    fake_sets.class_folders(tmp_path / "day", ["cat"])
    assert "has 1 folders, and each folder is a domain" in refusal("domain_folder", tmp_path)


def test_several_sets_are_one_task_each(tmp_path):
    images = np.full((4, 28, 28), 255, np.uint8)
    labels = np.array([0, 1, 2, 0])
    np.savez(tmp_path / "white.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    sets = ("digits", f"arrays:path={tmp_path / 'white.npz'}")
    made = stream.load({"name": "several_sets", "sets": sets, "side": 16})
    assert [len(task.classes) for task in made.tasks] == [10, 3] and made.name == "digits+white"
    assert made.class_names[9:11] == ("digits/9", "white/0")
    assert made.train.images.shape[1:] == (16, 16, 3)
    assert (made.train.images[made.tasks[1].train] == 255).all()
    assert made.train.labels[made.tasks[1].train].tolist() == [10, 11, 12, 10]
    for name in ("train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"):
        (tmp_path / "letters" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), 128).save(tmp_path / "letters" / name)
    mixed = stream.load({"name": "several_sets", "sets": ("digits", f"folder:path={tmp_path / 'letters'}"), "side": 8})
    assert (
        mixed.class_names[10:] == ("letters/a", "letters/b") and (mixed.test.images[mixed.tasks[1].test] == 128).all()
    )
    plain = stream.load({"name": "several_sets", "sets": ("digits", "digits"), "side": 8, "num_tasks": 4})
    assert [len(task.classes) for task in plain.tasks] == [5] * 4


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("digits",), "needs two or more sets in data.sets"),
        (("digits", "digit"), "data.sets, 'digit': no module 'digit' in data.sources"),
        (("digits", "arrays"), "data.sets, 'arrays': the arrays source reads an .npz"),
        (("digits", "glyph_mini:part=other"), "config.data.part='other': use 'pretraining' or"),
        (("digits", "glyph_mini:paths=x"), "config argument 'paths=x' is unknown"),
    ],
)
def test_sets_that_cannot_be_loaded_are_named(sets, message):
    assert message in refusal("several_sets", sets=sets)
