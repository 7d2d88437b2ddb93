"""Formats tables as text: for the terminal, Markdown, HTML, CSV and LaTeX.

A table (`Rows`) is a list of rows, the head first. A row is a list of text cells. A `Section` is a tuple (title,
table, legend).
"""

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence

from cdl_jax.runtime.console import one_line

MISSING = "-"
Rows = list[list[str]]
Section = tuple[str, Rows, str]
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { display: inline-block; margin: .6rem 1rem .6rem 0; max-width: 100%; overflow-x: auto; vertical-align: top; }
figure svg, figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.row { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; margin: 1rem 0; }
figcaption, .quiet { color: var(--quiet); font-size: .9rem; } pre { overflow-x: auto; }
figure.wide svg { max-width: max(100%, 40rem); }
dt { font-weight: 600; } dd { margin: 0 0 .3rem 1rem; }
@media (max-width: 40rem) { th, td { padding: .25rem .35rem; } table { font-size: .85rem; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; } }
"""


class Measured(str):
    """The text of a cell, with the numbers that it shows, for formats that store raw numbers.

    Attributes:
      numbers: name -> value, such as {"mean": 63.0, "std": 3.6, "n": 3}; the name "" stands for the column's own name.
    """

    numbers: Mapping[str, float | str | None]

    def __new__(cls, text: str, numbers: Mapping[str, float | str | None]):
        """Returns the cell."""
        cell = super().__new__(cls, text)
        cell.numbers = numbers
        return cell


def aligned(rows: Rows) -> str:
    """Returns a table for the terminal: the first column and notes left-aligned, the others right-aligned.

    >>> print(aligned([["run", "last"], ["kd", "61.20"]]))
    run   last
    kd   61.20
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if _is_left_aligned(i, head) else cell.rjust(width)
            for i, (cell, width, head) in enumerate(zip(row, widths, rows[0], strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(sections: Iterable[Section]) -> str:
    """Returns sections as Markdown, with headings.

    >>> print(markdown([("Runs", [["run", "last"], ["a|b", "61.20"]], "")]))
    ## Runs
    <BLANKLINE>
    | run | last |
    |---|---|
    | a\\|b | 61.20 |
    <BLANKLINE>
    """
    parts = []
    for title, rows, legend in sections:
        head, *lines = ["| " + " | ".join(_markdown_text(cell) for cell in row) + " |" for row in rows]
        table = "\n".join([head, "|" + "---|" * len(rows[0]), *lines])
        parts.append(f"## {title}\n\n{table}\n" + (f"\n{legend}\n" if legend else ""))
    return "\n".join(parts)


def comma_separated(sections: Sequence[Section]) -> str:
    """Returns sections as one CSV table of raw numbers.

    A cell with several numbers becomes several columns: `last` becomes `last_mean`, `last_std` and `last_n`. Missing
    values are empty. With several sections the first column `table` holds the section's title.
    """
    columns, lines = {}, []
    for title, rows, _ in sections:
        heads = _distinct(rows[0])
        numbers = [
            dict.fromkeys(name for row in rows[1:] for name in getattr(row[i], "numbers", ()))
            for i in range(len(heads))
        ]
        for row in rows[1:]:
            line = {"table": title} if len(sections) > 1 else {}
            for head, cell, names in zip(heads, row, numbers, strict=True):
                values = getattr(cell, "numbers", {"": "" if cell == MISSING else cell})
                for name in names or ("",):
                    line[f"{head}_{name}" if name else head] = values.get(name)
            columns |= dict.fromkeys(line)
            lines.append(line)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def latex(sections: Iterable[Section]) -> str:
    """Returns sections as LaTeX tables that need no package."""
    parts = []
    for title, rows, legend in sections:
        head, *lines = [" & ".join(_latex_text(cell) for cell in row) + r" \\" for row in rows]
        columns = "".join("l" if _is_left_aligned(i, name) else "r" for i, name in enumerate(rows[0]))
        caption = _latex_text(f"{title}. {legend}" if legend else title)
        parts.append("\n".join([
            r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{{columns}}}",
            r"\hline", head, r"\hline", *lines, r"\hline", r"\end{tabular}", r"\end{table}",
        ]))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def html_page(sections: Sequence[Section]) -> str:
    """Returns sections as a self-contained HTML page."""
    parts = []
    for title, rows, legend in sections:
        parts += [f"<h1>{escape(title)}</h1>", html_table(rows), f"<p class=quiet>{escape(legend)}</p>"]
    return page(sections[0][0], parts)


def html_table(rows: Rows) -> str:
    """Returns an HTML table with escaped cells.

    >>> html_table([["run", "last"], ["a<b", "61.20"]])
    '<table><tr><th>run</th><th>last</th></tr><tr><td>a&lt;b</td><td>61.20</td></tr></table>'
    """
    head, *body = [[escape(cell) for cell in row] for row in rows]
    lines = [f"<tr><th>{'</th><th>'.join(head)}</th></tr>"]
    lines += [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body]
    return f"<table>{''.join(lines)}</table>"


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a self-contained HTML page.

    Args:
      title: text, which is escaped.
      parts: HTML of the body.
    """
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    body = "\n".join(parts)
    return f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"


def figure(svg: str, caption: str, kind: str = "plain") -> str:
    """Returns the HTML of a figure.

    Args:
      svg: the plot.
      caption: text, which is escaped.
      kind: "plain"; "wide": the figure may fill the page.
    """
    return f"<figure class={kind}>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def escape(value: object) -> str:
    """Returns a value as one line of HTML text.

    >>> escape("a < b\\nc")
    'a &lt; b\\\\nc'
    """
    return html.escape(one_line(value))


def capitalized(name: str) -> str:
    """Returns a name with a capital first letter, for a title.

    >>> capitalized("accuracy"), capitalized("AP")
    ('Accuracy', 'AP')
    """
    return name[:1].upper() + name[1:]


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number with a fixed count of decimals; "-" for None.

    >>> number(1 / 3), number(None)
    ('0.33', '-')
    """
    return MISSING if value is None else f"{value:.{digits}f}"


def _is_left_aligned(index, head):
    return index == 0 or head == "note"


def _distinct(heads):
    """Returns distinct column names: "name" for an empty one; a repeated one follows the last name that is unique."""
    names, last_unique = [], ""
    for head in heads:
        head = one_line(head) or "name"
        if heads.count(head) > 1:
            head = f"{last_unique} {head}"
        else:
            last_unique = head
        names.append(head)
    return names


# Backslashes, cell borders, code, links, emphasis, strikethrough and mathematics; "<" where a tag could begin, "&"
# where a character reference could, and "_" outside words.
_MARKDOWN = re.compile(r"[\\|`\[\]*~$]|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|(?<![^\W_])_|_(?![^\W_])")


def _markdown_text(cell):
    replaced = {"<": "&lt;", "&": "&amp;"}
    return _MARKDOWN.sub(lambda match: replaced.get(match[0], "\\" + match[0]), one_line(cell))


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
_LATEX |= {"[": "{[}", "]": "{]}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}", "*": "{*}"}
_LATEX |= {character: "\\" + character for character in "%_&#${}"}


def _latex_text(cell):
    text = "".join(_LATEX.get(character, character) for character in one_line(cell))
    return re.sub(r"^-(?=[\d.])", "$-$", text) if isinstance(cell, Measured) else text
