"""Fair timing: alternatives take turns, and results are medians with quartiles."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

from cdl_jax.errors import UserError

# "wall": elapsed time. "cpu": CPU time of this process and of the children that it has waited for. On one core this is
# the time that would have passed on an idle machine. It suits machines shared with other work, without a GPU.
CLOCKS = {"wall": time.perf_counter, "cpu": lambda: time.process_time() + sum(os.times()[2:4])}
_chosen = ["wall"]


def choose_clock(name: str) -> None:
    """Selects the clock of all later timings, a key of `CLOCKS`."""
    _chosen[0] = name


def chosen() -> str:
    """Returns the name of the selected clock."""
    return _chosen[0]


def now() -> float:
    """Returns the seconds of the selected clock."""
    return CLOCKS[_chosen[0]]()


def alternate(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls all functions in turns; returns the values of each function, one a round.

    Every round starts with another function, so that no function always follows the same one.
    """
    found, names = {name: [] for name in ways}, list(ways)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(ways[name]())
    return found


def summary(values: list[float]) -> dict:
    """Returns `{"median", "q1", "q3", "rounds"}` of measurements.

    Quartiles are computed by linear interpolation.

    >>> summary([1.0, 2.0, 3.0])
    {'median': 2.0, 'q1': 1.5, 'q3': 2.5, 'rounds': 3}
    """
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0], "rounds": 1}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": low, "q3": high, "rounds": len(values)}


def compare(found: Mapping[str, list[float]], base: str) -> dict[str, dict]:
    """Returns the `summary` of each function, and its `ratio`.

    `ratio` is the median of the function over the median of `base`.
    """
    summaries = {name: summary(values) for name, values in found.items()}
    return {name: {**one, "ratio": one["median"] / summaries[base]["median"]} for name, one in summaries.items()}


def loss_differences(losses: Mapping[str, float], base: str) -> dict[str, float]:
    """Returns the relative difference of each loss to the loss of `base`."""
    return {name: abs(loss - losses[base]) / max(abs(losses[base]), 1e-12) for name, loss in losses.items()}


def check_equal(what: str, differences: Mapping[str, float], tolerances: Mapping[str, float]) -> None:
    """Checks that all alternatives compute the same.

    Raises:
        UserError: a difference is above its tolerance, or is NaN. The message has the name.
    """
    for name, difference in differences.items():
        if not difference <= tolerances[name]:
            raise UserError(
                f"benchmarks: {what} of {name!r} differs by {difference:.1e}, more than {tolerances[name]:.0e}: "
                "not timed, because the two do not compute the same"
            )


def markdown(head, rows) -> str:
    """Formats a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
