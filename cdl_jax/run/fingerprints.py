"""Computes fingerprints of a run's inputs.

Inputs are weight files, teacher runs, plug-ins and data. Content decides, not the path.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sysconfig
from pathlib import Path, PurePosixPath

import numpy as np

from cdl_jax import config as configs
from cdl_jax.data.detection import streams as detection_streams
from cdl_jax.data.readers import tar_files
from cdl_jax.data.stream import Stream
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import added_options, finished_run
from cdl_jax.models import weights
from cdl_jax.runtime import paths
from cdl_jax.runtime.console import one_line


def fingerprint_config(config: dict) -> dict[str, list[str | None]]:
    """Returns the SHA-256 of each file or run that a config names, by key.

    Args:
      config: the resolved config as nested dicts.

    Returns:
      A list for each key: one digest for `*.weights`, one for each teacher of `*.teacher_runs`, one for each file of a
      plug-in with a dotted path (see `plugin_files`). None: the path does not exist. A file of this package,
      `package:NAME`, counts by its content too.
    """
    flat = configs.flatten(config)
    return {key: _digests(key, value) for key, value in flat.items() if _paths(key, value)}


def plugin_files(name: str) -> list[Path]:
    """Returns the files of a user's plug-in and of its imports.

    Only imports of the user's modules count, indirect ones too. A user's module is one of the plug-in's top-level
    package, or one that is not installed. Imports are read from the source, and nothing is imported.

    Args:
      name: dotted path of the plug-in.

    Returns:
      The files, that of the plug-in first; empty if there is no such file.
    """
    modules, files = [name], []
    for module in modules:  # grows
        path = _module_file(module, name)
        if path is not None and path not in files:
            files.append(path)
            modules += _imports(module, path, name)
    return files


def changed_plugin_file(stored: dict, resolved: dict) -> Path | None:
    """Returns the first plug-in file that has changed since a run began.

    None: no file of the run's plug-ins has changed.

    Args:
      stored: the content of a run's config.json.
      resolved: the config of the command, as nested dicts.
    """
    old, new = configs.flatten(stored["config"]), configs.flatten(resolved)
    known = stored.get("content") if isinstance(stored.get("content"), dict) else {}
    for key, name in new.items():
        recorded, current = known.get(key), _digests(key, name) if _is_user_plugin(key, name) else None
        if current is None or old.get(key) != name or not isinstance(recorded, list) or None in current:
            continue
        for number, digest in enumerate(recorded):
            if [digest] != current[number : number + 1]:
                return plugin_files(name)[number if number < len(current) else 0]
    return None


def align_configs(stored: dict, resolved: dict) -> tuple[dict, dict]:
    """Returns two flat configs whose paths are equal if their content is equal.

    Paths with other content differ. Where a run has no fingerprints, or the path no longer exists, paths to the same
    place are equal.

    Args:
      stored: the content of a run's config.json.
      resolved: the config of the command, as nested dicts.
    """
    old, new = configs.flatten(stored["config"]), configs.flatten(resolved)
    old = {key: value for key, value in added_options.complete(old).items() if key in old or key in new}
    known = stored.get("content") if isinstance(stored.get("content"), dict) else {}
    for key, current in fingerprint_config(resolved).items():
        recorded = known.get(key)
        if recorded is None or None in current:
            if _same_paths(key, old.get(key), new[key]):
                new[key] = old[key]
        elif recorded == current or _is_user_plugin(key, new[key]) and recorded == current[: len(recorded)]:
            # Earlier versions recorded the plug-in's own file alone.
            new[key] = old[key]
        else:
            old[key], new[key] = _with_digests(old.get(key), recorded), _with_digests(new[key], current)
    return old, new


@functools.lru_cache(maxsize=1)  # one start compares it, and may write it for several seeds
def fingerprint_data(stream: Stream) -> dict[str, str]:
    """Returns the fingerprint of each class's training and test images.

    Files count by their names and sizes, in folders and in archives alike; outside of a folder with the class's name,
    as in lists, also by their folders. Images in memory count by their pixels. The class order and the place of
    the data set have no effect.

    Returns:
      `{"train/<class>": "<n> images, <b> bytes, <SHA-256, shortened>"}`, and likewise for "test/<class>". If folders
      count, `", folders <SHA-256, shortened>"` follows. For detection see `data.detection.streams.fingerprint`.
    """
    if stream.problem == "detection":
        return detection_streams.fingerprint(stream)
    names = list(stream.class_names)
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for name, number in zip(names, stream.class_order, strict=True)]
    fingerprints = {}
    for part, split in (("train", stream.train), ("test", stream.test)):
        order = np.argsort(split.labels, kind="stable")
        ends = np.cumsum(np.bincount(split.labels, minlength=stream.num_classes))
        folders = _relative_folders(split)
        classes = zip(names, stream.class_names, np.split(order, ends[:-1]), strict=True)
        for name, class_name, rows in classes:
            digest, size = hashlib.sha256(), 0
            for row in rows:
                content, length = _image_content(split, row)
                digest.update(content)
                if split.domains is not None:
                    digest.update(f"/domain {split.domains[row]}".encode())
                size += length
            fingerprints[f"{part}/{name}"] = f"{len(rows)} images, {size} bytes, {digest.hexdigest()[:16]}"
            places = [folders[row] for row in rows] if folders else []
            if any(not _is_folder_of(class_name, folder) for folder in {*places}):
                text = "".join(f"{one_line(folder)}/" for folder in places)
                fingerprints[f"{part}/{name}"] += f", folders {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return dict(sorted(fingerprints.items()))


def changed_data(stored: dict[str, str], found: dict[str, str]) -> list[str]:
    """Returns the keys whose fingerprints differ.

    A stored fingerprint of an older version may lack folders. It is compared without folders.

    >>> changed_data({"train/a": "1 images, 2 bytes, 3"}, {"train/a": "1 images, 2 bytes, 3, folders 4"})
    []
    """

    def differs(key):
        one, other = stored.get(key), found.get(key)
        if isinstance(one, str) and isinstance(other, str) and ", folders " not in one:
            other = other.split(", folders ")[0]
        return one != other

    return [key for key in sorted({*stored, *found}) if differs(key)]


def _relative_folders(split) -> list[str]:
    """Returns the folder of each file of a split, [] for arrays.

    The folder is relative to the folder that has all files of the split.
    """
    if split.images is not None or not len(split):
        return []
    is_member = [isinstance(file, tar_files.Member) for file in split.files]
    folders = [
        os.path.dirname(f"/{file.name.lstrip('/')}" if member else file)
        for file, member in zip(split.files, is_member, strict=True)
    ]
    absolute = {folder: os.path.abspath(folder) for folder in {*folders}}
    common = os.path.commonpath(absolute.values())
    relative = {folder: os.path.relpath(path, common) for folder, path in absolute.items()}
    return [relative[folder] for folder in folders]


def _is_folder_of(class_name, folder) -> bool:
    """Returns whether a folder is that of a class, or the one that has all files.

    The images of a class may also lie in its subfolder `images/`.
    """
    path = PurePosixPath(folder)
    path = path.parent if path.name == "images" != class_name else path
    return path.name == "" or one_line(path.name) == class_name


def _image_content(split, row) -> tuple[bytes, int]:
    """Returns the part of an image that enters a fingerprint, and its size in bytes."""
    if split.images is not None:
        image = split.images[row]
        return f"{image.shape} ".encode() + image.tobytes(), image.nbytes
    file = split.files[row]
    if isinstance(file, tar_files.Member):
        name, size = PurePosixPath(file.name).name, file.size
    else:
        name = os.path.basename(file)
        try:
            size = os.stat(file).st_size
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}): restore the file or remove it") from None
    return f"{one_line(name)}/{size}/".encode(), size  # the same in any locale


def _paths(key, value) -> list[str]:
    """Returns the files, folders and user modules that an option names.

    `package:NAME` is one of them, and `random` is none.
    """
    if key.endswith(".teacher_runs") and isinstance(value, list):
        return value
    if _is_user_plugin(key, value):
        return [value]
    return [value] if key.endswith(".weights") and isinstance(value, str) and value not in ("", "random") else []


def _is_user_plugin(key, value) -> bool:
    return key.split(".")[-1] in ("method", "name", "family") and isinstance(value, str) and "." in value


def _imports(name, path, plugin) -> list[str]:
    """Returns the dotted paths that the source of a module imports.

    A source that is not Python has [].
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except (OSError, SyntaxError, ValueError):
        return []
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
        parents = package.split(".")[: 1 - node.level or None] if node.level else []
        module = ".".join([*parents, *filter(None, [node.module])])
        inner = [f"{module}.{alias.name}" for alias in node.names]
        names += [item if _module_file(item, plugin) else module for item in inner]
    return names


def _module_file(name, plugin) -> Path | None:
    """Returns the file of a user's module without an import.

    None: there is no such file, or the module is not one of the user's.
    """
    top, *rest = name.split(".")
    if top == "cdl_jax" and name != plugin:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        candidates = [Path(spec.origin)] if spec.has_location else []
    else:
        folders = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
        candidates = [file for folder in folders for file in (folder / "__init__.py", folder.with_suffix(".py"))]
    is_own = top == plugin.split(".")[0]
    return next((path for path in candidates if path.is_file() and (is_own or not _is_installed(path))), None)


def _is_installed(path) -> bool:
    """Returns whether a file is part of Python or of an installed package.

    Such a file lies in Python's standard library, or in a folder of installed packages.
    """
    is_standard = path.is_relative_to(sysconfig.get_paths()["stdlib"])
    return is_standard or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _digests(key, value) -> list[str | None]:
    """Returns the SHA-256 of each file or run that an option names."""
    if not _is_user_plugin(key, value):
        return [_digest(place, key) for place in _paths(key, value)]
    try:
        return [file_digest(path) for path in plugin_files(value)] or [None]
    except OSError as error:
        raise UserError(f"config.{key}={value!r} cannot be read ({error.strerror}): mend that, or copy it") from None


def _digest(place, key) -> str | None:
    try:
        if key.endswith(".teacher_runs") or finished_run.is_run(place):
            return _run_digest(paths.resolve(place, f"config.{key}"))
        if place.startswith("package:"):
            with weights.packaged_file(place) as path:
                return file_digest(path)
        return file_digest(weights.find(place, key))
    except (UserError, FileNotFoundError, ModuleNotFoundError):
        return None
    except OSError as error:
        raise UserError(f"config.{key}={place!r} cannot be read ({error.strerror}): mend that, or copy it") from None


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run_digest(folder: Path) -> str | None:
    """Returns the SHA-256 of a teacher run: its config, its stream and its variables."""
    stored = configs.read(folder, as_stored=True)
    if stored is None:
        return None
    digest = hashlib.sha256()
    try:
        stream = json.loads((folder / "results.json").read_text(encoding="utf-8"))["stream"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        stream = None
    digest.update(json.dumps([stored["config"], stream], sort_keys=True).encode())
    saved = folder / "checkpoints"
    for path in sorted([*(saved / "frozen").rglob("*"), *(saved / "tasks").rglob("*")]):
        if path.is_file():
            digest.update(f"{path.relative_to(saved)} {file_digest(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _same_paths(key, old, new) -> bool:
    one, other = _paths(key, old), _paths(key, new)
    try:
        return [paths.resolve(p).resolve() for p in one] == [paths.resolve(p).resolve() for p in other]
    except (UserError, OSError):
        return False


def _with_digests(value, digests):
    return f"{value} with SHA-256 {', '.join(str(digest)[:12] for digest in digests)}"
