"""Checks options that depend on each other, on the stream and on the devices."""

import logging

import numpy as np

from cdl_jax import optim
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.data.stream import OPTIONS, StreamData
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Generates, HerdsMemory, Method, StreamInfo
from cdl_jax.models.modules import heads
from cdl_jax.runtime import sharding
from cdl_jax.training import generation


def check_problem(config, samples_of_method: str, samples_of_stream: str) -> None:
    """Checks that a method learns from samples as a data source has them.

    Args:
      samples_of_method: `problems.Problem.samples` of the method's problem.
      samples_of_stream: likewise of the stream.

    Raises:
      UserError: they differ.
    """
    if samples_of_method != samples_of_stream:
        raise UserError(
            f"method {config.method!r} learns from {samples_of_method}, and data.name={config.data.name!r} has "
            f"{samples_of_stream}: choose a method or a data source of the same kind"
        )


def check_method(config, method: Method, info: StreamInfo, class_names) -> None:
    """Checks a method's options against the stream.

    Raises:
      UserError: options that do not fit together.
    """
    _check_label_loss(config, method, info, class_names)
    _check_shared_classes(config, method, info)
    _check_online(config, method, info)
    if (count := method.num_parallel_networks) % config.peer_devices:
        raise UserError(
            f"config.peer_devices={config.peer_devices}: {config.method} divides {count} networks over devices: choose "
            "a divisor of that"
        )
    turns = sum(phase.tasks != "later" for phase in method.phases) * method.rounds
    if config.train.early_stopping.patience and turns > 1:
        raise UserError(
            f"config.train.early_stopping: method {config.method!r} has {turns} phases a task here, which end by "
            "their epochs alone: leave patience at 0"
        )
    if config.seeds and config.peer_devices > 1:
        raise UserError("config.seeds and config.peer_devices cannot be combined: run the seeds one by one")


def check_new_run(config, method: Method, info: StreamInfo, stream: StreamData) -> None:
    """Checks the options of a run before it begins.

    Options are refused where numbers would be wrong, and warned of where they have no effect. A run that has begun
    keeps its config: an earlier version's run resumes and is evaluated with such options.

    Args:
      config, method, info, stream: of the run.

    Raises:
      UserError: options that do not fit together.
    """
    _check_weight_decay(config, method, info)
    _check_binary_labels(config)
    _check_blurry_options(config)
    _check_accumulation(config)
    _check_late_learners(config)
    _check_generation(method, stream)
    _warn_of_unused_options(config)


def check_batches(config, method: Method, mesh, plans: tuple[BatchPlan, ...], seeds: tuple[int, ...]) -> None:
    """Checks that every batch can be filled and divided over the devices.

    Raises:
      UserError: a batch size that does not fit.
    """
    sharding.check_batch(mesh, config.train.batch_size, "train.batch_size")
    sharding.check_batch(mesh, config.eval.batch_size, "eval.batch_size")
    if isinstance(method, Generates):
        sharding.check_batch(mesh, method.generation_batch, "gan.generation_batch")
    plan = plans[0]
    for phase in method.phases:
        plan.check(phase)
        sharding.check_batch(mesh, plan.images_per_step(phase), "train.batch_size, and the images that join a batch:")
        _check_last_batches(config, mesh, plan, phase)
    for other, seed in zip(plans, seeds, strict=True):
        if (task := plan.first_mismatch(other, method.phases)) is not None:
            raise UserError(
                f"data.class_order_seed=-1: task {task} has other numbers of images in the order of seed {seed} than "
                f"in that of seed {seeds[0]}, but config.seeds takes the same steps for all: run them one by one, or "
                "make classes equal with data.max_train_per_class and data.max_test_per_class"
            )


def _check_label_loss(config, method, info, class_names):
    """Refuses a stream on which the loss of the labels is 0 for all weights.

    The loss is 0 because its softmax spans one class.
    """
    name, sizes = config.method, info.task_sizes
    if method.loss_classes and info.num_classes == 1:
        raise UserError(
            f"the stream has one class, {class_names[0]!r}: the softmax over it is 1 whatever the weights, and nothing "
            "is learned; choose data.class_order or data of at least two classes"
        )
    has_option = "classes" in config.get(name, {})
    if method.loss_classes == "current" and 1 in sizes:
        # "seen" spans one class in a first task of one class.
        other = "'all'" if sizes[0] == 1 else "'seen'"
        change = f"set config.{name}.classes={other}, or " if has_option else ""
        raise UserError(
            f"task {sizes.index(1)} has one class, and the softmax of method {name!r} spans the classes of the "
            f"current task: the loss is 0 whatever the weights, and nothing is learned; {change}choose "
            "data.num_tasks or data.task_sizes for at least two classes a task"
        )
    if method.loss_classes == "seen" and sizes[0] == 1:
        change = f"set config.{name}.classes='all', or " if has_option else ""
        raise UserError(
            f"task 0 has one class, and the softmax of method {name!r} spans the classes seen so far: the loss of task "
            f"0 is 0 whatever the weights, and nothing is learned in it; {change}choose data.num_tasks or "
            "data.task_sizes for at least two classes in the first task"
        )


def _check_shared_classes(config, method, info):
    """Refuses tasks that share classes for a method that learns a class in one task."""
    if not info.shares_classes:
        return
    reason = method.needs_own_classes
    if method.streams:
        reason = "gives each learner a class order of its own, and tasks of some of its classes"
    elif isinstance(method, HerdsMemory):
        reason = "selects the images of a class for its memory in one task, from all of them"
    if reason:
        raise UserError(
            f"data.kind={config.data.kind!r} has images of a class in several tasks, and method {config.method!r} "
            f"{reason}: choose data.kind='class', or another method, learner or scheme"
        )


def _check_online(config, method, info):
    """Refuses an online stream for a method with several passes over a task."""
    if not config.data.online:
        return
    phases = [phase for phase in method.phases if not phase.balanced]  # these have images of the memory alone
    for task in range(info.num_tasks):
        epochs = {phase.name: phase.epochs_of(task) for phase in phases if phase.epochs_of(task)}
        if sum(epochs.values()) > 1:
            epochs_text = ", ".join(f"{name}: {count}" for name, count in epochs.items())
            raise UserError(
                f"data.online=True has one pass over the images of a task, and method {config.method!r} has "
                f"{sum(epochs.values())} in task {task} ({epochs_text}): set train.epochs=1, and choose a method, "
                "schedule and learner with one phase a task, or data.online=False"
            )
    if config.augment.get("repeats", 1) > 1:
        raise UserError(
            f"data.online=True has each image once, and augment.repeats={config.augment.repeats} repeats it: set 1"
        )


def _check_weight_decay(config, method, info):
    """Refuses weight decay where it is the only gradient of a parameter.

    adam, amsgrad and rmsprop add the decay to the gradient and normalize the sum. With a loss over the current classes,
    the head's outputs of earlier classes have no other gradient, nor do rows of a pool that no image selects. The decay
    alone then moves them by full steps. Learners of DKT have no other gradient in tasks in which they are absent.
    """
    decay, name, no_decay = (config.optim.get(key) for key in ("weight_decay", "name", "no_decay"))
    if not decay or name is None:  # detectors and generators have optimizers of their own
        return
    has_own_classes = info.num_tasks > 1 and not info.classes_of.all()
    is_masked = method.loss_classes == "current" or config.get("vkd", {}).get("label_loss") == "binary"
    shrinks_head = is_masked and has_own_classes and not heads.NAMES <= set(no_decay)
    shrinks_rows = info.num_tasks > 1 and "pool" in config.get("learner", {}) and "prompts" not in no_decay
    if name in optim.NORMALIZED and (shrinks_head or shrinks_rows):
        reason = "loss spans the classes of the current task" if shrinks_head else "pool has rows that no image selects"
        raise UserError(
            f"optim.weight_decay={decay} is part of the gradient that optim.name={name!r} normalizes, and the "
            f"{reason} in method {config.method!r}: what earlier tasks learned would shrink by full steps; set "
            "optim.name='adamw' or optim.weight_decay=0"
        )
    if config.method == "dkt" and (config.dkt.joins or config.dkt.leaves):
        raise UserError(
            f"optim.weight_decay={decay} would change learners in tasks from which dkt.joins or dkt.leaves keep them "
            "away: set optim.weight_decay=0"
        )


def _check_binary_labels(config):
    """Refuses label smoothing where every share of a class counts as the class."""
    if config.method == "vkd" and config.vkd.label_loss == "binary" and config.mixing.smoothing:
        raise UserError(
            f"mixing.smoothing={config.mixing.smoothing} gives every class a share of each label, and "
            "vkd.label_loss='binary' takes every share for a label: all images would have all classes; set "
            "mixing.smoothing=0"
        )


def _check_blurry_options(config):
    """Refuses options of blurry streams for other kinds of streams."""
    for name in ("disjoint_share", "blurry_share", "blurry_sizes"):
        default = OPTIONS[name].default
        value = config.data.get(name, default)
        if value != default and config.data.kind != "blurry":
            raise UserError(f"data.{name}={value!r} belongs to data.kind='blurry': set it, or leave {name} out")


def _check_accumulation(config):
    """Refuses small batches for LAE, whose moving average has one step for each batch."""
    if config.optim.get("accumulate", 1) > 1 and config.get("learner", {}).get("name") == "lae":
        raise UserError(
            f"optim.accumulate={config.optim.accumulate}: the moving average of learner 'lae' would have one step for "
            "each small batch: set optim.accumulate=1"
        )


def _check_late_learners(config):
    """Refuses a memory for learners of DKT that join later.

    The memory would have images of tasks before they joined.
    """
    options = config.get("dkt", {})
    if any(options.get("joins", ())) and options.get("replay", 0):
        raise UserError(
            f"dkt.joins={tuple(options.joins)} with dkt.replay={options.replay}: the memory of a learner would have "
            "images of tasks before it joined: set dkt.replay=0"
        )


def _check_generation(method, stream):
    """Refuses numbers of test or generated images without a distance or a score."""
    if not isinstance(method, Generates):
        return
    labels = stream.test.labels
    if len(labels) < 4 or np.bincount(labels).max() < 2:
        raise UserError(
            f"the test set has {len(labels)} images: distances of generated images need 4 or more, and two of a class"
        )
    if method.has_score and method.generated < generation.SCORE_PARTS:
        raise UserError(
            f"gan.score=True divides the generated images into {generation.SCORE_PARTS} parts, and gan.generated="
            f"{method.generated}: set a larger number"
        )


def _warn_of_unused_options(config):
    """Warns of options of the optimizer without effect.

    The chosen schedule and optimizer leave these options without effect.
    """
    options = config.optim
    if "name" not in options:  # detectors and generators have optimizers of their own
        return
    schedules = {options.schedule, config.get("cdl", {}).get("student_schedule") or options.schedule}
    for key, (chosen, user) in {
        "warmup_epochs": (schedules, "cosine"),
        "end_learning_rate": (schedules, "cosine"),
        "milestones": (schedules, "steps"),
        "nesterov": ({options.get("name")}, "sgd"),
    }.items():
        if options.get(key) and user not in chosen:
            which = "name" if key == "nesterov" else "schedule"
            logging.getLogger("cdl_jax").warning(
                "config.optim.%s=%s has no effect with optim.%s=%r: it belongs to %r", key, options[key], which,
                options[which], user,
            )  # fmt: skip


def _check_last_batches(config, mesh, plan, phase):
    shards = sharding.num_batch_shards(mesh)
    for task in plan.stream.tasks:
        last = plan.batch_sizes(task.index, phase)[-1]
        if last < config.train.batch_size and last % shards:
            raise UserError(
                f"config.train.last_batch='keep': the last batch of task {task.index} has {last} images, which "
                f"cannot be split evenly over {shards} devices: use 'drop', or choose another train.batch_size or "
                "fewer devices"
            )
