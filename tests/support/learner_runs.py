"""Short runs of the method `cdl` with a learner, on noise, for tests of learners."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.monitoring
import numpy as np

from cdl_jax import config as base
from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.run import loop
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from tests.support.contexts import context

SIDE, BATCH, DIM = 8, 4, 8
LABELS = np.repeat(np.arange(4, dtype=np.int32), [5, 4, 6, 4])  # two tasks of 9 and 10 images: incomplete batches


def make_stream(**options):
    """Returns a stream of two tasks of noise.

    The images belong to two domains in turn.
    """
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), SIDE, SIDE, 3), np.uint8)
    split = Split(LABELS, images, domains=np.arange(len(LABELS), dtype=np.int32) % 2)
    data = Dataset("noise", tuple("abcd"), split, split, ("even", "odd"))
    return split_into_tasks(data, num_tasks=2, **options)


def build(learner, distill="none", stream=None, **changes):
    """Returns the experiment of a stream with a learner and ViTs of two blocks.

    stream: `make_stream()` by default.
    """
    config = base.default(
        "cdl", data="glyph_mini", learner=learner, distill=distill, teacher="mini_teacher", student="mini_student"
    )
    for section in (config.teacher, config.student):
        section.update(dim=DIM, depth=2, heads=2, patch_size=4, image_size=SIDE, weights="random")
    config.train.update(epochs=2, batch_size=BATCH)
    config.eval.update(batch_size=BATCH, forward_transfer=False)
    config.augment.train = "shift"
    config.optim.update(name="sgd", momentum=0.0, schedule="constant", learning_rate=0.1)
    config.log.update(every_steps=100, to=(), report=False)
    config.checkpoint.every_steps = 0
    config.devices = 1
    config.update_from_flattened_dict(changes)
    return Experiment.build(config, stream or make_stream())


def train(experiment, folder, steps=None):
    """Trains both tasks.

    Returns:
        Namespace of the `results`, the mutable variables `before` and `after`, the `frozen` variables, and
        `compiles_again`: whether task 1 compiled a program.
    """
    mutable, frozen = jax.device_get(experiment.initial_variables())
    folder.mkdir(exist_ok=True)
    compiled, after_task, save = [], [], Checkpoints.save_task
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    with mock.patch.object(Checkpoints, "save_task", lambda *a: (save(*a), after_task.append(len(compiled)))):
        (results,) = loop.train(experiment, folder, steps=steps)
    with Checkpoints(folder, read_only=True) as checkpoints:
        abstract = experiment.abstract_variables()
        after = jax.device_get(checkpoints.restore_task(1, abstract[0]))
        frozen_after = jax.device_get(checkpoints.restore_frozen(abstract[1]))
    jax.tree.map(np.testing.assert_array_equal, frozen_after, frozen)
    compiles_again = len({*after_task}) > 1
    return SimpleNamespace(results=results, before=mutable, after=after, frozen=frozen, compiles_again=compiles_again)


def take_steps(experiment, count):
    """Takes the first steps of task 0.

    Returns:
        (mutable variables before the first step and after each step, frozen variables).
    """
    steps = CompiledSteps(experiment)
    mutable, frozen = experiment.initial_variables()
    task, (phase, *_) = experiment.stream.tasks[0], experiment.method.phases
    state, history = steps.task_state(mutable), [jax.device_get(mutable)]
    for number, batch in zip(range(count), steps.train_batches(task, phase, 0, 0), strict=False):
        at = position(task, step=number, steps=2)
        state = steps.train_step(0)(state, frozen, steps.train_loader.data, batch, at, experiment.seed)
        history.append(jax.device_get(state.mutable))
    return history, jax.device_get(frozen)


def network_of(experiment):
    return experiment.method.models.student


def inputs_of(experiment):
    """Returns all images as the networks take them."""
    return experiment.stream.test.images.astype(np.float32) / 255


def plain_features(experiment, backbone, prompts=None):
    """Returns class tokens and outputs of the backbone by itself, without any learner."""
    apply = jax.jit(
        lambda params: network_of(experiment).backbone.apply({"params": params}, inputs_of(experiment), prompts)
    )
    return jax.device_get(apply(backbone))


def outputs(experiment, variables, train=False):
    """Returns the network's outputs for all images."""
    network, query = network_of(experiment), np.zeros((len(LABELS), DIM), np.float32)
    run = jax.jit(lambda v: network(v, inputs_of(experiment), query, context(2, 4, task=1), train))
    return jax.device_get(run(variables))


def linear(head, features):
    return np.asarray(features, np.float64) @ head["linear"]["kernel"] + head["linear"]["bias"]
