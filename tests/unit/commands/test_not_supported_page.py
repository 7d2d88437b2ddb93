"""The page of unsupported features has existing messages and existing options."""

import ast
import re
from pathlib import Path

import pytest

from cdl_jax import config as configs
from cdl_jax import main, plugins
from cdl_jax.options import rows

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "guides"
PAGE = (FOLDER / "not_supported.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| what |")
]
SECTIONS = ("augment", "cdl", "data", "distill", "dkt", "optim", "train", "vkd", "student", "config")


def literals():
    """Yields the choices of each option of `cdl`, and each string in the package.

    Values that are filled into a string become "{}".
    """
    yield from (f"use {option.range}" for _, option in rows(configs.declared(configs.default("cdl", data="folder"))))
    for path in (ROOT / "cdl_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def options():
    """Every key of every config section, with and without its `config.`."""
    built = [configs.default(method, data="folder") for method in ("cdl", "dkt", "okddip", "vkd", "supervised")]
    built += [configs.default("vidt", data="coco")]
    built += [configs.default("cdl", data=source) for source in plugins.list_plugins("data.sources")]
    keys = {key for config in built for key in configs.flatten(config)}
    keys |= {key.rsplit(".", 1)[0] for key in keys}
    return keys | {f"config.{key}" for key in keys}


def test_every_row_has_a_reason_and_a_message_column():
    assert len(ROWS) > 40
    for row in ROWS:
        assert len(row) == 4 and all(row), row
        assert row[3] == "-" or re.fullmatch(r'".+"', row[3]), row


def test_quoted_messages_exist():
    known = list(literals())
    quoted = [row[3].strip('"') for row in ROWS if row[3] != "-"]
    assert len(quoted) > 25
    assert [text for text in quoted if not any(text in literal for literal in known)] == []


def test_named_options_exist():
    known, named = options(), set()
    for code in re.findall(r"`([^`]+)`", PAGE):
        code = code.removeprefix("--").split("=")[0]
        if "/" not in code and re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", code) and code.split(".")[0] in SECTIONS:
            named.add(code)
    assert len(named) > 15
    assert sorted(named - known) == []


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"`--([a-z]+)(?:=[^`.]*)?`", PAGE))))
def test_named_flags_exist(flag):
    from cdl_jax.report import __main__ as command_line

    assert f"--{flag}" in main.__doc__ or f"--{flag}" in command_line.__doc__


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (FOLDER / target).exists(), target
    assert "docs/guides/not_supported.md" in (ROOT / "README.md").read_text(encoding="utf-8")
