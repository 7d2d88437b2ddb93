"""What a config comes to, without training: tasks, parameters, operations and memory of a step, resolved config."""

import jax

from cdl_jax import config, plugins
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.run import results
from cdl_jax.runtime import paths
from cdl_jax.training.program import Program


def plan(options, seed: int) -> tuple[stream.Stream, str]:
    """Returns the stream of a config's data section, and a line about sizes that stand in for missing data.

    Published or placeholder sizes are used only where nothing is at `data.path`.

    Args:
      options: the data section of a config.
      seed: of the run.

    Raises:
      UserError: the data is damaged or cannot be split into the tasks, or it is missing and its source has no sizes.
    """
    try:
        return stream.load(options, seed), ""
    except UserError as error:
        there = options.path and paths.resolve(options.path, "data.path").exists()
        if there or not hasattr(plugins.load_plugin("data.sources", options.name), "placeholder"):
            raise
        note = f"planned with published sizes, for the data is not here: {error}\n"
        return stream.load(options, seed, placeholder=True), note


def describe(program: Program, show_config: bool = False) -> str:
    """Returns the text of `--mode describe`. Every phase is compiled, nothing is run.

    show_config: whether the resolved config follows the plan.
    """
    if program.config.debug_nans:
        raise UserError("config.debug_nans leaves steps uncompiled until they run: describe the run without it")
    program.place_data()
    program.check_steps()
    data = program.stream
    lines = [f"{data.name}: {data.num_classes} classes in {data.num_tasks} tasks"]
    for seed, own in zip(program.seeds, program.streams, strict=True) if program.axis.own_orders else [(None, data)]:
        lines += [] if seed is None else [f"the order of seed {seed}"]
        for task in own.tasks:
            images = f"{len(task.train)} training and {len(task.test)} test images"
            lines.append(f"  task {task.index}: {images} of {', '.join(own.class_names[task.first : task.end])}")
    several = len(program.seeds) > 1
    lines.append("parameters of each seed" if several else "parameters")
    for network, counts in results.parameters(program).items():
        lines.append(f"  {network}: {counts['trainable']:,} trainable, {counts['frozen']:,} frozen")
    live, frozen = program.abstract_variables()
    images = f"{program.config.train.batch_size} images" + several * f" for each of {len(program.seeds)} seeds"
    lines.append(f"a step of {images} on {program.mesh.size} device(s)")
    state = program.abstract_state(live, frozen)
    for index, phase in enumerate(program.method.phases):
        memory = program.train_step(index, state, frozen).memory_analysis()
        flops = program.flops(index)
        work = "unknown" if flops is None else f"{flops / 1e9:.3f} GFLOP"
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        lines.append(
            f"  {phase.name}: {phase.epochs} epochs a task, {work}, "
            f"memory of a device {held / 2**20:.1f} MiB held + {memory.temp_size_in_bytes / 2**20:.1f} MiB at work"
        )
    lines.append(f"device: {jax.devices()[0].device_kind}")
    if show_config:
        lines.append("config")
        lines += [f"  {key} = {value!r}" for key, value in sorted(config.flatten(program.config).items())]
    return "\n".join(lines)
