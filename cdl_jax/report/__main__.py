"""Prints, writes and draws tables of finished and running runs.

python -m cdl_jax.report [table] RUN [RUN ...] [--one-row-per-run] [--label-by-folder] [--out FILE] [--plot FILE.svg]
                         [--plot-curves FILE.svg] [--plot-traffic FILE.svg] [--update-page PAGE]
python -m cdl_jax.report grid RUN [RUN ...] [--out FILE] [--plot FILE.svg] [--plot-operations FILE.svg]
                              [--plot-strength FILE.svg] [--update-page PAGE] [--export FOLDER]
python -m cdl_jax.report sweep OPTION RUN [RUN ...] [--out FILE] [--plot FILE.svg] [--update-page PAGE]
python -m cdl_jax.report best OPTION RUN [RUN ...]
python -m cdl_jax.report paper NAME [RUN ...] [the options of table]
python -m cdl_jax.report detections RUN [RUN ...] [--label-by-folder] [--out FILE] [--plot FILE.svg]
                                    [--images FILE.png] [--update-page PAGE]
python -m cdl_jax.report generation RUN [RUN ...] [--out FILE] [--plot FILE.svg] [--samples FILE.png]
                                    [--update-page PAGE]

RUN is the folder of a run, or a folder that holds runs, such as that of launch/sweep.sh.

table: one row for each network of each run, over seeds. Runs with the settings of a published result are also shown
beside that result, with a verdict on whether they reproduce it. --one-row-per-run compares one number of each run, the
mean over its leading networks. --label-by-folder labels rows by their folders instead of by the settings that differ.
--plot draws one number of each run for every seed, --plot-traffic against the megabytes that learners exchanged.
--plot-curves draws the mean over the tasks learned so far, after each task; the curve of a branch leaves that of its
parent at the task from which it branched.

grid: learners by schemes, for runs in <learner>/<scheme>/seed_<n>. Each scheme is compared with the learner's scheme
"none" by a paired t-test. --plot draws the gains, --plot-operations accuracy against training operations, and
--plot-strength the gains against the accuracy of the learner alone. --export copies the part of finished runs that
these tables need to a folder.

sweep: one row for all runs that differ only in OPTION (such as distill.alpha), one column for each of its values.

best: prints the value of OPTION with the highest mean, of finished runs that differ in nothing else.

paper: the published table of a system (cdl, okddip, vkd) or of one version of its paper (v4), also without runs.

detections: COCO's numbers of detectors after the last task, one row for each network. --plot draws precision over
recall, --images a few test images with the boxes of each run's first seed.

generation: the distance of generators after the last step and the smallest of each run, with what else the last
evaluation has measured. Differences to the first row are paired by seeds. --plot draws the distance of each seed,
--samples the last samples of every seed.

The ending of --out selects the format: .md Markdown, .html a page, .tex LaTeX, .csv raw numbers (mean, standard
deviation and number of seeds in separate columns; missing values are empty). --update-page replaces the tables of an
existing page between its lines `<!-- tables -->` and `<!-- end of tables -->`.

Runs that failed, have just begun or are damaged are named on standard error and left out. The exit code is 0 if at
least one run is reported, and 2 otherwise. A folder named like a command is written as ./grid.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cdl_jax import published
from cdl_jax.errors import UserError
from cdl_jax.plugins import did_you_mean
from cdl_jax.report import (
    comparison,
    comparison_plots,
    detectors,
    generators,
    grid,
    replication,
    sweep,
    tables,
    text,
)
from cdl_jax.report.groups import Group, folder_names, labels, metric_of, read_groups
from cdl_jax.report.text import Section
from cdl_jax.runtime import console, files, paths

_PAGE_ENDINGS = (".md", ".html", ".htm")
_TABLE_ENDINGS = (*_PAGE_ENDINGS, ".csv", ".tex")
_PLOT_ENDINGS = (".svg",)

# Former spellings. They are accepted, so that commands in notes and scripts keep working.
_FORMER_OPTIONS = {
    "--svg": "--plot",
    "--traffic": "--plot-traffic",
    "--into": "--update-page",
    "--keep": "--export",
    "--names": "--label-by-folder",
    "--headline": "--one-row-per-run",
}
_FORMER_COMMANDS = {"--grid": 0, "--sweep": 1, "--paper": 1}  # option -> number of values


@console.command
def main(argv: list[str]) -> int:
    """Runs the command line.

    Args:
      argv: the words after the program's name.

    Returns:
      The exit code: 0 if at least one run or a published table was shown, otherwise 2.
    """
    try:
        if not argv:
            print(__doc__.strip(), file=sys.stderr)
            return 2
        command, *words = _with_command(argv)
        if "--help" in words or "-h" in words:
            print(_parser(command).format_help() if argv[0] in COMMANDS else __doc__.strip())
            return 0
        return COMMANDS[command](_parse(command, words))
    except UserError as error:
        print(f"cdl_jax: {error}", file=sys.stderr)
        return 2


def show_table(options: argparse.Namespace) -> int:
    """Prints and writes the table of some runs, and published results beside them."""
    groups = _read_groups(options.runs)
    if not groups:
        return 2
    return _show_runs(options, groups, [(published.table(name), "") for name in published.systems()], all_cells=False)


def show_paper(options: argparse.Namespace) -> int:
    """Prints and writes a published table, with runs beside it if any are named."""
    groups = _read_groups(options.runs)
    if options.runs and not groups:
        return 2
    return _show_runs(options, groups, replication.choose(options.paper), all_cells=True)


def show_grid(options: argparse.Namespace) -> int:
    """Prints and writes the tables of learners by schemes."""
    groups = _read_groups(options.runs)
    if not groups:
        return 2
    sections = [
        (f"{text.capitalized(metric_of(groups))} after the last task", grid.overview(groups), ""),
        ("All measures", grid.details(groups), ""),
    ]
    _write_outputs(options, sections, lambda: _gain_plot(groups))
    if options.plot_operations:
        _write("--plot-operations", options.plot_operations, _operations_plot(groups))
    if options.plot_strength:
        strengths = grid.gains_by_strength(groups)
        _write(
            "--plot-strength", options.plot_strength, comparison_plots.gain_vs_strength(strengths, metric_of(groups))
        )
    if options.export:
        grid.export_results(groups, options.export)
    _print_sections(sections)
    return 0


def show_sweep(options: argparse.Namespace) -> int:
    """Prints and writes the table of runs that differ in one option."""
    groups = _read_groups(options.runs)
    if not groups:
        return 2
    accuracies = sweep.group_by_option(groups, options.option)
    sections = [("Runs", sweep.table(accuracies, options.option), "")]
    _write_outputs(
        options, sections, lambda: comparison_plots.sweep_plot(accuracies, options.option, metric_of(groups))
    )
    _print_sections(sections)
    return 0


def show_best(options: argparse.Namespace) -> int:
    """Prints the best value of an option."""
    groups = _read_groups(options.runs)
    if not groups:
        return 2
    lines = sweep.group_by_option(groups, options.option)
    is_distance = any(run.lower_is_better for group in groups for run in group.runs.values())
    print(sweep.best_value(lines, options.option, lower_is_better=is_distance))
    return 0


def show_detections(options: argparse.Namespace) -> int:
    """Prints and writes COCO's numbers of detectors."""
    groups = _read_groups(options.runs)
    if not groups:
        return 2
    names = (folder_names if options.label_by_folder else labels)(groups)
    sections = [("Detections", detectors.table(groups, names), "")]
    _write_outputs(options, sections, lambda: detectors.curves_plot(groups, names))
    if options.images:
        _write("--images", options.images, detectors.image_sheet(groups, names))
    _print_sections(sections)
    return 0


def show_generation(options: argparse.Namespace) -> int:
    """Prints and writes the distances of generators."""
    groups = _read_groups(options.runs)
    if not groups:
        return 2
    sections = [("Generation", generators.table(groups), "")]
    _write_outputs(options, sections, lambda: generators.dots(groups))
    if options.samples:
        _write("--samples", options.samples, generators.samples_sheet(groups))
    _print_sections(sections)
    return 0


# Functions that return the exit code.
COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "table": show_table,
    "grid": show_grid,
    "sweep": show_sweep,
    "best": show_best,
    "paper": show_paper,
    "detections": show_detections,
    "generation": show_generation,
}


def _with_command(argv: list[str]) -> list[str]:
    """Returns the words in their present spelling, with the command first.

    The default command is `table`.

    Raises:
      UserError: a former option that became a command has no value, is repeated, or is combined with another one.
    """
    words, commands, rest = [], {}, list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in _FORMER_OPTIONS:
            words.append(_FORMER_OPTIONS[name] + equals + value)
        elif name in _FORMER_COMMANDS:
            if name in commands:
                raise UserError(f"{name} is repeated: use it once")
            values = [value] if equals else [rest.pop(0)] if _FORMER_COMMANDS[name] and rest else []
            if len(values) < _FORMER_COMMANDS[name]:
                raise UserError(f"{name} needs a value")
            commands[name] = values
        else:
            words.append(word)
    if len(commands) > 1:
        raise UserError(f"{' and '.join(commands)} select different tables: name one of them")
    for name, values in commands.items():
        return [name.removeprefix("--"), *values, *words]
    return words if words[0] in COMMANDS else ["table", *words]


class _Parser(argparse.ArgumentParser):
    """Raises `UserError` where argparse would print its usage and exit."""

    def error(self, message: str):
        raise UserError(re.sub(r"^argument ([^:]+): expected one argument$", r"\1 needs a value", message))


class _PathOption(argparse.Action):
    """An option that names one file or folder, and occurs at most once.

    The name of a file has one of some endings.
    """

    def __init__(self, *args: Any, endings: tuple[str, ...] = (), **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.endings = endings

    def __call__(self, parser, namespace, value, option=None):
        if getattr(namespace, self.dest) is not None:
            raise UserError(f"{option} is repeated: use it once")
        path = paths.resolve(value, option)
        if self.endings and path.suffix.lower() not in self.endings:
            *others, last = self.endings
            raise UserError(f"{option} {path} must end in {', '.join(others) + ' or ' if others else ''}{last}")
        setattr(namespace, self.dest, path)


def _parser(command: str) -> _Parser:
    """Returns the argument parser of a command, one of `COMMANDS`."""
    parser = _Parser(f"cdl_jax.report {command}", description=COMMANDS[command].__doc__, allow_abbrev=False)
    if command in ("sweep", "best"):
        parser.add_argument("option", metavar="OPTION", help="config key that differs, such as distill.alpha")
    if command == "paper":
        parser.add_argument("paper", metavar="NAME", help="system (cdl, okddip, vkd) or version of its paper (v4)")
    runs = "*" if command == "paper" else "+"
    explanation = "folder of a run, or one that holds runs; a run of several seeds counts as one run for each seed"
    parser.add_argument("runs", metavar="RUN", nargs=runs, help=explanation)

    def add_file(name, endings, explanation):
        parser.add_argument(name, metavar="FILE", action=_PathOption, endings=endings, help=explanation)

    if command == "best":
        return parser
    add_file("--out", _TABLE_ENDINGS, "write the tables; the ending selects the format")
    plotted = {"grid": "the gain of each seed", "sweep": "accuracy against the option's values"}
    plotted["detections"] = "precision over recall, the mean over classes and seeds"
    plotted["generation"] = "the distance of each seed"
    add_file("--plot", _PLOT_ENDINGS, f"draw {plotted.get(command, 'the main number of each run')}")
    add_file("--update-page", _PAGE_ENDINGS, "replace the tables between the marks of an existing page")
    if command == "grid":
        add_file("--plot-operations", _PLOT_ENDINGS, "draw accuracy against the operations of training")
        add_file("--plot-strength", _PLOT_ENDINGS, "draw gains against the accuracy of the learner alone")
        explanation = "copy what the tables need of finished runs to a folder"
        parser.add_argument("--export", metavar="FOLDER", action=_PathOption, help=explanation)
    if command in ("table", "paper"):
        add_file("--plot-curves", _PLOT_ENDINGS, "draw the mean over the tasks so far after each task, with branches")
        add_file("--plot-traffic", _PLOT_ENDINGS, "draw accuracy against the megabytes that learners exchanged")
        explanation = "one number of each run: the mean over its leading networks"
        parser.add_argument("--one-row-per-run", action="store_true", help=explanation)
    if command == "detections":
        add_file("--images", (".png",), "draw the boxes of each run's first seed in a few test images")
    if command == "generation":
        add_file("--samples", (".png",), "draw the last samples of each run")
    if command in ("table", "paper", "detections"):
        explanation = "label rows by their folders, not by the settings that differ"
        parser.add_argument("--label-by-folder", action="store_true", help=explanation)
    return parser


def _parse(command: str, words: list[str]) -> argparse.Namespace:
    """Parses the words that follow a command.

    Raises:
      UserError: an option is unknown, belongs to another command, is repeated or has a bad value; a run is missing.
    """
    parsers = {name: _parser(name) for name in COMMANDS}
    known = {name: {flag for action in parser._actions for flag in action.option_strings}
             for name, parser in parsers.items()}  # fmt: skip
    for word in words:
        option = word.partition("=")[0]
        if not word.startswith("-") or option in known[command]:
            continue
        if owners := [name for name in COMMANDS if option in known[name]]:
            raise UserError(f"{option} is an option of {', '.join(owners)}: leave it out of {command}")
        raise UserError(f"unknown option {word}: {did_you_mean(option, sorted(known[command]))}")
    options = parsers[command].parse_intermixed_args(words)
    options.runs = [run for folder in options.runs for run in _runs_in(paths.resolve(folder, "RUN"))]
    return options


def _runs_in(folder: Path) -> list[Path]:
    """Returns the runs in a folder that is no run itself, such as that of a sweep.

    Numbers in names are in ascending order.
    """
    return sorted(_find_runs(folder), key=_natural_order) or [folder]


def _find_runs(folder: Path) -> Iterator[Path]:
    if (folder / "config.json").exists():
        yield folder
    elif folder.is_dir():
        for path in folder.iterdir():
            yield from _find_runs(path)


def _natural_order(path: Path) -> list[tuple[bool, float, str]]:
    """Returns the parts of a path, in which 2 comes before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", str(path))
    return [(i % 2 == 1, float(part) if i % 2 else 0.0, part) for i, part in enumerate(parts)]


def _read_groups(folders: list[Path]) -> list[Group]:
    """Reads runs, and prints which of them are left out."""
    refused: list[UserError] = []
    groups = read_groups(folders, refused)
    for error in refused:
        print(f"cdl_jax: left out: {error}", file=sys.stderr)
    return groups


def _show_runs(
    options: argparse.Namespace, groups: list[Group], chosen: list[tuple[published.Table, str]], all_cells: bool
) -> int:
    """Prints and writes a table of runs and published tables beside them.

    Args:
      options: of `table` or `paper`.
      groups: may be empty.
      chosen: published tables, each with the version to show or "".
      all_cells: also show published results without a run.

    Returns:
      The exit code.
    """
    names = (folder_names if options.label_by_folder else labels)(groups)
    rows_of_runs = tables.headlines if options.one_row_per_run else tables.table
    sections = [("Runs", rows_of_runs(groups, names), "")] if groups else []
    for table, version in chosen:
        rows = replication.table(table, replication.matches(groups, table), version, all_cells=all_cells)
        if len(rows) > 1:
            sections.append((f"{table.title} {version}".strip(), rows, replication.legend(table)))
    _write_outputs(options, sections, lambda: _headline_plot(groups, names), groups and (groups, names))
    if options.plot_curves:
        _write("--plot-curves", options.plot_curves, comparison.curves_plot(groups, names))
    if options.plot_traffic:
        _write("--plot-traffic", options.plot_traffic, _traffic_plot(groups, names))
    _print_sections(sections)
    for run in (run for group in groups for run in group.runs.values()):
        print(console.one_line(f"report: {run.folder / 'report.html'}"))
    return 0


def _write_outputs(
    options: argparse.Namespace,
    sections: list[Section],
    draw: Callable[[], str],
    compared: tuple[list[Group], list[str]] | None = None,
) -> None:
    """Writes the files of --out, --plot and --update-page.

    Args:
      options: of any command.
      sections: the tables.
      draw: returns the SVG of --plot.
      compared: groups and their labels, whose curves an HTML page shows below the tables; default none.
    """
    if options.out and compared and options.out.suffix.lower() in (".html", ".htm"):
        parts = comparison.html_parts(*compared, options.out)
        _write("--out", options.out, text.html_page(sections, parts))
    elif options.out:
        _write("--out", options.out, _formatted(options.out, sections))
    if options.plot:
        _write("--plot", options.plot, draw())
    if options.update_page:
        _update_page(options.update_page, sections)


def _print_sections(sections: list[Section]) -> None:
    """Prints tables and their legends."""
    for number, (title, rows, legend) in enumerate(sections):
        print((f"\n{title}\n" if number else "") + text.aligned(rows))
        if legend:
            print("\n".join(textwrap.wrap(legend, 120)))


def _update_page(page: Path, sections: list[Section]) -> None:
    """Replaces the tables of a page.

    Raises:
      UserError: the page cannot be read or written, or has no marks.
    """
    begin, end = "<!-- tables -->\n", "<!-- end of tables -->\n"
    try:
        before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--update-page {page} cannot be read ({error}): name a page that exists") from None
    _, has_marks, after = rest.partition(end)
    if not has_marks:
        raise UserError(f"--update-page {page}: there are no lines {begin.strip()} and {end.strip()}: add them")
    _write("--update-page", page, f"{before}{begin}\n{_formatted(page, sections)}\n{end}{after}")


def _headline_plot(groups: list[Group], names: list[str]) -> str:
    """Returns an SVG plot of the main number of each finished run.

    Raises:
      UserError: no run is finished.
    """
    accuracies = {
        label: list(group.values("headline", "last", finished=True).values())
        for label, group in zip(names, groups, strict=True)
    }
    accuracies = {label: values for label, values in accuracies.items() if values}
    if not accuracies:
        raise UserError("--plot: none of these runs is finished: leave --plot out")
    return comparison_plots.dot_plot(accuracies, f"{metric_of(groups)}, %; bar: mean")


def _gain_plot(groups: list[Group]) -> str:
    """Returns an SVG plot of the gain of each seed over the learner's scheme "none".

    Raises:
      UserError: no finished run has a run to be compared with.
    """
    gains = grid.gains(groups)
    if not gains:
        raise UserError('--plot: no finished run here has the scheme "none" of its learner and seed to compare with')
    return comparison_plots.dot_plot(gains, f"gain of {metric_of(groups)} over the learner alone, points; bar: mean")


def _traffic_plot(groups: list[Group], names: list[str]) -> str:
    """Returns an SVG plot of main numbers against the megabytes exchanged.

    A point is the mean over the finished runs of a group.

    Raises:
      UserError: no run has exchanged anything.
    """
    points = {}
    for name, group in zip(names, groups, strict=True):
        values = group.values("headline", "last", finished=True)
        amounts = [group.runs[seed].extra_metrics.get("exchanged_mb", 0.0) for seed in values]
        if values:
            points[name] = amounts, list(values.values())
    if not any(sum(amounts) for amounts, _ in points.values()):
        raise UserError("--plot-traffic: no finished run here has exchanged anything; name runs of learners that do")
    return comparison_plots.accuracy_vs_traffic(points)


def _operations_plot(groups: list[Group]) -> str:
    """Returns an SVG plot of each row's accuracy against its training operations.

    Raises:
      UserError: no finished run states its operations.
    """
    points = grid.accuracy_by_operations(groups)
    if not points:
        raise UserError("--plot-operations: no finished run here states the number of its training steps: rerun them")
    return comparison_plots.accuracy_vs_amount(points, "floating-point operations of training", metric_of(groups))


def _formatted(file: Path, sections: list[Section]) -> str:
    """Returns sections in the format that a file's ending selects."""
    formats = {".md": text.markdown, ".csv": text.comma_separated, ".tex": text.latex}
    return formats.get(file.suffix.lower(), text.html_page)(sections)


def _write(option: str, out: Path, content: str | bytes) -> None:
    """Writes the file of an option.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        files.write_atomically(out, content)
    except OSError as error:
        raise UserError(f"{option} {out} cannot be written ({error.strerror}): choose another file") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
