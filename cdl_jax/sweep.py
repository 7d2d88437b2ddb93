"""Plans a sweep: the commands of all its runs. `launch/sweep.sh` trains them.

    python -m cdl_jax.sweep [--dry-run] FOLDER SEED[,SEED...] CONFIG... [--grid KEY=VALUE,...]... [-- OVERRIDES...]

--grid KEY=VALUES   a config key and its values, such as optim.learning_rate=1e-3,1e-2; several keys: all combinations
--dry-run           prints the commands, one a line, for a reader. Without it each line has the working directory of a
                    run, that of the run whose teacher it uses, and the words of its command, separated by character 31.

The working directories are FOLDER/<config, its arguments joined by dashes>[/<key>=<value>,...]/seed_<n>.

Runs of `cdl` with the same teacher train it once: the first of them trains it, and the others take it from there by
`config.cdl.teacher_runs`, see `methods.cdl.teacher_options`. A run that has begun keeps its teacher.
"""

import ast
import hashlib
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax import config_files, main, plugins
from cdl_jax.errors import UserError
from cdl_jax.runtime import console

SEPARATOR = "\x1f"
_USAGE = (
    "usage: bash launch/sweep.sh [-j N] [--dry-run] FOLDER SEED[,SEED...] CONFIG... [--grid KEY=VALUE,...]... "
    "[-- OVERRIDES...]"
)
_FLAG = re.compile(r"--?(?P<key>[^=]+)(=.*)?", re.DOTALL)
_OWN_FLAGS = ("config", "config.seed", "config.seeds", "workdir", "mode", "from", "task", "tasks")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_GRID = re.compile(r"(?:--)?(?:config\.)?(?P<key>[^=]+)=(?P<values>.+)", re.DOTALL)


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep.

    Attributes:
      workdir: the working directory.
      words: of its command, behind `python -m cdl_jax.main`.
      teacher: working directory of the run whose teacher it uses; "": none of this sweep.
    """

    workdir: str
    words: tuple[str, ...]
    teacher: str = ""

    @property
    def fields(self) -> str:
        """The run as a line for `launch/sweep.sh`."""
        return SEPARATOR.join((self.workdir, self.teacher, *self.words))

    @property
    def command(self) -> str:
        """The run as a command for a shell."""
        return shlex.join(("python", "-m", "cdl_jax.main", *self.words))


@dataclass(frozen=True)
class Sweep:
    """A description of a sweep.

    Attributes:
      folder: holds the working directories.
      seeds: of the runs.
      configs: each as behind `--config`.
      grid: key -> values as text.
      overrides: words for every run.
    """

    folder: str
    seeds: tuple[str, ...]
    configs: tuple[str, ...]
    grid: dict[str, tuple[str, ...]] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def runs(self) -> Iterator[PlannedRun]:
        """Yields the runs with teachers of their own."""
        for seed, config in itertools.product(self.seeds, self.configs):
            name, arguments = config_files.split_arguments(config)
            folder = f"{self.folder}/{Path(main.default_workdir(Path(name), arguments)).name}"
            for values in itertools.product(*self.grid.values()):
                point = [f"{key}={value}" for key, value in zip(self.grid, values, strict=True)]
                workdir = "/".join([folder, *filter(None, [",".join(point).replace("/", "-")]), f"seed_{seed}"])
                words = ("--config", config, "--workdir", workdir, f"--config.seed={seed}",
                         f"--config.compilation_cache={self.folder}/compiled")  # fmt: skip
                yield PlannedRun(workdir, (*words, *self.overrides, *(f"--config.{setting}" for setting in point)))


@console.command
def run(argv: Sequence[str]) -> int:
    """Runs the command line.

    Args:
      argv: the words after the program's name.

    Returns:
      The exit code.
    """
    try:
        sweep_words = argv[: argv.index("--")] if "--" in argv else argv
        for item in plan(parse(argv)):
            print(item.command if "--dry-run" in sweep_words else item.fields)
    except UserError as error:
        print(f"cdl_jax: {error}", file=sys.stderr)
        return 2
    return 0


def parse(words: Sequence[str]) -> Sweep:
    """Returns the sweep that the words of a command describe.

    Raises:
      UserError: a word is missing or wrong.

    >>> sweep = parse(["runs/a", "0,1", "quickstart", "--grid", "distill.alpha=0.1,0.5"])
    >>> sweep.seeds, sweep.grid
    (('0', '1'), {'distill.alpha': ('0.1', '0.5')})
    """
    words, overrides = list(words), []
    if "--" in words:
        words, overrides = words[: words.index("--")], words[words.index("--") + 1 :]
    grid, positionals = {}, []
    while words:
        word = words.pop(0)
        if word == "--grid" or word.startswith("--grid="):
            key, values = _grid_values(word.partition("=")[2] or (words.pop(0) if words else ""))
            if key in grid:
                raise UserError(f"--grid {key} is repeated: name all of its values once")
            grid[key] = values
        elif word == "--dry-run":
            continue
        elif word.startswith("-"):
            raise UserError(f"unknown option {word}. {_USAGE}; options of the runs come after --")
        else:
            positionals.append(word)
    if len(positionals) < 3 or not re.fullmatch(r"\d+(,\d+)*", positionals[1]):
        raise UserError(_USAGE)
    for word in overrides:
        match = _FLAG.fullmatch(word)
        if match and (match["key"] in _OWN_FLAGS or match["key"].removeprefix("config.") in grid):
            raise UserError(f"{word} after --: the sweep sets it for each run, leave it out")
    seeds = tuple(str(int(seed)) for seed in positionals[1].split(","))
    if len({*seeds}) < len(seeds):
        raise UserError(f"seeds {positionals[1]}: a seed is repeated")
    return Sweep(positionals[0], seeds, tuple(positionals[2:]), grid, tuple(overrides))


def plan(sweep: Sweep) -> list[PlannedRun]:
    """Returns the runs of a sweep, in which each teacher is trained once.

    The run of a shared teacher precedes those that use it.

    Raises:
      UserError: a config or a value is wrong, or a run of another config has begun in a working directory.
    """
    teachers, planned, workdirs = {}, [], {}
    for item in sweep.runs():
        config, begun = _resolve(item), configs.read(Path(item.workdir))
        first = workdirs.setdefault(json.dumps(config.to_dict(), sort_keys=True), item.workdir)
        if first != item.workdir:
            raise UserError(f"{first} and {item.workdir} would be one run: name each config, seed and value once")
        digest = teacher_digest(config)
        teacher = teachers.get(digest, "")
        if begun is not None:  # it keeps its teacher
            own = config.get("cdl", {}).get("teacher_runs", ())
            teacher = "" if own else "".join(begun["config"].get("cdl", {}).get("teacher_runs", ())[:1])
        if digest and not teacher:
            teachers.setdefault(digest, item.workdir)
        if begun is not None:  # complete runs are skipped, so nothing else compares their configs
            from cdl_jax.run.workdir import check_config  # imports jax

            if teacher:
                config = _resolve(_with_teacher(item, teacher))
            check_config(Path(item.workdir), config.to_dict(), "FOLDER")
        planned.append(_with_teacher(item, teacher) if teacher else item)
    folders = [item.workdir for item in planned]
    if len({*folders}) < len(folders):
        raise UserError("two runs of the sweep have one working directory: name each config, seed and value once")
    for item in planned:
        is_reachable = item.teacher in ("", *folders) or _is_complete(item.teacher) or _is_complete(item.workdir)
        if not is_reachable:
            raise UserError(
                f"{item.workdir} has begun with the teacher of {item.teacher}, which is incomplete and has no part in "
                f"this sweep: name its config too, or delete {item.workdir}"
            )
    return planned


def teacher_digest(config: ConfigDict) -> str | None:
    """Returns the fingerprint of a config's teacher.

    Args:
      config: resolved.

    Returns:
      SHA-256 in hexadecimal digits; None: the run trains no teacher that others can use.
    """
    options = plugins.optional_part("methods", config.method, "teacher_options")
    relevant = options(config) if options else None
    return relevant and hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _is_complete(workdir):
    return (Path(workdir) / "sweep_complete").exists()


def _with_teacher(item, workdir) -> PlannedRun:
    return PlannedRun(item.workdir, (*item.words, f"--config.cdl.teacher_runs={(workdir,)!r}"), workdir)


def _resolve(item):
    """Returns the config of a planned run."""
    command = sys.argv
    try:
        return main.parse(["cdl_jax", *item.words]).config
    finally:
        sys.argv = command


def _grid_values(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the key and the values of a grid's option.

    Commas within brackets separate no values.

    Raises:
      UserError: it is not KEY=VALUE,VALUE, or the key is that of the seed.

    >>> _grid_values("config.optim.betas=(0.9,0.99),(0.9,0.999)")
    ('optim.betas', ('(0.9,0.99)', '(0.9,0.999)'))
    >>> _grid_values("optim.learning_rate=1e-3,0.001")
    Traceback (most recent call last):
    cdl_jax.errors.UserError: --grid optim.learning_rate=1e-3,0.001: a value is repeated
    """
    match = _GRID.fullmatch(text)
    if match is None:
        raise UserError(f"--grid {text}: write KEY=VALUE,VALUE, such as --grid optim.learning_rate=1e-3,1e-2")
    if match["key"] in ("seed", "seeds"):
        raise UserError(f"--grid {text}: seeds are the second argument of the sweep, such as 0,1,2")
    values = _split_values(match["values"])
    values = values and [value.strip() for value in values]
    if values is None:
        raise UserError(f"--grid {text}: brackets are not balanced")
    if "" in values:
        raise UserError(f"--grid {text}: a value is empty")
    if len({*map(_parsed, values)}) < len(values):
        raise UserError(f"--grid {text}: a value is repeated")
    return match["key"], tuple(values)


def _split_values(text):
    """Returns the parts of a text between commas outside of brackets.

    The result is None if brackets are not balanced.
    """
    values, closing = [""], []
    for character in text:
        if character in _BRACKETS:
            closing.append(_BRACKETS[character])
        elif character in _BRACKETS.values() and (not closing or closing.pop() != character):
            return None
        if character == "," and not closing:
            values.append("")
        else:
            values[-1] += character
    return None if closing else values


def _parsed(text):
    """Returns a value in a form in which equal numbers are equal.

    Examples are 1e-3 and 0.001.
    """
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if type(value) in (int, float) else repr(value)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
