"""Describes a config without training.

A description has the tasks, the parameters, the operations and memory of a step, and the resolved config.
"""

import copy
import dataclasses
from collections.abc import Iterator

from cdl_jax import config, plugins
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.models import weights
from cdl_jax.run import results
from cdl_jax.runtime import paths
from cdl_jax.training import dtypes
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment

_MAX_ARRAYS = 20  # rows of a table of arrays


def load_or_placeholder(options, seed: int) -> tuple[stream.Stream, str]:
    """Returns the stream of a config's data section, or one without content.

    Published or placeholder sizes are used only where nothing is at `data.path`.

    Args:
      options: the data section of a config.
      seed: of the run.

    Returns:
      The stream, and a line about sizes that stand in for missing data; "" where the data is there.

    Raises:
      UserError: the data is damaged or cannot be split into the tasks, or it is missing and its source has no sizes.
    """
    try:
        return stream.load(options, seed), ""
    except UserError as error:
        there = options.path and paths.resolve(options.path, "data.path").exists()
        if there or plugins.optional_part("data.sources", options.name, "placeholder") is None:
            raise
        note = f"planned with published sizes, for the data is not here: {error}\n"
        return stream.load(options, seed, placeholder=True), note


def build_experiment(options, data: stream.Stream) -> tuple[Experiment, str]:
    """Returns the experiment of a config, with random weights for absent ones.

    Random weights have the same shapes. They stand in only where nothing is at the path.

    Args:
      options: a resolved config.
      data: the stream of the first seed.

    Returns:
      The experiment, and a line about weights that are not on this machine; "" where all of them are.

    Raises:
      UserError: options that do not fit together, or a file or folder of weights that is there and does not fit.
    """
    try:
        return Experiment.build(options, data), ""
    except UserError as error:
        absent = [key for key, value in config.flatten(options).items() if _is_absent(key, value)]
        if not absent:
            raise
        note = f"planned with random weights, for those of the config are not here: {error}\n"
    without = copy.deepcopy(options)
    for key in absent:
        section = without
        for name in key.split(".")[:-1]:
            section = section[name]
        section.weights = "random"
        if section.get("weights_key", ""):
            section.weights_key = ""
    return dataclasses.replace(Experiment.build(without, data), config=dtypes.resolve(options)), note


def _is_absent(key, value) -> bool:
    """Returns whether a config key names weights and nothing is at their path."""
    if not key.endswith(".weights") or not isinstance(value, str) or value in ("", "random"):
        return False
    if value.startswith("package:") or paths.resolve(value, f"config.{key}").exists():
        return False
    try:
        weights.find(value, key)
    except UserError:
        return True
    return False


def describe(experiment: Experiment, show_config: bool = False) -> Iterator[str]:
    """Yields the lines of `--mode describe`. Nothing is run.

    The step of each phase is compiled, unless batches have several canvases: then its operations are counted alone.

    Args:
      show_config: whether the resolved config follows the plan.

    Raises:
      UserError: options that do not fit together.
    """
    options = experiment.config
    if options.debug_nans:
        raise UserError("config.debug_nans leaves steps uncompiled until they run: describe the run without it")
    steps = CompiledSteps(experiment)
    steps.trace()
    yield from _tasks(experiment)
    yield from _networks(experiment)
    count = len(experiment.seeds)
    images = f"{options.train.batch_size} images" + (count > 1) * f" for each of {count} seeds"
    yield f"a step of {images} on {experiment.mesh.size} device(s)"
    for index, phase in enumerate(experiment.method.phases):
        cost = _counted_cost(steps, index) if len(steps.train_loader.canvases) > 1 else _compiled_cost(steps, index)
        yield f"  {phase.name}: {phase.epochs} epochs a task, {cost}"
    yield dtypes.describe(options)
    if show_config:
        yield "config"
        yield from (f"  {key} = {value!r}" for key, value in sorted(config.flatten(options).items()))


def _tasks(experiment):
    """Yields the lines about the stream."""
    stream = experiment.stream
    yield f"{stream.name}: {stream.num_classes} classes in {stream.num_tasks} tasks"
    for seed, seed_stream in zip(experiment.seeds, experiment.streams, strict=True):
        if experiment.axis.per_seed_classes:
            yield f"the order of seed {seed}"
        elif seed != experiment.seeds[0]:
            continue
        for task in seed_stream.tasks:
            images = f"{len(task.train)} training and {len(task.test)} test images"
            names = ", ".join(seed_stream.class_names[task.first : task.end])
            domain = f", domain {task.domain}" * bool(task.domain)
            yield f"  task {task.index}{domain}: {images} of {names}"


def _networks(experiment):
    """Yields the lines about parameters and the forward pass."""
    yield "parameters of each seed" if len(experiment.seeds) > 1 else "parameters"
    published = experiment.method.published_parameters(experiment.variable_shapes)
    for network, counts in results.parameters(experiment).items():
        line = f"  {network}: {counts['trainable']:,} trainable, {counts['frozen']:,} frozen"
        unused = f"; {published[network]:,} with those without use in the authors' code" if network in published else ""
        yield line + unused
    if not experiment.config.seeds:  # these have a first axis
        yield from _trainable_arrays(results.parameter_shapes(experiment)[0])
    if experiment.problem.image_work:
        (height, width), work = experiment.problem.image_work(experiment)
        names = " and ".join(experiment.method.networks)
        yield f"a test image of {height} x {width} pixels: {_products(work)} in {names}"


def _trainable_arrays(networks) -> Iterator[str]:
    """Yields a table of the arrays that training may change, of each network."""
    from clu import parameter_overview  # which --help does not need

    for network, shapes in networks.items():
        if results.count_parameters(shapes):
            yield f"trainable arrays of {network}"
            table = parameter_overview.get_parameter_overview(shapes, include_stats=False, max_lines=_MAX_ARRAYS)
            yield from (f"  {line}" for line in table.splitlines())


def _counted_cost(steps, index):
    """Returns the operations of a step on the first canvas."""
    canvases, work = steps.train_loader.canvases, _products(steps.traced_work(index))
    height, width = canvases[0]
    return f"{work} on a canvas of {height} x {width}; not compiled, as {len(canvases)} canvases take minutes each"


def _compiled_cost(steps, index):
    """Returns the operations of a compiled step and its memory."""
    memory, flops = steps.compiled_step(index).memory_analysis(), steps.flops(index)
    work = "unknown" if flops is None else f"{flops / 1e9:.3f} GFLOP"
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    at_work = memory.temp_size_in_bytes
    return f"{work}, memory of a device {held / 2**20:.1f} MiB held + {at_work / 2**20:.1f} MiB at work"


def _products(work):
    return f"{work.flops / 1e9:.3f} GFLOP in matrix products and convolutions"
