"""Tutorials: files, commands and programs run as they are printed, on less data."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cdl_jax import main, sweep
from cdl_jax.losses import Context
from cdl_jax.report.__main__ import main as report_main
from tests.support import notebooks

ROOT = Path(__file__).parents[3]
SMALL = {
    "train.epochs": 1,
    "data.max_train_per_class": 8,
    "data.max_test_per_class": 4,
    "log.report": False,
    "log.every_steps": 1,
    "eval.forward_transfer": False,
}
OVERRIDES = [f"--config.{key}={value}" for key, value in SMALL.items()]


def read(name):
    """Returns the text of a tutorial, with continued command lines joined."""
    return (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8").replace(" \\\n", " ")


def python_blocks(page):
    """Returns the Python blocks of a page, by the title of each or its number."""
    blocks = re.findall(r'^```python(?: title="(.*?)")?\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    return {title or number: code for number, (title, code) in enumerate(blocks)}


def commands(page, program):
    """Returns the arguments of each `python -m <program>` command of a page, in order."""
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)).splitlines()
    found = [shlex.split(line) for line in lines if f"python -m {program} " in line]
    return [words[words.index("-m") + 2 :] for words in found]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder in which modules are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]


def write_files(page, folder):
    """Writes the titled blocks of a page to their files and returns them."""
    files = {title: code for title, code in python_blocks(page).items() if isinstance(title, str)}
    for title, code in files.items():
        (folder / title).parent.mkdir(exist_ok=True)
        (folder / title).write_text(code)
    return files


def log_lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_first_scheme(folder, capsys):
    page = read("first_scheme")
    files = write_files(page, folder)
    assert 25 <= len(files["mine/my_scheme.py"].splitlines()) <= 40
    tested = {}
    exec(files["mine/test_my_scheme.py"], tested)
    tested["test_loss"]()
    tokens = jnp.arange(12.0).reshape(1, 3, 4)
    for token, expected in (("class", [0, 1, 2, 3]), ("mean", [4, 5, 6, 7])):
        options = SimpleNamespace(token=token)
        assert tested["my_scheme"].select(options, tokens).tolist() == [expected]
    trained, *others = commands(page, "cdl_jax.main")
    for words in (trained, *others):
        assert main.main([*words, *OVERRIDES]) == 0
    run = folder / "runs" / "quickstart-distill=mine.my_scheme"
    assert json.loads((run / "results.json").read_text())["status"] == "finished"
    cosines = [line["cosine"] for line in log_lines(run) if line.get("phase") == "student" and "cosine" in line]
    assert cosines and all(0 < value < 2 for value in cosines)
    for value in ("feature_weight=-1.0", "feature_weight=101.0", "token=last"):
        assert main.main([*trained, *OVERRIDES, "--config.distill." + value]) == 2
    (words,) = commands(page, "cdl_jax.report")
    capsys.readouterr()
    assert report_main(words) == 0
    assert capsys.readouterr().out.count("distill.name=") == 5  # teachers of two runs and students of three


def test_first_learner(folder):
    page = read("first_learner")
    write_files(page, folder)
    trained, analyzed, low_rank, biases, fitted = commands(page, "cdl_jax.main")
    assert main.main([*trained, *OVERRIDES, "--config.learner.penalty=0.1"]) == 0
    assert main.main([*low_rank, *OVERRIDES]) == 0
    results = json.loads((folder / "runs/quickstart-learner=mine.my_lora-distill=none/results.json").read_text())
    # Rank 2 in 3 blocks of width 48, and the head of 20 classes.
    assert results["cost"]["parameters"]["student"]["trainable"] == 3 * 2 * (48 + 144) + 20 * 49
    assert main.main([*biases, *OVERRIDES]) == 0
    results = json.loads((folder / "runs/quickstart-learner=mine.my_biases-distill=none/results.json").read_text())
    # In 3 blocks the biases of queries, keys and values and of the projection, and the head.
    assert results["cost"]["parameters"]["student"]["trainable"] == 3 * (144 + 48) + 20 * 49
    assert main.main([*fitted, *OVERRIDES]) == 0
    results = json.loads((folder / "runs/quickstart-learner=mine.my_head-distill=none/results.json").read_text())
    assert results["networks"]["student"]["metrics"]["last"] > 50  # percent of 20 classes, from 8 images of each
    run = folder / "runs" / "quickstart-learner=mine.my_learner-distill=none"
    assert any("pool" in line for line in log_lines(run))
    assert main.main([*analyzed, *OVERRIDES, "--config.learner.penalty=0.1"]) == 0
    assert (run / "analysis.json").exists()
    assert main.main([*trained, *OVERRIDES, "--config.learner.layers=9", "--workdir", "other"]) == 2


def test_the_head_of_first_learner_is_a_ridge_regression(folder):
    code = {}
    exec(python_blocks(read("first_learner"))["mine/my_head.py"], code)
    head = code["RidgeHead"](num_classes=3, ridge=0.5)
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(2, 6, 4)), rng.integers(0, 3, (2, 6))
    statistics = head.init_statistics(4)
    weight = np.array([1, 1, 1, 1, 1, 0], np.float32)  # the last row of each batch is padding
    for batch in range(2):
        context = Context.dummy().replace(weight=weight)
        statistics = head.accumulate(statistics, features[batch].astype(np.float32), labels[batch], context)
    variables = head.fit(head.init(jax.random.key(0), jnp.zeros((1, 4))), statistics, Context.dummy())
    x, y = features[:, :5].reshape(10, 4), np.eye(3)[labels[:, :5].reshape(10)]
    rows = np.concatenate([x, np.sqrt(0.5) * np.eye(4)])  # |x W - y|^2 + 0.5 |W|^2 as one least-squares problem
    expected = np.linalg.lstsq(rows, np.concatenate([y, np.zeros((4, 3))]), rcond=None)[0]
    np.testing.assert_allclose(variables["state"]["kernel"], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(head.apply(variables, x.astype(np.float32)), x @ expected, rtol=1e-3, atol=1e-4)


def test_first_method(folder, capsys):
    page = read("first_method")
    write_files(page, folder)
    tested = {}
    exec(python_blocks(page)["mine/test_my_method.py"], tested)
    tested["test_loss"]()
    for words in commands(page, "cdl_jax.main"):
        assert main.main([*words, *OVERRIDES, "--config.train.batch_size=8"]) == 0
    lines = [line for line in log_lines(folder / "runs" / "my_config") if "kd" in line]
    # Four steps a task. In the first of them the network is that of the previous task.
    largest = [max(line["kd"] for line in lines if line["task"] == task) for task in range(5)]
    assert len(lines) == 20 and largest[0] == 0 and min(largest[1:]) > 1e-3
    for line in lines:
        assert line["loss"] == pytest.approx(line["labels"] + line["kd"], rel=1e-4)
    parameters = json.loads((folder / "runs/my_config/results.json").read_text())["cost"]["parameters"]
    # Convolutions of 3 x 3 from 3 to 16 and to 32 channels, and 20 outputs of maps of 8 x 8.
    assert parameters == {"network": {"trainable": 28 * 16 + 145 * 32 + 2049 * 20, "frozen": 0}}
    (words,) = commands(page, "cdl_jax.report")
    capsys.readouterr()
    assert report_main(words) == 0
    assert "my_method.strength=0" in capsys.readouterr().out


def test_first_source(folder, capsys):
    page = read("first_source")
    write_files(page, folder)
    (folder / "photos").mkdir()
    lines = ["file,label,split"]
    for label, level in (("dusk", 40), ("noon", 200), ("night", 0), ("dawn", 90)):
        for number in range(6):
            file = f"{label}_{number}.png"
            Image.new("RGB", (40 + number, 36), (level, level, 60)).save(folder / "photos" / file)
            lines.append(f"{file},{label},{'train' if number < 4 else 'test'}")
    (folder / "photos" / "images.csv").write_text("\n".join(lines) + "\n")
    described, own = commands(page, "cdl_jax.main")
    assert main.main([*described, *OVERRIDES]) == 0
    assert "dawn" in capsys.readouterr().out
    assert (
        main.main(
            [*[word for word in own if word != "--fetch"], *OVERRIDES, "--config.data.num_tasks=2", "--mode=describe"]
        )
        == 0
    )
    trained = [word for word in described if word not in ("--mode", "describe")]
    assert main.main([*trained, *OVERRIDES]) == 0
    content = json.loads((folder / "runs" / "quickstart" / "results.json").read_text())
    assert [task["classes"] for task in content["stream"]["tasks"]] == [["dawn", "dusk"], ["night", "noon"]]
    assert [(task["train"], task["test"]) for task in content["stream"]["tasks"]] == [(8, 4), (8, 4)]
    assert main.main([*trained, "--config.data.list=other.csv", "--workdir", "other"]) == 2


def test_sweep_and_table(folder, capsys):
    page = read("sweep_and_table")
    for scheme, stored in (("none", "alone"), ("kd", "distilled")):  # the quick start's own runs instead of training
        for seed in (0, 1):
            source = ROOT / "docs" / "results" / "quickstart" / stored / f"seed_{seed}"
            shutil.copytree(source, folder / "runs/sweep" / f"quickstart-distill={scheme}" / f"seed_{seed}")
    for alpha in (0.1, 0.5):
        run = folder / f"runs/grid/quickstart/distill.alpha={alpha},distill.temperature=1.0/seed_0"
        shutil.copytree(source, run)
        config = json.loads((run / "config.json").read_text())
        config["config"]["distill"]["alpha"] = alpha
        (run / "config.json").write_text(json.dumps(config))
    for words in commands(page, "cdl_jax.report"):
        assert report_main(words) == 0
    assert "| distill.name=kd | student | 2 |" in (folder / "table.md").read_text()
    assert (folder / "alpha.svg").exists()
    capsys.readouterr()
    exec(python_blocks(page)[0], {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["seed_0", "seed_1"]
    sweeps = re.findall(r"^bash launch/sweep\.sh .*$", page, re.MULTILINE)
    shutil.rmtree(folder / "runs")  # a run that has begun keeps its teacher
    planned = [sweep.plan(sweep.parse(shlex.split(line)[4:])) for line in sweeps]
    assert [len(runs) for runs in planned] == [6, 12]
    assert [sum(bool(item.teacher) for item in runs) for runs in planned] == [0, 9]
    assert Path("runs/grid/quickstart/distill.alpha=0.1,distill.temperature=1.0/seed_0") in {
        Path(item.workdir) for item in planned[1]
    }


def test_the_notebook_has_the_outputs_that_its_cells_have(folder):
    """Numbers with a point are left out, because processors round differently."""
    names: dict = {}
    for cell in notebooks.code_cells(ROOT / "docs" / "tutorials" / "notebook.ipynb"):
        texts = notebooks.execute(cell, names), notebooks.stored_text(cell)
        shown, stored = (" ".join(re.sub(r"\d+\.\d*(e-\d+)?", "#", text).split()) for text in texts)
        assert shown.replace("[ #", "[#") == stored.replace("[ #", "[#")
    assert names["run"].results["networks"]["student"]["metrics"]["last"] > 60  # percent of 20 classes
    names["plt"].close(names["figure"])


def test_own_images_are_described_and_learned_in_test_readme():
    page = read("own_images")
    described, trained, *_ = commands(page, "cdl_jax.main")
    assert "describe" in described and shlex.join(trained) in (ROOT / "README.md").read_text()


def test_many_gpus(folder):
    """The commands run in `--mode describe`.

    tests/end_to_end/test_devices.py compares the losses.
    """
    (words,) = commands(read("many_gpus"), "cdl_jax.main")
    words = [word for word in words if "fsdp" not in word]
    assert main.main([*words, *OVERRIDES, "--mode", "describe"]) == 0
