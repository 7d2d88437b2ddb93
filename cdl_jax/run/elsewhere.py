"""Evaluates a checkpoint on other images or on corrupted copies.

It is the work of `--mode eval --on`.
"""

import json
import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdl_jax import config as configs
from cdl_jax import plugins, schema
from cdl_jax.data import corruptions, stream
from cdl_jax.data.image_dataset import ArrayImage, load_file
from cdl_jax.data.readers import image_files, layouts
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.evaluation import classified
from cdl_jax.options import check, defaults
from cdl_jax.runtime import paths
from cdl_jax.training import steps
from cdl_jax.training.prediction import Classifier

if TYPE_CHECKING:
    from cdl_jax.run.api import Run

FOLDER = "eval"  # of the files, below the folder of a run
_SHOWN = 5  # classes in a message
_CHUNK = 256  # images that are corrupted at a time


@dataclass(frozen=True)
class LabeledImages:
    """Labeled images of a run's classes.

    Attributes:
      name: of the data.
      images: paths, members of archives, or images in memory.
      labels: int `[n]`, the run's classes in stream order.
      left_out: names of the classes of the data that the run has not learned.
    """

    name: str
    images: Sequence[Any]
    labels: np.ndarray
    left_out: tuple[str, ...]


def evaluate(
    run: "Run", on: str, task: int | None = None, corrupted: Sequence[str] = (), severities: Sequence[int] = ()
) -> dict[str, Any]:
    """Evaluates the networks of a run after a task; JSON only.

    Args:
      run: of classifiers.
      on: "test" or "train", images of the run's data; a folder of class folders; or a data source, `NAME:key=value,...`
        as after --config, of which the test images are used. Classes are found by their names.
      task: index; None: the last one with a checkpoint.
      corrupted: names of `corruptions.NAMES`, each of which is evaluated too.
      severities: of the corruptions; (): all five.

    Returns:
      `task`, `on`, `data` (name, number of images, names of the classes left out), `networks` (see
      `classified.measure`), and `corruptions`: name -> severity -> network -> the same without classes.

    Raises:
      UserError: there is no such data or checkpoint, a network has learned no class of the data, or it is a detector.
    """
    if run.is_generation:
        raise UserError("--on and --corruptions evaluate classifiers, and this run trained a generator: leave them out")
    if run.is_detection:
        raise UserError("--on and --corruptions evaluate classifiers, and this run trained detectors: leave them out")
    severities = _check_severities(corrupted, severities)
    if task is None:
        task = run.finished_tasks[-1] if run.finished_tasks else 0
    num_seen = max((end for _, end in run.info.label_ranges[: task + 1]), default=0)
    # An image of a class that several tasks have belongs to none of them: all classes are one entry.
    sizes = (num_seen,) if run.info.shares_classes else run.info.task_sizes[: task + 1]
    data = find(run, on, num_seen)
    classifiers = {name: run.network(name, task, run.config.eval.batch_size).predictor for name in run.networks}

    def measure(logits):
        return {name: _measure(run.method, name, values, data.labels, sizes) for name, values in logits.items()}

    content = {
        "schema": schema.SCHEMA,
        "seed": run.seed,
        "task": task,
        "on": on,
        "data": {"name": data.name, "images": len(data.images), "left_out": list(data.left_out)},
        "networks": measure({name: classifier.logits(data.images) for name, classifier in classifiers.items()}),
    }
    if corrupted:
        content["corruptions"] = {name: {} for name in corrupted}
        for (kind, severity), logits in _corrupted_logits(classifiers, data.images, corrupted, severities).items():
            content["corruptions"][kind][str(severity)] = _without_classes(measure(logits))
    return content


def _measure(method, network, logits, labels, task_sizes):
    """Returns `classified.measure` in the class order of a network.

    Images of unseen classes are left out.

    Raises:
      UserError: all images are of unseen classes.
    """
    ranks = steps.label_ranks(method, network)
    if ranks is not None:
        logits, labels = logits[:, np.argsort(ranks)], ranks[labels]
    is_seen = labels < sum(task_sizes)
    if not is_seen.any():
        raise UserError(f"--on has no image of a class that {network} has learned by then: choose a later --task")
    return classified.measure(logits[is_seen], labels[is_seen], task_sizes)


def find(run: "Run", on: str, num_seen: int) -> LabeledImages:
    """Returns the images that a text denotes, with labels of the run.

    Args:
      run: whose classes are evaluated.
      on: see `evaluate`.
      num_seen: number of classes that the run has learned. Images of others are left out, where all networks have one
        class order.

    Raises:
      UserError: the data is missing, or has none of the classes.
    """
    if on in ("test", "train"):
        data = stream.load(run.config.data, run.seed)
        if tuple(data.class_names) != run.class_names:
            raise UserError(f"--on={on}: the data has other classes than the run had: restore it")
        name, names, split = data.name, run.class_names, data.test if on == "test" else data.train
    else:
        name, names, split = _read_folder(on) if _is_folder(on) else _read_source(on)
    class_names = run.class_names if run.method.streams else run.class_names[:num_seen]
    if on in ("test", "train"):
        labels = np.where(np.arange(len(names)) < len(class_names), np.arange(len(names)), -1)
    else:
        _check_names(on, names, class_names)
        labels_by_name = {class_name: label for label, class_name in enumerate(class_names)}
        labels = np.array([labels_by_name.get(class_name, -1) for class_name in names], np.int64)
    image_labels = labels[split.labels] if len(split) else np.zeros(0, np.int64)
    if not (image_labels >= 0).any():
        raise UserError(
            f"--on={on} has no images of the classes that the run has learned: it has {_shorten(names)}, and the run "
            f"{_shorten(class_names)}; classes are found by their names"
        )
    rows = np.flatnonzero(image_labels >= 0)
    left_out = tuple(class_name for class_name, label in zip(names, labels, strict=True) if label < 0)
    return LabeledImages(name, _images(split, rows), image_labels[rows], left_out)


def _check_names(on, *sides):
    """Raises UserError if two classes of the data or of the run have one name."""
    for names in sides:
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"--on={on}: classes are found by their names, and two are called {repeated[0]!r}: rename one"
            )


def file_name(on: str, task: int, is_corrupted: bool) -> str:
    """Returns the name of the file of an evaluation, below the folder of a run.

    A digest separates places whose names differ only in characters that no file name has.

    >>> file_name("test", 3, True), file_name("photos/night", 3, False)
    ('eval/test-task3-corrupted.json', 'eval/photos-night-cd62ca0a-task3.json')
    """
    place = re.sub(r"[^\w.]+", "-", on).strip("-.")
    if place != on:
        place += f"-{zlib.crc32(on.encode()):08x}"
    return f"{FOLDER}/{place}-task{task}{'-corrupted' if is_corrupted else ''}.json"


def merge(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Returns an evaluation, merged with the corruptions of an earlier one.

    Other corruptions and severities of the earlier evaluation are added if all else is equal.

    Args:
      path: file of the earlier evaluation; it may be missing.
      content: the new evaluation, as `evaluate` returns it.
    """
    if "corruptions" not in content or not path.exists():
        return content
    earlier, content = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(content))
    earlier.setdefault("seed", content["seed"])  # an earlier version did not write it
    corrupted = earlier.pop("corruptions", {})
    if not _are_close(earlier, {key: value for key, value in content.items() if key != "corruptions"}):
        logging.getLogger("cdl_jax").warning(
            "%s: numbers without corruptions differ, so it is replaced and its corruptions are lost", path
        )
        return content
    names = [*corrupted, *(name for name in content["corruptions"] if name not in corrupted)]
    merged = {name: {**corrupted.get(name, {}), **content["corruptions"].get(name, {})} for name in names}
    return {**content, "corruptions": {name: dict(sorted(rows.items())) for name, rows in merged.items()}}


def _are_close(first, second):
    """Returns whether two JSON values are equal, floats to within 1e-3."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_are_close(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_are_close, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= 1e-3
    return first == second


def summary(content: dict[str, Any]) -> str:
    """Returns the lines that the command prints."""
    data, lines = content["data"], []
    lines.append(f"{data['name']}: {data['images']} images after task {content['task']}")
    if data["left_out"]:
        lines.append(f"left out, not learned: {_shorten(data['left_out'])}")
    for name, found in content["networks"].items():
        accuracies = " ".join("-" if value is None else f"{value:.2f}" for value in found["accuracy"])
        lines.append(
            f"{name}: {found['last_image_weighted']:.2f} % of images, with the task given "
            f"{found['task_incremental_image_weighted']:.2f} %; by task: {accuracies}"
        )
    for kind, rows in content.get("corruptions", {}).items():
        means = {name: [row[name]["last_image_weighted"] for row in rows.values()] for name in content["networks"]}
        lines.append(f"{kind}: " + ", ".join(f"{name} {np.mean(values):.2f}" for name, values in means.items()))
    return "\n".join(lines)


def _check_severities(corrupted, severities) -> tuple[int, ...]:
    """Returns the severities of corruptions.

    Raises:
      UserError: a severity or a corruption is unknown, or the package is missing.
    """
    if wrong := [value for value in severities if value not in corruptions.SEVERITIES]:
        raise UserError(f"--severities={wrong[0]} must lie in [1, 5]")
    if severities and not corrupted:
        raise UserError("--severities needs --corruptions: name them, or leave it out")
    for name in corrupted:
        corruptions.parse_names(name)
    if corrupted:
        corruptions.load_package()
    return tuple(severities) or corruptions.SEVERITIES


def _is_folder(on) -> bool:
    return paths.resolve(on, "--on").is_dir()


def _read_folder(on) -> tuple[str, tuple[str, ...], Split]:
    """Returns name, class names and images of a folder: its test set if it has one."""
    root, skipped = paths.resolve(on, "--on"), image_files.SkippedFiles()
    parts = layouts.find(root, skipped)
    skipped.log(root)
    classes = next((parts[part] for part in ("test", "val", "", "train") if parts.get(part)), {})
    files = [file for class_files in classes.values() for file in class_files]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(class_files) for class_files in classes.values()])
    return root.resolve().name, tuple(classes), Split(labels, files=tuple(files))


def _read_source(on) -> tuple[str, tuple[str, ...], Split]:
    """Returns name, class names and test images of a data source with options."""
    name, _, arguments = on.partition(":")
    source = plugins.load_plugin("data.sources", name)
    known = {"path": "", **defaults(source.OPTIONS)}
    options = {**known, **configs.arguments(arguments, **known)}
    check(source.OPTIONS, options, "data")
    dataset = source.load(options)
    if not isinstance(dataset, stream.Dataset):
        raise UserError(f"--on={on} has no labeled images: name a source of images with classes")
    return dataset.name, tuple(dataset.class_names), dataset.test


def _images(split, rows) -> list[Any]:
    if split.images is None:
        return [split.files[row] for row in rows]
    return [ArrayImage(split.images[row], f"image {row}") for row in rows]


def _corrupted_logits(classifiers, images, kinds, severities) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Returns (corruption, severity) -> network -> logits of corrupted copies.

    A chunk of copies is in memory at a time.

    Copies are of the images as evaluation transforms them on the device, if they have that size. Other images are
    resized and cropped before they are corrupted, as those of ImageNet-C were.
    """
    any_classifier = next(iter(classifiers.values()))
    cropped = {
        name: replace(classifier, augment={**classifier.augment, "test": "resize"}, device_size=None)
        for name, classifier in classifiers.items()
    }
    parts = {key: {name: [] for name in classifiers} for key in product(kinds, severities)}
    for first in range(0, len(images), _CHUNK):
        decoded = [load_file(image) for image in images[first : first + _CHUNK]]
        is_of_device = all(image.size[::-1] == any_classifier.device_size for image in decoded)
        pixels = [np.asarray(image) if is_of_device else _cropped(any_classifier, image) for image in decoded]
        for (kind, severity), network_parts in parts.items():
            copies = corruptions.corrupt(pixels, kind, severity, first)
            array_images = [ArrayImage(copy, f"image {first + row}") for row, copy in enumerate(copies)]
            for name, classifier in (classifiers if is_of_device else cropped).items():
                network_parts[name].append(classifier.logits(array_images))
    return {key: {name: np.concatenate(rows) for name, rows in parts[key].items()} for key in parts}


def _cropped(classifier: Classifier, image) -> np.ndarray:
    """Returns a resized and cropped image, uint8 `[size, size, 3]`.

    The transform is that of evaluation on the host.
    """
    test = classifier.augment["test"]
    options = {**classifier.augment, "test": "resize" if test == "none" else test}
    return augment.transform_test_image(image, options, classifier.method.image_size)


def _without_classes(measured) -> dict[str, dict[str, Any]]:
    class_keys = ("class_accuracy", "confusion")
    return {
        name: {key: value for key, value in values.items() if key not in class_keys}
        for name, values in measured.items()
    }


def _shorten(names) -> str:
    suffix = f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN)
    return ", ".join(names[:_SHOWN]) + suffix


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the evaluations of a run by file name, without the ending."""
    evaluations = sorted((folder / FOLDER).glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in evaluations}
