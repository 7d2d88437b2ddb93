"""Columns of what a learner costs: operations of training, and parameters."""

import statistics
from collections.abc import Sequence

from cdl_jax.report.groups import Group, Run, has_stored_teacher
from cdl_jax.report.text import MISSING, Measured

COLUMNS = ("operations", "parameters a task")


def cells(group: Group) -> list[str]:
    """Returns the cells of `COLUMNS`, which are means over finished runs.

    A cell is "-" where a run does not state the number.

    A run's operations are those of its training steps alone, of all networks that it trained, by the compiler's count.
    "+ teacher" marks runs with the teacher of another run, which has trained it.
    Its parameters are those of its headline that training may change, as stored after the last task, divided by the
    number of tasks.
    """
    runs = [run for run in group.runs.values() if run.finished]
    operations = _mean(run.operations for run in runs)
    parameters = _mean(_parameters_per_task(run) for run in runs)
    teacher = " + teacher" if has_stored_teacher(group) else ""
    return [
        MISSING if operations is None else Measured(f"{operations:.2e}{teacher}", {"": operations}),
        MISSING if parameters is None else Measured(f"{parameters:,.0f}", {"": parameters}),
    ]


def has_operations(groups: Sequence[Group]) -> bool:
    """Returns whether any run states the number of its training steps."""
    return any(run.operations is not None for group in groups for run in group.runs.values())


def _parameters_per_task(run: Run) -> float | None:
    counts = [run.parameters.get(name) for name in run.headline]
    return None if not counts or None in counts or not run.num_tasks else statistics.fmean(counts) / run.num_tasks


def _mean(values) -> float | None:
    """Returns the mean; None without a value or if one is None."""
    values = list(values)
    return None if not values or None in values else statistics.fmean(values)
