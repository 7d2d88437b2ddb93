"""Executes notebooks without Jupyter."""

import ast
import contextlib
import io
import json
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"


def code_cells(path: Path) -> list[dict]:
    """Returns the code cells of a notebook file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def stored_text(cell: dict) -> str:
    """Returns the stored text of a cell's outputs, without images and a run's bar."""
    outputs = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    data = [output.get("data", {"text/plain": output.get("text", "")}) for output in outputs]
    texts = [item["text/plain"] for item in data if not {"image/png", WIDGET} & {*item}]
    return "\n".join("".join(text) for text in texts)


def execute(cell: dict, names: dict) -> str:
    """Executes a cell in a namespace; returns its output.

    The output is the printed text, and the last expression if that is not None.
    """
    program = ast.parse("".join(cell["source"]))
    last = program.body.pop() if isinstance(program.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    return out.getvalue() + ("" if value is None else repr(value))
