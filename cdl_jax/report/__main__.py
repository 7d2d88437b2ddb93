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

import sys
import textwrap

from cdl_jax import published
from cdl_jax.errors import UserError
from cdl_jax.plugins import did_you_mean
from cdl_jax.report import grid, plots, replication, sweep, tables, text
from cdl_jax.report.groups import folder_names, labels, read_groups
from cdl_jax.runtime import console, files, paths

_OPTIONS = ("--out", "--paper", "--svg", "--traffic", "--into", "--keep", "--sweep", "--headline", "--names", "--grid")


def _sections(groups, names, paper, headline=False):
    """(title, rows, legend) of the tables to show."""
    sections = [("Runs", (tables.headlines if headline else tables.table)(groups, names), "")] if groups else []
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
    formats = {".md": text.markdown, ".csv": text.comma_separated, ".tex": text.latex}
    return formats.get(suffix, text.html_page)(sections)


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


def _write(option, out, content):
    try:
        files.write_atomically(out, content)
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
        groups = read_groups(folders, refused)
        for error in refused:
            print(f"cdl_jax: left out: {error}", file=sys.stderr)
        if folders and not groups:
            return 2
        if option and (headline or named or gridded or paper):
            raise UserError("--sweep goes with --out and --svg alone: leave the other options out")
        lines = sweep.lines(groups, option) if option else {}
        names = (folder_names if named else labels)(groups)
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
            print((f"\n{title}\n" if number else "") + text.aligned(rows))
            if legend:
                print("\n".join(textwrap.wrap(legend, 120)))
        for run in (run for group in groups for run in group.runs.values() if not (gridded or option)):
            print(console.one_line(f"report: {run.folder / 'report.html'}"))
    except UserError as error:
        print(f"cdl_jax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
