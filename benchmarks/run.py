"""All benchmarks under one command.

    python -m benchmarks.run --list
    python -m benchmarks.run cdl [--size tiny] [--out FILE.json]
    python -m benchmarks.run cdl --help

A case prints a table; --out keeps its figures, with the machine, the versions and the command, as JSON. Both sides of a
comparison run in one process, in turns, with as many threads as there are processors to run on (`taskset -c 0` gives
one to each); nothing is timed before their losses are equal. jax and torch choose the device themselves. The other side
of some cases is PyTorch: pip install -e ".[bench]".
"""

import argparse
import ast
import importlib
import json
import os
import shlex
import sys
from pathlib import Path

from benchmarks import timing
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.runtime import malloc

CLOCK = "cpu: time on the processors, for one core of a machine that other work shares"
CASES = Path(__file__).parent / "cases"


def known() -> dict[str, str]:
    """Each case and the first line of its docstring; nothing is imported."""
    files = sorted(path for path in CASES.glob("*.py") if path.stem != "__init__")
    return {path.stem: ast.get_docstring(ast.parse(path.read_text())).splitlines()[0] for path in files}


def main(arguments=None) -> None:
    """The command line.

    Raises:
      SystemExit: with code 2 and one line for a user's mistake, and for what a case found `wrong`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _main(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def _main(arguments):
    cases = known()
    if not arguments or arguments[0].startswith("-"):
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--list", action="store_true", help="the cases")
        parser.parse_args(arguments)
        print("\n".join(f"{name:16} {what}" for name, what in cases.items()))
        return
    name, *rest = arguments
    if name not in cases:
        raise UserError(f"benchmarks: no case {name!r}: {plugins.did_you_mean(name, cases)}")
    # On a GPU jax would otherwise take most of the memory at once and leave PyTorch too little.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    malloc.retain_freed_memory()  # as a run does
    case = importlib.import_module(f"benchmarks.cases.{name}")
    parser = argparse.ArgumentParser(
        prog=f"benchmarks.run {name}", description=case.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    parser.add_argument("--clock", choices=timing.CLOCKS, default="wall", help=CLOCK)
    case.arguments(parser)
    options = parser.parse_args(rest)
    timing.choose_clock(options.clock)
    found = case.measure(options)
    wrong = found.pop("wrong", None)
    if options.out:
        from benchmarks import machine

        command = shlex.join(["python", "-m", "benchmarks.run", *arguments])
        content = {"command": command, "clock": options.clock, **machine.describe(), **found}
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    if wrong:
        raise UserError(wrong)


if __name__ == "__main__":
    main()
