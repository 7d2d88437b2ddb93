"""Tables of runs, with every number computed by hand."""

import json
import math

from cdl_jax.report import tables
from cdl_jax.report.groups import folder_names, read_groups
from tests.support.stored_runs import config_with_seed, store, store_exchanging, store_of_method


def table_of(runs):
    return tables.table(read_groups(runs))


def store_distilled(folder, seed, teacher, student, **changes):
    config = {**config_with_seed(seed), "distill": {"name": "kd", "alpha": 0.5}, "student": {"dim": 8}, **changes}
    return store(folder, config, teacher=teacher, student=student)


def store_without_teacher(folder, seed, last, **changes):
    config = {**config_with_seed(seed), "distill": {"name": "none"}, "student": {"dim": 8}, **changes}
    return store(folder, config, student=last)


def test_runs_that_differ_only_in_the_seed_are_one_row_with_paired_differences(tmp_path):
    runs = [
        store(tmp_path / f"a{seed}", config_with_seed(seed), student=value) for seed, value in enumerate((60, 62, 67))
    ]
    runs += [
        store(tmp_path / f"b{s}", config_with_seed(s, pool=10), student=v) for s, v in ((0, 61.0), (1, 66.0), (7, 10.0))
    ]
    table = table_of(runs)
    assert table[0][:5] == ["run", "network", "seeds", "last", "average_incremental"]
    # Deviations from 63: -3, -1, 4; their squares sum up to 26, over n - 1 = 2.
    assert table[1][:5] == ["learner.pool=30", "student", "3", f"63.00 ± {math.sqrt(13):.2f}", "63.00 ± 3.61"]
    assert table[1][5:] == ["-", "-", "-"]
    # Seeds 0 and 1 are paired: differences 1 and 4, mean 2.5, sample deviation 3 / sqrt 2, over sqrt 2.
    assert table[2][:3] == ["learner.pool=10", "student", "3"]
    assert table[2][-1] == "+2.50 ± 1.50"
    assert len(table) == 3


def test_gap_closed_is_computed_over_paired_seeds(tmp_path):
    runs = [store_without_teacher(tmp_path / f"a{s}", s, value) for s, value in ((0, 50.0), (1, 54.0), (5, 0.0))]
    runs += [
        store_distilled(tmp_path / f"k{s}", s, *values)
        for s, values in enumerate([(70.0, 58.0), (74.0, 60.0), (9.0, 9.0)])
    ]
    table = table_of(runs)
    # Seeds 0 and 1 are paired: (8 + 6) / (20 + 20).
    assert table[0][-1] == "gap closed"
    assert [(row[1], row[-1]) for row in table[1:]] == [("student", "-"), ("teacher", "-"), ("student", "35%")]


def test_gap_closed_needs_a_comparable_student_and_a_better_teacher(tmp_path):
    student = store_distilled(tmp_path / "k", 0, 70.0, 60.0)
    strangers = [
        store_without_teacher(tmp_path / "s", 0, 50.0, student={"dim": 16}),
        store_without_teacher(tmp_path / "d", 0, 50.0, data={"name": "x"}),
        store_without_teacher(tmp_path / "l", 0, 50.0, learner={"name": "coda"}),
        store_without_teacher(tmp_path / "seed", 3, 50.0),
        store_without_teacher(tmp_path / "optim", 0, 50.0, optim={"name": "sgd"}),
        store_without_teacher(tmp_path / "epochs", 0, 50.0, train={"epochs": 1}),
        store_without_teacher(tmp_path / "better", 0, 70.0, train={"batch_size": 1}),
    ]
    for stranger in strangers:
        assert table_of([stranger, student])[0][-1] == "last, Δ vs. first run"
    # The nearest in all other settings counts: not the one with another batch size.
    table = table_of([*strangers, store_without_teacher(tmp_path / "a", 0, 50.0), student])
    assert table[-1][-1] == "50%"


def test_one_run_has_no_standard_deviation_and_each_network_has_a_row(tmp_path):
    table = table_of([store(tmp_path / "a", config_with_seed(0), teacher=70.0, student=50.0)])
    assert [row[:4] for row in table[1:]] == [["all", "teacher", "1", "70.00"], ["all", "student", "1", "50.00"]]
    other = store(tmp_path / "b", config_with_seed(0, pool=10), student=49.0)
    table = table_of([tmp_path / "a", other])
    assert [(row[0], row[1], row[-1]) for row in table[1:]] == [
        ("learner.pool=30", "teacher", "-"), ("learner.pool=30", "student", "-"),
        ("learner.pool=10", "student", "-1.00"),
    ]  # fmt: skip


def test_the_table_counts_unfinished_runs(tmp_path):
    runs = [store(tmp_path / str(seed), config_with_seed(seed), student=50.0 + seed) for seed in range(3)]
    content = json.loads((runs[1] / "results.json").read_text())
    (runs[1] / "results.json").write_text(json.dumps({**content, "status": "running"}))
    assert table_of(runs)[1][:4] == ["all", "student", "3 (1 unfinished)", "51.00 ± 1.41"]
    assert table_of(runs[1:2])[1][:4] == ["all", "student", "1 (1 unfinished)", "51.00"]
    others = [
        store(tmp_path / f"b{seed}", config_with_seed(seed, pool=10), student=v) for seed, v in enumerate((51, 90, 54))
    ]
    assert table_of([*runs, *others])[2][-1] == "+1.50 ± 0.50"  # of the seeds 0 and 2


def test_headlines_compare_networks_with_different_names(tmp_path):
    runs = [
        store_of_method(tmp_path / f"a{s}", s, "supervised", ["network"], network=v) for s, v in enumerate((60.0, 64.0))
    ]
    peers = [(0, 61.0, 63.0, 70.0), (1, 67.0, 71.0, 80.0), (2, 1.0, 2.0, 3.0)]
    runs += [
        store_of_method(tmp_path / f"b{s}", s, "dml", ["peer_0", "peer_1"], a + 5, peer_0=a, peer_1=b, ensemble=e)
        for s, a, b, e in peers[:2]
    ]
    table = tables.headlines(read_groups(runs))
    assert table[0] == [
        "run",
        "network",
        "seeds",
        "last",
        "Δ vs. first run",
        "best epoch",
        "ensemble",
        "diversity",
    ]
    assert table[1] == ["method=supervised", "network", "2", "62.00 ± 2.83", "-", "-", "-", "-"]
    # Means of the two networks: 62 and 69; differences 2 and 5, mean 3.5, sample deviation 3 / sqrt 2, over sqrt 2.
    means = ["65.50 ± 4.95", "+3.50 ± 1.50", "69.00 ± 4.24", "75.00 ± 7.07", "0.690 ± 0.042"]
    assert table[2] == ["method=dml", "mean of 2", "2", *means]
    unpaired = store_of_method(tmp_path / "c", 2, "dml", ["peer_0", "peer_1"], peer_0=1.0, peer_1=2.0, ensemble=3.0)
    assert tables.headlines(read_groups([*runs, unpaired]))[2][2:5] == ["3", "44.17 ± 37.12", "+3.50 ± 1.50"]
    content = json.loads((unpaired / "results.json").read_text())
    (unpaired / "results.json").write_text(json.dumps({**content, "status": "running"}))
    assert tables.headlines(read_groups([*runs, unpaired]))[2] == table[2]


def test_heads_and_exchanged_megabytes_are_columns(tmp_path):
    runs = [store_exchanging(tmp_path / "often", seed, 12.5, (60.0 + 4 * seed, 62.0)) for seed in (0, 1)]
    runs.append(store_exchanging(tmp_path / "never", 0, 0, (50.0, 51.0), interval=2))
    groups = read_groups(runs)  # class orders and teachers that belong to a seed do not separate runs
    table = tables.headlines(groups, folder_names(groups))
    assert table[0][5:] == ["ST head", "ST - CL", "both heads", "MB"]
    mean = ["62.00 ± 1.41", "-", "52.00 ± 1.41", "-10.00 ± 0.00", "66.00 ± 1.41", "12.5"]
    assert table[1] == ["often", "mean of 2", "2", *mean]
    assert table[2] == ["never", "mean of 2", "1", "50.50", "-10.50", "40.50", "-10.00", "54.50", "-"]
