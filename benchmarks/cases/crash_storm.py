"""Kills runs of the four systems at random; compares them with undisturbed runs.

    python -m benchmarks.run crash_storm --folder DIR [--kills 100] [--systems cdl,okddip,dkt,vkd] [--minutes M]

Each life of a run is one `python -m cdl_jax.main` with the same arguments. It is ended by SIGKILL at a moment of one of
four kinds, drawn anew: while it starts, some log lines into training, while a checkpoint is being written (its folder
has Orbax's temporary name), or between the last checkpoint and the end, when report and results are written. After some
kills the run is left to end. Then weights after every task, metrics.jsonl, exported weights, and all that results.json
holds but cost, versions and command must equal, bit for bit, those of the undisturbed run. One core suffices; a kill
costs a start of some seconds, for all compile into one cache.
"""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
_TEMPORARY = ".orbax-checkpoint-tmp"
_LIVES = 7  # number of kills after which a run may end
_SMALL = (
    "--config.data.max_train_per_class=16", "--config.data.max_test_per_class=8", "--config.train.batch_size=16",
    "--config.train.epochs=1", "--config.log.every_steps=1", "--config.log.to=()",
    "--config.checkpoint.every_steps=2",
)  # fmt: skip
_TEN_CLASSES = "--config.data.class_order=0,1,2,3,4,5,6,7,8,9"
_CONVOLUTIONS = ("depths=(1,1,1)", "widths=(4,6,12)")
_TEACHER = (
    "--config", "configs/pretrain_glyph.py:network=resnet20,data=glyph_mini", *_SMALL, _TEN_CLASSES,
    "--config.optim.warmup_epochs=0", *(f"--config.network.{size}" for size in _CONVOLUTIONS),
)  # fmt: skip
SYSTEMS = {
    "cdl": ("--config", "configs/quickstart.py", *_SMALL, "--config.data.num_tasks=2", _TEN_CLASSES),
    "okddip": ("--config", "configs/okddip_glyph.py:method=okddip,tasks=2", *_SMALL),
    "dkt": (
        "--config", "configs/dkt_glyph.py:replay=20", *_SMALL, "--config.data.num_tasks=2",
        "--config.network.width=2", "--config.network.depths=(1, 1)",
    ),
    "vkd": (
        "--config", "configs/vkd.py:network=deit_ti_conv,teacher=resnet20,data=glyph_mini", *_SMALL, _TEN_CLASSES,
        "--config.teacher.weights={folder}/teacher", *(f"--config.teacher.{size}" for size in _CONVOLUTIONS),
        "--config.augment.train=shift", "--config.augment.test=none", "--config.augment.mean=()",
        "--config.augment.std=()", "--config.student.dim=16", "--config.student.heads=2", "--config.student.depth=1",
        "--config.student.image_size=32", "--config.student.stem_width=4", "--config.vkd.ema=true",
        "--config.augment.erase=0.25",
    ),
}  # fmt: skip
MOMENTS = ("start", "training", "checkpoint", "report")


def start(arguments, workdir: Path, cache: Path) -> subprocess.Popen:
    """Starts `python -m cdl_jax.main`; returns the running process.

    The output is appended to a file beside the working directory.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache),
           "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}  # fmt: skip
    with workdir.with_suffix(".log").open("a") as log:
        command = [sys.executable, "-m", "cdl_jax.main", *arguments, "--workdir", str(workdir)]
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def finish(arguments, workdir: Path, cache: Path) -> None:
    """Lets a run go on to its end, which must be a good one."""
    if code := start(arguments, workdir, cache).wait():
        raise SystemExit(f"{workdir}: exit code {code}, see {workdir.with_suffix('.log')}")


def lines(workdir: Path) -> int:
    """Returns the number of lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def being_written(workdir: Path) -> list[Path]:
    """Checkpoints that have no name yet."""
    # os.walk, for it passes over folders that get their name while they are looked at; Path.glob raises.
    walked = os.walk(workdir / "checkpoints")
    return [Path(folder, name) for folder, names, _ in walked for name in names if name.endswith(_TEMPORARY)]


def kill(process, workdir: Path, moment: str, undisturbed: dict, rng: random.Random) -> str | None:
    """Kills a run at a moment of one kind.

    Returns:
      The kind of the moment at which the run was killed; None if the run ended before.
    """
    first, deadline = lines(workdir), time.monotonic() + 120
    if moment == "start":
        reached = lambda: True  # noqa: E731
        wait = rng.uniform(0, undisturbed["start"])
    elif moment == "training":
        ahead = rng.randint(1, max(1, undisturbed["lines"] // 4))
        reached, wait = (lambda: lines(workdir) >= first + ahead), rng.uniform(0, 0.1)
    elif moment == "checkpoint":
        seen, wanted = set(), rng.randint(1, 4)

        def reached():
            seen.update(path.name for path in being_written(workdir))
            return len(seen) >= wanted

        wait = rng.uniform(0, 0.02)
    else:
        last = workdir / "checkpoints" / "tasks" / str(undisturbed["tasks"] - 1)
        reached, wait = last.exists, rng.uniform(0, undisturbed["report"])
    while process.poll() is None and not reached() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(wait)
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    if being_written(workdir):
        return "checkpoint"
    if (workdir / "checkpoints" / "tasks" / str(undisturbed["tasks"] - 1)).exists():
        return "report"
    return "training" if lines(workdir) > first else "start"


def outcome(workdir: Path) -> dict:
    """All that a run ends with: name -> bytes, JSON or array."""
    import jax
    import orbax.checkpoint as ocp

    results = json.loads((workdir / "results.json").read_text())
    found = {"results": {k: v for k, v in results.items() if k not in ("cost", "versions", "command")}}
    found["metrics.jsonl"] = (workdir / "metrics.jsonl").read_bytes()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for task in range(len(results["stream"]["tasks"])):
        path = (workdir / "checkpoints" / "tasks" / str(task) / "state").absolute()
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(path).item_metadata.tree
            target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved)
            tree = checkpointer.restore(path, target)
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"task {task} {jax.tree_util.keystr(place)}"] = np.asarray(leaf)
    for path in sorted(workdir.glob("*.npz")):
        with np.load(path) as file:
            found |= {f"{path.name} {name}": file[name] for name in file.files}
    return found


def differences(ours: dict, wanted: dict) -> list[str]:
    """Names of what is not the same, bit for bit."""

    def bits(value):
        return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value

    return [k for k in sorted({*ours, *wanted}) if bits(ours.get(k)) != bits(wanted.get(k))]


def measured(arguments, folder: Path, cache: Path) -> dict:
    """Measures an undisturbed run.

    Returns:
      `lines`, `tasks`: their numbers. `start`: seconds to the first line. `report`: seconds of the end of the run.
    """
    workdir = folder / "whole"
    finish(arguments, folder / "first", cache)  # fills the cache
    begun, process, marks = time.monotonic(), start(arguments, workdir, cache), {}
    tasks = len(json.loads((folder / "first" / "results.json").read_text())["stream"]["tasks"])
    while process.poll() is None:
        if lines(workdir):
            marks.setdefault("line", time.monotonic())
        if (workdir / "checkpoints" / "tasks" / str(tasks - 1)).exists():
            marks.setdefault("last", time.monotonic())
        time.sleep(0.005)
    end = time.monotonic()
    if process.returncode:
        raise SystemExit(f"{workdir}: exit code {process.returncode}")
    if changed := differences(outcome(folder / "first"), outcome(workdir)):
        raise SystemExit(f"two undisturbed runs differ in {changed[:5]}")
    return {"lines": lines(workdir), "tasks": tasks, "start": marks["line"] - begun, "report": end - marks["last"]}


def live(history: dict, arguments, folder: Path, cache: Path, rng: random.Random) -> None:
    """Starts a run once more and updates the `history` of its system."""
    workdir = folder / f"run_{history['runs']}"
    if history["life"] < _LIVES:
        # The end is reached once a run, unless it is killed there again.
        weights = (1, 4, 4, 0) if history["life"] < _LIVES - 3 else (0, 1, 1, 6)
        (moment,) = rng.choices(MOMENTS, weights)
        if hit := kill(start(arguments, workdir, cache), workdir, moment, history["whole"], rng):
            history["kills"][hit] += 1
            history["life"] += 1
            return
    finish(arguments, workdir, cache)
    history["differences"] += [f"{workdir.name}: {n}" for n in differences(outcome(workdir), outcome(folder / "whole"))]
    history["runs"], history["life"] = history["runs"] + 1, 0


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--folder", type=Path, required=True, help="where the runs lie; a storm goes on in its own")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which the storm ends, to go on another time")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    rng, systems = random.Random(), options.systems.split(",")
    folder, deadline = options.folder.absolute(), time.monotonic() + 60 * options.minutes
    folder.mkdir(parents=True, exist_ok=True)
    state, cache = folder / "storm.json", folder / "cache"
    history = json.loads(state.read_text()) if state.exists() else {}
    if "vkd" in systems and not (folder / "teacher" / "report.html").exists():
        finish(_TEACHER, folder / "teacher", cache)

    def ready(name):
        return sum(history[name]["kills"].values()) >= -(-options.kills // len(systems)) and not history[name]["life"]

    # In turns, so that a storm that is ended early has met all of them.
    for name in itertools.cycle(systems):
        if time.monotonic() > deadline or (len(history) == len(systems) and all(map(ready, systems))):
            break
        command = [word.replace("{folder}", str(folder)) for word in SYSTEMS[name]]
        if name not in history:
            (folder / name).mkdir(exist_ok=True)
            undisturbed = measured(command, folder / name, cache)
            history[name] = {
                "whole": undisturbed,
                "kills": dict.fromkeys(MOMENTS, 0),
                "runs": 0,
                "life": 0,
                "differences": [],
            }
        elif not ready(name):
            live(history[name], command, folder / name, cache, rng)
        state.write_text(json.dumps(history, indent=1) + "\n")
    print("| system | " + " | ".join(MOMENTS) + " | kills | runs compared | differences |")
    print("|---" * (len(MOMENTS) + 4) + "|")
    rows = []
    for name, of in history.items():
        counts = [of["kills"][moment] for moment in MOMENTS]
        rows.append([*counts, sum(counts), of["runs"], len(of["differences"])])
        print(f"| {name} | " + " | ".join(map(str, rows[-1])) + " |")
    print("| all | " + " | ".join(str(sum(column)) for column in zip(*rows, strict=True)) + " |")
    changed = [f"{name}: {what}" for name, of in history.items() for what in of["differences"]]
    return {"systems": history, **({"wrong": f"crash_storm: differences: {changed[:5]}"} if changed else {})}
