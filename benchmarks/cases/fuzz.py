"""Reads damaged and hostile files as the program does, and counts the outcomes.

    python -m benchmarks.run fuzz --inputs 10000 [--seed 0] [--kinds pth npz] [--out FILE.json]

First every file of `benchmarks.fuzz_attacks` and `benchmarks.fuzz_checkpoints`, then a number of files damaged at
random, in turns of all kinds. Each is read in a process that may take 2 GiB more memory than it has, and 20 seconds of
the processor. An input is accepted, refused in one line (UserError), or a finding: another exception, more lines,
memory at its end, too slow, a process that died, or a file that appeared where none should be, as any code in an input
would make one. With findings the command fails.
"""

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from benchmarks import fuzz_attacks, fuzz_checkpoints, fuzz_inputs
from cdl_jax.errors import UserError

MEMORY = 2 * 2**30  # bytes that reading an input may take beyond what the process has
SECONDS = 20  # of the processor for an input; of the clock ten times as many, for the machine may have other work
_TOGETHER = 100  # inputs in a process


def kinds() -> dict[str, fuzz_inputs.Kind]:
    """Returns every kind by name.

    Kinds whose names are equal before a colon are one kind in the table.
    """
    return {**fuzz_inputs.kinds(), **fuzz_checkpoints.kinds()}


def group(kind: str) -> str:
    """The name of a kind in the table."""
    return kind.split(":")[0]


def damaged(count: int, seed: int, groups=()) -> Iterator[tuple[str, str, bytes]]:
    """Yields (kind, name, file) of sound files, then of `count` damaged files.

    One sound file of each kind in the table is first. The damaged files are equal for equal seeds.

    groups: beginnings of the names of those that are wanted; none: all.
    """
    known, of = kinds(), {}
    for name in known:
        if not groups or name.startswith(tuple(groups)):
            of.setdefault(group(name), []).append(name)
    for names in of.values():
        yield names[0], "sound", known[names[0]].pack(known[names[0]].content)
    for number in range(count):
        turn, at = divmod(number, len(of))
        names = list(of.values())[at]
        name = names[turn % len(names)]
        content = fuzz_inputs.damaged(known[name].content, random.Random(seed * 10**9 + number))
        yield name, f"damaged, {number} of seed {seed}", known[name].pack(content)


def outcome(kind: fuzz_inputs.Kind, content: bytes, root: Path) -> tuple[str, str]:
    """Reads an input as the program does; returns the outcome.

    Args:
      root: empty folder. Code in the input would make `canary` in it. The folder is left empty.

    Returns:
      ("accepted", "refused" or "finding"; the message, or the reason of the finding).
    """
    folder = root / "around" / "inside"
    folder.mkdir(parents=True)
    (folder / kind.file).write_bytes(content)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            kind.read(folder)
        outcome = "accepted", ""
    except UserError as error:
        outcome = ("refused", str(error)) if "\n" not in str(error) else ("finding", f"more than one line: {error}")
        while error is not None:  # a reader may take the end of memory for damage
            outcome = ("finding", f"memory at its end: {outcome[1]}") if isinstance(error, MemoryError) else outcome
            error = error.__context__
    except BaseException as error:  # any other is what is looked for
        outcome = "finding", f"{type(error).__name__}: {str(error)[:200]}"
    escaped = [name for name in os.listdir(root) if name != "around"] + [
        name for name in os.listdir(root / "around") if name != "inside"
    ]
    if escaped or Path("/tmp/cdl_jax_escaped").exists():
        outcome = "finding", f"code ran or a file was written elsewhere: {escaped}"
    for entry in os.scandir(root):
        shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
    return outcome


def _status(field):
    """A figure in bytes of this process."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))


def _child(batch, kinds, root, pipe):
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    limits = (signal.ITIMER_PROF, SECONDS), (signal.ITIMER_REAL, 10 * SECONDS)
    for place, (kind, _, content) in enumerate(batch):
        pipe.write(json.dumps({"begun": place}) + "\n")
        pipe.flush()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is measured anew
        before = _status("VmRSS")
        for timer, seconds in limits:
            signal.setitimer(timer, seconds)
        what, words = outcome(kinds[kind], content, root)
        for timer, _ in limits:
            signal.setitimer(timer, 0)
        pipe.write(json.dumps({"what": what, "words": words[:400], "bytes": _status("VmHWM") - before}) + "\n")
        pipe.flush()


def tried(found: Iterable[tuple[str, str, bytes]], root: Path) -> Iterator[tuple[str, str, dict]]:
    """Yields (kind, name, {"what", "words", "bytes"}) of every input.

    The inputs are read in processes of their own. `bytes` are those of the memory that reading took.
    """
    known, found = kinds(), iter(found)
    while batch := list(islice(found, _TOGETHER)):
        while batch:
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(reading)
                code = 1
                try:
                    _child(batch, known, root, os.fdopen(writing, "w"))
                    code = 0
                finally:
                    os._exit(code)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                lines = [json.loads(line) for line in pipe]
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            ended = [line for line in lines if "what" in line]
            if len(ended) < len(batch):
                slow = "too slow" if -status in (signal.SIGPROF, signal.SIGALRM) else f"the process died ({status})"
                ended.append({"what": "finding", "words": slow, "bytes": 0})
                shutil.rmtree(root)
                root.mkdir()
            yield from ((kind, name, line) for (kind, name, _), line in zip(batch, ended, strict=False))
            batch = batch[len(ended) :]


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--inputs", type=int, default=10_000, help="damaged ones, besides those that are crafted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[], help="only those whose names begin so")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    table, findings = {}, []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        attacks = chain(fuzz_attacks.crafted(root / "canary"), fuzz_checkpoints.crafted())
        attacks = (each for each in attacks if not options.kinds or each[0].startswith(tuple(options.kinds)))
        for kind, name, outcome in tried(chain(attacks, damaged(options.inputs, options.seed, options.kinds)), root):
            row = table.setdefault(group(kind), {"inputs": 0, "accepted": 0, "refused": 0, "finding": 0, "mib": 0})
            row["inputs"] += 1
            row[outcome["what"]] += 1
            row["mib"] = max(row["mib"], round(outcome["bytes"] / 2**20))
            if outcome["what"] == "finding":
                findings.append((kind, name, outcome["words"]))
                print(f"finding: {kind}: {name}: {outcome['words']}", file=sys.stderr, flush=True)
    print("| kind | inputs | accepted | refused | findings | most memory, MiB |\n|---|---|---|---|---|---|")
    for kind, row in sorted(table.items()):
        print(f"| {kind} | " + " | ".join(str(value) for value in row.values()) + " |")
    columns = [[row[key] for row in table.values()] for key in ("inputs", "accepted", "refused", "finding", "mib")]
    print("| all | " + " | ".join(str(f(c)) for f, c in zip((sum, sum, sum, sum, max), columns, strict=True)) + " |")
    return {"kinds": table, "findings": findings, **({"wrong": f"fuzz: {len(findings)} findings"} if findings else {})}
