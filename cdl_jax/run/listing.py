"""The texts of `--list` and of `--help`.

`--list` shows the names that a config can have, and `--help` shows the options of a config. Docstrings are parsed from
the files. Only the sizes of networks and the options of a config need an import.
"""

import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from cdl_jax import config_files, plugins

if TYPE_CHECKING:
    import ml_collections

_PACKAGE = Path(__file__).parents[1]
_SECTIONS = (
    ("methods (config.method)", "methods"),
    ("learners (argument learner)", "models.learners"),
    ("distillation schemes (argument distill)", "distill"),
    ("distillation schemes of detectors (argument distill of method vidt)", "distill.detection"),
    ("data sources (--config.data.name)", "data.sources"),
    ("network families (config.<network>.family)", "models"),
)
_VALUE_WIDTH = 18  # columns of a value; the meaning of a longer one begins in the next line
_DEFAULT_RANGES = ("", "at least 0", "True or False")  # clear from the value


def render_list() -> str:
    """Returns one line for each shipped config and each plug-in.

    Each line ends with the first line of the docstring.
    """
    blocks = [_block("configs (--config NAME)", config_files.shipped_configs().items())]
    for title, folder in _SECTIONS:
        path = _PACKAGE.joinpath(*folder.split("."))
        blocks.append(_block(title, ((name, path / f"{name}.py") for name in plugins.list_plugins(folder))))
    blocks.append(_network_block())
    return "\n\n".join(blocks)


def _block(title, files):
    return "\n".join([title, *(f"  {name:<20} {config_files.summary(path)}" for name, path in files)])


def _network_block():
    from cdl_jax.models.modules import families  # imports flax: some tables of sizes are computed

    lines = [(module.__name__.split(".")[-1], ", ".join(module.SIZES)) for module in families.FAMILIES]
    title = "networks by family (arguments teacher, student, network)"
    return "\n".join([title, *(f"  {family:<20} {sizes}" for family, sizes in lines)])


def render_options(config: "ml_collections.ConfigDict") -> str:
    """Returns the options of a config, sorted by key.

    The text of an option has its value, meaning and permitted values, wrapped to the terminal.

    Args:
      config: a config with valid keys.
    """
    from cdl_jax import config as configs
    from cdl_jax import options

    values = {key: tuple(value) if isinstance(value, list) else value for key, value in configs.flatten(config).items()}
    declared = dict(options.rows(configs.declared(config)))
    key_width = max(map(len, values))
    lines = [_option_lines(key, values[key], declared[key], key_width) for key in sorted(values) if key in declared]
    return "\n".join(["options of this config: --config.KEY=VALUE", *lines])


def _option_lines(key, value, option, key_width):
    head = f"  {key:<{key_width}}  {value!r:<{_VALUE_WIDTH}}"
    permitted = f", in {option.range}" if option.range.startswith("(") else f" ({option.range})"
    text = option.meaning if option.range in _DEFAULT_RANGES else option.meaning + permitted
    indent = key_width + _VALUE_WIDTH + 6
    width = max(shutil.get_terminal_size((120, 24)).columns, indent + 40)
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False) or [""]
    if len(head) > indent - 2:
        lines.insert(0, "")
    first, *rest = lines
    return "\n".join([f"{head:<{indent - 2}}  {first}".rstrip(), *(" " * indent + line for line in rest)])
