"""Tables and plots of the results pages equal those made from the stored results."""

import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_1samp

from cdl_jax import config as configs
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.run import results

RESULTS = Path(__file__).parents[3] / "docs" / "results"
PAGES = {
    "peers": ("supervised", "kd", "individual", "cl_ilr", "one", "dml", "okddip", "okddip_network"),
    "vkd": (
        "none",
        "logit",
        "linear",
        "householder",
        "matrix_exp",
        "cayley",
        "householder_none",
        "householder_batch",
        "householder_whiten",
    ),  # fmt: skip
}


DKT = {
    "seen": ("alone", "together", "every_5", "every_task", "predictions", "weights", "naive"),
    "all": ("alone_all", "together_all", "every_task_all", "ignorant_all"),
    "four": ("four_alone_all", "four_ring_all", "four_ring_task_all", "four_full_task_all"),
    "eight": ("eight_alone_all", "eight_ring_task_all"),
    "four_weights": ("four_alone", "four_weights"),
    "teachers": ("one_alone_all", "of_joint_all", "of_continual_all"),
    "prompts": ("prompts_alone", "prompts_together", "prompts_weights"),
}


DKT_DRAWN = (*DKT["seen"][:-1], *DKT["all"][:-1])


def table(page, rows, folder, *more):
    """Returns the Markdown table of a page's runs."""
    runs = [*(RESULTS / page / row for row in rows)]
    words = [str(run) for row in runs for run in sorted(row.iterdir())]
    words += [] if "--plot-traffic" in more else ["--one-row-per-run"]
    assert report_main([*words, "--out", str(folder / "table.md"), *more]) == 0
    return (folder / "table.md").read_text().removeprefix("## Runs\n\n")


@pytest.mark.parametrize("page", PAGES)
def test_table_and_plot_of_a_page_equal_those_of_its_results(page, tmp_path):
    found = table(page, PAGES[page], tmp_path, "--plot", str(tmp_path / "plot.svg"))
    assert len(found.splitlines()) == 2 + len(PAGES[page])
    assert found in (RESULTS / f"{page}.md").read_text()
    assert (tmp_path / "plot.svg").read_bytes() == (RESULTS / f"{page}.svg").read_bytes()


def test_the_table_of_peers_with_a_shared_stem(tmp_path):
    assert table("peers", ("individual", "one", "cl_ilr", "okddip"), tmp_path) in (RESULTS / "peers.md").read_text()


def test_the_table_of_features_against_logits(tmp_path):
    assert table("vkd", PAGES["vkd"][1:], tmp_path) in (RESULTS / "vkd.md").read_text()


@pytest.mark.parametrize("rows", DKT.values(), ids=DKT)
def test_the_tables_of_dkt(rows, tmp_path):
    found = table("dkt", rows, tmp_path, "--label-by-folder")
    assert len(found.splitlines()) == 2 + len(rows)
    assert all(line.split(" | ")[2] == "3" for line in found.splitlines()[2:])
    assert found in (RESULTS / "dkt.md").read_text()


def test_the_plot_of_exchanged_bytes(tmp_path):
    table("dkt", DKT_DRAWN, tmp_path, "--label-by-folder", "--plot-traffic", str(tmp_path / "plot.svg"))
    assert (tmp_path / "plot.svg").read_bytes() == (RESULTS / "dkt_traffic.svg").read_bytes()


DETECTORS = {"one": ("alone", "token_matching", "vkd"), "stream": ("naive", "past", "beside")}


@pytest.mark.parametrize("rows", DETECTORS.values(), ids=DETECTORS)
def test_the_tables_of_detectors(rows, tmp_path):
    found = table("vidt", rows, tmp_path, "--label-by-folder")
    assert len(found.splitlines()) == 2 + len(rows) and found in (RESULTS / "vidt.md").read_text()


def test_the_plot_of_detectors(tmp_path):
    table("vidt", DETECTORS["one"], tmp_path, "--label-by-folder", "--plot", str(tmp_path / "plot.svg"))
    assert (tmp_path / "plot.svg").read_bytes() == (RESULTS / "vidt.svg").read_bytes()


def test_the_numbers_curves_and_images_of_detectors(tmp_path):
    runs = [str(run) for row in DETECTORS["one"] for run in sorted((RESULTS / "vidt" / row).iterdir())]
    files = [tmp_path / name for name in ("table.md", "curves.svg", "images.png")]
    words = [*runs, "--label-by-folder", "--out", str(files[0]), "--plot", str(files[1]), "--images", str(files[2])]
    assert report_main(["detections", *words]) == 0
    assert files[0].read_text().partition("\n\n")[2] in (RESULTS / "vidt.md").read_text()
    assert files[1].read_bytes() == (RESULTS / "vidt_curves.svg").read_bytes()
    ours, stored = (np.asarray(Image.open(file), float) for file in (files[2], RESULTS / "vidt_images.png"))
    assert ours.shape == stored.shape and np.abs(ours - stored).mean() < 1  # decoders of JPEG may differ by a level


def test_the_findings_on_detectors_hold_in_each_seed():
    alone, matching, vkd, naive, past, beside = (
        metric_by_seed(f"vidt/{row}") for rows in DETECTORS.values() for row in rows
    )
    assert all(a < b < c for a, b, c in zip(matching, alone, vkd, strict=True))
    assert all(a < b < c for a, b, c in zip(beside, naive, past, strict=True))
    forgotten = [statistics.fmean(metric_by_seed(f"vidt/{row}", "forgetting_cdl")) for row in ("naive", "past")]
    assert [round(value, 2) for value in forgotten] == [2.05, 0.83]


GENERATORS = ("da", "replaced_each", "shuffled", "random", "replaced_data", "aggregated")


def test_the_table_and_plot_of_generators(tmp_path):
    runs = [str(run) for row in GENERATORS for run in sorted((RESULTS / "generation" / row).iterdir())]
    files = [tmp_path / name for name in ("table.md", "plot.svg")]
    assert report_main(["generation", *runs, "--out", str(files[0]), "--plot", str(files[1])]) == 0
    found = files[0].read_text().partition("\n\n")[2]
    assert len(found.splitlines()) == 2 + len(GENERATORS) and found in (RESULTS / "generation.md").read_text()
    assert files[1].read_bytes() == (RESULTS / "generation.svg").read_bytes()


def test_the_sweep_of_the_weight_is_that_of_its_results(tmp_path):
    rows = ("da", *(f"{term}_{weight}" for weight in ("0.1", "1.0", "10.0") for term in ("replaced", "aggregated")))
    runs = [str(RESULTS / "generation" / "sweep" / row / "seed_9") for row in rows]
    words = ["--one-row-per-run", "--label-by-folder", "--out", str(tmp_path / "table.md")]
    assert report_main([*runs, *words]) == 0
    found = (tmp_path / "table.md").read_text().removeprefix("## Runs\n\n")
    assert len(found.splitlines()) == 2 + 7 and found in (RESULTS / "generation.md").read_text()


@pytest.mark.parametrize(
    ("row", "base", "words"),
    [
        ("replaced_each", "da", "changes by -4 ± 55 points"),
        ("aggregated", "da", "aggregated term by +1 ± 48"),
        ("shuffled", "replaced_each", "one by 9 ± 29 points"),
        ("random", "replaced_each", "an untrained one by 41 ± 35"),
    ],
)
def test_the_page_states_the_paired_differences_of_generators(row, base, words):
    ours, theirs = (metric_by_seed(f"generation/{name}", network="generator") for name in (row, base))
    differences = np.subtract(ours, theirs)
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
    assert [round(mean), round(error)] == [int(number) for number in re.findall(r"[-+]?\d+", words)]
    assert words in " ".join((RESULTS / "generation.md").read_text().split())


@pytest.mark.parametrize("row", ["none", "kd"])
def test_the_tables_of_bfloat16(row, tmp_path):
    runs = [str(RESULTS / f"bfloat16/l2p/{name}/seed_{seed}") for name in (row, f"{row}_bf16") for seed in range(3)]
    assert report_main([*runs, "--label-by-folder", "--out", str(tmp_path / "table.md")]) == 0
    assert (tmp_path / "table.md").read_text().removeprefix("## Runs\n\n") in (RESULTS / "glyph100.md").read_text()


def dkt_results(row):
    return [results.read(RESULTS / f"dkt/{row}/seed_{seed}") for seed in range(3)]


@pytest.mark.parametrize(
    ("row", "metric"),
    [(row, metric) for row in ("alone", "weights") for metric in ("learning_accuracy", "forgetting_cdl")]
    + [(row, metric) for row in ("alone_all", "together_all") for metric in ("learning_accuracy", "forgetting_cdl")]
    + [("every_task_all", "learning_accuracy")],
)
def test_the_page_states_learning_accuracy_and_forgetting_of_dkt(row, metric):
    mean = statistics.fmean(run["mean_over_learners"]["mean"]["metrics"][metric] for run in dkt_results(row))
    assert re.search(rf"\b{mean:.1f}\b", (RESULTS / "dkt.md").read_text())


@pytest.mark.parametrize("row", ["together", "predictions"])
@pytest.mark.parametrize("head", ["mean", "mean_st"])
def test_the_page_states_the_accuracy_on_other_learners_classes(row, head):
    accuracies = [
        m[f"{head}/accuracy_on_others_classes"] for run in dkt_results(row) for m in run["extra_metrics"][:-1]
    ]
    assert f" {statistics.fmean(accuracies):.1f} %" in (RESULTS / "dkt.md").read_text().replace("\n", " ")


def stored_runs(folder):
    return sorted((RESULTS / folder).glob("*/*/seed_*"))


@pytest.mark.parametrize(
    ("page", "scheme"),
    [("glyph100", "kd"), ("emoji", "kd"), ("glyph100_goal", "features"), ("learners", "kd"), ("learners_emoji", "kd")],
)
def test_tables_and_plot_of_learners_by_schemes(page, scheme, tmp_path):
    made = tmp_path / f"{page}.md"
    shutil.copy(RESULTS / made.name, made)
    words = ["grid", *map(str, stored_runs(page)), "--update-page", str(made), "--plot", str(tmp_path / "plot.svg")]
    assert report_main(words) == 0
    assert made.read_bytes() == (RESULTS / made.name).read_bytes()
    assert (tmp_path / "plot.svg").read_bytes() == (RESULTS / f"{page}.svg").read_bytes()
    assert "| none | " in made.read_text() and f"| {scheme} | " in made.read_text()


def test_the_commands_of_the_ablations_page_make_its_tables_and_plots(tmp_path, monkeypatch):
    page = (RESULTS / "ablations.md").read_text()
    commands = re.findall(r"^    python -m cdl_jax\.report (.*)$", page, re.MULTILINE)
    assert len(commands) == 11 and len(stored_runs("ablations")) == 20 * 3
    monkeypatch.chdir(RESULTS)
    for command in commands:
        expanded = subprocess.run(["bash", "-c", f"echo {command}"], capture_output=True, text=True, check=True).stdout
        words, _, plot = expanded.strip().partition(" --plot ")
        more = ["--out", str(tmp_path / "table.md"), *(["--plot", str(tmp_path / "plot.svg")] if plot else [])]
        assert report_main([*words.split(), *more]) == 0
        found = (tmp_path / "table.md").read_text().removeprefix("## Runs\n\n")
        assert all(" 3 | " in line for line in found.splitlines()[2:]) or plot
        if plot:
            assert (tmp_path / "plot.svg").read_bytes() == Path(plot).read_bytes()
        else:
            assert found in page


@pytest.mark.parametrize("page", ["learners", "learners_emoji"])
def test_the_plots_of_strength_and_operations_of_learners(page, tmp_path):
    names = ("strength", "operations")
    words = [word for name in names for word in (f"--plot-{name}", str(tmp_path / f"{name}.svg"))]
    assert report_main(["grid", *map(str, stored_runs(page)), *words]) == 0
    for name in names:
        assert (tmp_path / f"{name}.svg").read_bytes() == (RESULTS / f"{page}_{name}.svg").read_bytes()


@pytest.mark.parametrize("name", ["learners", "learners_emoji"])
def test_the_search_of_learning_rates_is_that_of_its_results(name):
    found = json.loads((RESULTS / f"{name}_search.json").read_text())
    page, rates = (RESULTS / f"{name}.md").read_text(), ("5e-5", "2e-4", "1e-3", "5e-3", "2e-2")
    assert f"| learner | {' | '.join(rates)} |\n" in page and len(found) == 12
    for learner, accuracies in found.items():
        best = max(accuracies, key=accuracies.get)
        cells = {rate: f"{value:.2f}" for rate, value in accuracies.items()}
        cells[best] = f"**{cells[best]}**"
        assert f"\n| {learner} | {' | '.join(cells.get(rate, '-') for rate in rates)} |\n" in page


def test_the_findings_on_learners_hold():
    """KD helps heads that are trained task by task on a frozen backbone.

    It helps no head of class statistics.
    """

    def mean_gain(learner, metric="last", scheme="kd"):
        alone, distilled = (metric_by_seed(f"learners/{learner}/{name}", metric) for name in ("none", scheme))
        return statistics.fmean(b - a for a, b in zip(alone, distilled, strict=True))

    for learner in ("l2p", "dualprompt", "coda", "apt", "os_prompt", "lae", "none"):
        assert 1.2 < mean_gain(learner) < 2.6
    for learner in ("aper", "ease", "slca"):
        assert -0.2 < mean_gain(learner) < 0.1
    for learner in ("lora", "fine_tuning"):
        assert 2.5 < mean_gain(learner, "learning_accuracy") < 4.5 and mean_gain(learner, "forgetting_cdl") > 2.5
    held = {"past": (10.57, -14.62), "relational": (7.57, -4.58), "similarity_preserving": (9.57, -12.67)}
    for scheme, (gain, forgetting) in held.items():
        assert mean_gain("lora", scheme=scheme) == pytest.approx(gain, abs=0.01)
        assert mean_gain("lora", "forgetting_cdl", scheme) == pytest.approx(forgetting, abs=0.01)
    assert mean_gain("lora", scheme="attention_transfer") == pytest.approx(-8.32, abs=0.01)
    others = {path.parts[-2] for path in stored_runs("learners") if path.parts[-3] == "lora"}
    others -= {"none", "attention_transfer", *held}
    assert len(others) == 10 and all(abs(mean_gain("lora", scheme=scheme)) < 4.1 for scheme in others)
    for scheme in ("fitnets", "reviewkd"):
        assert metric_by_seed(f"learners/none/{scheme}") == metric_by_seed("learners/none/kd")
    ridge = min(metric_by_seed("learners/ranpac/none"))
    trained = [path for path in stored_runs("learners") if path.parts[-3] != "ranpac"]
    assert all(
        json.loads((p / "results.json").read_text())["networks"]["student"]["metrics"]["last"] < ridge for p in trained
    )


@pytest.mark.parametrize("folder", ["glyph100", "ablations", "emoji", "glyph100_goal", "learners", "learners_emoji"])
def test_stored_runs_contain_no_absolute_paths(folder):
    for run in stored_runs(folder):
        config = configs.read(run)["config"]
        paths = [config["data"]["path"], *config.get("cdl", {}).get("teacher_runs", ())]
        paths += [config[name].get("weights", "") for name in ("teacher", "student", "network") if name in config]
        assert not [path for path in paths if Path(path).is_absolute()]
        assert not re.search(r"[= ]/", json.loads((run / "results.json").read_text()).get("command", ""))


def test_the_findings_on_learners_with_emoji_hold():
    def mean(learner, metric="last", scheme="none"):
        return statistics.fmean(metric_by_seed(f"learners_emoji/{learner}/{scheme}", metric))

    def gains(learner):
        pair = (metric_by_seed(f"learners_emoji/{learner}/{scheme}") for scheme in ("none", "kd"))
        return [b - a for a, b in zip(*pair, strict=True)]

    prompts = ("l2p", "dualprompt", "coda", "apt", "os_prompt")
    trained = (*prompts, "lae", "none", "aper", "ease", "slca", "lora", "fine_tuning")
    for learner in trained:
        assert -1.01 < statistics.fmean(gains(learner)) < 1.6 and ttest_1samp(gains(learner), 0).pvalue > 0.05
    assert all(25 < mean(name) < 28.5 for name in ("aper", "ease", "slca", "ranpac", "simple_cil"))
    assert all(14 < mean(name) < 22 for name in (*prompts, "lae", "none"))
    assert (mean("lora"), mean("fine_tuning"), mean("none")) == (7.0, 1.75, 17.0)
    assert (mean("slca"), mean("slca", "forgetting_cdl")) == pytest.approx((28.25, 3.92), abs=0.01)
    assert (mean("ranpac"), mean("simple_cil")) == pytest.approx((27.58, 26.0), abs=0.01)
    gained, forgot = (
        mean("fine_tuning", m, "kd") - mean("fine_tuning", m) for m in ("learning_accuracy", "forgetting_cdl")
    )
    assert (gained, forgot) == pytest.approx((4.33, 4.42), abs=0.01)


def test_a_distilled_student_closes_over_half_of_the_gap_to_the_teacher_in_each_seed():
    """The gap is that of nearest class mean between the two backbones.

    The student's backbone has 70.5, the teacher's 89.8.
    """
    rows = {
        f"{head}/{name}": metric_by_seed(f"glyph100_goal/{head}/{name}", seeds=5)
        for head in ("simple_cil", "ranpac")
        for name in ("none", "features")
    }
    assert rows["simple_cil/none"] == pytest.approx([70.5] * 5)
    assert metric_by_seed("glyph100_goal/simple_cil/teacher_backbone", seeds=1) == pytest.approx([89.8])
    for head in ("simple_cil", "ranpac"):
        assert all(value >= (70.5 + 89.8) / 2 for value in rows[f"{head}/features"])
        assert all(value < (70.5 + 89.8) / 2 for value in rows[f"{head}/none"])
    assert all(a < b for a, b in zip(rows["simple_cil/features"], rows["ranpac/features"], strict=True))
    for head, gain, error in (("simple_cil", 3.02, 0.19), ("ranpac", 1.55, 0.26)):
        control = metric_by_seed(f"glyph100_goal/{head}/labels", seeds=3)
        gains = [a - b for a, b in zip(rows[f"{head}/features"], control, strict=False)]
        assert min(gains) > 0 and statistics.fmean(gains) == pytest.approx(gain, abs=0.01)
        assert statistics.stdev(gains) / 3**0.5 == pytest.approx(error, abs=0.01)


def test_the_findings_on_schemes_hold_in_each_seed():
    """Six schemes help and DKD harms in all seeds.

    KDP learns and forgets more than KD. Nearest class mean is best.
    """
    root = RESULTS / "glyph100"

    def metric_of(learner, scheme, metric="last"):
        files = [root / learner / scheme / f"seed_{seed}" / "results.json" for seed in range(3)]
        networks = [json.loads(file.read_text())["networks"] for file in files if file.exists()]
        return [
            next(iter(each[n] for n in ("student", "network") if n in each))["metrics"][metric] for each in networks
        ]

    learners = ("l2p", "dualprompt", "coda", "apt")
    gains = {
        scheme: [
            b - a for own in learners for a, b in zip(metric_of(own, "none"), metric_of(own, scheme), strict=False)
        ]
        for scheme in ("prompt_mapping", "kd", "fitnets", "reviewkd", "kd_token", "kdp", "dkd")
    }
    assert all(gain < 0 for gain in gains["dkd"]) and len(gains.pop("dkd")) == 12
    assert sum(len(each) for each in gains.values()) == 69 and all(gain > 0 for each in gains.values() for gain in each)
    for learner in learners:
        for metric in ("learning_accuracy", "forgetting_cdl", "forgetting_coda", "forgetting_max"):
            assert statistics.fmean(metric_of(learner, "kdp", metric)) > statistics.fmean(
                metric_of(learner, "kd", metric)
            )
    best = max(max(metric_of(own.parent.name, own.name)) for own in root.glob("*/*") if own.parent.name in learners
               and own.name != "joint")  # fmt: skip
    assert best < min(metric_of("student", "nearest_mean"))


def metric_by_seed(folder, metric="last", network="student", seeds=3):
    """Returns a metric of each seed of the stored runs in `docs/results/<folder>`."""
    files = [RESULTS / folder / f"seed_{seed}" / "results.json" for seed in range(seeds)]
    return [json.loads(file.read_text())["networks"][network]["metrics"][metric] for file in files]


def test_the_findings_of_the_ablations_hold_in_each_seed():
    def above(row, base, metric="last"):
        return [
            b - a for a, b in zip(metric_by_seed(base, metric), metric_by_seed(f"ablations/{row}", metric), strict=True)
        ]

    kd, kdp = "glyph100/l2p/kd", "glyph100/l2p/kdp"
    assert min(above("l2p/kd_alpha_0.9", kd)) > 0
    worse = ("l2p/kd_alpha_0.1", kd), ("l2p/kd_temperature_1", kd), ("l2p/kdp_length_12", kdp), ("l2p/kdp_zeros", kdp)
    for row, base in (*worse, ("l2p/kdp_alpha_0.1", kdp), ("l2p/kdp_alpha_0.9", kdp)):
        assert max(above(row, base)) < 0
    for row, base in (("l2p/kd_own_query", kd), ("apt/kd_merged", "glyph100/apt/kd")):
        assert max(map(abs, above(row, base))) < 0.11
    assert sum(change < 0 for change in above("l2p/kd_temperature_4", kd)) == 2
    assert all(15 < more < 19 for more in above("l2p/kd_seen", kd, "learning_accuracy"))
    forgotten = [statistics.fmean(metric_by_seed(row, "forgetting_cdl")) for row in (kd, "ablations/l2p/kd_seen")]
    assert forgotten[1] > 4 * forgotten[0]
    assert all(abs(statistics.fmean(above(f"l2p/kdp_layers_{blocks}", kdp))) < 0.5 for blocks in (1, 3))
    for tasks in (5, 20):
        for row in ("kd", "kdp"):
            assert min(above(f"l2p/{row}_{tasks}_tasks", f"ablations/l2p/none_{tasks}_tasks")) > 0


def test_the_findings_on_emoji_hold():
    learners = ("apt", "coda", "dualprompt", "l2p")
    alone, dkd = ([metric_by_seed(f"emoji/{own}/{row}") for own in learners] for row in ("none", "dkd"))
    assert all(b < a for before, after in zip(alone, dkd, strict=True) for a, b in zip(before, after, strict=True))
    losses = [statistics.fmean(a) - statistics.fmean(b) for a, b in zip(alone, dkd, strict=True)]
    assert (round(min(losses), 1), round(max(losses), 1)) == (3.7, 6.5)
    for row, learned, forgotten in (("kd", (1.1, 1.9), (0.4, 1.4)), ("kd_token", (3.1, 5.8), (4.4, 6.1)),
                                   ("kdp", (2.3, 3.3), (3.2, 4.9))):  # fmt: skip
        for metric, (least, most) in (("learning_accuracy", learned), ("forgetting_cdl", forgotten)):
            means = [[statistics.fmean(metric_by_seed(f"emoji/{own}/{scheme}", metric)) for scheme in ("none", row)]
                     for own in learners]  # fmt: skip
            gains = [b - a for a, b in means]
            assert (round(min(gains), 1), round(max(gains), 1)) == (least, most), (row, metric)
    schemes = ("none", "kd", "dkd", "kd_token", "kdp", "joint")
    best = max(max(metric_by_seed(f"emoji/{own}/{scheme}")) for own in learners for scheme in schemes)
    assert best < min(metric_by_seed("emoji/student/nearest_mean", network="network"))
