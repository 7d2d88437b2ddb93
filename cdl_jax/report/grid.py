"""Runs of continual learners by schemes as tables: what each scheme gains over the learner without it, and a test.

A run lies in `<learner>/<scheme>/seed_<s>`, and its learner and scheme are called after these folders. What a learner
is compared with is its scheme "none", seed by seed.
"""

import json
import re
import statistics
from pathlib import Path

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.report.groups import Group
from cdl_jax.report.tables import gap_closed, share, spread, standard_error
from cdl_jax.report.text import Measured
from cdl_jax.runtime import files

ALONE = "none"
TEACHER = "teacher"
MEASURES = ("average_incremental", "learning_accuracy", "forgetting_cdl", "forgetting_coda", "forgetting_max")

# What nobody reads of a run that is kept for its numbers; formulas are those of metrics.py.
_LEFT_OUT = ("formulas", "streams", "means", "best")
_LEFT_OUT_OF_NETWORKS = ("selection", "by_task", "before", "at_start", "stream_matrix")


def place(group: Group) -> tuple[str, str]:
    """(learner, scheme) of a group, by its folders.

    Raises:
      UserError: a run does not lie in `<learner>/<scheme>/seed_<s>`.
    """
    folder = next(iter(group.runs.values())).folder
    if not re.fullmatch(r"seed_\d+", folder.name) or len(folder.parts) < 3:
        raise UserError(f"grid: {folder} is not called <learner>/<scheme>/seed_<n>: use the command table")
    return folder.parts[-3], folder.parts[-2]


def arrange(groups: list[Group]) -> dict[str, dict[str, Group]]:
    """Learner -> scheme -> group, in the order given, but for the learner alone, which is first.

    Raises:
      UserError: two groups have one place.
    """
    found = {}
    for group in groups:
        learner, scheme = place(group)
        schemes = found.setdefault(learner, {})
        if scheme in schemes:
            raise UserError(f"grid: the runs in {learner}/{scheme} have different configs: name those of one")
        schemes[scheme] = group
    first = lambda schemes: sorted(schemes.items(), key=lambda item: item[0] != ALONE)  # noqa: E731
    return {learner: dict(first(schemes)) for learner, schemes in found.items()}


def differences(schemes: dict[str, Group], scheme: str, network: str, metric: str = "last") -> dict[tuple, float]:
    """By seed how far a network of a scheme is above the learner alone, of the seeds that both have finished."""
    if ALONE not in schemes or (scheme, network) == (ALONE, "student"):
        return {}
    base = schemes[ALONE].values("headline", metric, finished=True)
    own = schemes[scheme].values(network, metric, finished=True)
    return {seed: value - base[seed] for seed, value in own.items() if seed in base}


def p_value(pairs: list[float]) -> float | None:
    """Two-sided p of the paired t-test that the mean of differences is 0; None for fewer than two, or all alike."""
    from scipy import stats

    if len(pairs) < 2 or len({*pairs}) < 2:
        return None
    return float(stats.ttest_1samp(pairs, 0.0).pvalue)


def tested(pairs: list[float]) -> str:
    """Mean difference, its standard error and p as text, "-" where there is none."""
    if not pairs:
        return "-"
    mean, p, error = statistics.fmean(pairs), p_value(pairs), standard_error(pairs)
    text = f"{mean:+.2f}"
    if p is not None:
        text += f" ± {error:.2f}, " + (f"p {p:.3f}" if p >= 0.001 else "p < 0.001")
    return Measured(text, {"mean": mean, "standard_error": error, "p": p, "n": len(pairs)})


def overview(groups: list[Group]) -> list[list[str]]:
    """Rows of a table, the head first: a scheme each, with `last` of every learner and what it gains over "none".

    The first row is the teacher's, of the runs in which it learnt. The last column is the mean of the differences over
    the learners that have the row, of the seeds that all of them have.
    """
    found = arrange(groups)
    found = {learner: schemes for learner, schemes in found.items() if ALONE in schemes}
    rows = [["", *found, "mean gain"]]
    for scheme in dict.fromkeys([TEACHER, *(s for schemes in found.values() for s in schemes)]):
        cells, gains = [], []
        for schemes in found.values():
            source = _with_teacher(schemes) if scheme == TEACHER else scheme
            network = TEACHER if scheme == TEACHER else "headline"
            if source not in schemes:
                cells.append("-")
                continue
            values = schemes[source].values(network, "last", finished=True)
            gain = differences(schemes, source, network) if scheme != ALONE else {}
            cell = spread(values.values())
            if gain:
                of_gain = tested(list(gain.values()))
                numbers = {f"gain_{name}": value for name, value in of_gain.numbers.items()}
                cell = Measured(f"{cell} ({of_gain})", cell.numbers | numbers)
            cells.append(cell)
            gains.append(gain)
        common = [seed for seed in (gains[0] if gains else {}) if all(seed in gain for gain in gains)]
        of_all = [statistics.fmean(gain[seed] for gain in gains) for seed in common]
        rows.append([scheme, *cells, tested(of_all)])
    return [row for row in rows if any(cell != "-" for cell in row[1:])]


def details(groups: list[Group]) -> list[list[str]]:
    """Rows of a table, the head first: one for each learner and scheme, with every measure of its first network."""
    rows = [["learner", "scheme", "seeds", "last", "gain", *MEASURES, "gap closed"]]
    for learner, schemes in arrange(groups).items():
        for scheme, group in schemes.items():
            values = group.values("headline", "last", finished=True)
            gain = differences(schemes, scheme, "headline") if scheme != ALONE else {}
            measures = [spread(group.values("headline", name, finished=True).values()) for name in MEASURES]
            gap = gap_closed(group, [schemes[ALONE]] if ALONE in schemes else [])
            seeds = Measured(str(len(values)), {"": len(values)})
            row = [learner, scheme, seeds, spread(values.values()), tested(list(gain.values()))]
            rows.append([*row, *measures, share(gap)])
    return rows


def gains(groups: list[Group]) -> dict[str, list[float]]:
    """Learner and scheme -> the gain of each seed over the learner alone."""
    found = {}
    for learner, schemes in arrange(groups).items():
        for scheme in schemes:
            if scheme != ALONE and (pairs := differences(schemes, scheme, "headline")):
                found[f"{learner}, {scheme}"] = list(pairs.values())
    return found


def export_results(groups: list[Group], folder: Path) -> None:
    """Copies config.json and what is needed of results.json of finished runs to `folder`, a line each.

    Raises:
      UserError: see `place`.
    """
    for group in groups:
        learner, scheme = place(group)
        for run in group.runs.values():
            if not run.finished:
                continue
            results = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
            results = {key: value for key, value in results.items() if key not in _LEFT_OUT}
            for network in results["networks"].values():
                for key in _LEFT_OUT_OF_NETWORKS:
                    network.pop(key, None)
            own = folder / learner / scheme / run.folder.name
            own.mkdir(parents=True, exist_ok=True)
            for name, content in (("config", configs.read(run.folder)), ("results", results)):
                files.write_atomically(own / f"{name}.json", json.dumps(content, sort_keys=True) + "\n")


def _with_teacher(schemes):
    """The scheme in whose run the teacher of these learnt."""
    for scheme, group in schemes.items():
        if not group.config.get("cdl.teachers") and group.values(TEACHER, "last"):
            return scheme
    return None
