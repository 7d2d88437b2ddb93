"""Generates the reference pages of the documentation from the package itself, as a hook of MkDocs.

`pages()` returns the Markdown of every generated page. It imports cdl_jax and needs no MkDocs.
"""

import ast
import importlib
import inspect
import io
import tokenize
from pathlib import Path
from types import ModuleType

from cdl_jax import config, plugins
from cdl_jax.evaluation import metrics

API = {
    "schemes": "cdl_jax.distill.base",
    "methods": "cdl_jax.methods.base",
    "learners": "cdl_jax.models.learners.base",
    "stream": "cdl_jax.data.stream",
    "losses": "cdl_jax.losses",
    "metrics": "cdl_jax.evaluation.metrics",
    "optim": "cdl_jax.optim",
}
COMMANDS = {
    "cdl_jax.main": "Train, evaluate, analyze, describe",
    "cdl_jax.report.__main__": "Compare runs",
    "cdl_jax.fetch": "Download data sets and weights",
}
_EDIT = "_This page is generated from the code by `docs/hooks.py`._\n"
# Keys that select a plug-in; the plug-in brings its own keys.
CHOICES = {
    "method": ("how the networks are trained", "methods"),
    "data.name": ("the data source", "data.sources"),
    "learner.name": ("the prompt learner", "models.learners"),
    "distill.name": ("the distillation scheme", "distill"),
    "teacher.family": ("the family of a network; also `student.family` and `network.family`", "models"),
}
_WEIGHTS = "its pretrained weights: see [Data and weights](../guides/data.md#pretrained-weights)"
# Meanings of options without a comment in the code: by the key, or by its last part.
MEANINGS = {
    "seed": "seed of initial weights, batch order and augmentation",
    "train.epochs": "epochs of each task",
    "train.batch_size": "images of a training batch, over all devices",
    "eval.batch_size": "images of an evaluation batch, over all devices",
    "eval.forward_transfer": "evaluate each task also before it is trained",
    "log.every_steps": "steps between two lines of metrics.jsonl",
    "log.tensorboard": "write TensorBoard event files",
    "data.max_test_per_class": "0: all",
    "data.part": "the part of the emoji that the stream consists of",
    "data.split_seed": "seed of the split into training and test images",
    "data.train_split": "the split to train on, in the syntax of TensorFlow Datasets",
    "data.test_split": "the split to test on, in the syntax of TensorFlow Datasets",
    "augment.train": "transform of training images: random_resized_crop, shift, pad_crop, resize, none",
    "augment.test": "transform of test images: resize, resize_center_crop, none",
    "augment.std": "standard deviation of each channel, of pixels in [0, 1]; empty: do not normalize",
    "optim.name": "the optimizer",
    "optim.learning_rate": "the highest learning rate",
    "optim.schedule": "the learning-rate schedule within a task",
    "optim.eps": "epsilon of Adam and AdamW",
    "dkt.num_learners": "number of learners",
    "dkt.exchange_interval": "how many `dkt.exchange_unit` lie between two exchanges",
    "eeil.noise_decay": "exponent with which the gradient noise decays over the steps",
    "eeil.noise_is": "whether the noise's number is a standard deviation or a variance",
    "vkd.ema_decay": "decay of the averaged weights, at the start and at the end",
    "learner.general_length": "vectors of a general prompt",
    "learner.top_k": "prompts that an image selects",
    "learner.deep": "prompts in blocks 0 to 4 instead of block 0",
    "distill.classes": "classes of the softmax: current (of the task) or seen (of earlier tasks too)",
    "distill.teacher_feature": "the teacher's output to match; empty: its features",
    "distill.teacher_norm": "normalization of the teacher's feature",
    "label_smoothing": "share of the target that is spread evenly over the classes",
    "temperature": "temperature of the softmax",
    "feature_weight": "weight of the feature loss",
    "label_weight": "weight of the labels' cross-entropy",
    "family": "file of `cdl_jax/models/` that builds the network",
    "dim": "width of a token",
    "depth": "number of blocks",
    "heads": "attention heads of a block",
    "mlp_ratio": "hidden width of a block's MLP, relative to `dim`",
    "patch_size": "side of a patch in pixels",
    "image_size": "side of the input images in pixels",
    "weights": "pretrained weights, or `random`",
    "wa": "slope of the block widths",
    "wm": "ratio between the widths of two stages",
    "stem_width": "channels of the stem",
}


def option_table(module: ModuleType, name: str = "OPTIONS", prefix: str = "") -> list[tuple[str, object, str]]:
    """Returns (key, default, meaning) of each option in a module's dict, in the order of the source.

    A meaning is the comment above the key or at the end of its line. Dicts that are merged in (`**kd.OPTIONS`) are
    followed into their own module; nested dicts become dotted keys.

    Args:
      module: the module that assigns the dict at its top level.
      name: the name of the dict.
      prefix: put before every key, such as "train.".
    """
    source = inspect.getsource(module)
    tree = next(
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and any(
            isinstance(t, ast.Name) and t.id == name for t in getattr(node, "targets", [getattr(node, "target", 0)])
        )
    )
    rows = _rows(module, tree, getattr(module, name), _comments(source), prefix)
    latest = {key: (key, default, meaning) for key, default, meaning in rows}  # a later key replaces a merged one
    for key, _, meaning in rows:
        if not latest[key][2]:
            latest[key] = (*latest[key][:2], meaning)
    return list(latest.values())


def _comments(source):
    """Returns line -> (comment, whether it is the only thing on its line)."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0]] = (token.string.lstrip("# ").strip(), not token.line[: token.start[1]].strip())
    return found


def _rows(module, tree, values, comments, prefix):
    rows = []
    for key, value in zip(tree.keys, tree.values, strict=True):
        if key is None:
            rows += _merged(module, value, values, prefix)
            continue
        default = values[key.value]
        if isinstance(default, dict) and isinstance(value, ast.Dict):
            nested = _rows(module, value, default, comments, f"{prefix}{key.value}.")
            above = _above(key.lineno, comments)
            rows += [(name, d, meaning or above) for name, d, meaning in nested]
            continue
        trailing = [comments[line][0] for line in range(key.lineno, value.end_lineno + 1) if _trails(line, comments)]
        last = not any(
            k is not None and k.lineno == value.end_lineno and k.col_offset > key.col_offset for k in tree.keys
        )
        rows.append((prefix + key.value, default, " ".join(trailing if last else []) or _above(key.lineno, comments)))
    return rows


def _trails(line, comments):
    return line in comments and not comments[line][1]


def _above(line, comments):
    """Returns the block of comments that ends just above a line."""
    block = []
    while (line := line - 1) in comments and comments[line][1]:
        block.append(comments[line][0])
    return " ".join(reversed(block))


def _merged(module, value, values, prefix):
    """Returns the rows of a dict that is merged into another: `**NAME`, `**module.NAME`, or a part of one of these."""
    if isinstance(value, ast.DictComp):
        value = value.generators[0].iter.func.value  # of `{... for key, value in NAME.items() if ...}`
    if isinstance(value, ast.Name):
        rows = option_table(*_imported(module, value.id), prefix)
    elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        rows = option_table(getattr(module, value.value.id), value.attr, prefix)
    else:
        raise ValueError(f"{module.__name__}: cannot follow {ast.unparse(value)} to the comments of its options")
    return [row for row in rows if row[0].removeprefix(prefix).split(".")[0] in values]


def _imported(module, name):
    """Returns the module that assigns a name, and its name there: `module` itself, or the one that it imports from."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return importlib.import_module(node.module), alias.name
    return module, name


def _cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def _value(default):
    return f"`{default!r}`" if default != "" else '`""`'


def _table(rows, prefix=""):
    if not rows:
        return "It has no options.\n"
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, meaning in rows:
        meaning = meaning or MEANINGS.get(prefix + key) or MEANINGS.get(key.split(".")[-1], "")
        changes = " _(may change on resume)_" if (prefix + key).startswith(config.RESUMABLE_KEYS) else ""
        lines.append(f"| `{prefix}{key}` | {_value(default)} | {_cell(meaning)}{changes} |")
    return "\n".join(lines) + "\n"


def _plugin_sections(folder, section, title, skip=()):
    """Returns a heading and a table for each plug-in of a folder that has options."""
    text = [f"## {title}\n"]
    for name in plugins.list_plugins(folder):
        module = plugins.load_plugin(folder, name)
        if name in skip or not hasattr(module, "OPTIONS"):
            continue
        heading = (module.__doc__ or "").strip().splitlines()[0]
        text += [f"### {section}: {name}\n", f"{heading}\n"]
        text.append(_table(option_table(module), f"{name if section == 'method' else section}."))
    return "\n".join(text)


def config_page() -> str:
    """Returns the page of every config key, with its default and its meaning."""
    from cdl_jax import optim
    from cdl_jax.data import stream
    from cdl_jax.data.transforms import augment, mixing

    choices = ["| key | meaning | values |", "|---|---|---|"]
    for key, (meaning, folder) in CHOICES.items():
        names = ", ".join(f"`{name}`" for name in plugins.list_plugins(folder))
        choices.append(f"| `{key}` | {meaning} | {names}, or the dotted path of a module of yours |")
    choices.append(f"| `teacher.weights` | {_WEIGHTS}; also `student.weights` and `network.weights` | |")
    parts = [
        "# Config keys\n",
        _EDIT,
        "Set a key on the command line as `--config.train.epochs=5`. Keys marked _may change on resume_ change neither "
        "weights nor metrics, so a run that was stopped accepts another value.\n",
        "## Choices\n",
        "\n".join(choices) + "\n",
        "## Every run\n",
        _table(option_table(config, "DEFAULTS")),
        "## Stream: `data.`\n",
        _table(option_table(stream), "data."),
        _plugin_sections("data.sources", "data", "Data sources"),
        "## Augmentation: `augment.`\n",
        _table(option_table(augment), "augment."),
        "## Mixup and CutMix: `mixing.`\n",
        _table(option_table(mixing), "mixing."),
        "## Optimizer: `optim.`\n",
        _table(option_table(optim), "optim."),
        _plugin_sections("methods", "method", "Methods"),
        _plugin_sections("models.learners", "learner", "Prompt learners: `learner.`"),
        _plugin_sections("distill", "distill", "Distillation schemes: `distill.`"),
        _plugin_sections("models", "network", "Networks: `teacher.`, `student.`, `network.`"),
    ]
    return "\n".join(parts)


def metrics_page() -> str:
    """Returns the page of every metric of results.json, with its formula."""
    parts = ["# Metrics\n", _EDIT, inspect.cleandoc(metrics.__doc__) + "\n"]
    for title, table in (("Numbers: `metrics`", metrics.FORMULAS), ("Series: `by_task`", metrics.SERIES)):
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


def pages() -> dict[str, str]:
    """Returns path below docs/ -> Markdown of every generated page."""
    found = {
        "reference/config.md": config_page(),
        "reference/metrics.md": metrics_page(),
        "reference/command_line.md": command_line_page(),
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
