"""Locks a run's working directory, and compares its run with a command.

Config and data are compared.
"""

import copy
import errno
import fcntl
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ml_collections import ConfigDict

from cdl_jax import __version__, config, schema
from cdl_jax.data.stream import Stream
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import finished_run
from cdl_jax.run import fingerprints
from cdl_jax.runtime import files

# Unfinished files of this program, `.<name>.<process id>` and for weights with `.tmp` behind it.
_UNFINISHED = re.compile(
    r"\.(?:(?:(?:config|results|nonfinite|analysis|wandb_run|mlflow_run)\.json|report\.html|metrics\.(?:jsonl|csv)"
    r"|features_\w+\.svg)\.[0-9]+"
    r"|\w+\.npz\.[0-9]+\.tmp)",
    re.ASCII,
)


@contextmanager
def locked(workdir: Path):
    """Locks `workdir` against other processes that train in it.

    The system frees the lock however this process ends, so a lock is never stale. The file stays, without effect.

    Raises:
      UserError: the directory cannot be written or locked, or another process is at work in it (its host and pid are
        named).
    """
    parents = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = _locked_file(workdir)
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written ({error.strerror}): choose another") from None
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        for folder in (workdir, *workdir.glob("seed_*")):
            _remove_unfinished_files(folder)
        try:
            yield
        finally:
            # A refused run writes nothing, so the lock and the folders that were made for it are removed.
            if workdir.is_dir() and os.listdir(workdir) == ["lock"]:
                (workdir / "lock").unlink(missing_ok=True)
                for folder in parents:
                    with suppress(OSError):  # another process has written there
                        folder.rmdir()


def _remove_unfinished_files(folder):
    """Removes the files that a killed process had not finished.

    All other files of the folder may be the user's.
    """
    for path in folder.glob(".*"):
        if _UNFINISHED.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            with suppress(OSError):  # a file of another user is harmless
                path.unlink()


def _locked_file(workdir):
    """Returns the open and locked file of a working directory.

    Raises:
      UserError: another process has the lock, or the file system has no locks.
      OSError: the file cannot be opened.
    """
    while True:
        file = open(workdir / "lock", "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                file.close()
                raise UserError(
                    f"--workdir {workdir} cannot be locked ({error.strerror}): choose one on a file system with locks"
                ) from None
            file.seek(0)
            holder = " ".join(file.read().split()) or "another process"
            file.close()
            raise UserError(f"--workdir {workdir} is in use by {holder}: wait for it, or choose another") from None
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(workdir / "lock")):
                return file
        file.close()  # a refused run has removed the file since: lock a new one
        workdir.mkdir(parents=True, exist_ok=True)


def check_seeds(workdir: Path, config_seeds) -> None:
    """Refuses to mix a run of several seeds with a run of one seed in the same folder.

    Raises:
      UserError: `workdir` belongs to one seed of an unfinished run of several, whose checkpoints are not here; or it
        would become that of several, and one of their folders holds a run of its own.
    """
    above = config.read(workdir.absolute().parent)
    if above and workdir.absolute().name in (f"seed_{seed}" for seed in above["config"].get("seeds", ())):
        if not _finished(workdir):
            raise UserError(
                f"--workdir {workdir} belongs to the run of several seeds in {workdir.absolute().parent}: go on with "
                "its command there, or choose another --workdir"
            )
    if config_seeds and config.read(workdir) is None:
        for own in files.seed_folders(workdir, config_seeds):
            if own.is_dir() and config.read(own) is not None:
                raise UserError(f"{own} holds a run of its own: choose another --workdir for config.seeds")


def _finished(workdir):
    try:
        return json.loads((workdir / "results.json").read_text(encoding="utf-8"))["status"] == "finished"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_config(workdir: Path, resolved: dict, flag: str = "--workdir") -> None:
    """Refuses a directory with a run of another config.

    Weight files and teachers' runs are compared by content (see `fingerprints`).

    Args:
      resolved: the config as nested dicts.
      flag: word of the command that names the folder, for messages.

    Raises:
      UserError: names the differences.
    """
    stored = config.read(workdir)
    if stored is None:
        return
    if (file := fingerprints.changed_plugin_file(stored, resolved)) is not None:
        raise UserError(f"{file} has changed since the run in {flag} {workdir} began: restore it, or choose another "
                        f"{flag}")  # fmt: skip
    changes = config.differences(*fingerprints.align_configs(stored, resolved))
    if changes:
        shown = "; ".join(changes[:8]) + (f"; and {len(changes) - 8} more" if len(changes) > 8 else "")
        raise UserError(f"{flag} {workdir} holds a run of another config ({shown}): choose another {flag}")


def check_branch(workdir: Path) -> None:
    """Refuses a branch without the checkpoints of its parent.

    Its process was killed before it wrote them.

    Raises:
      UserError: names the parent.
    """
    parent = (config.read(workdir) or {}).get("parent")
    if parent and not (workdir / "checkpoints").exists():
        raise UserError(
            f"--workdir {workdir} is a branch without the checkpoints of its parent: rerun the command with "
            f"--from={parent['path']} --task={parent['task']}"
        )


def with_stored_dtypes(workdir: Path, options: ConfigDict) -> ConfigDict:
    """Returns a copy of a config in which "auto" is replaced by recorded values.

    They are those of the run in a directory.

    So a run that began on a GPU continues in the same dtypes on another device.

    Args:
      workdir: folder of the run; the copy is equal if it has none.
      options: the config of the command.
    """
    resolved, stored = copy.deepcopy(options), (config.read(workdir) or {}).get("config", {})
    # Runs of earlier versions have float32 frozen kernels where config.json has no dtype of them.
    stored = config.flatten({"frozen_dtype": "float32", **stored}) if stored else {}
    for key, value in config.flatten(options).items():
        if config.is_automatic(key, value) and key in stored:
            resolved.update_from_flattened_dict({key: stored[key]})
    return resolved


def check_data(workdir: Path, stream: Stream) -> None:
    """Refuses a directory whose run used other data.

    A run without a fingerprint of its data passes.

    Raises:
      UserError: names the classes whose images have changed.
    """
    stored = (config.read(workdir) or {}).get("data")
    if not isinstance(stored, dict):
        return
    found = fingerprints.fingerprint_data(stream)
    changed = fingerprints.changed_data(stored, found)
    if changed:
        shown = "; ".join(f"{key}: {stored.get(key, 'absent')} -> {found.get(key, 'absent')}" for key in changed[:3])
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"--workdir {workdir}: the data has changed since this run began ({shown}{more}): restore the data, or "
            "choose another --workdir"
        )


def write_configs(workdir: Path, resolved: dict, stream: Stream, parent: dict | None = None) -> None:
    """Writes config.json of a run and of each of its seeds, unless the files exist.

    Args:
      workdir: the run's folder.
      resolved: the config as nested dicts.
      stream: of the first seed.
      parent: the run from which this run branched, see `run.branching`.
    """
    # That of the run first: if the process is killed in between, the directory still refuses another config.
    write_config(workdir, resolved, stream, parent)
    for seed in resolved["seeds"]:
        (folder := workdir / f"seed_{seed}").mkdir(exist_ok=True)
        write_config(folder, {**resolved, "seed": seed, "seeds": ()}, stream, parent)


def write_config(workdir: Path, resolved: dict, stream: Stream | None = None, parent: dict | None = None) -> None:
    """Writes config.json, unless the file exists.

    It holds the config, the time of the call, the records of its teachers' runs, fingerprints of weights, teachers'
    runs and data, and the parent of a branch.
    """
    if config.read(workdir) is None:
        content = {
            "schema": schema.SCHEMA,
            "config": resolved,
            "command": command(),
            "versions": versions(),
            "commit": commit(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        content["content"] = fingerprints.fingerprint_config(resolved)
        content["teachers"] = finished_run.record_teachers(resolved)
        if parent is not None:
            content["parent"] = parent
        if stream is not None:
            content["data"] = fingerprints.fingerprint_data(stream)
        files.write_atomically(workdir / "config.json", json.dumps(content, indent=1, sort_keys=True) + "\n")


def command() -> str:
    """Returns the command line of this process."""
    return shlex.join(["python", "-m", "cdl_jax.main", *sys.argv[1:]])


def versions() -> dict:
    """Returns the versions of this package and of those that affect its numbers."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"cdl_jax": __version__, "python": sys.version.split()[0], **{p: metadata.version(p) for p in packages}}


def commit() -> str | None:
    """Returns the git commit of this package's code.

    None where the package is no part of a repository of its own, for instance installed in a virtual environment that
    lies in the repository of another project.
    """
    package = Path(__file__).resolve().parents[1]
    root = package.parent

    def git(*arguments):
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        if git("rev-parse", "--show-cdup"):  # path to the top of the repository: empty at the top
            return None
        git("ls-files", "--error-unmatch", f"{package.name}/__init__.py")
        return git("rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
