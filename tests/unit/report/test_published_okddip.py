"""OKDDip's published results: numbers, settings, and the comparison with runs."""

import json
from collections import Counter

import jax
import pytest

from cdl_jax import config as configs
from cdl_jax import published
from cdl_jax.data import stream
from cdl_jax.data.sources import cifar10, cifar100
from cdl_jax.errors import UserError
from cdl_jax.evaluation.metrics import named_metrics
from cdl_jax.published import okddip
from cdl_jax.report import replication
from cdl_jax.report.groups import read_groups
from cdl_jax.run import describe
from cdl_jax.training.experiment import Experiment
from configs.okddip import get_config

TABLE = published.table("okddip")
CELLS = {tuple(cell.choices.values()): cell for cell in TABLE.cells}
NETWORKS = ("resnet32", "resnet110", "vgg16", "densenetd40k12", "wide_resnet20_8")


def flat_config(**choices):
    return configs.flatten(okddip.build(**choices))


def differing_settings(a, b):
    return {key: (a.get(key), b.get(key)) for key in {*a, *b} if a.get(key) != b.get(key)}


def store(folder, peers, best, seed=0, changes=(), **choices):
    """Stores a run of one task.

    Args:
      folder: to create.
      peers: network -> final accuracy in percent.
      best: network -> accuracy at the best epoch.
      seed, changes, choices: of the config.
    """
    config = okddip.build(**choices)
    config.seed = seed
    config.update_from_flattened_dict(dict(changes))
    networks = {name: {"metrics": named_metrics([[value]], [1])} for name, value in peers.items()}
    headline = {"okddip": ["leader"], "supervised": ["network"]}.get(config.method, [n for n in peers if "peer" in n])
    accuracy = {"0": {"accuracy": {name: [value] for name, value in best.items()}, "extra_metrics": {}}} if best else {}
    folder.mkdir()
    results = {"status": "finished", "networks": networks, "headline": headline, "best": accuracy}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    return folder


def rows(folders):
    rows_by_label = replication.table(TABLE, replication.matches(read_groups(folders), TABLE))[1:]
    return {row[0]: row[1:] for row in rows_by_label}


def test_every_number_is_stored_with_its_source():
    assert len(CELLS) == len(TABLE.cells) == 75
    assert Counter(where[0] for where in CELLS) == {
        "paper": 6, "rerun": 1, "user": 1, "rewrite": 1, "mcl_okd": 21, "pcl": 40, "cmff": 5,
    }  # fmt: skip
    assert all(sum(v is not None for v in cell.values.values()) >= 1 for cell in TABLE.cells)
    assert all(cell.note for cell in TABLE.cells if cell.choices["source"] != "mcl_okd")


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("paper cifar100 okddip branch resnet32", (25.65, None, None)),
        ("paper imagenet okddip branch resnet34", (25.42, None, None)),
        ("user cifar100 okddip branch resnet32", (26.0, None, None)),
        ("mcl_okd cifar100 one - vgg16", (25.22, 25.12, None)),
        ("mcl_okd cifar100 supervised - resnet110", (23.62, None, None)),
        ("pcl cifar100 okddip branch wide_resnet20_8", (None, None, 78.83)),
        ("pcl cifar10 cl_ilr - densenetd40k12", (None, None, 93.05)),
        ("cmff cifar100 okddip branch vgg16", (None, None, 74.2)),
    ],
)
def test_stored_numbers_equal_their_sources(where, numbers):
    assert tuple(CELLS[tuple(part.strip("-") for part in where.split())].values.values()) == numbers


def test_settings_shared_by_all_cells():
    for cell in TABLE.cells:
        config, large = flat_config(**cell.choices), cell.choices["data"] == "imagenet"
        assert [config[f"optim.{key}"] for key in ("name", "nesterov", "momentum", "learning_rate", "schedule")] == [
            "sgd", True, 0.9, 0.1, "steps",
        ]  # fmt: skip
        assert [config[f"train.{key}"] for key in ("epochs", "batch_size", "last_batch")] == (
            [90, 256, "drop"] if large else [300, 128, "keep"]
        )
        assert config["optim.milestones"] == ([30, 60] if large else [150, 225])
        assert config["optim.weight_decay"] == (1e-4 if large else 5e-4)
        assert (config["data.num_tasks"], config["eval.every_epochs"]) == (1, 1)
        if cell.choices["method"] in ("okddip", "one", "cl_ilr"):
            assert config[f"{cell.choices['method']}.length"] == (24 if large else 80)


def test_reference_changes_only_the_peculiarities_of_the_authors_code():
    assert differing_settings(flat_config(), flat_config(reference=True)) == {
        "okddip.diversity_divisor": ("pairs", "reference")
    }
    dense = differing_settings(
        flat_config(network="densenetd40k12"), flat_config(network="densenetd40k12", reference=True)
    )
    assert dense.pop("okddip.densenet_shared_block") == ("own", "reference") and len(dense) == 1


def test_every_cell_builds_an_experiment_and_is_in_the_config_file():
    blank = {name: source.placeholder({}) for name, source in (("cifar10", cifar10), ("cifar100", cifar100))}
    streams = {name: stream.split_into_tasks(data, num_tasks=1) for name, data in blank.items()}
    for cell in TABLE.cells:
        text = ",".join(f"{key}={value}" for key, value in cell.choices.items() if value)
        assert configs.flatten(get_config(text)) == flat_config(**cell.choices)
        if cell.choices["data"] != "imagenet":
            config = okddip.build(**cell.choices, reference=True)
            config.devices = 1
            program = Experiment.build(config, streams[cell.choices["data"]])
            (task,), (phase,) = program.stream.tasks, program.method.phases
            assert program.batch_sizes(task, phase) == [128] * 390 + [80]


def test_a_cell_can_be_described():
    config = okddip.build(**CELLS["mcl_okd", "cifar100", "supervised", "", "resnet32"].choices)
    config.devices = 1
    experiment = Experiment.build(config, stream.split_into_tasks(cifar100.placeholder({}), num_tasks=1))
    description = "\n".join(describe.describe(experiment, show_config=True))
    assert "network: 472,756 trainable, 0 frozen" in description and "network: 300 epochs a task" in description
    assert "train.last_batch = 'keep'" in description


@pytest.mark.parametrize(("method", "parameters"), [("okddip", 1_554_272), ("one", 1_553_388)])
def test_networks_have_the_published_number_of_parameters(method, parameters):
    config = okddip.build(method=method, network="resnet32", data="cifar100")
    own = Experiment.build(config, stream.split_into_tasks(cifar100.placeholder({}), num_tasks=1)).method
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(own.init, jax.random.key(0)))
    assert sum(leaf.size for path, leaf in leaves if path[1].key == "params") == parameters


def test_the_best_epoch_is_compared_with_every_source(tmp_path):
    runs = [
        store(tmp_path / str(s), {"leader": 70.0, "ensemble": 74.0}, {"leader": a, "ensemble": a + 2}, seed=s)
        for s, a in enumerate((74.0, 74.5, 75.0))
    ]
    rows_by_label = rows(runs)
    settings = "reference=false or reference=true"  # the divisor of the diversity does not affect accuracy
    assert rows_by_label["paper cifar100 okddip branch resnet32"][:5] == [
        settings, "3", "25.65", "25.50 ± 0.50", "yes (-0.15)",
    ]  # fmt: skip
    assert set(rows_by_label) == {
        f"{source} cifar100 okddip branch resnet32"
        for source in ("paper", "rerun", "user", "rewrite", "mcl_okd", "pcl", "cmff")
    }
    assert rows_by_label["mcl_okd cifar100 okddip branch resnet32"][2:8] == [
        "25.76", "25.50 ± 0.50", "yes (-0.26)", "23.73", "23.50 ± 0.50", "yes (-0.23)",
    ]  # fmt: skip
    assert rows_by_label["pcl cifar100 okddip branch resnet32"][8:11] == ["73.25", "74.50 ± 0.50", "no (+1.25)"]


def test_without_a_leader_the_mean_of_the_peers_is_compared(tmp_path):
    peers = {"peer_0": 70.0, "peer_1": 72.0, "ensemble": 75.0}
    run = store(tmp_path / "a", dict.fromkeys(peers, 1.0), peers, method="one", network="vgg16")
    row = rows([run])["mcl_okd cifar100 one vgg16"]
    assert row[2:8] == [
        "25.22", "29.00", "too few seeds (+3.78)", "25.12", "25.00", "too few seeds (-0.12)",
    ]  # fmt: skip


def test_runs_that_evaluated_less_often_have_other_settings(tmp_path):
    rare = store(tmp_path / "a", {"leader": 70.0}, {"leader": 74.0}, changes={"eval.every_epochs": 10})
    row = rows([rare])["paper cifar100 okddip branch resnet32"]
    assert row[0] == "other" and "eval.every_epochs: 1 -> 10" in row[-1]
    begun = store(tmp_path / "c", {}, {"leader": 30.0}, changes={"eval.batch_size": 32})  # still in its first task
    assert rows([begun])["paper cifar100 okddip branch resnet32"][2:5] == ["25.65", "-", "-"]
    never = store(tmp_path / "b", {"leader": 70.0}, {}, changes={"eval.batch_size": 64})
    assert rows([never])["paper cifar100 okddip branch resnet32"][2:5] == ["25.65", "-", "-"]


@pytest.mark.parametrize(
    "changes", [{"network.depths": (9, 9, 9)}, {"data.name": "glyph_mini"}, {"okddip.base": "network"}]
)
def test_runs_of_other_networks_match_no_cell(tmp_path, changes):
    assert rows([store(tmp_path / "a", {"leader": 70.0}, {"leader": 74.0}, changes=changes)]) == {}


def test_results_without_settings_have_no_config():
    table = published.table("okddip_ablation")
    assert replication.matches([], table) == []
    shown = replication.table(table, [], all_cells=True)[1:]
    assert [row[:6] for row in shown][0] == ["random weights", "-", "0", "2.61", "-", "no config"]
    assert [row[3] for row in shown] == ["2.61", "1.08", "0.72", "0.42", "2.16"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=cifar1000", "data='cifar1000': did you mean 'cifar100'"),
        ("method=okdip", "method='okdip': did you mean 'okddip'"),
        ("network=resnet31", "no network of the name 'resnet31'"),
        ("base=branches", "okddip.base='branches'"),
    ],
)
def test_a_wrong_argument_is_a_one_line_error(text, message):
    with pytest.raises(UserError) as error:
        get_config(text)
    assert message in str(error.value) and "\n" not in str(error.value)
