"""The text of `--list`: the configs, plug-ins and networks that a config can name.

Docstrings are parsed from the files. Only the sizes of networks need an import.
"""

from pathlib import Path

from cdl_jax import config_files, plugins

_PACKAGE = Path(__file__).parents[1]
_SECTIONS = (
    ("methods (config.method)", "methods"),
    ("learners (argument learner)", "models.prompts"),
    ("distillation schemes (argument distill)", "distill"),
    ("data sources (--config.data.name)", "data.sources"),
    ("network families (config.<network>.family)", "models"),
)


def render_list() -> str:
    """Returns one line for each shipped config and each plug-in, with the first line of its docstring."""
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
