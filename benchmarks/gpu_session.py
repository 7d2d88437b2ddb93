"""Measures on a GPU in a few minutes what the documents leave open.

    bash benchmarks/gpu.sh [--out FILE.jsonl] [--seconds 480] [--only steps_b_s ...]
    python -m benchmarks.gpu_session --rehearse          # every section with tiny sizes, on any device

The most important section is first. Each section is a case of `benchmarks.run` in a process of its own, with a time
limit. Its result is a line of JSON, written when the section ends. So a machine that is taken away costs the sections
that are left. A section that fails or takes too long leaves its output and the reason. Sections against PyTorch are
left out where PyTorch is missing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import timing
from cdl_jax.errors import UserError

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "docs" / "results" / "benchmarks"
REHEARSAL_SECONDS = 600  # of each section: a CPU may be slow
LEAST_SECONDS = 15  # less is not enough for the start of a section
_PROBE = (
    "import importlib.util as u, json, jax; "
    "print(json.dumps([jax.default_backend(), jax.devices()[0].device_kind, u.find_spec('torch') is not None]))"
)


@dataclass(frozen=True)
class Section:
    """A call of a case.

    Attributes:
      name: of the section.
      seconds: time limit.
      words: the case and its options.
      tiny: the options of the rehearsal, which replace those of `words`.
      needs_torch: whether the other side is PyTorch.
      model: file of figures of the case `aot` for the same steps; empty: none.
    """

    name: str
    seconds: int
    words: tuple[str, ...]
    tiny: tuple[str, ...]
    needs_torch: bool = False
    model: str = ""


def _steps(size, seconds, *manners):
    """Returns the section of CDL's steps, of this program alone or against PyTorch."""
    shared = ("--learners", "l2p", "--schemes", "kd", "--manners", *manners)
    words = ("cdl", "--size", size, *shared, "--rounds", "5", "--steps", "10")
    # Without "tuned": torch.compile takes minutes on a CPU.
    tiny = ("--size", "tiny", *shared[:5], *manners[:1], "--rounds", "1", "--steps", "1")
    name = f"steps_{size}" + ("_pytorch" if manners else "")
    return Section(name, seconds, words, tiny, bool(manners), f"aot_{size}.json")


# By importance. Compiled programs are cached, so the second section of a size compiles PyTorch's side alone.
SECTIONS = (
    Section(
        "attention",
        60,
        ("attention",),
        ("--batch", "2", "--heads", "2", "--queries", "9", "--keys", "9", "--rounds", "1", "--calls", "1"),
    ),
    _steps("b_s", 90),
    _steps("b_s", 150, "authors", "tuned"),
    _steps("l_b", 90),
    _steps("l_b", 120, "authors", "tuned"),
    Section(
        "evaluation",
        90,
        ("evaluation", "--size", "b_s", "--learners", "l2p", "--images", "640", "--rounds", "5"),
        ("--size", "tiny", "--learners", "l2p", "--images", "10", "--rounds", "1", "--manners", "authors"),
        needs_torch=True,
    ),
    Section("seeds", 60, ("seeds", "--runs", "0"), ("--runs", "0", "--rounds", "1", "--steps", "1", "--count", "2")),
    Section("calls", 60, ("calls",), ("--networks", "cnn", "--most", "1", "2", "--steps", "2", "--rounds", "1")),
    *(
        Section(name, 45, (name,), ("--manners", "authors", "--rounds", "1", "--steps", "1"), needs_torch=True)
        for name in ("okddip", "dkt", "vkd")
    ),
    Section("decoding", 45, ("decoding",), ("--images", "4", "--rounds", "1")),
    Section(
        "input",
        45,
        ("input_pipeline", "--size", "b_s"),
        ("--batches", "1", "--rounds", "1"),
        needs_torch=True,
    ),
)


def main(arguments: list[str] | None = None) -> None:
    """Runs the sections.

    Raises:
      SystemExit: with code 2 and one line, without a GPU or with an unknown section.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_session.jsonl"), help="file to which lines are added")
    parser.add_argument("--seconds", type=float, default=480, help="of all sections together")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in SECTIONS], help="these sections")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on any device")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.seconds
    try:
        backend, card, has_torch = probe()
        if backend == "cpu" and not options.rehearse:
            raise UserError("benchmarks: jax finds no GPU here: add --rehearse to try the sections on this machine")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if not has_torch:
        print("PyTorch is missing: sections against it are left out", flush=True)
    chosen = [one for one in SECTIONS if not options.only or one.name in options.only]
    for section in chosen:
        result = run(section, options.rehearse, has_torch, end)
        if result["status"] == "measured" and section.model and not options.rehearse:
            result["modelled_ms"] = modelled_ms(MODELS / section.model, card)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**result, "card": card}) + "\n")
        print(summary(result), flush=True)


def probe() -> tuple[str, str, bool]:
    """Returns jax's backend, its device's name, and whether PyTorch is installed.

    A process of its own reads them, so that this one takes no memory of the GPU.

    Raises:
      UserError: jax is missing or does not start.
    """
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.splitlines() or ["no message"])[-1]
        raise UserError(f"benchmarks: jax does not start ({reason}): install requirements-gpu.txt")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def run(section: Section, rehearse: bool, has_torch: bool, end: float) -> dict:
    """Runs a section.

    Args:
      section: what to run.
      rehearse: whether with its tiny options.
      has_torch: whether PyTorch is installed.
      end: `time.monotonic()` at which all sections end.

    Returns:
      `section`, `status` ("measured", "failed", "too long" or "left out"), `seconds`, and `figures` of the case or the
      `reason` and `output`.
    """
    words = (section.words[0], *section.tiny) if rehearse else section.words
    result = {"section": section.name, "command": " ".join(words)}
    seconds = REHEARSAL_SECONDS if rehearse else section.seconds
    limit = min(seconds, end - time.monotonic())
    if section.needs_torch and not has_torch:
        return {**result, "status": "left out", "seconds": 0, "reason": "PyTorch is missing"}
    if limit < LEAST_SECONDS:
        return {**result, "status": "left out", "seconds": 0, "reason": "no time is left"}
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        code, seconds, output = call([sys.executable, "-m", "benchmarks.run", *words, "--out", str(figures)], limit)
        result["seconds"] = round(seconds, 1)
        if code == 0:
            return {**result, "status": "measured", "figures": json.loads(figures.read_text(encoding="utf-8"))}
    status = "too long" if code is None else "failed"
    reason = f"over {limit:.0f} s" if code is None else (output.strip().splitlines() or ["no message"])[-1]
    return {**result, "status": status, "reason": reason, "output": output[-4000:]}


def call(command: list[str], limit: float) -> tuple[int | None, float, str]:
    """Runs a command in the repository's root.

    Args:
      command: the words.
      limit: seconds after which it is killed.

    Returns:
      (exit code, or None if it was killed; seconds; what it printed).
    """
    programs = str(Path(tempfile.gettempdir()) / "cdl_jax_gpu_session")
    environment = {"JAX_COMPILATION_CACHE_DIR": programs, **os.environ, "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with its own processes, such as compilers
            process.wait()
        output.seek(0)
        return code, time.monotonic() - start, output.read()


def modelled_ms(file: Path, card: str) -> dict[str, float]:
    """Returns the modelled milliseconds of each phase's step.

    Args:
      file: figures of the case `aot`.
      card: name of the device, such as "NVIDIA H200".

    Returns:
      `{phase: ms}`, empty for a card without a model.
    """
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return {row["phase"]: row["sum"]["ms"] for row in rows if row["card"] in card.lower()}


def summary(result: dict) -> str:
    """Returns a line about a result, and a table of its steps if it has steps.

    The table has the measured and the modelled milliseconds of each step.

    >>> summary({"section": "calls", "status": "left out", "seconds": 0, "reason": "no time is left"})
    'calls: left out after 0 s: no time is left'
    """
    line = f"{result['section']}: {result['status']} after {result['seconds']:.0f} s"
    if "reason" in result:
        return f"{line}: {result['reason']}"
    steps, modelled = result["figures"].get("steps", []), result.get("modelled_ms", {})
    head = ("step of the", "side", "ms, measured", "ms, modelled")
    rows = []
    for step in steps:
        for side, one in step["ms"].items():
            model = f"{modelled[step['phase']]:.2f}" if side == "ours" and modelled else ""
            rows.append((step["phase"], side, f"{one['median']:.2f}", model))
    return f"{line}\n{timing.markdown(head, rows)}" if rows else line


if __name__ == "__main__":
    main()
