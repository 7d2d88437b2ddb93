"""Tabulates continual learners by schemes.

The tables have accuracies, gains over the learner alone, and a paired t-test of each gain.

A run is in `<learner>/<scheme>/seed_<n>`. These folders name its learner and scheme. The scheme "none" is the learner
alone, with which the other schemes are compared seed by seed.
"""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from cdl_jax import config as configs
from cdl_jax import schema
from cdl_jax.errors import UserError
from cdl_jax.report import costs
from cdl_jax.report.groups import Group, Seeds, check_one_metric, has_stored_teacher, metric_of, parent_of
from cdl_jax.report.tables import format_mean_std, format_percent, gap_closed, standard_error
from cdl_jax.report.text import MISSING, Measured, Rows
from cdl_jax.runtime import files, paths

BASELINE = "none"
TEACHER = "teacher"
MEASURES = ("average_incremental", "learning_accuracy", "forgetting_cdl", "forgetting_coda", "forgetting_max")

Points = dict[str, tuple[list[float], list[float]]]  # name -> x of each run or learner, and its y

# Parts of results.json that no table needs; formulas are those of metrics.py.
_OMITTED = ("formulas", "streams", "mean_over_learners", "best")
_OMITTED_OF_NETWORKS = ("selection", "per_task", "pretask_accuracy", "initial_accuracy", "stream_matrix")


def learner_and_scheme(group: Group) -> tuple[str, str]:
    """Returns the learner and the scheme that a group's folders name.

    Raises:
      UserError: a run is not in `<learner>/<scheme>/seed_<n>`.
    """
    folder = next(iter(group.runs.values())).folder
    if not re.fullmatch(r"seed_\d+", folder.name) or len(folder.parts) < 3:
        raise UserError(f"grid: {folder} is not called <learner>/<scheme>/seed_<n>: use the command table")
    return folder.parts[-3], folder.parts[-2]


def by_learner_and_scheme(groups: Sequence[Group]) -> dict[str, dict[str, Group]]:
    """Returns learner -> scheme -> group.

    The order is that of the groups, except that the scheme "none" is first.

    Raises:
      UserError: two groups have the same learner and scheme, a folder has another name, runs have different metrics, or
        a learner's runs did not begin alike.
    """
    check_one_metric(groups, "grid")
    learners: dict[str, dict[str, Group]] = {}
    for group in groups:
        learner, scheme = learner_and_scheme(group)
        schemes = learners.setdefault(learner, {})
        if scheme in schemes:
            raise UserError(f"grid: the runs in {learner}/{scheme} have different configs: name those of one")
        if schemes and parent_of(group) != parent_of(next(iter(schemes.values()))):
            raise UserError(f"grid: some runs in {learner} are branches of another run: name those that began alike")
        schemes[scheme] = group
    return {
        learner: dict(sorted(schemes.items(), key=lambda item: item[0] != BASELINE))
        for learner, schemes in learners.items()
    }


def paired_gains(schemes: dict[str, Group], scheme: str, network: str, metric: str = "last") -> dict[Seeds, float]:
    """Returns, by seed, what a scheme gains over the learner alone.

    The seeds are those that both have finished. A gain is the difference of a network's metric, of distances with the
    opposite sign.

    Args:
      schemes: scheme -> group, of one learner.
      scheme: the compared scheme.
      network: name of a network of that scheme's runs, or "headline".
      metric: name of a metric.
    """
    if BASELINE not in schemes or (scheme, network) == (BASELINE, "student"):
        return {}
    base = schemes[BASELINE].values("headline", metric, finished=True)
    values = schemes[scheme].values(network, metric, finished=True)
    sign = -1 if any(run.lower_is_better for run in schemes[BASELINE].runs.values()) else 1
    return {seed: sign * (value - base[seed]) for seed, value in values.items() if seed in base}


def p_value(differences: Sequence[float]) -> float | None:
    """Returns the two-sided p of the paired t-test that the mean of differences is 0.

    Returns:
      The p value; None for fewer than two differences, or if all are equal.

    >>> round(p_value([3.0, 4.0, 2.0]), 4)
    0.0351
    """
    from scipy import stats

    if len(differences) < 2 or len({*differences}) < 2:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def format_paired_test(differences: Sequence[float]) -> str:
    """Returns a cell with the mean of differences, its standard error and p.

    The cell is "-" without differences.

    >>> format_paired_test([3.0, 4.0, 2.0]), format_paired_test([1.0]), format_paired_test([])
    ('+3.00 ± 0.58, p 0.035', '+1.00', '-')
    """
    if not differences:
        return MISSING
    mean, p, error = statistics.fmean(differences), p_value(differences), standard_error(differences)
    cell = f"{mean:+.2f}"
    if p is not None:
        cell += f" ± {error:.2f}, " + (f"p {p:.3f}" if p >= 0.001 else "p < 0.001")
    return Measured(cell, {"mean": mean, "standard_error": error, "p": p, "n": len(differences)})


def overview(groups: Sequence[Group]) -> Rows:
    """Returns a table with one row for each scheme.

    A cell has `last` of a learner and the learner's gain over the scheme "none". The first row is the teacher's, from
    the runs in which the teacher was trained. The last column is the mean gain over the learners that have the row, for
    the seeds that all of them have.
    """
    learners = {name: schemes for name, schemes in by_learner_and_scheme(groups).items() if BASELINE in schemes}
    rows = [["", *learners, "mean gain"]]
    for scheme in dict.fromkeys([TEACHER, *(s for schemes in learners.values() for s in schemes)]):
        cells, gains = [], []
        for schemes in learners.values():
            source = _scheme_with_teacher(schemes) if scheme == TEACHER else scheme
            network = TEACHER if scheme == TEACHER else "headline"
            if source not in schemes:
                cells.append(MISSING)
                continue
            gain = paired_gains(schemes, source, network) if scheme != BASELINE else {}
            cells.append(_accuracy_and_gain(schemes[source].values(network, "last", finished=True), gain))
            gains.append(gain)
        common = [seed for seed in (gains[0] if gains else {}) if all(seed in gain for gain in gains)]
        rows.append([scheme, *cells, format_paired_test([statistics.fmean(g[seed] for g in gains) for seed in common])])
    return [row for row in rows if any(cell != MISSING for cell in row[1:])]


def details(groups: Sequence[Group]) -> Rows:
    """Returns a table with one row for each learner and scheme.

    The columns are all measures of the headline. Where a run states the number of its training steps, the table also
    has the columns of `costs.COLUMNS`.
    """
    measures = [name.replace("accuracy", metric_of(groups)) for name in MEASURES]
    is_measured = costs.has_operations(groups)
    rows = [["learner", "scheme", "seeds", "last", "gain", *measures, "gap closed", *costs.COLUMNS * is_measured]]
    for learner, schemes in by_learner_and_scheme(groups).items():
        for scheme, group in schemes.items():
            values = group.values("headline", "last", finished=True)
            gain = paired_gains(schemes, scheme, "headline") if scheme != BASELINE else {}
            measures = [format_mean_std(group.values("headline", name, finished=True).values()) for name in MEASURES]
            gap = gap_closed(group, [schemes[BASELINE]] if BASELINE in schemes else [])
            seeds = Measured(str(len(values)), {"": len(values)})
            row = [learner, scheme, seeds, format_mean_std(values.values()), format_paired_test(list(gain.values()))]
            rows.append([*row, *measures, format_percent(gap), *(costs.cells(group) if is_measured else ())])
    return rows


def gains(groups: Sequence[Group]) -> dict[str, list[float]]:
    """Returns "learner, scheme" -> the gain of each seed over the learner alone."""
    gains_of_schemes = {}
    for learner, schemes in by_learner_and_scheme(groups).items():
        for scheme in schemes:
            if scheme != BASELINE and (gain := paired_gains(schemes, scheme, "headline")):
                gains_of_schemes[f"{learner}, {scheme}"] = list(gain.values())
    return gains_of_schemes


def accuracy_by_operations(groups: Sequence[Group]) -> Points:
    """Returns "learner, scheme" -> training operations and accuracies of each seed.

    The accuracies are those after the last task. Runs with the teacher of another run are left out: their operations
    lack those of the teacher.
    """
    points = {}
    for learner, schemes in by_learner_and_scheme(groups).items():
        for scheme, group in schemes.items():
            if has_stored_teacher(group):
                continue
            values = group.values("headline", "last", finished=True)
            pairs = [(group.runs[seed].operations, value) for seed, value in values.items()]
            pairs = [(operations, value) for operations, value in pairs if operations]
            if pairs:
                points[f"{learner}, {scheme}"] = tuple(map(list, zip(*pairs, strict=True)))
    return points


def gains_by_strength(groups: Sequence[Group]) -> Points:
    """Returns scheme -> accuracies of the learners alone, and gains by the scheme.

    Accuracy and gain are means over the seeds that the learner alone and the learner with the scheme have in common.
    """
    points: Points = {}
    for schemes in by_learner_and_scheme(groups).values():
        for scheme in schemes:
            if scheme == BASELINE or not (gains := paired_gains(schemes, scheme, "headline")):
                continue
            alone = schemes[BASELINE].values("headline", "last", finished=True)
            strengths, means = points.setdefault(scheme, ([], []))
            strengths.append(statistics.fmean(alone[seed] for seed in gains))
            means.append(statistics.fmean(gains.values()))
    return points


def export_results(groups: Sequence[Group], folder: Path) -> None:
    """Copies config.json and the needed part of results.json of finished runs.

    Each copy is one line.

    Args:
      groups: as `read_groups` returns them.
      folder: receives `<learner>/<scheme>/seed_<n>`.

    Raises:
      UserError: a run is not in `<learner>/<scheme>/seed_<n>`, or its copy would replace the run itself or could not be
        written.
    """
    paths.check_output_folder(folder, "--export")
    for group in groups:
        learner, scheme = learner_and_scheme(group)
        for run in group.runs.values():
            if not run.finished:
                continue
            path = run.folder / "results.json"
            stored = schema.upgrade("results", json.loads(path.read_text(encoding="utf-8")), path)
            results = {key: value for key, value in stored.items() if key not in _OMITTED}
            results["networks"] = {
                name: {key: value for key, value in network.items() if key not in _OMITTED_OF_NETWORKS}
                for name, network in stored["networks"].items()
            }
            copy = folder / learner / scheme / run.folder.name
            if copy.resolve() == run.folder.resolve() and results != stored:
                raise UserError(f"--export={folder}: the copy of {run.folder} would replace it: choose another folder")
            copy.mkdir(parents=True, exist_ok=True)
            for name, content in (("config", configs.read(run.folder)), ("results", results)):
                files.write_atomically(copy / f"{name}.json", json.dumps(content, sort_keys=True) + "\n")


def _accuracy_and_gain(values, gain):
    """Returns a cell with the mean accuracy of some seeds and the test of their gains."""
    cell = format_mean_std(values.values())
    if not gain:
        return cell
    test = format_paired_test(list(gain.values()))
    return Measured(f"{cell} ({test})", cell.numbers | {f"gain_{name}": value for name, value in test.numbers.items()})


def _scheme_with_teacher(schemes):
    """Returns the scheme whose runs trained a learner's teacher; None: no such scheme."""
    for scheme, group in schemes.items():
        if not group.config.get("cdl.teacher_runs") and group.values(TEACHER, "last"):
            return scheme
    return None
