"""Predicts the classes or boxes of image files, for `--mode predict`.

A network of a run makes the predictions.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdl_jax.data.image_dataset import load_file
from cdl_jax.data.readers import image_files
from cdl_jax.errors import UserError
from cdl_jax.evaluation.predictions import BoxPredictions
from cdl_jax.report import boxes, predictions
from cdl_jax.run.api import DetectionNetwork, Run
from cdl_jax.runtime import files, paths

_TOP_CLASSES = 5
_THRESHOLD = 0.3


@dataclass(frozen=True)
class Request:
    """The flags of `--mode predict`.

    Attributes:
      images: files and folders.
      network: name of the network; None: that of the run's headline.
      task: index of the task; None: the last one with a checkpoint.
      top_k: number of classes or boxes of an image; None: 5 classes, or all boxes.
      threshold: smallest score of a box; None: 0.3. Classifiers have none.
      output: file of the predictions; None: a table.
      draw: folder of the images with boxes; None: none.
    """

    images: Sequence[str]
    network: str | None = None
    task: int | None = None
    top_k: int | None = None
    threshold: float | None = None
    output: str | None = None
    draw: str | None = None


def predict(run: Run, request: Request) -> str:
    """Predicts images, and writes the files that the request names.

    Args:
      run: the run of the network.
      request: the flags of the command.

    Returns:
      The text for the terminal.

    Raises:
      UserError: a flag is wrong, or an image cannot be read.
    """
    output, folder = _check(request)
    found = find_images(request.images)
    if folder:
        _check_drawn(folder, found)
    network = run.network(request.network, request.task, _batch_size(run, len(found)))
    is_detector = isinstance(network, DetectionNetwork)
    for flag in ("draw", "threshold"):
        if (value := getattr(request, flag)) is not None and not is_detector:
            raise UserError(f"--{flag}={value}: network {network.name!r} predicts classes, not boxes: omit the flag")
    threshold = _THRESHOLD if request.threshold is None else request.threshold
    results = network(found, threshold=threshold) if is_detector else network(found)
    names = [str(path) for path in found]
    top_k = request.top_k or (max(map(len, results), default=0) if is_detector else _TOP_CLASSES)
    entries = predictions.entries(names, results, top_k)
    lines = [] if output else [predictions.table(entries)]
    if output:
        about = {"run": str(run.seed_folder), "network": network.name, "task": network.task}
        files.write_atomically(output, predictions.render(output.suffix, entries, about))
        lines.append(f"{output}: {len(entries)} images, {network.name} after task {network.task}")
    if folder:
        draw(folder, found, [of_image.top(top_k) for of_image in results])
        lines.append(f"{folder}: {len(found)} images with boxes")
    return "\n".join(lines)


def find_images(places: Sequence[str]) -> list[Path]:
    """Returns the image files that places denote.

    Args:
      places: files of any name, and folders, which are searched with their subfolders for image files.

    Raises:
      UserError: a place does not exist, or a folder has no image.
    """
    found = []
    for text in places:
        path = paths.resolve(text, "--images")
        if path.is_dir():
            found += _images_below(path)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"--images {text}: no such file or folder")
    return found


def draw(folder: Path, found: Sequence[Path], of_images: Sequence[BoxPredictions]) -> None:
    """Writes images with their boxes, as PNG files.

    Args:
      folder: of the files; it is made. A file has the path of its image below the common folder of all images.
      found: the image files.
      of_images: the boxes of each image.
    """
    from PIL import Image

    for name, path, of_image in zip(drawn_names(found), found, of_images, strict=True):
        labels = [
            f"{name} {score:.2f}" for name, score in zip(of_image.class_names, of_image.scores.tolist(), strict=True)
        ]
        drawn = boxes.draw(np.asarray(load_file(path)), of_image.boxes, labels)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(target)


def drawn_names(found: Sequence[Path]) -> list[str]:
    """Returns a file name below one folder for each image.

    >>> drawn_names([Path("a/x/1.jpg"), Path("a/y/1.jpg"), Path("a/y/1.png")])
    ['x/1.png', 'y/1.png', 'y/1_1.png']
    """
    absolute = [Path(os.path.abspath(path)) for path in found]
    common = os.path.commonpath([path.parent for path in absolute])
    names, used = [], set()
    for path in absolute:
        stem = str(path.relative_to(common).with_suffix(""))
        name = next(n for n in (stem, *(f"{stem}_{i}" for i in range(1, len(absolute) + 1))) if n not in used)
        used.add(name)
        names.append(f"{name}.png")
    return names


def _check(request) -> tuple[Path | None, Path | None]:
    """Returns the paths of the output file and of the folder of drawn images.

    Raises:
      UserError: there is no image, or a flag is out of range.
    """
    if not request.images:
        raise UserError("--mode=predict needs images: add --images FILE, or a folder")
    if request.top_k is not None and request.top_k < 1:
        raise UserError(f"--top_k={request.top_k} must be 1 or more")
    if request.threshold is not None and not 0 <= request.threshold <= 1:
        raise UserError(f"--threshold={request.threshold} must be a score from 0 to 1")
    output = request.output and paths.resolve(request.output, "--output")
    if output and output.suffix not in predictions.SUFFIXES:
        raise UserError(f"--output={request.output} must end in {' or '.join(predictions.SUFFIXES)}")
    if output and not output.parent.is_dir():
        raise UserError(f"--output={request.output}: there is no folder {output.parent}")
    if output and output.is_dir():
        raise UserError(f"--output={request.output} is a folder: name a file")
    if output:
        paths.check_output_folder(output.parent, "--output")
    folder = paths.resolve(request.draw, "--draw") if request.draw else None
    if folder:
        paths.check_output_folder(folder, "--draw")
    return output or None, folder


def _check_drawn(folder, found):
    """Raises UserError if a drawn file would replace one of the images."""
    images = {path.resolve() for path in found}
    for name in drawn_names(found):
        if (folder / name).resolve() in images:
            raise UserError(f"--draw={folder}: {folder / name} is one of the images: choose another folder")


def _images_below(folder) -> list[Path]:
    skipped, found, pending, visited = image_files.SkippedFiles(), [], [folder], set()
    while pending:
        current = pending.pop()
        if (place := current.resolve()) in visited:  # a link to a folder above it
            continue
        visited.add(place)
        names, images = image_files.list_entries(current, skipped)
        found += [current / name for name in images]
        pending += [current / name for name in reversed(names)]
    skipped.log(folder)
    if not found:
        raise UserError(f"--images {folder}: no images ({', '.join(image_files.EXTENSIONS)}) in this folder")
    return found


def _batch_size(run, count) -> int:
    """Returns the batch size of evaluation, or less for fewer images."""
    group = run.config.augment.get("group_size", 1)
    return min(run.config.eval.batch_size, -(-count // group) * group)
