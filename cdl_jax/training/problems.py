"""Lists the differences between classification, detection and generation.

The task loop is the same for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax

from cdl_jax import plugins
from cdl_jax.data import loaders
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.runtime import sharding
from cdl_jax.training import detection, generation, steps
from cdl_jax.training.evaluator import Evaluator


@dataclass(frozen=True)
class Problem:
    """Functions around the steps of training, by what is learned.

    Attributes:
      samples: what the images of a stream have, in words.
      check: `(config)`; raises a UserError for options that do not fit.
      plan_options: `(config) -> options` of `BatchPlan.build` that the problem has.
      make_loaders: `(experiment) -> (training loader, test loader)`.
      read_batch: see `steps.read_image_batch`.
      evaluation_step: see `steps.evaluation_step`.
      make_evaluator: `(compiled steps) -> evaluator`, see `evaluator.Evaluator.evaluate`.
      metric: name of the numbers of the accuracy matrix: "accuracy" of images or "AP" of classes, in percent, or a
        distance. `Method.metric` replaces it.
      lower_is_better: whether smaller numbers of the accuracy matrix are better.
      image_work: `(experiment) -> (size, work)`: the most common size of a test image, and the work of detecting in one
        image of that size; None: not stated.
      uses_mesh: whether traced methods find the mesh, to divide work on the host over its processes.
    """

    samples: str
    check: Callable
    plan_options: Callable
    make_loaders: Callable
    read_batch: Callable
    evaluation_step: Callable
    make_evaluator: Callable
    metric: str
    lower_is_better: bool = False
    image_work: Callable | None = None
    uses_mesh: bool = False


def name_of(method: str) -> str:
    """Returns what a method learns, a key of `PROBLEMS`.

    >>> name_of("vidt"), name_of("kd")
    ('detection', 'classification')
    """
    return plugins.optional_part("methods", method, "PROBLEM") or "classification"


def _image_loaders(experiment):
    config, axis, stream = experiment.config, experiment.axis, experiment.stream
    limits = {"num_workers": config.data.num_workers, "cache_mb": config.data.cache_mb}
    options = {**config.augment, **limits, "device_data_limit_mb": config.device_data_limit_mb}

    def make(split, part):
        return loaders.make_loader(split, experiment.mesh, options, experiment.method.image_size, axis.labels(part))

    test = make(stream.test, "test")
    if stream.test_tasks is not None:
        tasks = jax.make_array_from_process_local_data(sharding.replicated(experiment.mesh), stream.test_tasks)
        test = replace(test, data={**test.data, "tasks": tasks})
    return make(stream.train, "train"), test


def _device_loaders(experiment):
    """Returns the loaders of images that fit on the device.

    Raises:
      UserError: they do not.
    """
    loaders_of_parts = _image_loaders(experiment)
    if any(loader.crops_on_host for loader in loaders_of_parts):
        raise UserError(
            f"method {experiment.config.method!r} needs all images on the device, as an array of one size: raise "
            "config.device_data_limit_mb, or choose another data source"
        )
    return loaders_of_parts


# `Stream.problem`, or `PROBLEM` of a method -> its functions.
PROBLEMS: Mapping[str, Problem] = {
    "classification": Problem(
        samples="labeled images",
        check=lambda config: augment.check(config.augment),
        plan_options=lambda config: {"repeats": config.augment.repeats},
        make_loaders=_image_loaders,
        read_batch=steps.read_image_batch,
        evaluation_step=steps.evaluation_step,
        make_evaluator=Evaluator,
        metric="accuracy",
    ),
    "detection": Problem(
        samples="images with boxes",
        check=detection.check,
        plan_options=detection.plan_options,
        make_loaders=detection.make_loaders,
        read_batch=detection.read_batch,
        evaluation_step=detection.evaluation_step,
        make_evaluator=detection.DetectionEvaluator,
        metric="AP",
        image_work=detection.image_work,
        uses_mesh=True,
    ),
    "generation": Problem(
        samples="labeled images",
        check=generation.check,
        plan_options=lambda config: {},
        make_loaders=_device_loaders,
        read_batch=steps.read_image_batch,
        evaluation_step=generation.evaluation_step,
        make_evaluator=generation.GenerationEvaluator,
        metric="distance",
        lower_is_better=True,
    ),
}
