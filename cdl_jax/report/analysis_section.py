"""Shows analysis.json in a section of the report page and in a terminal summary."""

from collections.abc import Mapping
from typing import Any

from cdl_jax.report import plots, text
from cdl_jax.report.text import MISSING, Plot, Rows


def html_parts(content: Mapping[str, Any]) -> list[str]:
    """Returns the HTML of the section "Analysis".

    Args:
      content: of analysis.json.
    """
    parts = [
        f"<h2>Analysis</h2><p class=quiet>After {content['tasks']} tasks, with one part of the method changed.</p>"
    ]
    parts.append(text.html_table(_accuracy_rows(content), "accuracy with probes"))
    figures = []
    for name, sweep in content["sweeps"].items():
        values = [point["value"] for point in sweep["values"]]
        plot = plots.parameter_sweep(values, [point["mean"] for point in sweep["values"]], sweep["usual"])
        caption = f"{sweep['network']}, {name}: mean accuracy over tasks; the dotted line marks the run's own value, "
        figures.append(text.figure(plot, f"{sweep['network']} {name}", f"{caption}{sweep['usual']}."))
    for pair, rows in content["distillation_forgetting"].items():
        caption = (
            f"{pair}: KL(teacher after a task || student later) on the task's test images, one gray line per task. "
            "Chained mean: the mean at 0, plus the mean changes of the tasks that have both ages."
        )
        figures.append(text.figure(plots.kl_by_age(rows), f"{pair} KL by age", caption))
        top = max(map(max, rows)) or 1
        title = f"{pair}, KL to the teacher at that task"
        caption = f"{title}: a column's teacher is the one after that task, nats."
        figures.append(text.figure(plots.heat_map(rows, title, top, "nats", 2), title, caption))
    alignment = content["cka"]
    for pair, rows in alignment.get("pairs", {}).items():
        first, second = pair.split("/")
        down, across = alignment["layers"][first], alignment["layers"][second]
        title = f"{first}, its layers" if first == second else f"{first} (rows), {second}"
        caption = f"{title}: linear centered kernel alignment on {alignment['images']} test images."
        figures.append(text.figure(plots.matrix_plot(rows, down, across, title), f"{title} CKA", caption))
    for name, plot in plot_features(content).items():
        caption = f"{name}: features of test images by t-SNE, also in features_{name}.svg."
        figures.append(text.figure(plot, f"{name} features", caption))
    return [*parts, f"<div class=row>{''.join(figures)}</div>"]


def plot_features(content: Mapping[str, Any]) -> dict[str, Plot]:
    """Returns network -> plot of its features in two dimensions.

    Args:
      content: of analysis.json.
    """
    embedding = content["tsne"]
    labels = [embedding["classes"][label] for label in embedding["labels"]] if embedding else []
    return {name: plots.scatter(points, labels, name) for name, points in embedding.get("networks", {}).items()}


def summary(content: Mapping[str, Any]) -> str:
    """Returns a short table of an analysis for the terminal.

    Args:
      content: of analysis.json.
    """
    lines = [text.aligned(_accuracy_rows(content))]
    for name, sweep in content["sweeps"].items():
        means = {point["value"]: point["mean"] for point in sweep["values"]}
        best, usual = max(means, key=means.get), sweep["usual"]
        lines.append(
            f"{sweep['network']}, {name}: {means[usual]:.2f} with {usual}, at best {means[best]:.2f} with {best}"
        )
    for pair, rows in content["distillation_forgetting"].items():
        at_task = sum(row[-1] for row in rows) / len(rows)
        at_end = sum(rows[-1]) / len(rows)
        lines.append(
            f"{pair}: KL to the teacher at that task {at_task:.4f} nats after the task, {at_end:.4f} at the end"
        )
    layers = content["cka"].get("layers", {})
    for pair, rows in content["cka"].get("pairs", {}).items():
        first, second = pair.split("/")
        compared = ("cl", "st") if first == second else ("features", "features")
        if compared[0] in layers[first] and compared[1] in layers[second]:
            value = rows[layers[first].index(compared[0])][layers[second].index(compared[1])]
            title = f"{first}: linear CKA of both heads" if first == second else f"{pair}: linear CKA of features"
            lines.append(f"{title} {text.number(value, 3)}")
    if missing := content["tsne"].get("missing"):
        lines.append(f"features are not drawn: {missing}")
    return "\n".join(lines)


def _accuracy_rows(content: Mapping[str, Any]) -> Rows:
    """Returns a table of networks' mean accuracies: unchanged, then with each probe."""
    predictions = content["predictions"]
    rows = [["mean accuracy, %", *predictions]]
    for network in predictions["unchanged"]:
        cells = [networks.get(network) for networks in predictions.values()]
        rows.append([network, *(MISSING if cell is None else f"{cell['mean']:.2f}" for cell in cells)])
    return rows
