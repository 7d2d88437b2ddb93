"""The report page of one run: self-contained HTML."""

import math
from collections.abc import Sequence
from pathlib import Path

from cdl_jax import config as configs
from cdl_jax.report import groups, plots, tables, text
from cdl_jax.runtime import files

_LOSSES = "Loss terms; dotted lines part the tasks."
_CURVES = "Accuracy over the tasks seen: solid the mean, dotted the worst task."


def write_report(path: Path, results: dict, lines: list[dict], config: dict, more: Sequence[str] = ()) -> None:
    """Writes the page of one run: self-contained, and the same bytes for the same arguments.

    Args:
      path: the file.
      results: the content of results.json.
      lines: those of metrics.jsonl.
      config: the resolved config as nested dicts.
      more: HTML of further sections.
    """
    networks = results["networks"]
    matrices = {name: network["accuracy_matrix"] for name, network in networks.items()}
    parts = [
        f"<h1>{text.escape(results['name'])}</h1>",
        f"<p class=quiet>{text.escape(results['status'])}, seed {results['seed']}, "
        + text.escape(results["cost"]["device"])
        + ", "
        + text.escape(", ".join(f"{name} {version}" for name, version in results["versions"].items()))
        + "</p>",
        f"<pre>{text.escape(results['command'])}</pre>",
    ]
    if networks:
        parts += [
            "<h2>Metrics</h2>",
            _metrics_table({**networks, **results.get("means", {})}, results["formulas"]),
            *_series_tables(networks, results["formulas"]),
            "<h2>Accuracy</h2>",
            f"<div>{text.figure(plots.accuracy_curves(matrices), _CURVES)}</div>",
            *(text.figure(plots.heat_map(rows, name), f"{name}: percent on each task after each task.")
              for name, rows in matrices.items()),
        ]  # fmt: skip
    pairs = results.get("pairs", {})
    if pairs:
        parts += ["<h2>Teacher and student</h2>", _metrics_table(pairs, results["formulas"])]
        for name, pair in pairs.items():
            same, kl = pair["agreement_matrix"], pair["kl_matrix"]
            title, top = f"{name}, agreement", max(map(max, kl)) or 1
            parts.append(text.figure(plots.heat_map(same, title), f"{title}: percent on each task after each task."))
            title = f"{name}, KL(teacher || student)"
            caption = f"{title}, nats, over the classes seen."
            parts.append(text.figure(plots.heat_map(kl, title, top, "nats", 2), caption))
    parts += more
    if any("loss" in line for line in lines):
        parts += ["<h2>Training</h2>", text.figure(plots.losses(lines), _LOSSES, "wide")]
    chosen = [(name, layer, rows) for name, net in networks.items() for layer, rows in net["selection"].items()]
    if chosen:
        parts.append("<h2>Prompts chosen</h2>")
        for name, layer, rows in chosen:
            bits = ", ".join(f"{entropy(row):.2f}" for row in rows)
            caption = f"{name}, {layer}: shares of the prompts that a task's test images chose. Entropy: {bits} bits."
            parts.append(text.figure(plots.selection(rows, f"{name}, {layer}"), caption))
    parts += ["<h2>Cost</h2>", _cost_table(results["cost"]), "<h2>Tasks</h2>", _tasks_table(results["stream"])]
    resolved = "\n".join(text.escape(f"{key} = {value!r}") for key, value in sorted(configs.flatten(config).items()))
    parts.append(f"<details><summary>Config</summary><pre>{resolved}</pre></details>")
    files.write_atomically(Path(path), text.page(results["name"], parts))


def summary(seeds: list[dict]) -> str:
    """The table of a run's networks for the terminal, mean and standard deviation where there are several seeds."""
    shown = (*groups.TABLE_METRICS, "ece_last")
    rows = [["", *shown]]

    def over_seeds(values):
        return tables.spread([value for value in values if value is not None])

    for name in seeds[0]["networks"]:
        found = [[s["networks"][name]["metrics"].get(metric) for s in seeds] for metric in shown]
        rows.append([name, *map(over_seeds, found)])
    pairs = []
    for name in seeds[0].get("pairs", {}):
        measured = [s["pairs"][name]["metrics"] for s in seeds]
        agreement = tables.spread(metrics["agreement_last"] for metrics in measured)
        kl = tables.spread((metrics["kl_last"] for metrics in measured), digits=4)
        pairs.append(f"{name}: agreement {agreement} %, KL(teacher || student) {kl} nats")
    return "\n".join([text.aligned(rows), *pairs])


def entropy(counts) -> float:
    """Bits of the distribution that counts make; 0 where all fall on one row."""
    total = sum(counts)
    return sum(-c / total * math.log2(c / total) for c in counts if c) if total else 0.0


def _metrics_table(measured, formulas):
    """What is `measured`, name -> {"metrics"}, by those of the `formulas` that apply to it."""
    head = "".join(f"<th>{text.escape(name)}</th>" for name in measured)
    rows, definitions = [f"<tr><th></th>{head}</tr>"], []
    for name in [name for name in formulas if all(name in each["metrics"] for each in measured.values())]:
        digits = 4 if name.startswith("kl_") else 2
        cells = "".join(f"<td>{text.number(each['metrics'][name], digits)}</td>" for each in measured.values())
        formula = text.escape(formulas[name])
        rows.append(f'<tr title="{formula}"><td>{text.escape(name)}</td>{cells}</tr>')
        definitions.append(f"<dt>{text.escape(name)}</dt><dd class=quiet>{formula}</dd>")
    listed = f"<details><summary>Definitions</summary><dl>{''.join(definitions)}</dl></details>"
    return f"<table>{''.join(rows)}</table>{listed}"


def _series_tables(networks, formulas):
    """What has a value for each task, of the networks for which it was measured."""
    known = {name: network.get("by_task", {}) for name, network in networks.items()}
    found = []
    for what in dict.fromkeys(what for own in known.values() for what in own):
        rows = [(name, own[what]) for name, own in known.items() if own.get(what)]
        if rows:
            heads = "".join(f"<th>{i}</th>" for i in range(len(rows[0][1])))
            body = "".join(
                f"<tr><td>{text.escape(name)}</td>{''.join(f'<td>{text.number(value)}</td>' for value in values)}</tr>"
                for name, values in rows
            )
            caption = f"<p class=quiet>{text.escape(what)}, by task: {text.escape(formulas[what])}</p>"
            found.append(f"{caption}<table><tr><th></th>{heads}</tr>{body}</table>")
    return [f"<details><summary>By task</summary>{''.join(found)}</details>"] if found else []


def _cost_table(cost):
    rows = [
        (f"{n}: parameters", f"{c['trainable']:,} trained, {c['frozen']:,} frozen")
        for n, c in cost["parameters"].items()
    ]
    rows += [(f"{n}: a step", f"{f / 1e9:.3f} GFLOP") for n, f in cost["flops_per_step"].items() if f is not None]
    rows += [(f"{n}: speed", f"{v:,.0f} images/s") for n, v in cost["images_per_second"].items()]
    rows += [(f"{n}: time", f"{v:,.1f} s") for n, v in cost["seconds"].items()]
    rows.append(("peak memory", f"{cost['peak_memory_bytes'] / 2**20:,.0f} MiB"))
    body = "".join(f"<tr><td>{text.escape(a)}</td><td>{text.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{body}</table>"


def _tasks_table(stream):
    rows = "".join(
        f"<tr><td>{i}</td><td>{task['train']}</td><td>{task['test']}</td>"
        f"<td style='text-align:left;white-space:normal'>{text.escape(', '.join(task['classes']))}</td></tr>"
        for i, task in enumerate(stream["tasks"])
    )
    head = "<tr><th>task</th><th>train</th><th>test</th><th style='text-align:left'>classes</th></tr>"
    return f"<table>{head}{rows}</table>"
