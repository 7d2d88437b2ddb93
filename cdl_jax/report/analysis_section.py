"""The content of analysis.json in words and pictures: a section of the report page, a table for the terminal."""

from cdl_jax.report import plots, text


def parts(content: dict) -> list[str]:
    """HTML of the section "Mechanism"."""
    found = [f"<h2>Mechanism</h2><p class=quiet>After {content['tasks']} tasks, with a part of the method changed.</p>"]
    head, *rows = _table(content)
    lines = [f"<tr><td>{'</td><td>'.join(map(text.escape, row))}</td></tr>" for row in rows]
    found.append(f"<table><tr><th>{'</th><th>'.join(map(text.escape, head))}</th></tr>{''.join(lines)}</table>")
    for name, sweep in content["sweeps"].items():
        values = [each["value"] for each in sweep["values"]]
        shown = plots.sweep(values, [each["mean"] for each in sweep["values"]], sweep["usual"])
        caption = f"{sweep['network']}, {name}: mean accuracy over tasks; the dotted line is what is used, "
        found.append(text.figure(shown, f"{caption}{sweep['usual']}."))
    for pair, rows in content["distillation_forgetting"].items():
        caption = f"{pair}: KL(teacher after a task || student later) on the task's test images, a grey line a task."
        found.append(text.figure(plots.kl_by_age(rows), caption))
        top = max(map(max, rows)) or 1
        title = f"{pair}, KL to the teacher of then"
        caption = f"{title}: a column's teacher is the one after that task, nats."
        found.append(text.figure(plots.heat_map(rows, title, top, "nats", 2), caption))
    alignment = content["alignment"]
    for pair, rows in alignment.get("pairs", {}).items():
        first, second = pair.split("/")
        down, across = alignment["layers"][first], alignment["layers"][second]
        title = f"{first}, its layers" if first == second else f"{first} (rows), {second}"
        caption = f"{title}: linear centred kernel alignment on {alignment['images']} test images."
        found.append(text.figure(plots.matrix_plot(rows, down, across, title), caption))
    for name, picture in plotted_features(content).items():
        found.append(text.figure(picture, f"{name}: features of test images by t-SNE, also in features_{name}.svg."))
    return found


def plotted_features(content: dict) -> dict[str, str]:
    """Network -> SVG text of where its features lie in the plane."""
    places = content["places"]
    labels = [places["classes"][label] for label in places["labels"]] if places else []
    return {name: plots.scatter(points, labels, name) for name, points in places.get("networks", {}).items()}


def summary(content: dict) -> str:
    """The short table of an analysis for the terminal."""
    lines = [text.aligned(_table(content))]
    for name, sweep in content["sweeps"].items():
        means = {each["value"]: each["mean"] for each in sweep["values"]}
        best, usual = max(means, key=means.get), sweep["usual"]
        lines.append(
            f"{sweep['network']}, {name}: {means[usual]:.2f} with {usual}, at best {means[best]:.2f} with {best}"
        )
    for pair, rows in content["distillation_forgetting"].items():
        taught = sum(row[-1] for row in rows) / len(rows)
        end = sum(rows[-1]) / len(rows)
        lines.append(f"{pair}: KL to the teacher of then {taught:.4f} nats when taught, {end:.4f} in the end")
    layers = content["alignment"].get("layers", {})
    for pair, rows in content["alignment"].get("pairs", {}).items():
        first, second = pair.split("/")
        compared = ("cl", "st") if first == second else ("features", "features")
        if compared[0] in layers[first] and compared[1] in layers[second]:
            value = rows[layers[first].index(compared[0])][layers[second].index(compared[1])]
            shown = "-" if value is None else f"{value:.3f}"
            what = f"{first}: linear CKA of both heads" if first == second else f"{pair}: linear CKA of features"
            lines.append(f"{what} {shown}")
    if missing := content["places"].get("missing"):
        lines.append(f"features are not drawn: {missing}")
    return "\n".join(lines)


def _table(content):
    """Mean accuracy of each network: unchanged, then with each probe."""
    predictions = content["predictions"]
    rows = [["mean accuracy, %", *predictions]]
    for network in predictions["unchanged"]:
        cells = [networks.get(network) for networks in predictions.values()]
        rows.append([network, *("-" if cell is None else f"{cell['mean']:.2f}" for cell in cells)])
    return rows
