"""Compiles a config's steps for a GPU that is not there, and models their time.

The model adds up the kernels of the compiled program.

    python -m benchmarks.run aot [--config configs/cdl.py:teacher=vit_l16,student=vit_b16] [--cards h200 h100 a100]
    python -m benchmarks.run aot --set teacher.depth=3 student.depth=3 learner.deep=False

XLA compiles from a description of the card (`benchmarks/gpus`), on any machine and without a GPU: see
`benchmarks/described.py`. Times are modelled: see `benchmarks/kernels.py`. Nothing is run. Images are noise, and
weights are random.
"""

import ast
from pathlib import Path

from benchmarks import described, kernels, timing
from cdl_jax.errors import UserError

_SIDE, _TASKS, _CLASSES = 32, 10, 10  # of the noise that stands for Split CIFAR-100


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--config", default="configs/cdl.py", help="config file, with its arguments behind a colon")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config keys to change")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--cards", nargs="+", choices=kernels.CARDS, default=["h200"])
    parser.add_argument("--phases", nargs="*", default=[], help="those to compile; none: all")
    parser.add_argument("--text", type=Path, help="folder for the compiled programs as text")


def measure(options) -> dict:
    """Prints a table for each card and phase; returns their figures."""
    described.start_jax()
    if options.text:
        options.text.mkdir(parents=True, exist_ok=True)
    config = make_config(options.config, options.set, options.batch)
    rows = []
    for card in (kernels.CARDS[name] for name in options.cards):
        for phase, step in described.compile_steps(config, _noise(config), card, options.phases):
            program, memory = step.as_text(), described.memory(step)
            if options.text:
                (options.text / f"{card.name}_{phase}.txt").write_text(program, encoding="utf-8")
            row = {"card": card.name, "phase": phase, **summarize(program, card, options.batch), "memory": memory}
            rows.append(row)
            print(f"{card.name}, step of the {phase}, {options.batch} images")
            print(table(row) + "\n")
    return {"config": options.config, "set": options.set, "batch": options.batch, "rows": rows}


def make_config(text: str, changes: list[str], batch: int):
    """Returns the config of a config file with random weights, on one device.

    Args:
      text: the config file, with its arguments behind a colon.
      changes: `key=value` of config keys.
      batch: images a step.

    Raises:
      UserError: the file or a key does not exist, or a value has the wrong type.
    """
    from cdl_jax import config as base
    from cdl_jax import config_files

    name, text = config_files.split_arguments(text)
    config = config_files.load_config(config_files.find(name), text)
    flat_config = base.flatten(config)
    for change in changes:
        key, _, value = change.partition("=")
        if key not in flat_config:
            raise UserError(f"benchmarks: aot --set {change}: no config key {key!r}")
        config.update_from_flattened_dict({key: _literal(value)})
    config.update_from_flattened_dict({key: "random" for key in flat_config if key.endswith(".weights")})
    config.train.batch_size, config.devices = batch, 1
    return config


def _literal(text):
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _noise(config):
    """Returns a stream of noise with as many images as one batch has."""
    from benchmarks import fake_data

    return fake_data.noise_stream(_SIDE, _TASKS, _CLASSES, -(-config.train.batch_size // _CLASSES), 1)


def summarize(program: str, card: kernels.Card, batch: int) -> dict:
    """Returns the figures of a compiled program's text.

    Args:
      program: the text.
      card: for which it is compiled.
      batch: images a step.

    Returns:
      `parts`, name -> `{"kernels", "ms", "gb", "gflop"}`; `sum` of these; `images_per_second`; `share`: the least time
      of the operations, at the rate of large products, over the modelled time.
    """
    all_kernels = kernels.kernels(program)
    parts = {part: _total([kernel for kernel in all_kernels if kernel.part == part], card) for part in kernels.PARTS}
    total = _total(all_kernels, card)
    least_gflop = total["gflop"] * 1e9 / (card.products * card.peak)
    seconds = total["ms"] / 1e3
    return {"parts": parts, "sum": total, "images_per_second": batch / seconds, "share": least_gflop / seconds}


def _total(found, card):
    return {
        "kernels": len(found),
        "ms": 1e3 * sum(kernel.seconds(card) for kernel in found),
        "gb": sum(kernel.bytes for kernel in found) / 1e9,
        "gflop": sum(kernel.flops + kernel.wide_flops for kernel in found) / 1e9,
    }


def table(row: dict) -> str:
    """Formats the figures of one step as a Markdown table.

    A line about speed and memory follows the table.
    """
    lines = [(part, *_cells(figures)) for part, figures in {**row["parts"], "sum": row["sum"]}.items()]
    head = ("part", "modelled kernels", "modelled ms", "modelled GB", "modelled GFLOP")
    resident, work = (f"{row['memory'][part] / 2**20:,.0f} MiB" for part in ("held", "work"))
    speed = f"modelled: {row['images_per_second']:,.0f} images/s, {100 * row['share']:.0f} % of the rate of products"
    return f"{timing.markdown(head, lines)}\n\n{speed}; memory: {resident} held, {work} at work"


def _cells(figures):
    return f"{figures['kernels']}", f"{figures['ms']:.2f}", f"{figures['gb']:.2f}", f"{figures['gflop']:,.0f}"
