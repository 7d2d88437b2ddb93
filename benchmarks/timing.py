"""Fair timing: ways of doing the same work take turns, and what is told are medians with their quartiles."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

from cdl_jax.errors import UserError

# "wall": the time that passes. "cpu": what this process and those it has waited for had of the processors, which on one
# core is the time that would have passed on an idle machine: for machines shared with other work, without a GPU.
CLOCKS = {"wall": time.perf_counter, "cpu": lambda: time.process_time() + sum(os.times()[2:4])}
_chosen = ["wall"]


def choose_clock(name: str) -> None:
    """Which of `CLOCKS` all that follows is timed by."""
    _chosen[0] = name


def chosen() -> str:
    """Its name."""
    return _chosen[0]


def now() -> float:
    """Seconds on the chosen clock."""
    return CLOCKS[_chosen[0]]()


def alternate(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way returns (its seconds, say) in each of `rounds`, in which all take turns.

    Every round begins with another way, so that none always follows the same one.
    """
    found, names = {name: [] for name in ways}, list(ways)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(ways[name]())
    return found


def summary(values: list[float]) -> dict:
    """`{"median", "q1", "q3", "rounds"}` of some measurements; quartiles by linear interpolation."""
    if len(values) == 1:
        return {"median": values[0], "q1": values[0], "q3": values[0], "rounds": 1}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": low, "q3": high, "rounds": len(values)}


def compare(found: Mapping[str, list[float]], base: str) -> dict[str, dict]:
    """Each way's `summary`, and `ratio`: its median over that of `base`, so above 1 where `base` is faster."""
    told = {name: summary(values) for name, values in found.items()}
    return {name: {**one, "ratio": one["median"] / told[base]["median"]} for name, one in told.items()}


def apart(losses: Mapping[str, float], base: str) -> dict[str, float]:
    """The relative difference of each loss to that of `base`."""
    return {name: abs(loss - losses[base]) / max(abs(losses[base]), 1e-12) for name, loss in losses.items()}


def check_equal(what: str, differences: Mapping[str, float], tolerances: Mapping[str, float]) -> None:
    """Refuses to time ways that do not do the same.

    Raises:
      UserError: names the way whose difference is above its tolerance, or is not a number.
    """
    for name, difference in differences.items():
        if not difference <= tolerances[name]:
            raise UserError(
                f"benchmarks: {what} of {name!r} is apart by {difference:.1e}, more than {tolerances[name]:.0e}: "
                "not timed, the two do not compute the same"
            )


def markdown(head, rows) -> str:
    """A table, its cells given as text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
