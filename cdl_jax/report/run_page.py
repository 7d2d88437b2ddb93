"""Writes the report page of one run, and summarizes a run for the terminal.

The page is self-contained HTML.
"""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdl_jax import config as configs
from cdl_jax.report import plots, tables, text, titles
from cdl_jax.report.groups import TABLE_METRICS, TEACHER_KEYS
from cdl_jax.report.text import MISSING, Html, Rows
from cdl_jax.runtime import files

_LOSSES = "Loss terms; dotted lines separate the tasks."
_CURVES = "over the tasks learned so far: solid the mean, dotted the worst task."
_CELLS = {
    "accuracy": "percent on each task after each task",
    "AP": "AP of each task's classes after each task, percent",
}
_FILES = ("results.json", "metrics.jsonl", "config.json", "checkpoints/")
_MAX_CLASSES = 60  # rows of a confusion matrix that can be read
_MAX_OPEN_CLASSES = 25  # a longer table of classes is folded

# The large numbers at the top: metric -> what it is.
_HEADLINES = {
    "last": "{metric} after the last task",
    "average_incremental": "average {metric} along the way",
    "learning_accuracy": "{metric} right after a task",
    "forgetting_max": "forgetting from the best",
    "agreement_last": "agreement with the teacher",
    "ece_last": "calibration error",
}


def write_report(
    path: Path,
    results: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    stored: Mapping[str, Any],
    extra_sections: Sequence[str] = (),
) -> None:
    """Writes the self-contained page of one run.

    The same arguments give the same bytes.

    Args:
      path: the file to write, in the folder of the run.
      results: the content of results.json.
      lines: the lines of metrics.jsonl.
      stored: the content of config.json.
      extra_sections: HTML of further sections, default none.
    """
    networks, pairs, config = results["networks"], results.get("pairs", {}), stored["config"]
    parts = _header(path.parent, results, config)
    if networks:
        parts += [_tiles(results), *_accuracy_sections(networks, results), *_class_section(networks, results["stream"])]
    if pairs:
        parts += _pair_section(pairs, results["formulas"])
    parts += extra_sections
    parts += _training_section(lines)
    parts += _prompt_section(networks)
    parts += [
        "<h2>Cost and origin</h2>",
        _row(_cost_table(results["cost"]), _origin_table(path.parent, results, stored)),
    ]
    parts += ["<h2>Tasks</h2>", _tasks_table(results["stream"])]
    resolved = "\n".join(text.escape(f"{key} = {value!r}") for key, value in sorted(configs.flatten(config).items()))
    parts.append(f"<details><summary>Config</summary><pre>{resolved}</pre></details>")
    files.write_atomically(Path(path), text.page(f"{path.parent.name}: {titles.run_title(results, config)}", parts))


def summary(results_of_seeds: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of a run's networks for the terminal.

    A cell has the mean and the standard deviation over the seeds of the run.

    Args:
      results_of_seeds: the content of results.json for each seed.
    """
    first = results_of_seeds[0]
    metrics = (*TABLE_METRICS, *(["ece_last"] if first.get("metric", "accuracy") == "accuracy" else []))
    rows = [["", *metrics]]
    for name in first["networks"]:
        networks = [results["networks"][name]["metrics"] for results in results_of_seeds]
        values = [[network.get(metric) for network in networks] for metric in metrics]
        cells = [tables.format_mean_std(value for value in column if value is not None) for column in values]
        rows.append([name, *cells])
    pairs = []
    for name in first.get("pairs", {}):
        measured = [results["pairs"][name]["metrics"] for results in results_of_seeds]
        agreement = tables.format_mean_std(pair["agreement_last"] for pair in measured)
        kl = tables.format_mean_std((pair["kl_last"] for pair in measured), digits=4)
        pairs.append(f"{name}: agreement {agreement} %, KL(teacher || student) {kl} nats")
    return "\n".join([text.aligned(rows), *pairs])


def entropy(counts: Sequence[float]) -> float:
    """Returns the entropy in bits of the distribution that is proportional to counts.

    >>> entropy([3, 3, 3, 3]), entropy([0, 7, 0]), entropy([0, 0])
    (2.0, 0.0, 0.0)
    """
    total = sum(counts)
    return sum(-c / total * math.log2(c / total) for c in counts if c) if total else 0.0


def _header(folder, results, config):
    """Returns the title, the networks, and links to the files of the run."""
    method = results.get("method") or config.get("method", "")
    facts = [f"run {folder.name}", titles.network_title(config), f"method {method}", f"seed {results['seed']}"]
    links = "".join(text.link(name, name) for name in _FILES)
    return [
        f"<h1>{text.escape(titles.run_title(results, config))}</h1>",
        f"<p class=quiet>{', '.join(text.escape(fact) for fact in facts if fact)}: {results['status']}</p>",
        f"<p class=files>{links}</p>",
    ]


def _tiles(results):
    """Returns the headline numbers in large type.

    An arrow points towards better values, and numbers of other networks are below.
    """
    networks, metric = results["networks"], results.get("metric", "accuracy")
    headline = [name for name in results.get("headline", ()) if name in networks] or [*networks][-1:]
    other_networks = [name for name in networks if name not in headline][:4]
    leader = headline[0] if len(headline) == 1 else f"mean of {len(headline)} networks"
    tiles = []
    for name, words in _HEADLINES.items():
        if results["stream"]["num_tasks"] == 1 and name in ("average_incremental", "learning_accuracy"):
            continue  # both are equal to the first number
        measured = results.get("pairs", {}) if name.startswith("agreement") else networks
        headline_keys = [key for key in measured if key.rpartition("/")[2] in headline]
        values = [measured[key]["metrics"].get(name) for key in headline_keys]
        if None in values or not values:
            continue
        title = text.escape(text.capitalized(words.format(metric=metric)))
        small = [f"{other} {text.number(networks[other]['metrics'].get(name))}" for other in other_networks
                 if networks[other]["metrics"].get(name) is not None]  # fmt: skip
        arrow = _arrow(name, results.get("lower_is_better", False))
        tiles.append(
            f"<div class=tile>{title} {arrow}<span class=value>{statistics.fmean(values):.2f}</span>"
            f"<span class=quiet>{text.escape(', '.join([leader, *small]))}</span></div>"
        )
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _arrow(metric, lower_is_better=False):
    """Returns an arrow towards the better values of a metric.

    lower_is_better: whether the accuracy matrix has distances.
    """
    is_distance = lower_is_better and not metric.startswith(("forgetting", "backward", "forward"))
    return "↓" if is_distance or metric.startswith(("forgetting", "ece_", "kl_")) else "↑"


def _accuracy_sections(networks, results):
    """Returns the curves, the accuracy matrices and the tables of metrics."""
    matrices = {name: network["accuracy_matrix"] for name, network in networks.items()}
    metric = results.get("metric", "accuracy")
    title = text.capitalized(metric)
    parts = []
    if results["stream"]["num_tasks"] > 1:
        curves = [text.figure(plots.accuracy_curves(matrices, metric), f"{metric} curves", f"{title} {_CURVES}")]
        maps = []
        for name, rows in matrices.items():
            caption = f"{name}: {metric} on each task, from its training on."
            curves.append(text.figure(plots.task_curves(rows, name, metric), f"{name} {metric} by task", caption))
            caption = f"{name}: {_CELLS.get(metric, metric)}."
            maps.append(text.figure(plots.heat_map(rows, name), f"{name} {metric} matrix", caption))
        parts += [f"<h2>{text.escape(title)}</h2>", _row(*curves), _row(*maps)]
    measured = {**networks, **results.get("mean_over_learners", {})}
    table = _metrics_table(measured, results["formulas"], "metrics", metric, results.get("lower_is_better", False))
    series = _series_tables(networks, results["formulas"]) if results["stream"]["num_tasks"] > 1 else []
    return [*parts, "<h2>Metrics</h2>", _row(table, *series)]


def _class_section(networks, stream):
    """Returns the accuracy of each class and the confusion of classes.

    They are those after the last evaluated task.
    """
    measured = {name: network for name, network in networks.items() if network.get("class_accuracy")}
    if not measured:
        return []
    first_tasks = {}  # of each class: tasks of a domain-incremental or blurry stream share classes
    for i, task in enumerate(stream["tasks"]):
        for label in zip(task["class_ids"], task["classes"], strict=True):
            first_tasks.setdefault(label, i)
    classes, tasks = [name for _, name in first_tasks], [*first_tasks.values()]
    values = {name: network["class_accuracy"][-1] for name, network in measured.items()}
    count = max(map(len, values.values()))
    rows = [["class", "task", *values]]
    for i in range(count):
        rows.append(
            [classes[i], str(tasks[i]), *(text.number(of[i]) if i < len(of) else MISSING for of in values.values())]
        )
    table = text.html_table(rows, "accuracy of classes")
    if count > _MAX_OPEN_CLASSES:
        table = f"<details><summary>Accuracy of {count} classes</summary>{table}</details>"
    figures = []
    for name, network in measured.items():
        if network.get("confusion") and count <= _MAX_CLASSES:
            shares = _confusion_shares(network["confusion"])
            caption = f"{name}: share of each class's test images (row) that are predicted as each class (column)."
            plot = plots.confusion(shares, classes[: len(shares)], name)
            figures.append(text.figure(plot, f"{name} confusion", caption))
    return ["<h2>Classes</h2>", _row(table, *figures)]


def _confusion_shares(rows):
    """Returns the rows of a confusion matrix in percent, from counts without zeros."""
    size, shares = len(rows), []
    for row in rows:
        total = sum(row.values()) or 1
        shares.append([100 * row.get(str(j), 0) / total for j in range(size)])
    return shares


def _pair_section(pairs, formulas):
    """Returns the agreement of teachers with their students."""
    figures = []
    for name, pair in pairs.items():
        agreement, kl = pair["agreement_matrix"], pair["kl_matrix"]
        if len(kl) == 1:  # the table has the only number
            continue
        title, top = f"{name}, agreement", max(map(max, kl)) or 1
        caption = f"{title}: percent on each task after each task."
        figures.append(text.figure(plots.heat_map(agreement, title), title, caption))
        title = f"{name}, KL(teacher || student)"
        caption = f"{title}, nats, over the classes seen."
        figures.append(text.figure(plots.heat_map(kl, title, top, "nats", 2), title, caption))
    return ["<h2>Teacher and student</h2>", _row(_metrics_table(pairs, formulas, "teacher and student"), *figures)]


def _training_section(lines):
    """Returns the plots of losses and learning rates; empty without training."""
    if not any("loss" in line for line in lines):
        return []
    parts = ["<h2>Training</h2>", text.figure(plots.losses(lines), "losses", _LOSSES, "wide")]
    if any("learning_rate" in line for line in lines):
        caption = "Learning rate of each phase."
        parts.append(text.figure(plots.learning_rates(lines), "learning rate", caption, "wide"))
    return parts


def _row(*parts):
    """Returns parts side by side, as many as the page is wide."""
    return f"<div class=row>{''.join(parts)}</div>"


def _prompt_section(networks):
    """Returns plots of the shares of selected prompts; empty without prompt selection."""
    figures = []
    for name, network in networks.items():
        for layer, rows in network["selection"].items():
            bits, title = ", ".join(f"{entropy(row):.2f}" for row in rows), f"{name}, {layer}"
            caption = f"{title}: shares of the prompts selected by a task's test images. Entropy: {bits} bits."
            figures.append(text.figure(plots.selection(rows, title), f"{title} prompts", caption))
    return ["<h2>Selected prompts</h2>", _row(*figures)] if figures else []


def _metrics_table(measured, formulas, title, metric="accuracy", lower_is_better=False):
    """Returns a table of metrics with their definitions.

    The metrics are those that all entries have and any entry has measured.

    Args:
      measured: name -> {"metrics": metric -> value}; a column each.
      formulas: metric -> definition; a row each.
      title: of the saved table.
      metric: name of the numbers of the accuracy matrix, which stands for "accuracy" in names and definitions.
      lower_is_better: whether these numbers are distances.
    """
    rows, definitions = [["metric", *measured]], []
    for name in formulas:
        values = [entry["metrics"].get(name, ...) for entry in measured.values()]
        if ... in values or all(value is None for value in values):
            continue
        label, formula = (words.replace("accuracy", metric) for words in (name, formulas[name]))
        arrow = _arrow(name, lower_is_better)
        cell = f'<td title="{text.escape(formula)}">{text.escape(label)} {arrow}</td>'
        head = Html(f"{label} {arrow}", cell)
        rows.append([head, *(text.number(value, 4 if name.startswith("kl_") else 2) for value in values)])
        definitions.append(f"<dt>{text.escape(label)}</dt><dd class=quiet>{text.escape(formula)}</dd>")
    details = f"<details><summary>Definitions</summary><dl>{''.join(definitions)}</dl></details>"
    return f"<div>{text.html_table(rows, title)}{details}</div>"


def _series_tables(networks, formulas):
    """Returns tables of the metrics that have one value for each task.

    A table has the networks with its metric.
    """
    series = {name: network.get("per_task", {}) for name, network in networks.items()}
    parts = []
    for metric in dict.fromkeys(metric for values in series.values() for metric in values):
        rows = [[name, *map(text.number, values[metric])] for name, values in series.items() if values.get(metric)]
        if rows:
            heads = ["task", *map(str, range(len(rows[0]) - 1))]
            caption = f"<h3>{text.escape(metric)}</h3><p class=quiet>{text.escape(formulas[metric])}</p>"
            parts.append(f"{caption}{text.html_table([heads, *rows], metric)}")
    return [f"<div>{''.join(parts)}</div>"] if parts else []


def _cost_table(cost):
    """Returns a table of parameters, compute, speed, time and memory."""
    rows: Rows = [["cost", ""]]
    rows += [
        [f"{name}: parameters", f"{count['trainable']:,} trained, {count['frozen']:,} frozen"]
        for name, count in cost["parameters"].items()
    ]
    rows += [
        [f"{n}: a step", f"{flops / 1e9:.3f} GFLOP"] for n, flops in cost["flops_per_step"].items() if flops is not None
    ]
    rows += [[f"{name}: speed", f"{rate:,.0f} images/s"] for name, rate in cost["images_per_second"].items()]
    rows += [[f"{name}: time", f"{seconds:,.1f} s"] for name, seconds in cost["seconds"].items()]
    rows.append(["wall time", f"{sum(cost['seconds'].values()):,.1f} s"])
    rows.append(["peak memory", f"{cost['peak_memory_bytes'] / 2**20:,.0f} MiB"])
    return text.html_table(rows, "cost")


def _origin_table(folder, results, stored):
    """Returns a table of what a repetition of the run needs.

    It has command, date, code, device, teacher and parent.
    """
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = {
        "command": results["command"],
        "started": stored.get("created"),
        "commit": stored.get("commit"),
        "device": results["cost"]["device"],
        "versions": versions,
    }
    rows = [f"<tr><td>{name}</td><td class=text>{text.escape(fact)}</td></tr>" for name, fact in facts.items() if fact]
    parent = results.get("parent")
    linked = [("teacher's run", run, run) for run in _teacher_runs(stored["config"])]
    linked += [("parent", parent["path"], f"{parent['path']} after task {parent['task']}")] if parent else []
    for name, run, label in linked:
        page = os.path.relpath(Path(run).absolute(), folder.absolute()) + "/report.html"
        rows.append(f"<tr><td>{name}</td><td class=text>{text.link(page, label)}</td></tr>")
    return f"<table><tr><th>origin</th><th></th></tr>{''.join(rows)}</table>"


def _teacher_runs(config):
    """Returns the folders of the runs whose networks teach."""
    flat = configs.flatten(config)
    return [run for key in TEACHER_KEYS if key.endswith("_runs") for run in flat.get(key) or ()]


def _tasks_table(stream):
    """Returns a table of the tasks: domain, numbers of images, class names."""
    rows: Rows = [["task", "train", "test", "classes"]]
    for i, task in enumerate(stream["tasks"]):
        names = ", ".join(task["classes"])
        classes = Html(names, f"<td class=text>{text.escape(names)}</td>")
        rows.append([f"{i} {task.get('domain', '')}".strip(), str(task["train"]), str(task["test"]), classes])
    return text.html_table(rows, "tasks")
