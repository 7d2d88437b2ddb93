"""Generates the reference pages of the documentation from the package itself.

This module is a hook of MkDocs. `pages()` returns the Markdown of every generated page. The function imports cdl_jax
and needs no MkDocs.
"""

import importlib
import inspect
import json
import re
from pathlib import Path

from cdl_jax import config, options, plugins
from cdl_jax.evaluation import metrics

API = {
    "python": "cdl_jax.run.api",
    "predictions": "cdl_jax.evaluation.predictions",
    "schemes": "cdl_jax.distill.base",
    "methods": "cdl_jax.methods.base",
    "learners": "cdl_jax.models.learners.base",
    "stream": "cdl_jax.data.stream",
    "options": "cdl_jax.options",
    "losses": "cdl_jax.losses",
    "metrics": "cdl_jax.evaluation.metrics",
    "optim": "cdl_jax.optim",
}
COMMANDS = {
    "cdl_jax.main": "Train, evaluate, analyze, predict, export, describe",
    "cdl_jax.report.__main__": "Compare runs",
    "cdl_jax.fetch": "Download data sets and weights",
    "cdl_jax.sweep": "Plan a sweep",
}
WIDGET = "application/vnd.jupyter.widget-view+json"
_SECTIONS = {
    "distill": "distill.",
    "distill.detection": "distill.",
    "models.learners": "learner.",
    "methods.shared": "token_labels.",  # the only one with a table of its own
}  # of other folders: the name of the plug-in
_DEFAULT_RANGES = ("at least 0", "True or False")  # clear from the default
_EDIT = "_This page is generated from the code by `docs/hooks.py`._\n"
# Keys that select a plug-in; the plug-in brings its own keys.
CHOICES = {
    "method": ("how the networks are trained", "methods"),
    "data.name": ("the data source", "data.sources"),
    "learner.name": ("the learner", "models.learners"),
    "distill.name": ("the distillation scheme", "distill"),
    "teacher.family": (
        "the family of a network; also `student.family`, `network.family` and `measuring.family`",
        "models",
    ),
}
_WEIGHTS = "its pretrained weights: see [Data and weights](../guides/data.md#pretrained-weights)"
_TABLE = re.compile(r"<!-- options: ([\w.]+) -->\n(?:\n(?:\|.*\n)+)?")  # with the table below, if there is one


def _cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def _value(default):
    return f"`{default!r}`" if default != "" else '`""`'


def _table(declared, prefix=""):
    """Returns the table of declared options."""
    if not declared:
        return "It has no options.\n"
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for key, option in options.rows(declared, prefix):
        values = "" if option.range in _DEFAULT_RANGES else option.range
        changes = " _(may change on resume)_" if option.resumable else ""
        lines.append(f"| `{key}` | {_value(option.default)} | {_cell(values)} | {_cell(option.meaning)}{changes} |")
    return "\n".join(lines) + "\n"


def fill_tables(markdown: str) -> str:
    """Returns a page with the tables of its plug-ins' options.

    A table is below each line `<!-- options: FOLDER.NAME -->`. `python docs/hooks.py` writes the tables into the pages
    of docs/methods/.
    """

    def table(match):
        folder, _, name = match[1].rpartition(".")
        rows = _table(plugins.load_plugin(folder, name).OPTIONS, _SECTIONS.get(folder, f"{name}."))
        return f"<!-- options: {match[1]} -->\n\n{rows}"

    return _TABLE.sub(table, markdown)


def _plugin_sections(folder, section, title, skip=()):
    """Returns a heading and a table for each plug-in of a folder that has options."""
    text = [f"## {title}\n"]
    for name in plugins.list_plugins(folder):
        module = plugins.load_plugin(folder, name)
        if name in skip or not hasattr(module, "OPTIONS"):
            continue
        heading = (module.__doc__ or "").strip().splitlines()[0]
        text += [f"### {section}: {name}\n", f"{heading}\n"]
        text.append(_table(module.OPTIONS, f"{name if section == 'method' else section}."))
    return "\n".join(text)


def config_page() -> str:
    """Returns the page of every config key, with its default and its meaning."""
    from cdl_jax import optim
    from cdl_jax.data import stream
    from cdl_jax.data.detection import canvases, transforms
    from cdl_jax.data.transforms import augment, mixing
    from cdl_jax.methods.shared import detection_optimizer, detection_token_labels
    from cdl_jax.models.detection import vidt

    choices = ["| key | meaning | values |", "|---|---|---|"]
    for key, (meaning, folder) in CHOICES.items():
        names = ", ".join(f"`{name}`" for name in plugins.list_plugins(folder))
        choices.append(f"| `{key}` | {meaning} | {names}, or the dotted path of a module of yours |")
    choices.append(
        f"| `teacher.weights` | {_WEIGHTS}; also `student.weights`, `network.weights` and `measuring.weights` | |"
    )
    parts = [
        "# Config keys\n",
        _EDIT,
        "Set a key on the command line as `--config.train.epochs=5`; `--config CONFIG --help` lists those of a config. "
        "Where the column _values_ is empty, numbers are not negative. Choices and ranges hold for each item of a "
        "tuple. Keys marked _may change on resume_ change neither weights nor metrics, so a run that was stopped "
        "accepts another value.\n",
        "## Choices\n",
        "\n".join(choices) + "\n",
        "## Every run\n",
        _table(config.OPTIONS),
        "## Stream: `data.`\n",
        _table(stream.OPTIONS, "data."),
        _plugin_sections("data.sources", "data", "Data sources"),
        "## Augmentation: `augment.`\n",
        _table(augment.OPTIONS, "augment."),
        "## Mixup and CutMix: `mixing.`\n",
        _table(mixing.OPTIONS, "mixing."),
        "## Optimizer: `optim.`\n",
        _table(optim.OPTIONS, "optim."),
        _plugin_sections("methods", "method", "Methods"),
        _plugin_sections("models.learners", "learner", "Learners: `learner.`"),
        _plugin_sections("distill", "distill", "Distillation schemes: `distill.`"),
        _plugin_sections("models", "network", "Networks: `teacher.`, `student.`, `network.`, `measuring.`"),
        "## Detection: `method=vidt`\n",
        "These replace the options of other methods in the same sections.\n",
        "### Augmentation of images with boxes\n",
        _table({**transforms.OPTIONS, **canvases.OPTIONS}, "augment."),
        "### Optimizer of detectors\n",
        _table(detection_optimizer.OPTIONS, "optim."),
        "### Token labels, with `student.token_label=True`\n",
        _table(detection_token_labels.OPTIONS, "token_labels."),
        _plugin_sections("distill.detection", "distill", "Distillation schemes of detectors: `distill.`"),
        "### Detectors: `teacher.`, `student.`\n",
        _table(vidt.OPTIONS, "network."),
    ]
    return "\n".join(parts)


def metrics_page() -> str:
    """Returns the page of every metric of results.json, with its formula."""
    parts = ["# Metrics\n", _EDIT, inspect.cleandoc(metrics.__doc__) + "\n"]
    for title, table in (("Numbers: `metrics`", metrics.FORMULAS), ("Series: `per_task`", metrics.SERIES)):
        rows = [f"| `{name}` | {_cell(formula)} |" for name, formula in table.items()]
        parts += [f"## {title}\n", "\n".join(["| name | definition |", "|---|---|", *rows]) + "\n"]
    return "\n".join(parts)


def command_line_page() -> str:
    """Returns the page of all commands and their flags."""
    parts = ["# Command line\n", _EDIT, "`cdl-jax` is the same program as `python -m cdl_jax.main`.\n"]
    for name, title in COMMANDS.items():
        module = importlib.import_module(name)
        parts += [f"## {title}\n", f"```text\n{inspect.cleandoc(module.__doc__)}\n```\n"]
    return "\n".join(parts)


def notebook_page(path: Path) -> str:
    """Returns a notebook as Markdown: its text, its code, and the stored outputs.

    An output is text or an image.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    title, *rest = [part for cell in cells for part in _cell_parts(cell)]
    link = f"_[{path.name}]({path.name}) is this page as a notebook._\n"
    heading, _, text = title.partition("\n")
    return "\n".join([heading, "", link, text, *rest])


def _cell_parts(cell):
    """Yields the Markdown of a cell of a notebook."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield f"{source}\n"
        return
    yield f"```python\n{source}\n```\n"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if output.get("name") == "stderr" or WIDGET in data:  # the bar of a run
            continue
        if "image/png" in data:
            yield f"![output of the cell](data:image/png;base64,{''.join(data['image/png']).strip()})\n"
        else:
            yield f"```text\n{''.join(data['text/plain']).strip()}\n```\n"


def pages() -> dict[str, str]:
    """Returns path below docs/ -> Markdown of every generated page."""
    found = {
        "reference/config.md": config_page(),
        "reference/metrics.md": metrics_page(),
        "reference/command_line.md": command_line_page(),
        "tutorials/notebook.md": notebook_page(Path(__file__).parent / "tutorials" / "notebook.ipynb"),
    }
    for name, module in API.items():
        found[f"reference/api/{name}.md"] = f"# `{module}`\n\n::: {module}\n"
    root = Path(__file__).parents[1]
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):  # links of the root, as they are from docs/
        found[name.lower()] = (root / name).read_text(encoding="utf-8").replace("](docs/", "](")
    return found


def on_files(files, config):
    """Adds the generated pages to the site; MkDocs calls it by this name."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


if __name__ == "__main__":
    for page in sorted((Path(__file__).parent / "methods").glob("*.md")):
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
