"""What runs have come to: the report page of one, the table of several, and published results beside them.

python -m cdl_jax.report RUN [RUN ...] [--headline] [--names] [--paper NAME] [--out FILE] [--svg FILE.svg]
                         [--traffic FILE.svg]
python -m cdl_jax.report --grid FOLDER/<learner>/<scheme>/seed_<n> ... [--out FILE] [--into PAGE.md] [--svg FILE.svg]
                         [--keep FOLDER]
python -m cdl_jax.report --sweep OPTION RUN [RUN ...] [--out FILE] [--svg FILE.svg]

The ending of --out chooses the format: .md Markdown, .html a page, .tex LaTeX, .csv raw numbers (mean, standard
deviation and number of seeds in columns of their own; missing values are empty).

Runs with the settings of a published result are shown beside it, with whether they reproduce it. --paper shows a whole
published table, that of a system (cdl, okddip, vkd) or of a version of its paper (v4), and needs no run. --headline
compares one number of each run, that of its leading networks, whatever their names; --svg draws it for every seed, and
--traffic against the megabytes that learners have exchanged. --names calls rows after their folders, in place of the
settings in which they differ.

--grid arranges continual learners by schemes, as their folders are called, and tests what each gains over the learner's
scheme "none". --svg then draws the gains, --into writes the tables into a
page, between its lines `<!-- tables -->` and `<!-- end of tables -->`, and --keep copies what they need of finished
runs to a folder.

Runs that have failed, have just begun or are damaged are named on standard error and left out. The exit code is 0 if
at least one run is reported, and otherwise 2.

--sweep sets the first number of runs that differ in one option, such as distill.alpha, against its values: a line for
all runs that are else alike. --svg draws them.
"""

import html
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cdl_jax import config as configs
from cdl_jax import published
from cdl_jax.errors import UserError
from cdl_jax.plugins import did_you_mean
from cdl_jax.report import grid, plots, replication, sweep, tables
from cdl_jax.report import groups as compare
from cdl_jax.runtime import console, files, paths

_OPTIONS = ("--out", "--paper", "--svg", "--traffic", "--into", "--keep", "--sweep", "--headline", "--names", "--grid")
_LOSSES = "Loss terms; dotted lines part the tasks."
_CURVES = "Accuracy over the tasks seen: solid the mean, dotted the worst task."
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { display: inline-block; margin: .6rem 1rem .6rem 0; max-width: 100%; overflow-x: auto; vertical-align: top; }
figure svg { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .quiet { color: var(--quiet); font-size: .9rem; } pre { overflow-x: auto; }
figure.wide svg { max-width: max(100%, 40rem); }
dt { font-weight: 600; } dd { margin: 0 0 .3rem 1rem; }
@media (max-width: 40rem) { th, td { padding: .25rem .35rem; } table { font-size: .85rem; }
  td:first-child { white-space: normal; overflow-wrap: anywhere; } }
"""


def write_report(path: Path, results: dict, lines: list[dict], config: dict, more: Sequence[str] = ()) -> None:
    """Writes the page of one run: self-contained, and the same bytes for the same arguments.

    Args:
      path: the file.
      results: the content of results.json.
      lines: those of metrics.jsonl.
      config: the resolved config as nested dicts.
      more: HTML of further sections.
    """
    networks = results["networks"]
    matrices = {name: network["accuracy_matrix"] for name, network in networks.items()}
    parts = [
        f"<h1>{_text(results['name'])}</h1>",
        f"<p class=quiet>{_text(results['status'])}, seed {results['seed']}, {_text(results['cost']['device'])}, "
        + _text(", ".join(f"{name} {version}" for name, version in results["versions"].items()))
        + "</p>",
        f"<pre>{_text(results['command'])}</pre>",
    ]
    if networks:
        parts += [
            "<h2>Metrics</h2>",
            _metrics_table({**networks, **results.get("means", {})}, results["formulas"]),
            *_series_tables(networks, results["formulas"]),
            "<h2>Accuracy</h2>",
            f"<div>{figure(plots.curves(matrices), _CURVES)}</div>",
            *(figure(plots.heat_map(rows, name), f"{name}: percent on each task after each task.")
              for name, rows in matrices.items()),
        ]  # fmt: skip
    pairs = results.get("pairs", {})
    if pairs:
        parts += ["<h2>Teacher and student</h2>", _metrics_table(pairs, results["formulas"])]
        for name, pair in pairs.items():
            same, kl = pair["agreement_matrix"], pair["kl_matrix"]
            title, top = f"{name}, agreement", max(map(max, kl)) or 1
            parts.append(figure(plots.heat_map(same, title), f"{title}: percent on each task after each task."))
            title = f"{name}, KL(teacher || student)"
            parts.append(figure(plots.heat_map(kl, title, top, "nats", 2), f"{title}, nats, over the classes seen."))
    parts += more
    if any("loss" in line for line in lines):
        parts += ["<h2>Training</h2>", figure(plots.losses(lines), _LOSSES, "wide")]
    chosen = [(name, layer, rows) for name, net in networks.items() for layer, rows in net["selection"].items()]
    if chosen:
        parts.append("<h2>Prompts chosen</h2>")
        for name, layer, rows in chosen:
            bits = ", ".join(f"{entropy(row):.2f}" for row in rows)
            caption = f"{name}, {layer}: shares of the prompts that a task's test images chose. Entropy: {bits} bits."
            parts.append(figure(plots.selection(rows, f"{name}, {layer}"), caption))
    parts += ["<h2>Cost</h2>", _cost_table(results["cost"]), "<h2>Tasks</h2>", _tasks_table(results["stream"])]
    resolved = "\n".join(_text(f"{key} = {value!r}") for key, value in sorted(configs.flatten(config).items()))
    parts.append(f"<details><summary>Config</summary><pre>{resolved}</pre></details>")
    files.write_atomically(Path(path), _page(results["name"], parts))


def summary(seeds: list[dict]) -> str:
    """The table of a run's networks for the terminal, mean and standard deviation where there are several seeds."""
    shown = (*compare.SHOWN, "ece_last")
    rows = [["", *shown]]

    def over_seeds(values):
        return compare.spread([value for value in values if value is not None])

    for name in seeds[0]["networks"]:
        found = [[s["networks"][name]["metrics"].get(metric) for s in seeds] for metric in shown]
        rows.append([name, *map(over_seeds, found)])
    pairs = []
    for name in seeds[0].get("pairs", {}):
        measured = [s["pairs"][name]["metrics"] for s in seeds]
        agreement = compare.spread(metrics["agreement_last"] for metrics in measured)
        kl = compare.spread((metrics["kl_last"] for metrics in measured), digits=4)
        pairs.append(f"{name}: agreement {agreement} %, KL(teacher || student) {kl} nats")
    return "\n".join([tables.aligned(rows), *pairs])


def entropy(counts) -> float:
    """Bits of the distribution that counts make; 0 where all fall on one row."""
    total = sum(counts)
    return sum(-c / total * math.log2(c / total) for c in counts if c) if total else 0.0


def _metrics_table(measured, formulas):
    """What is `measured`, name -> {"metrics"}, by those of the `formulas` that apply to it."""
    head = "".join(f"<th>{_text(name)}</th>" for name in measured)
    rows, definitions = [f"<tr><th></th>{head}</tr>"], []
    for name in [name for name in formulas if all(name in each["metrics"] for each in measured.values())]:
        digits = 4 if name.startswith("kl_") else 2
        cells = "".join(f"<td>{_number(each['metrics'][name], digits)}</td>" for each in measured.values())
        formula = _text(formulas[name])
        rows.append(f'<tr title="{formula}"><td>{_text(name)}</td>{cells}</tr>')
        definitions.append(f"<dt>{_text(name)}</dt><dd class=quiet>{formula}</dd>")
    listed = f"<details><summary>Definitions</summary><dl>{''.join(definitions)}</dl></details>"
    return f"<table>{''.join(rows)}</table>{listed}"


def _series_tables(networks, formulas):
    """What has a value for each task, of the networks for which it was measured."""
    known = {name: network.get("by_task", {}) for name, network in networks.items()}
    tables = []
    for what in dict.fromkeys(what for own in known.values() for what in own):
        rows = [(name, own[what]) for name, own in known.items() if own.get(what)]
        if rows:
            heads = "".join(f"<th>{i}</th>" for i in range(len(rows[0][1])))
            body = "".join(
                f"<tr><td>{_text(name)}</td>{''.join(f'<td>{_number(value)}</td>' for value in values)}</tr>"
                for name, values in rows
            )
            caption = f"<p class=quiet>{_text(what)}, by task: {_text(formulas[what])}</p>"
            tables.append(f"{caption}<table><tr><th></th>{heads}</tr>{body}</table>")
    return [f"<details><summary>By task</summary>{''.join(tables)}</details>"] if tables else []


def _cost_table(cost):
    rows = [
        (f"{n}: parameters", f"{c['trainable']:,} trained, {c['frozen']:,} frozen")
        for n, c in cost["parameters"].items()
    ]
    rows += [(f"{n}: a step", f"{f / 1e9:.3f} GFLOP") for n, f in cost["flops_per_step"].items() if f is not None]
    rows += [(f"{n}: speed", f"{v:,.0f} images/s") for n, v in cost["images_per_second"].items()]
    rows += [(f"{n}: time", f"{v:,.1f} s") for n, v in cost["seconds"].items()]
    rows.append(("peak memory", f"{cost['peak_memory_bytes'] / 2**20:,.0f} MiB"))
    return "<table>" + "".join(f"<tr><td>{_text(a)}</td><td>{_text(b)}</td></tr>" for a, b in rows) + "</table>"


def _tasks_table(stream):
    rows = "".join(
        f"<tr><td>{i}</td><td>{task['train']}</td><td>{task['test']}</td>"
        f"<td style='text-align:left;white-space:normal'>{_text(', '.join(task['classes']))}</td></tr>"
        for i, task in enumerate(stream["tasks"])
    )
    head = "<tr><th>task</th><th>train</th><th>test</th><th style='text-align:left'>classes</th></tr>"
    return f"<table>{head}{rows}</table>"


def _page(title, parts):
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{_text(title)}</title>"
    body = "\n".join(parts)
    return f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"


def figure(svg: str, caption: str, kind: str = "plain") -> str:
    """HTML of a picture with its caption; `kind` "wide" lets it fill the page."""
    return f"<figure class={kind}>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _text(value):
    return html.escape(console.one_line(value))


def _number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def _html(sections):
    parts = []
    for title, rows, legend in sections:
        head, *rest = [[_text(cell) for cell in row] for row in rows]
        lines = [f"<tr><th>{'</th><th>'.join(head)}</th></tr>"]
        lines += [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rest]
        parts += [f"<h1>{_text(title)}</h1>", f"<table>{''.join(lines)}</table>", f"<p class=quiet>{_text(legend)}</p>"]
    return _page(sections[0][0], parts)


def _sections(groups, names, paper, headline=False):
    """(title, rows, legend) of the tables to show."""
    sections = [("Runs", (compare.headlines if headline else compare.table)(groups, names), "")] if groups else []
    chosen = replication.choose(paper) if paper else [(published.table(name), "") for name in published.systems()]
    for table, version in chosen:
        rows = replication.table(table, replication.matches(groups, table), version, whole=bool(paper))
        if len(rows) > 1:
            sections.append((f"{table.title} {version}".strip(), rows, replication.legend(table)))
    return sections


def _grid_sections(groups):
    return [
        ("Accuracy after the last task", grid.overview(groups), ""),
        ("All measures", grid.details(groups), ""),
    ]


def _into(page, sections):
    """Writes the tables into a page, in place of those that are there."""
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->\n"
    try:
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--into {page} cannot be read ({error}): name a page that exists") from None
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"--into {page}: there are no lines {begin.strip()} and {end.strip()}: add them")
    _write("--into", page, f"{before}{begin}\n{_text_of(page, sections)}\n{end}{after}")


def _headline_plot(groups, names):
    """Returns an SVG plot of the first number of each group's runs.

    Raises:
      UserError: no run is finished.
    """
    found = {
        label: list(group.values("headline", "last", finished=True).values())
        for label, group in zip(names, groups, strict=True)
    }
    found = {label: values for label, values in found.items() if values}
    if not found:
        raise UserError("--svg: none of these runs is finished: leave --svg out")
    return plots.rows(found, "accuracy, %; bar: mean")


def _gain_plot(groups):
    """SVG of what each seed gains over the learner alone.

    Raises:
      UserError: no run has one to be compared with.
    """
    found = grid.gains(groups)
    if not found:
        raise UserError('--svg: no finished run here has the scheme "none" of its learner and seed to compare with')
    return plots.rows(found, "gain of accuracy over the learner alone, points; bar: mean")


def _traffic_plot(groups, names):
    """SVG of the first number of each group's runs against what they have exchanged.

    Raises:
      UserError: no run has exchanged anything.
    """
    found = {}
    for name, group in zip(names, groups, strict=True):
        values = group.values("headline", "last", finished=True)
        amounts = [group.runs[seed].measures.get("exchanged_mb", 0.0) for seed in values]
        if values:
            found[name] = amounts, list(values.values())
    if not any(sum(amounts) for amounts, _ in found.values()):
        raise UserError("--traffic: no finished run here has exchanged anything; name runs of learners that do")
    return plots.traffic(found)


def _text_of(file, sections):
    suffix = file.suffix.lower()
    formats = {".md": tables.markdown, ".csv": tables.comma_separated, ".tex": tables.latex}
    return formats.get(suffix, _html)(sections)


def _file(option, given, endings):
    """Returns the path that an option gives, or None.

    Raises:
      UserError: the path has another ending.
    """
    if given is None:
        return None
    file = paths.resolve(given, option)
    if file.suffix.lower() not in endings:
        *others, last = endings
        raise UserError(f"{option} {file} must end in {', '.join(others) + ' or ' if others else ''}{last}")
    return file


def _write(option, out, text):
    try:
        files.write_atomically(out, text)
    except OSError as error:
        raise UserError(f"{option} {out} cannot be written ({error.strerror}): choose another file") from None


def _take(argv, option):
    """Returns the value of an option, None without the option, and the other words.

    Raises:
      UserError: the value is missing, or the option is there twice.
    """
    words = [i for i, word in enumerate(argv) if word == option or word.startswith(option + "=")]
    if not words:
        return None, argv
    if len(words) > 1:
        raise UserError(f"{option} is given twice: give it once")
    (at,) = words
    if argv[at] != option:
        return argv[at].partition("=")[2], argv[:at] + argv[at + 1 :]
    if at + 1 == len(argv):
        raise UserError(f"{option} needs a value")
    return argv[at + 1], argv[:at] + argv[at + 2 :]


@console.command
def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    try:
        out, argv = _take(argv, "--out")
        paper, argv = _take(argv, "--paper")
        svg, argv = _take(argv, "--svg")
        traffic, argv = _take(argv, "--traffic")
        into, argv = _take(argv, "--into")
        keep, argv = _take(argv, "--keep")
        option, argv = _take(argv, "--sweep")
        headline, named, gridded = ("--headline" in argv, "--names" in argv, "--grid" in argv)
        argv = [word for word in argv if word not in ("--headline", "--names", "--grid")]
        if "--help" in argv or "-h" in argv:
            print(__doc__.strip())
            return 0
        if unknown := [word for word in argv if word.startswith("-")]:
            raise UserError(f"unknown option {unknown[0]}: {did_you_mean(unknown[0].partition('=')[0], _OPTIONS)}")
        if not argv and not paper:
            print(__doc__.strip(), file=sys.stderr)
            return 2
        out = _file("--out", out, (".md", ".html", ".htm", ".csv", ".tex"))
        into = _file("--into", into, (".md", ".html", ".htm"))
        svg, traffic = _file("--svg", svg, (".svg",)), _file("--traffic", traffic, (".svg",))
        folders = [paths.resolve(folder, "RUN") for folder in argv]
        refused: list[UserError] = []
        groups = compare.read(folders, refused)
        for error in refused:
            print(f"cdl_jax: left out: {error}", file=sys.stderr)
        if folders and not groups:
            return 2
        if option and (headline or named or gridded or paper):
            raise UserError("--sweep goes with --out and --svg alone: leave the other options out")
        lines = sweep.lines(groups, option) if option else {}
        names = (compare.folder_names if named else compare.labels)(groups)
        if option:
            sections = [("Runs", sweep.table(lines, option), "")]
        else:
            sections = _grid_sections(groups) if gridded else _sections(groups, names, paper, headline)
        if out:
            _write("--out", out, _text_of(out, sections))
        if svg and option:
            _write("--svg", svg, plots.lines(lines, option))
        elif svg:
            _write("--svg", svg, _gain_plot(groups) if gridded else _headline_plot(groups, names))
        if into:
            _into(into, sections)
        if keep:
            grid.keep(groups, paths.resolve(keep, "--keep"))
        if traffic:
            _write("--traffic", traffic, _traffic_plot(groups, names))
        for number, (title, rows, legend) in enumerate(sections):
            print((f"\n{title}\n" if number else "") + tables.aligned(rows))
            if legend:
                print("\n".join(textwrap.wrap(legend, 120)))
        for run in (run for group in groups for run in group.runs.values() if not (gridded or option)):
            print(console.one_line(f"report: {run.folder / 'report.html'}"))
    except UserError as error:
        print(f"cdl_jax: {error}", file=sys.stderr)
        return 2
    return 0
