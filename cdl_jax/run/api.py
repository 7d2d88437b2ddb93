"""Opens runs and trains configs from Python.

    run = cdl_jax.load("runs/a")
    student = run.network("student", task=3)
    student(["photo.jpg"]).top(5)

A run is opened from its folder alone: neither its data set, nor the files of its pretrained weights, nor the runs of
its teachers need to exist.
"""

import logging
import numbers
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax import config_files, plugins
from cdl_jax.data import stream
from cdl_jax.data.image_dataset import ArrayImage
from cdl_jax.data.stream import Task
from cdl_jax.errors import UserError
from cdl_jax.evaluation import confusion
from cdl_jax.evaluation.predictions import BoxPredictions, ClassPredictions
from cdl_jax.methods.base import Method, StreamInfo, Variables, cast_frozen_kernels, split
from cdl_jax.methods.shared import finished_run
from cdl_jax.run import elsewhere, results, start
from cdl_jax.runtime import compilation_cache, files, paths
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training.prediction import Classifier, Detector, ImageFile
from cdl_jax.training.state import position

Images = np.ndarray | str | os.PathLike | Sequence[Any]
_MAX_BATCH = 32  # images; a batch of evaluation may be larger than what a notebook predicts
_NO_TASK = np.zeros(0, np.int32)


def load(folder: str | os.PathLike, seed: int | None = None) -> "Run":
    """Opens a run of any method, finished or not.

    Args:
      folder: the working directory.
      seed: of a run with `config.seeds`. None: the first one; for the folder of a seed, its own.

    Raises:
      UserError: the folder has no run, the run has no results yet, or no such seed.
    """
    folder = paths.resolve(folder, "the folder of the run")
    content = configs.read(folder)
    if content is None:
        raise UserError(f"{folder} has no run: name the --workdir of a run")
    parent = configs.read(folder.absolute().parent)
    if parent and folder.name in (f"seed_{number}" for number in parent["config"].get("seeds", ())):
        # The folder of a seed has no checkpoints.
        return load(folder.absolute().parent, int(folder.name.removeprefix("seed_")))
    config = _complete_config(content["config"])
    seeds = configs.seeds_of(config)
    if seed is not None and seed not in seeds:
        raise UserError(f"{folder} has no seed {seed}: choose one of {', '.join(map(str, seeds))}")
    seed = seeds[0] if seed is None else seed
    own = dict(zip(seeds, files.seed_folders(folder, config.seeds), strict=True))[seed]
    found = results.read(own)
    if found is None:
        raise UserError(f"{folder} has no results yet: they are written after the first task")
    return Run(folder, config, found, seed, content.get("teachers", {}))


def train(config: ConfigDict | str, workdir: str | os.PathLike) -> "Run":
    """Trains a config as the command line does.

    The function resumes the run in the working directory, and locks the directory until the training ends.

    Args:
      config: a ConfigDict, or what follows `--config`: a file, or the name of a shipped config, with arguments.
      workdir: the working directory.

    Returns:
      The run.

    Raises:
      UserError: the config is wrong, or the folder has a run of another config.
    """
    if isinstance(config, str):
        name, arguments = config_files.split_arguments(config)
        config = config_files.load_config(config_files.find(name), arguments)
    configs.check(config)
    folder = paths.resolve(workdir, "the working directory")
    compilation_cache.enable_cache(config.compilation_cache)
    with _command_line("--workdir", str(folder)):  # by which the command line resumes the run
        start.train(config, folder)
    return load(folder)


@dataclass(frozen=True, eq=False)
class Run:
    """A run in its folder.

    Attributes:
      folder: the working directory.
      config: the resolved config.
      results: the content of results.json.
      seed: of the run, or the one of several that was chosen.
      teachers: records of the runs of its teachers, see `finished_run.record_teachers`.
    """

    folder: Path
    config: ConfigDict
    results: dict[str, Any]
    seed: int
    teachers: finished_run.Records

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, networks={self.networks}, finished_tasks={self.finished_tasks})"

    @property
    def seed_folder(self) -> Path:
        """The folder of the seed's results.

        In a run of several seeds it lies below `folder`. In other runs it is `folder`.
        """
        return self.folder / f"seed_{self.seed}" if self.config.seeds else self.folder

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the evaluated networks."""
        return tuple(self.results["networks"])

    @property
    def tasks(self) -> tuple[tuple[str, ...], ...]:
        """The class names of each task."""
        return tuple(tuple(task["classes"]) for task in self.results["stream"]["tasks"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes in stream order."""
        return self.info.class_names

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """The accuracy matrix of each network, float64 `[tasks, tasks]` in percent.

        Row i has the tasks 0 to i after task i. NaN: not evaluated. The numbers of detectors are average precision in
        percent, and those of generators are distances.
        """
        return self._matrices("accuracy_matrix")

    @property
    def task_incremental_matrices(self) -> dict[str, np.ndarray]:
        """The same as `matrices` with the task of each image given; without detectors."""
        return self._matrices("task_incremental_matrix")

    @property
    def confusion_matrices(self) -> dict[str, np.ndarray]:
        """Test images by class and prediction after the last task, of each network.

        They are int64 `[classes seen, classes]`.
        """
        return {
            name: confusion.from_rows(network["confusion"], len(self.class_names))
            for name, network in self.results["networks"].items()
            if network.get("confusion")
        }

    def _matrices(self, key) -> dict[str, np.ndarray]:
        return {
            name: accuracy_matrix(network[key], len(self.tasks))
            for name, network in self.results["networks"].items()
            if network.get(key)
        }

    @cached_property
    def finished_tasks(self) -> tuple[int, ...]:
        """The tasks that have a checkpoint."""
        with Checkpoints(self.folder, read_only=True) as checkpoints:
            return tuple(checkpoints.finished_tasks())

    def network(
        self, name: str | None = None, task: int | None = None, batch_size: int | None = None
    ) -> "Network | DetectionNetwork":
        """Returns a network with its weights after a task.

        Args:
          name: of the network; None: that of the run's headline.
          task: index of the task; None: the last one with a checkpoint.
          batch_size: images of a batch, each compiled once. None: `eval.batch_size`, and at most 32.

        Raises:
          UserError: there is no such network or checkpoint, or the checkpoint is damaged.
        """
        name = self.results["headline"][0] if name is None else name
        if name not in self.networks:
            raise UserError(f"{self.folder} has no network {name!r}: {plugins.did_you_mean(str(name), self.networks)}")
        for what, value in (("task", task), ("batch_size", batch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
                raise UserError(f"{what}={value!r} must be an integer")
        if task is None:
            task = self.finished_tasks[-1] if self.finished_tasks else 0
        mutable, frozen = self._restore(task)
        size = self._batch_size(batch_size)
        at = position(self._task(task))
        parts = self.method, name, mutable, frozen, at, self.info, self.config.augment.to_dict(), size
        if self.is_generation:
            raise UserError(
                f"{self.folder} trained a generator, which classifies no images: its samples are in samples/, its "
                "weights in generator.npz"
            )
        if self.is_detection:
            seen = range(int(at["end"]))
            names = {self.info.class_ids[i]: self.class_names[i] for i in seen}
            return DetectionNetwork(name, task, tuple(names.values()), Detector(*parts, names))
        return Network(name, task, self.class_names, Classifier(*parts, self._device_size))

    def evaluate(
        self, on: str = "test", task: int | None = None, corrupted: Sequence[str] = (), severities: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Evaluates all networks on other images or on corrupted copies.

        See `elsewhere.evaluate`.

        Nothing is written.

        Args:
          on: "test", "train", a folder of class folders, or a data source, such as "imagenet_r:path=images".
          task: index of the task; None: the last one with a checkpoint.
          corrupted: names of `corruptions.NAMES`.
          severities: of the corruptions, from 1 to 5; (): all.

        Raises:
          UserError: the data or the checkpoint is missing, or the networks are detectors.
        """
        return elsewhere.evaluate(self, on, task, corrupted, severities)

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The stored evaluations of `--mode=eval --on`, by the names of their files."""
        return elsewhere.read(self.seed_folder)

    @cached_property
    def info(self) -> StreamInfo:
        """The stream as methods see it."""
        info = finished_run.stream_info(self.results["stream"]["tasks"])
        return self._info_from_data() if self.is_detection and not info.class_ids else info

    @property
    def is_detection(self) -> bool:
        """Whether the run trained detectors."""
        return plugins.optional_part("methods", self.config.method, "PROBLEM") == "detection"

    @property
    def is_generation(self) -> bool:
        """Whether the run trained a generator."""
        return plugins.optional_part("methods", self.config.method, "PROBLEM") == "generation"

    @cached_property
    def method(self) -> Method:
        """The run's method, without the files of its pretrained weights.

        Raises:
          UserError: a teacher's run does not exist, and an earlier version, which recorded none, trained this run.
        """
        with finished_run.use_records(self.teachers):
            config = finished_run.without_files(self.config)
            return plugins.load_plugin("methods", config.method).build(config, self.info)

    @property
    def _device_size(self) -> tuple[int, int] | None:
        """The (height, width) of test images that evaluation resized on the device.

        None: Pillow resizes images.
        """
        recorded = self.results["stream"]
        if "device_size" not in recorded:
            logging.getLogger("cdl_jax").warning(
                "%s is of an earlier version, which did not record the size of its test images: Pillow resizes all "
                "images, and rounds their values", self.folder,
            )  # fmt: skip
        return tuple(recorded["device_size"]) if recorded.get("device_size") else None

    def stored_variables(self, task: int) -> tuple[Variables, Variables]:
        """Returns mutable variables after a task, and frozen ones, on the first device.

        With `config.seeds` mutable variables have a leading axis of seeds.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        seeds = self.config.seeds
        device = SingleDeviceSharding(jax.local_devices()[0])

        def target(tree, leading=()):
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype, sharding=device), tree)

        shapes = jax.eval_shape(self.method.init, jax.random.key(0))
        mutable, frozen = split(shapes, lambda path: not self.method.is_frozen(path))
        frozen = cast_frozen_kernels(frozen, self.config.frozen_dtype)
        with Checkpoints(self.folder, read_only=True) as checkpoints:
            checkpoints.task_record(task)  # names the checkpoints that exist
            mutable = checkpoints.restore_task(task, target(mutable, (len(seeds),) * bool(seeds)))
            return mutable, checkpoints.restore_frozen(target(frozen))

    def _restore(self, task) -> tuple[Variables, Variables]:
        """Returns `stored_variables` of the run's seed."""
        mutable, frozen = self.stored_variables(task)
        if not self.config.seeds:
            return mutable, frozen
        index = list(self.config.seeds).index(self.seed)
        return jax.tree.map(lambda x: x[index], mutable), frozen

    def _batch_size(self, batch_size) -> int:
        if batch_size is not None:
            if batch_size < 1:
                raise UserError(f"batch_size={batch_size} must be 1 or more")
            return batch_size
        group = self.config.augment.get("group_size", 1)
        return max(group, min(self.config.eval.batch_size, _MAX_BATCH) // group * group)

    def _task(self, index) -> Task:
        first, end = self.info.label_ranges[index]
        return Task(index, (0,) * (end - first), first, _NO_TASK, _NO_TASK)

    def _info_from_data(self) -> StreamInfo:
        """Returns the stream of a detection run, with the category ids of its data.

        An earlier version wrote results.json of the run without category ids.
        """
        try:
            ids = stream.load(self.config.data, self.seed).class_order
        except UserError as error:
            raise UserError(
                f"{self.folder} is of an earlier version, which recorded no category ids, and its data cannot be read: "
                f"{error}"
            ) from None
        info = finished_run.stream_info(self.results["stream"]["tasks"])
        return replace(info, class_ids=tuple(ids))


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier of a run, with its weights after a task.

    Attributes:
      name: of the network.
      task: index of the task.
      class_names: of all classes in stream order.
      predictor: computes logits and features.
    """

    name: str
    task: int
    class_names: tuple[str, ...]
    predictor: Classifier

    def __repr__(self) -> str:
        return f"Network({self.name!r}, task={self.task}, classes={int(self.predictor.predictable.sum())})"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the network's features."""
        return self.predictor.feature_names

    def __call__(self, images: Images, *, features: bool = False) -> ClassPredictions:
        """Predicts the classes of images, with the preprocessing of the run's evaluation.

        Args:
          images: one image uint8 `[height, width, 3]`, a batch uint8 `[n, height, width, 3]`, a path, or a sequence of
            images and paths. Images may differ in size.
          features: whether to compute the named features of the network too.

        Raises:
          UserError: an image cannot be read, or is not uint8 RGB.
        """
        images = as_images(images)
        logits = self.predictor.logits(images)
        return ClassPredictions(logits, self.class_names, self.predictor.features(images) if features else {})


@dataclass(frozen=True, eq=False)
class DetectionNetwork:
    """A detector of a run, with its weights after a task.

    Attributes:
      name: of the network.
      task: index of the task.
      class_names: of the categories that it detects.
      predictor: computes detections.
    """

    name: str
    task: int
    class_names: tuple[str, ...]
    predictor: Detector

    def __repr__(self) -> str:
        return f"DetectionNetwork({self.name!r}, task={self.task}, classes={len(self.class_names)})"

    def __call__(self, images: Images, *, threshold: float = 0.3) -> list[BoxPredictions]:
        """Detects objects in images, with the preprocessing of the run's evaluation.

        Args:
          images: as in `Network`.
          threshold: smallest score of a box, from 0 to 1. At most 100 boxes of an image are returned.

        Raises:
          UserError: an image cannot be read, or is not uint8 RGB, or the threshold is out of range.
        """
        if not isinstance(threshold, numbers.Real) or not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold!r} must be a score from 0 to 1")
        found = self.predictor.detections(as_images(images))
        return [BoxPredictions.select(detections, self.predictor.names, threshold) for detections in found]


def accuracy_matrix(rows: Iterable[Sequence[float]], num_tasks: int) -> np.ndarray:
    """Returns the rows of a matrix of results.json as an array.

    NaN marks the entries that were not evaluated.

    >>> accuracy_matrix([[90.0]], 2).tolist()
    [[90.0, nan], [nan, nan]]
    """
    matrix = np.full((num_tasks, num_tasks), np.nan)
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    return matrix


def as_images(images: Images) -> list[ImageFile]:
    """Returns images of any supported form as a list.

    >>> [str(image) for image in as_images(np.zeros((2, 4, 6, 3), np.uint8))]
    ['image 0', 'image 1']

    Raises:
      UserError: there are none, they are no sequence, or an array is not uint8 `[height, width, 3]`.
    """
    if isinstance(images, str | os.PathLike) or isinstance(images, np.ndarray) and images.ndim == 3:
        images = [images]
    if not isinstance(images, Iterable) or isinstance(images, bytes):
        raise UserError(f"images are of type {type(images).__name__}: give a path, an array, or a list of them")
    found = [_as_image(image, f"image {number}") for number, image in enumerate(images)]
    if not found:
        raise UserError("there are no images: give one or more")
    return found


def _as_image(image, name) -> ImageFile:
    if isinstance(image, str | os.PathLike):
        return paths.resolve(image, name)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UserError(f"{name} is {pixels.dtype} {list(pixels.shape)}: give uint8 [height, width, 3], or a path")
    return ArrayImage(pixels, name)


def _complete_config(stored) -> ConfigDict:
    return ConfigDict(configs.copy_with_tuples(configs.with_defaults(stored)))


@contextmanager
def _command_line(*words):
    """Replaces the words of the command that config.json and results.json record."""
    original, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        yield
    finally:
        sys.argv = original
