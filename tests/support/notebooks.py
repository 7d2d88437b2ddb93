"""Executes notebooks without Jupyter."""

import ast
import contextlib
import io
import json
from pathlib import Path


def code_cells(path: Path) -> list[dict]:
    """Returns the code cells of a notebook file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def stored_text(cell: dict) -> str:
    """Returns the stored text of a cell's outputs."""
    texts = [output.get("text") or output["data"].get("text/plain", "") for output in cell["outputs"]]
    return "\n".join("".join(text) for text in texts)


def execute(cell: dict, names: dict) -> str:
    """Executes a cell in a namespace; returns what it prints, and its last expression, if that is not None."""
    program = ast.parse("".join(cell["source"]))
    last = program.body.pop() if isinstance(program.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    return out.getvalue() + ("" if value is None else repr(value))
