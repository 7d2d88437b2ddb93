"""The page of a run and tables of runs, with every number computed by hand."""

import copy
import html
import json
import math
import re

import pytest

from cdl_jax.errors import UserError
from cdl_jax.evaluation import metrics
from cdl_jax.report import __main__ as report
from cdl_jax.report import analysis_section, plots, run_page, tables
from cdl_jax.report.groups import folder_names, read_groups

ROWS = {"teacher": [[90.0], [80.0, 70.0]], "student": [[60.0], [50.0, 40.0]]}
AGREEMENT, KL = [[90.0], [70.0, 80.0]], [[0.125], [0.5, 0.25]]
LINES = [
    {"step": step, "task": task, "phase": phase, "epoch": 0, "loss": 2.0 / step, "pool": 0.5, "learning_rate": 0.1}
    for task, phase, steps in [(0, "teacher", (3, 6)), (0, "student", (9,)), (1, "teacher", (12, 15))]
    for step in steps
] + [{"step": 9, "task": 0, "student/accuracy": 60.0}]
ANALYSIS = {
    "tasks": 2,
    "predictions": {
        "unchanged": {"teacher": {"mean": 75.0}, "student": {"mean": 45.0}},
        "prompts_off": {"teacher": {"mean": 30.0}, "student": {"mean": 20.0}},
        "distillation_off": {"teacher": {"mean": 10.0}},
    },
    "sweeps": {
        "second_head_weight": {
            "network": "student",
            "usual": 0.5,
            "values": [{"value": 0.0, "mean": 47.0}, {"value": 0.5, "mean": 45.0}, {"value": 1.0, "mean": 3.0}],
        }
    },
    "distillation_forgetting": {"teacher/student": [[0.125], [0.38, 0.25]]},
    "alignment": {},
    "places": {},
    "selection": {},
}
CONFIG = {"seed": 0, "learner": {"name": "l2p", "pool": 30}, "data": {"path": "a", "class_order_seed": 0}}


def results(rows=ROWS, classes=("<b>", "a & b", "c", '"d"')):
    return {
        "name": "toy, cdl",
        "status": "finished",
        "seed": 0,
        "command": "python -m cdl_jax.main --config 'x.py' && echo",
        "versions": {"jax": "0.10.2"},
        "formulas": metrics.FORMULAS | metrics.SERIES,
        "networks": {
            name: {
                "accuracy_matrix": matrix,
                "metrics": {
                    **metrics.named_metrics(matrix, [10] * len(matrix)),
                    **metrics.stream_metrics([matrix[-1]], [10] * len(matrix)),
                    **metrics.calibration_metrics([[4.0], [2.0, 6.0]], [4.0, 3.0]),
                },
                "by_task": metrics.series(matrix, [matrix[-1]], [10] * len(matrix)),
                "selection": {"layer_0": [[8, 0, 0, 0], [2, 2, 2, 2]]},
            }
            for name, matrix in rows.items()
        },
        "pairs": {
            "teacher/student": {
                "agreement_matrix": AGREEMENT,
                "kl_matrix": KL,
                "metrics": metrics.pair_metrics(AGREEMENT, KL),
            }
        }
        if len(rows) > 1
        else {},
        "stream": {
            "name": "toy",
            "num_tasks": 2,
            "tasks": [{"classes": list(classes[i : i + 2]), "train": 20, "test": 10} for i in (0, 2)],
        },
        "cost": {
            "parameters": {"student": {"trainable": 1234, "frozen": 5678}},
            "flops_per_step": {"teacher": 2.5e9, "student": None},
            "images_per_second": {"teacher": 1000.0},
            "seconds": {"teacher": 12.34, "evaluation": 1.0},
            "peak_memory_bytes": 3 * 2**20,
            "device": "1 x cpu",
        },
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    run_page.write_report(path, results(), LINES, CONFIG)
    return path


def test_the_page_is_the_same_bytes_for_the_same_run(page, tmp_path):
    run_page.write_report(tmp_path / "again.html", results(), copy.deepcopy(LINES), copy.deepcopy(CONFIG))
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    run_page.write_report(tmp_path / "other.html", results(classes=("x", "y", "z", "w")), LINES, CONFIG)
    assert (tmp_path / "other.html").read_bytes() != page.read_bytes()


def test_the_page_loads_nothing_from_elsewhere(page):
    # Names of XML vocabularies are identifiers that no reader follows, those in an SVG's <metadata> among them.
    text = re.sub(r"<metadata>.*?</metadata>", "", page.read_text(), flags=re.DOTALL)
    names = set(re.findall(r'xmlns(?::\w+)?="([^"]+)"', text))
    elsewhere = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - names
    assert names == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert elsewhere == set()
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b|@import|url\((?!#)|\ssrc=", text)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in re.findall(r'href="([^"]*)"', text))


def test_the_page_escapes_names(page):
    text = page.read_text()
    assert "&lt;b&gt;, a &amp; b" in text and "c, &quot;d&quot;" in text and "<b>" not in text
    assert "&#x27;x.py&#x27; &amp;&amp; echo" in text


def test_the_page_shows_the_numbers_of_the_run(page):
    text = page.read_text()
    assert "<td>last</td><td>75.00</td><td>45.00</td></tr>" in text
    assert "<td>forgetting_cdl</td><td>5.00</td><td>5.00</td></tr>" in text
    assert "<td>forward_transfer</td><td>-</td><td>-</td></tr>" in text
    for formula in map(html.escape, metrics.FORMULAS.values()):  # once as a row's tooltip, once in the list
        assert text.count(f'<tr title="{formula}">') == text.count(f"<dd class=quiet>{formula}</dd>") == 1
    for cost in ("1,234 trained, 5,678 frozen", "2.500 GFLOP", "1,000 images/s", "12.3 s", "3 MiB"):
        assert f"<td>{cost}</td>" in text
    assert text.count("Entropy: 0.00, 2.00 bits.") == 2
    assert "learner.pool = 30" in text
    assert "<td>ece_last</td><td>3.00</td><td>3.00</td></tr>" in text
    assert text.count("<td>teacher</td><td>0.00</td><td>10.00</td></tr>") == 1  # forgetting after each task
    assert "<td>student</td><td>45.00</td></tr>" in text and "stream_accuracy, by task: mean over all j" in text
    assert "<td>agreement_last</td><td>75.00</td></tr>" in text and "<td>kl_learning</td><td>0.1875</td></tr>" in text
    # Curves, matrices, agreement and KL, losses, prompt selections.
    assert text.count("<svg") == text.count("</svg>") == 1 + 2 + 2 + 1 + 2


def test_extra_sections_precede_the_training_section(tmp_path):
    run_page.write_report(tmp_path / "report.html", results(), LINES, CONFIG, analysis_section.html_parts(ANALYSIS))
    text = (tmp_path / "report.html").read_text()
    assert text.index("<h2>Teacher and student</h2>") < text.index("<h2>Analysis</h2>") < text.index("<h2>Training")
    assert "<td>student</td><td>45.00</td><td>20.00</td><td>-</td></tr>" in text
    for shown in ("tasks learned since", "0.38", "weight"):
        assert f"<!-- {shown} -->" in text, shown
    assert text.count("<svg") == 8 + 3


def test_the_section_shows_cka_and_tsne():
    content = {
        **ANALYSIS,
        "alignment": {
            "images": 40,
            "layers": {"teacher": ["block_0", "features"], "student": ["features", "cl", "st"]},
            "pairs": {
                "teacher/student": [[0.11, 0.12, 0.13], [0.76, None, 0.23]],
                "student/student": [[1.0, 0.5, 0.25], [0.5, 1.0, 0.345], [0.25, 0.345, 1.0]],
            },
        },
        "places": {
            "classes": ["a < b", "c"],
            "labels": [0, 1, 1],
            "networks": {"student": [[0.0, 1.0], [2.0, 3.0], [1.0, 0.5]]},
            "missing": "",
        },
    }
    text = "".join(analysis_section.html_parts(content))
    assert text.count("<svg") == 3 + 2 + 1
    for shown in ("block_0", "0.76", "0.34", "a &lt; b"):
        assert f"<!-- {shown} -->" in text, shown
    assert "linear centered kernel alignment on 40 test images" in text and "also in features_student.svg" in text
    assert (
        analysis_section.plot_features(content).keys() == {"student"} and analysis_section.plot_features(ANALYSIS) == {}
    )
    assert analysis_section.summary(content).splitlines()[-2:] == [
        "teacher/student: linear CKA of features 0.760",
        "student: linear CKA of both heads 0.345",
    ]
    content["places"] = {"classes": [], "labels": [], "networks": {}, "missing": "t-SNE needs a library"}
    assert analysis_section.summary(content).splitlines()[-1] == "features are not drawn: t-SNE needs a library"


def test_the_summary_of_an_analysis():
    assert analysis_section.summary(ANALYSIS).splitlines() == [
        "mean accuracy, %  unchanged  prompts_off  distillation_off",
        "teacher               75.00        30.00             10.00",
        "student               45.00        20.00                 -",
        "student, second_head_weight: 45.00 with 0.5, at best 47.00 with 0.0",
        "teacher/student: KL to the teacher at that task 0.1875 nats after the task, 0.3150 at the end",
    ]


def test_a_run_without_a_finished_task_has_a_page(tmp_path):
    nothing = {**results(), "networks": {}, "pairs": {}, "status": "running"}
    run_page.write_report(tmp_path / "report.html", nothing, [], CONFIG)
    text = (tmp_path / "report.html").read_text()
    assert "running" in text and "<svg" not in text and "<h2>Metrics</h2>" not in text


def test_entropy_is_in_bits():
    assert run_page.entropy([3, 3, 3, 3]) == 2.0
    assert run_page.entropy([0, 7, 0]) == run_page.entropy([0, 0]) == 0.0
    assert run_page.entropy([1, 3]) == pytest.approx(2 - 0.75 * math.log2(3))


def test_plots_have_titles_and_labels():
    one = plots.heat_map([[10.0], [20.0, 30.0]], "student")
    assert one.startswith("<svg") and one.rstrip().endswith("</svg>")
    for text in ("student", "10", "20", "30", "after learning task"):
        assert f"<!-- {text} -->" in one
    assert plots.heat_map([[10.0], [20.0, 31.0]], "student") != one
    shown = plots.losses(LINES)
    for text in ("teacher", "student", "loss", "pool"):
        assert f"<!-- {text} -->" in shown
    assert "<!-- learning_rate -->" not in shown
    assert "<!-- prompt -->" in plots.selection([[0, 0], [1, 3]], "student")
    assert "<!-- tasks learned -->" in plots.accuracy_curves({"student": [[42.0]]})


def test_the_summary_has_one_line_per_network():
    lines = run_page.summary([results()]).splitlines()
    assert lines[0].split() == ["last", "average_incremental", "forgetting_cdl", "forgetting_max", "ece_last"]
    assert lines[1].split() == ["teacher", "75.00", "82.50", "5.00", "10.00", "3.00"]
    assert lines[2].split() == ["student", "45.00", "52.50", "5.00", "10.00", "3.00"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3:] == ["teacher/student: agreement 75.00 %, KL(teacher || student) 0.3750 nats"]


def store(folder, config, **last):
    """Stores a run of one task whose networks have the final accuracies `last`."""
    folder.mkdir()
    content = results({name: [[value]] for name, value in last.items()})
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return folder


def table_of(runs):
    return tables.table(read_groups(runs))


def config_with_seed(seed, **learner):
    return {**CONFIG, "seed": seed, "learner": {**CONFIG["learner"], **learner}}


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


def store_distilled(folder, seed, teacher, student, **changes):
    config = {**config_with_seed(seed), "distill": {"name": "kd", "alpha": 0.5}, "student": {"dim": 8}, **changes}
    return store(folder, config, teacher=teacher, student=student)


def store_without_teacher(folder, seed, last, **changes):
    config = {**config_with_seed(seed), "distill": {"name": "none"}, "student": {"dim": 8}, **changes}
    return store(folder, config, student=last)


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


def test_resumable_keys_and_seeds_do_not_separate_runs(tmp_path):
    other = {**config_with_seed(1), "data": {"path": "b", "class_order_seed": 1}, "log": {"every_steps": 3}}
    table = table_of(
        [store(tmp_path / "a", config_with_seed(0), student=50.0), store(tmp_path / "b", other, student=52.0)]
    )
    assert table[1][:4] == ["all", "student", "2", "51.00 ± 1.41"]
    assert len(table) == 2
    own = {**other, "data": {"path": "b", "class_order_seed": -1}}  # the same order by another name
    with pytest.raises(UserError, match="are runs of one config and seed"):
        table_of([tmp_path / "b", store(tmp_path / "c", own, student=52.0)])


def test_one_run_has_no_standard_deviation_and_each_network_has_a_row(tmp_path):
    table = table_of([store(tmp_path / "a", config_with_seed(0), teacher=70.0, student=50.0)])
    assert [row[:4] for row in table[1:]] == [["all", "teacher", "1", "70.00"], ["all", "student", "1", "50.00"]]
    other = store(tmp_path / "b", config_with_seed(0, pool=10), student=49.0)
    table = table_of([tmp_path / "a", other])
    assert [(row[0], row[1], row[-1]) for row in table[1:]] == [
        ("learner.pool=30", "teacher", "-"), ("learner.pool=30", "student", "-"),
        ("learner.pool=10", "student", "-1.00"),
    ]  # fmt: skip


def test_a_label_names_a_component_instead_of_its_options(tmp_path):
    coda = {**config_with_seed(0), "learner": {"name": "coda", "length": 8}}
    runs = [store(tmp_path / "a", config_with_seed(0), student=50.0), store(tmp_path / "b", coda, student=51.0)]
    assert [row[0] for row in table_of(runs)[1:]] == ["learner.name=l2p", "learner.name=coda"]


def test_labels_are_distinct_for_components_of_the_same_name(tmp_path):
    configs = [config_with_seed(0), config_with_seed(0, pool=10), {**config_with_seed(0), "learner": {"name": "coda"}}]
    runs = [store(tmp_path / str(i), config, student=50.0) for i, config in enumerate(configs)]
    labels = [row[0] for row in table_of(runs)[1:]]
    assert len(set(labels)) == 3, labels
    assert labels == ["learner.name=l2p, learner.pool=30", "learner.name=l2p, learner.pool=10", "learner.name=coda"]


def test_two_runs_of_one_config_and_seed_are_refused(tmp_path):
    runs = [store(tmp_path / name, config_with_seed(0), student=50.0) for name in "ab"]
    with pytest.raises(UserError, match="b and .*a are runs of one config and seed"):
        table_of(runs)


def test_the_table_counts_unfinished_runs(tmp_path):
    runs = [store(tmp_path / str(seed), config_with_seed(seed), student=50.0 + seed) for seed in range(3)]
    content = json.loads((runs[1] / "results.json").read_text())
    (runs[1] / "results.json").write_text(json.dumps({**content, "status": "running"}))
    assert table_of(runs)[1][:4] == ["all", "student", "3 (1 unfinished)", "51.00 ± 1.00"]


def store_of_method(folder, seed, method, headline, best=None, **last):
    """Stores a run of one task of a method that has a section in the config."""
    run = store(
        folder, {"seed": seed, "method": method, method: {"alpha": 1, "beta": 2}, "data": {"path": "a"}}, **last
    )
    path = run / "results.json"
    stream = {**results()["stream"], "num_tasks": 1}
    of_best = {"value": best, "accuracy": {network: [best] for network in headline}, "measures": {}}
    bests = {"best": {"0": of_best}, "measures": [{"diversity": best / 100}]} if best else {}
    path.write_text(json.dumps({**json.loads(path.read_text()), "headline": headline, "stream": stream, **bests}))
    return run


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


def test_the_command_line_plots_the_headlines(tmp_path, capsys):
    runs = [store_of_method(tmp_path / name, 0, name, ["network"], network=50.0) for name in ("supervised", "dml")]
    words = [*map(str, runs), "--one-row-per-run", "--plot", str(tmp_path / "a.svg"), "--out", str(tmp_path / "a.md")]
    assert report.main(words) == 0
    assert "| method=dml | network | 1 | 50.00 | +0.00 |" in (tmp_path / "a.md").read_text()
    svg = (tmp_path / "a.svg").read_text()
    assert "<!-- method=supervised -->" in svg and svg == plots.dot_plot(
        {"method=supervised": [50.0], "method=dml": [50.0]}, "accuracy, %; bar: mean"
    )
    capsys.readouterr()
    assert report.main([str(runs[0]), "--plot", str(tmp_path / "absent" / "a.svg")]) == 2
    assert capsys.readouterr().err.startswith("cdl_jax: --plot")


def store_exchanging(folder, seed, amount, last, interval=1):
    """Stores a run of two learners whose CL heads have the accuracies `last`, and whose ST heads have ten less."""
    folder.mkdir(exist_ok=True)
    config = {"seed": seed, "dkt": {"stream_seed": seed, "interval": interval, "teachers": [f"runs/seed_{seed}"]}}
    accuracies = {f"learner_{i}{head}": value - less for i, value in enumerate(last) for head, less in HEADS.items()}
    run = store(folder / f"seed_{seed}", config, **accuracies)
    content = json.loads((run / "results.json").read_text())
    measures = [{}, {"exchanged_mb": amount} if amount else {}]
    content |= {"headline": ["learner_0", "learner_1"], "measures": measures}
    (run / "results.json").write_text(json.dumps(content))
    return run


HEADS = {"": 0, "_st": 10, "_both": -4}


def test_heads_and_exchanged_megabytes_are_columns(tmp_path):
    runs = [store_exchanging(tmp_path / "often", seed, 12.5, (60.0 + 4 * seed, 62.0)) for seed in (0, 1)]
    runs.append(store_exchanging(tmp_path / "never", 0, 0, (50.0, 51.0), interval=2))
    groups = read_groups(runs)  # class orders and teachers that belong to a seed do not separate runs
    table = tables.headlines(groups, folder_names(groups))
    assert table[0][5:] == ["ST head", "ST - CL", "both heads", "MB"]
    mean = ["62.00 ± 1.41", "-", "52.00 ± 1.41", "-10.00 ± 0.00", "66.00 ± 1.41", "12.5"]
    assert table[1] == ["often", "mean of 2", "2", *mean]
    assert table[2] == ["never", "mean of 2", "1", "50.50", "-10.50", "40.50", "-10.00", "54.50", "-"]


def test_the_command_line_plots_accuracy_against_traffic(tmp_path, capsys):
    runs = [store_exchanging(tmp_path / "often", seed, 12.5, (60.0 + seed, 62.0)) for seed in (0, 1)]
    never = store_exchanging(tmp_path / "never", 0, 0, (50.0, 51.0), interval=2)
    words = ["--label-by-folder", "--plot-traffic", str(tmp_path / "a.svg")]
    assert report.main([*map(str, runs), str(never), *words]) == 0
    svg = (tmp_path / "a.svg").read_text()
    assert svg == plots.accuracy_vs_traffic({"often": ([12.5, 12.5], [61.0, 61.5]), "never": ([0.0], [50.5])})
    for text in ("often", "never", "megabytes exchanged"):
        assert f"<!-- {text} -->" in svg
    assert plots.accuracy_vs_traffic({"often": ([12.5, 12.5], [61.0, 62.5])}) != svg
    capsys.readouterr()
    assert report.main([str(never), *words]) == 2
    assert "no finished run here has exchanged anything" in capsys.readouterr().err
    assert (
        report.main([str(tmp_path / "often" / "seed_0"), str(never.rename(tmp_path / "never" / "often")), *words[:1]])
        == 2
    )
    assert "two rows would be called 'often'" in capsys.readouterr().err


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    for name, files in {
        "empty": {},
        "torn": {"results.json": "{", "config.json": "{}"},
        "half": {"results.json": "{}"},
        "bare": {"results.json": "{}", "config.json": json.dumps({"config": CONFIG})},
        "list": {"results.json": "[1]", "config.json": json.dumps({"config": CONFIG})},
        "keyless": {"results.json": json.dumps(results()), "config.json": "{}"},
        "seedless": {"results.json": json.dumps(results()), "config.json": '{"config": {"a": 1}}'},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        message = f"{name} holds no results of a run|{name}/config.json is damaged"
        with pytest.raises(UserError, match=message):
            table_of([tmp_path / name])
    assert report.main([str(tmp_path / "empty")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def store_damaged(folder):
    """Creates folders of runs that failed, have just begun or are damaged; returns (path, part of the message)."""
    folders_and_messages = []
    for name, files, message in (
        ("empty", {}, "holds no results of a run yet"),
        ("begun", {"config.json": json.dumps({"config": CONFIG})}, "holds no results of a run yet"),
        ("torn", {"config.json": json.dumps({"config": CONFIG}), "results.json": '{"name'}, "holds no results"),
        ("binary", {"config.json": json.dumps({"config": CONFIG}), "results.json": "\udc80"}, "holds no results"),
        ("half", {"config.json": '{"config"', "results.json": json.dumps(results())}, "config.json is damaged"),
        ("bare", {"results.json": json.dumps(results())}, "config.json is missing"),
        ("measures", {"config.json": json.dumps({"config": CONFIG}),
                      "results.json": json.dumps({**results(), "measures": [5]})}, "holds no results"),
        ("seeds", {"config.json": json.dumps({"config": {**CONFIG, "seed": [0]}}),
                   "results.json": json.dumps(results())}, "holds no results"),
    ):  # fmt: skip
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text, encoding="utf-8", errors="surrogateescape")
        folders_and_messages.append((folder / name, message))
    (folder / "seeds of which one is there").mkdir()
    config = {"config": {**CONFIG, "seeds": [8, 9]}}
    (folder / "seeds of which one is there" / "config.json").write_text(json.dumps(config))
    store(folder / "seeds of which one is there" / "seed_8", config_with_seed(8), student=70.0)
    folders_and_messages.append((folder / "seeds of which one is there", "seed_9 holds no results of a run"))
    (folder / "file").write_text("")
    return [*folders_and_messages, (folder / "file", "not a folder"), (folder / "absent", "not a folder")]


def test_unreadable_runs_are_named_and_the_others_reported(tmp_path, capsys):
    good, bad = store(tmp_path / "good", config_with_seed(0), student=50.0), store_damaged(tmp_path)
    assert (
        report.main([str(folder) for folder, _ in bad[:3]] + [str(good)] + [str(folder) for folder, _ in bad[3:]]) == 0
    )
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split()[:4] == ["all", "student", "2", "60.00"]  # mean of 50 and, in seed_8, 70
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for (folder, message), line in zip(bad, lines, strict=True):
        assert line.startswith("cdl_jax: left out: ") and str(folder) in line and message in line
    assert report.main([str(folder) for folder, _ in bad[:5]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 5


def test_the_command_line_writes_a_markdown_table(tmp_path, capsys):
    run = store(tmp_path / "a", config_with_seed(0), student=50.0)
    assert report.main([str(run), "--out", str(tmp_path / "table.md")]) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[:2] == ["## Runs", ""] and lines[3] == "|" + "---|" * 8
    assert lines[4].startswith("| all | student | 1 | 50.00 |")
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    assert report.main([str(run), "--out"]) == 2


def test_the_ending_selects_html_and_an_unwritable_file_is_refused(tmp_path, capsys):
    run = store(tmp_path / "a", config_with_seed(0), student=50.0)
    assert report.main([str(run), "--out", str(tmp_path / "table.html")]) == 0
    text = (tmp_path / "table.html").read_text()
    assert text.startswith("<!doctype html>") and "<tr><td>all</td><td>student</td><td>1</td><td>50.00</td>" in text
    capsys.readouterr()
    assert report.main([str(run), "--out", str(tmp_path / "absent" / "table.md")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
