"""Formats tables as text: for the terminal, Markdown, HTML, CSV and LaTeX.

A table (`Rows`) is a list of rows, the head first. A row is a list of text cells. A `Section` is a tuple (title,
table, legend).
"""

import base64
import csv
import html
import io
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

from cdl_jax.runtime.console import one_line

MISSING = "-"
Rows = list[list[str]]
Section = tuple[str, Rows, str]
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; --tile: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 110rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; border-bottom: 1px solid var(--line); }
h2 { margin-top: 2.2rem; } h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; } td.text { white-space: normal; }
figure { margin: .6rem 0; max-width: 100%; overflow-x: auto; }
figure svg, figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.row { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.tile { background: var(--tile); border-radius: 8px; padding: .6rem 1.2rem .7rem; min-width: 11rem; max-width: 19rem; }
.tile .value { display: block; font-size: 2.1rem; line-height: 1.25; font-weight: 600; }
figcaption, .quiet { color: var(--quiet); font-size: .9rem; } pre { overflow-x: auto; }
figcaption { contain: inline-size; } figure.wide svg { max-width: max(100%, 40rem); }
.files { font-size: .8rem; white-space: nowrap; } .files a { color: var(--quiet); margin-right: .6rem; }
dt { font-weight: 600; } dd { margin: 0 0 .3rem 1rem; }
@media (max-width: 40rem) { th, td { padding: .25rem .35rem; } table { font-size: .85rem; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; } }
"""


class Measured(str):
    """The text of a cell with the shown numbers, for formats that store raw numbers.

    Attributes:
      numbers: name -> value, such as {"mean": 63.0, "std": 3.6, "n": 3}; the name "" stands for the column's own name.
    """

    numbers: Mapping[str, float | str | None]

    def __new__(cls, text: str, numbers: Mapping[str, float | str | None]):
        """Returns the cell."""
        cell = super().__new__(cls, text)
        cell.numbers = numbers
        return cell


class Html(str):
    """The text of a cell that HTML shows by markup of its own.

    Attributes:
      markup: HTML of the complete cell, `<td>` included.
    """

    markup: str

    def __new__(cls, text: str, markup: str):
        """Returns the cell."""
        cell = super().__new__(cls, text)
        cell.markup = markup
        return cell


class Plot(str):
    """The SVG text of a plot, with the numbers that the plot shows.

    Attributes:
      data: CSV of the plotted numbers.
    """

    data: str

    def __new__(cls, svg: str, data: str):
        """Returns the plot."""
        plot = super().__new__(cls, svg)
        plot.data = data
        return plot


def aligned(rows: Rows) -> str:
    """Returns a table for the terminal.

    The first column and notes are left-aligned, the others right-aligned.

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


def html_page(sections: Sequence[Section], extra_parts: Iterable[str] = ()) -> str:
    """Returns sections as a self-contained HTML page.

    Args:
      sections: the tables; the title of the first is that of the page.
      extra_parts: HTML that follows the tables, default none.
    """
    parts = []
    for title, rows, legend in sections:
        parts += [f"<h1>{escape(title)}</h1>", html_table(rows, title), f"<p class=quiet>{escape(legend)}</p>"]
    return page(sections[0][0], [*parts, *extra_parts])


def html_table(rows: Rows, title: str = "") -> str:
    """Returns an HTML table with escaped cells.

    Args:
      rows: the table, its head first.
      title: adds links below the table that save it as CSV and as LaTeX; default: no links.

    >>> html_table([["run", "last"], ["a<b", "61.20"]])
    '<table><tr><th>run</th><th>last</th></tr><tr><td>a&lt;b</td><td>61.20</td></tr></table>'
    """
    head, *body = rows
    lines = [f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(_html_cell(cell) for cell in row)}</tr>" for row in body]
    table = f"<table>{''.join(lines)}</table>"
    if not title:
        return table
    sections, name = [(title, rows, "")], file_name(title)
    links = {
        f"{name}.csv": ("text/csv", comma_separated(sections)),
        f"{name}.tex": ("application/x-tex", latex(sections)),
    }
    return f"<div>{table}{_links(links)}</div>"


def _html_cell(cell):
    return cell.markup if isinstance(cell, Html) else f"<td>{escape(cell)}</td>"


def file_name(title: str) -> str:
    """Returns a title as the name of a file.

    >>> file_name("teacher/student, KL(teacher || student)")
    'teacher_student_kl_teacher_student'
    """
    return "_".join(re.findall(r"\w+", title.lower()))


def _links(contents):
    """Returns links that save files, whose contents are in the page.

    Args:
      contents: name of a file -> (media type, text).
    """
    links = [
        f'<a download="{name}" href="data:{kind};base64,{_base64(content)}">{name.rpartition(".")[2].upper()}</a>'
        for name, (kind, content) in contents.items()
    ]
    return f"<div class=files>{''.join(links)}</div>"


def _base64(content):
    return base64.b64encode(content.encode("utf-8", "backslashreplace")).decode("ascii")


def link(address: str, label: str) -> str:
    """Returns an HTML link to a file.

    Args:
      address: path of the file, relative to the page.
      label: text, which is escaped.

    >>> link("../a b/report.html", "a b")
    '<a href="../a%20b/report.html">a b</a>'
    """
    return f'<a href="{urllib.parse.quote(address, errors="surrogateescape")}">{escape(label)}</a>'


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a self-contained HTML page.

    Args:
      title: text, which is escaped.
      parts: HTML of the body.
    """
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escape(title)}</title>"
    body = "\n".join(parts)
    return f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"


def figure(plot: Plot, name: str, caption: str, kind: str = "plain") -> str:
    """Returns the HTML of a figure, with links that save its SVG and its CSV.

    Args:
      plot: SVG and numbers.
      name: of the saved files, as text: see `file_name`.
      caption: text, which is escaped.
      kind: "plain"; "wide": the figure may fill the page.
    """
    name = file_name(name)
    links = _links({f"{name}.svg": ("image/svg+xml", plot), f"{name}.csv": ("text/csv", plot.data)})
    return f"<figure class={kind}>{plot}<figcaption>{escape(caption)}</figcaption>{links}</figure>"


def image(url: str, caption: str) -> str:
    """Returns the HTML of an image.

    Args:
      url: of the image, such as a data URL.
      caption: text, which is escaped.
    """
    caption = escape(caption)
    return f'<figure><img alt="{caption}" src="{url}"><figcaption>{caption}</figcaption></figure>'


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
    """Returns distinct column names.

    An empty name is replaced by "name". A repeated name follows the last name that is unique.
    """
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
