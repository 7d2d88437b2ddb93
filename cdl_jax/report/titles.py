"""Names a run for its report page: learner, scheme, networks and data."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdl_jax import config_files, plugins

_PACKAGE = Path(__file__).parents[1]
_MAX_WORDS = 4  # of a name; a longer beginning of a docstring is a sentence


def run_title(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Returns what a run trains, by which scheme, and on which data.

    Args:
      results: the content of results.json.
      config: the resolved config as nested dicts.

    >>> stream = {"name": "glyph_mini", "num_tasks": 5}
    >>> run_title({"stream": stream}, {"learner": {"name": "l2p"}, "distill": {"name": "reviewkd"}})
    'L2P with ReviewKD on glyph_mini, 5 tasks'
    """
    method, learner, scheme = config.get("method", ""), _name_in(config, "learner"), _name_in(config, "distill")
    subject = display_name("models.learners", learner) if learner else display_name("methods", method)
    if learner and method == "dkt":
        subject = f"DKT of {subject} learners"
    subject = results.get("setting") or subject
    folder = "distill.detection" if method == "vidt" else "distill"
    distillation = ""
    if scheme not in ("", "none", method):  # VkD is a method and its scheme
        distillation = f" with {_within_sentence(display_name(folder, scheme))}"
    stream = results["stream"]
    tasks = f"{stream['num_tasks']} tasks" if stream["num_tasks"] > 1 else "1 task"
    return f"{subject}{distillation} on {stream['name']}, {tasks}"


def network_title(config: Mapping[str, Any]) -> str:
    """Returns the networks of a config by size, such as "vit_b16 teaches vit_s16".

    Args:
      config: the resolved config as nested dicts.
    """
    sections = {role: section for role, section in config.items() if isinstance(section, Mapping)}
    names = {role: _size(section) for role, section in sections.items() if "family" in section}
    if {"teacher", "student"} <= names.keys() and names["teacher"]:
        return f"{names.pop('teacher')} teaches {', '.join(names.values())}"
    return ", ".join(name for name in names.values() if name)


def display_name(folder: str, name: str) -> str:
    """Returns a plug-in's name as its docstring begins with it.

    It is `name` where the docstring begins with a sentence.

    Args:
      folder: of the plug-ins in the package, such as "distill".
      name: of the plug-in in a config.

    >>> display_name("models.learners", "coda"), display_name("distill", "my_package.my_scheme")
    ('CODA-Prompt', 'my_package.my_scheme')
    """
    if name not in plugins.list_plugins(folder):
        return name
    summary = config_files.summary(_PACKAGE.joinpath(*folder.split("."), f"{name}.py"))
    begin = re.split(r" \(|[:,.]", summary)[0]
    return begin if len(begin.split()) <= _MAX_WORDS else name


def _within_sentence(name):
    """Returns a name as it is spelled within a sentence.

    Its first letter becomes small unless the first word is a proper name, such as CODA-Prompt.
    """
    first = name.split()[0]
    return name[0].lower() + name[1:] if first == first.capitalize() and " " in name else name


def _name_in(config, section):
    return config.get(section, {}).get("name", "")


def _size(section):
    """Returns the name of a network's size.

    It is the family where no size has the options, and "" without a network.
    """
    from cdl_jax.models.modules.families import FAMILIES  # imports flax, which tables of runs do not need

    sizes = {family.__name__.rpartition(".")[2]: family.SIZES for family in FAMILIES}.get(section["family"], {})
    for name, options in sizes.items():
        if all(section.get(key) == (list(value) if isinstance(value, tuple) else value)
               for key, value in options.items() if key != "image_size"):  # fmt: skip
            return name
    return section["family"]
