"""Writes the report page of one run as self-contained HTML, and summarizes a run for the terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdl_jax import config as configs
from cdl_jax.report import plots, tables, text
from cdl_jax.report.groups import TABLE_METRICS
from cdl_jax.runtime import files

_LOSSES = "Loss terms; dotted lines separate the tasks."
_CURVES = "over the tasks learned so far: solid the mean, dotted the worst task."
_CELLS = {
    "accuracy": "percent on each task after each task",
    "AP": "AP of each task's classes after each task, percent",
}


def write_report(
    path: Path,
    results: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    extra_sections: Sequence[str] = (),
) -> None:
    """Writes the page of one run: self-contained, and the same bytes for the same arguments.

    Args:
      path: the file to write.
      results: the content of results.json.
      lines: the lines of metrics.jsonl.
      config: the resolved config as nested dicts.
      extra_sections: HTML of further sections, default none.
    """
    networks, pairs = results["networks"], results.get("pairs", {})
    parts = _header(results)
    if networks:
        parts += _accuracy_sections(networks, results)
    if pairs:
        parts += _pair_section(pairs, results["formulas"])
    parts += extra_sections
    if any("loss" in line for line in lines):
        parts += ["<h2>Training</h2>", text.figure(plots.losses(lines), _LOSSES, "wide")]
    parts += _prompt_section(networks)
    parts += ["<h2>Cost</h2>", _cost_table(results["cost"]), "<h2>Tasks</h2>", _tasks_table(results["stream"])]
    resolved = "\n".join(text.escape(f"{key} = {value!r}") for key, value in sorted(configs.flatten(config).items()))
    parts.append(f"<details><summary>Config</summary><pre>{resolved}</pre></details>")
    files.write_atomically(Path(path), text.page(results["name"], parts))


def summary(results_of_seeds: Sequence[Mapping[str, Any]]) -> str:
    """Returns the table of a run's networks for the terminal: mean and standard deviation over its seeds.

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
    """Returns the entropy, in bits, of the distribution that is proportional to counts.

    >>> entropy([3, 3, 3, 3]), entropy([0, 7, 0]), entropy([0, 0])
    (2.0, 0.0, 0.0)
    """
    total = sum(counts)
    return sum(-c / total * math.log2(c / total) for c in counts if c) if total else 0.0


def _header(results):
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    facts = [results["status"], f"seed {results['seed']}", results["cost"]["device"], versions]
    return [
        f"<h1>{text.escape(results['name'])}</h1>",
        f"<p class=quiet>{', '.join(text.escape(fact) for fact in facts)}</p>",
        f"<pre>{text.escape(results['command'])}</pre>",
    ]


def _accuracy_sections(networks, results):
    """Returns the tables of metrics, the curves and the accuracy matrices."""
    matrices = {name: network["accuracy_matrix"] for name, network in networks.items()}
    metric = results.get("metric", "accuracy")
    title = text.capitalized(metric)
    parts = [
        "<h2>Metrics</h2>",
        _metrics_table({**networks, **results.get("mean_over_learners", {})}, results["formulas"], metric),
        *_series_tables(networks, results["formulas"]),
    ]
    if results["stream"]["num_tasks"] > 1:
        curves = text.figure(plots.accuracy_curves(matrices, metric), f"{title} {_CURVES}")
        parts += [f"<h2>{text.escape(title)}</h2>", f"<div>{curves}</div>"]
        for name, rows in matrices.items():
            parts.append(text.figure(plots.heat_map(rows, name), f"{name}: {_CELLS.get(metric, metric)}."))
    return parts


def _pair_section(pairs, formulas):
    """Returns the agreement of teachers with their students."""
    parts = ["<h2>Teacher and student</h2>", _metrics_table(pairs, formulas)]
    for name, pair in pairs.items():
        agreement, kl = pair["agreement_matrix"], pair["kl_matrix"]
        title, top = f"{name}, agreement", max(map(max, kl)) or 1
        caption = f"{title}: percent on each task after each task."
        parts.append(text.figure(plots.heat_map(agreement, title), caption))
        title = f"{name}, KL(teacher || student)"
        caption = f"{title}, nats, over the classes seen."
        parts.append(text.figure(plots.heat_map(kl, title, top, "nats", 2), caption))
    return parts


def _prompt_section(networks):
    """Returns how often prompts were selected; empty for networks without prompt selection."""
    parts = []
    for name, network in networks.items():
        for layer, rows in network["selection"].items():
            bits = ", ".join(f"{entropy(row):.2f}" for row in rows)
            caption = f"{name}, {layer}: shares of the prompts selected by a task's test images. Entropy: {bits} bits."
            parts.append(text.figure(plots.selection(rows, f"{name}, {layer}"), caption))
    return ["<h2>Selected prompts</h2>", *parts] if parts else []


def _metrics_table(measured, formulas, metric="accuracy"):
    """Returns a table of the metrics that all entries have, with their definitions.

    Args:
      measured: name -> {"metrics": metric -> value}; a column each.
      formulas: metric -> definition; a row each.
      metric: name of the numbers of the accuracy matrix, which stands for "accuracy" in names and definitions.
    """
    head = "".join(f"<th>{text.escape(name)}</th>" for name in measured)
    rows, definitions = [f"<tr><th></th>{head}</tr>"], []
    for name in [name for name in formulas if all(name in entry["metrics"] for entry in measured.values())]:
        digits = 4 if name.startswith("kl_") else 2
        cells = "".join(f"<td>{text.number(entry['metrics'][name], digits)}</td>" for entry in measured.values())
        shown, formula = (text.escape(words.replace("accuracy", metric)) for words in (name, formulas[name]))
        rows.append(f'<tr title="{formula}"><td>{shown}</td>{cells}</tr>')
        definitions.append(f"<dt>{shown}</dt><dd class=quiet>{formula}</dd>")
    listed = f"<details><summary>Definitions</summary><dl>{''.join(definitions)}</dl></details>"
    return f"<table>{''.join(rows)}</table>{listed}"


def _series_tables(networks, formulas):
    """Returns tables of the metrics with one value for each task, for the networks that have them."""
    series = {name: network.get("per_task", {}) for name, network in networks.items()}
    parts = []
    for metric in dict.fromkeys(metric for values in series.values() for metric in values):
        rows = [(name, values[metric]) for name, values in series.items() if values.get(metric)]
        if rows:
            heads = "".join(f"<th>{i}</th>" for i in range(len(rows[0][1])))
            body = "".join(
                f"<tr><td>{text.escape(name)}</td>{''.join(f'<td>{text.number(value)}</td>' for value in values)}</tr>"
                for name, values in rows
            )
            caption = f"<p class=quiet>{text.escape(metric)}, by task: {text.escape(formulas[metric])}</p>"
            parts.append(f"{caption}<table><tr><th></th>{heads}</tr>{body}</table>")
    return [f"<details><summary>By task</summary>{''.join(parts)}</details>"] if parts else []


def _cost_table(cost):
    """Returns a table of parameters, compute, speed, time and memory."""
    rows = [
        (f"{name}: parameters", f"{count['trainable']:,} trained, {count['frozen']:,} frozen")
        for name, count in cost["parameters"].items()
    ]
    rows += [
        (f"{n}: a step", f"{flops / 1e9:.3f} GFLOP") for n, flops in cost["flops_per_step"].items() if flops is not None
    ]
    rows += [(f"{name}: speed", f"{rate:,.0f} images/s") for name, rate in cost["images_per_second"].items()]
    rows += [(f"{name}: time", f"{seconds:,.1f} s") for name, seconds in cost["seconds"].items()]
    rows.append(("peak memory", f"{cost['peak_memory_bytes'] / 2**20:,.0f} MiB"))
    body = "".join(f"<tr><td>{text.escape(name)}</td><td>{text.escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"


def _tasks_table(stream):
    """Returns a table of the tasks: name of the domain, numbers of images, names of classes."""
    rows = "".join(
        f"<tr><td>{i} {text.escape(task.get('domain', ''))}</td><td>{task['train']}</td>"
        f"<td>{task['test']}</td>"
        f"<td style='text-align:left;white-space:normal'>{text.escape(', '.join(task['classes']))}</td></tr>"
        for i, task in enumerate(stream["tasks"])
    )
    head = "<tr><th>task</th><th>train</th><th>test</th><th style='text-align:left'>classes</th></tr>"
    return f"<table>{head}{rows}</table>"
