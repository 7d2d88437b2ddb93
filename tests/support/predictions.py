"""Compares the predictions of a run opened from Python with those of evaluation."""

import shutil

import numpy as np

import cdl_jax
from cdl_jax.run import export, start
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.state import position


def restored(workdir, task, **changes):
    """Returns (evaluator, mutable variables, frozen variables, position).

    `--mode eval` evaluates with the same.

    changes: values of the config that differ from those of the run.
    """
    config = cdl_jax.load(workdir).config
    config.update(changes)
    experiment = start.build_experiment(config)
    mutable, frozen = experiment.abstract_variables()
    with Checkpoints(workdir, read_only=True) as checkpoints:
        mutable, frozen = checkpoints.restore_task(task, mutable), checkpoints.restore_frozen(frozen)
    evaluator = experiment.problem.make_evaluator(CompiledSteps(experiment))
    return evaluator, mutable, frozen, position(experiment.stream.tasks[task])


def logits_of_evaluation(workdir, task, **changes):
    """Returns the test images of the tasks up to `task`, and their logits.

    Returns:
        (images `[n, height, width, 3]`, network -> logits of the images).
    """
    evaluator, mutable, frozen, at = restored(workdir, task, **changes)
    stream = evaluator.steps.experiment.stream
    parts = [evaluator.logits(mutable, frozen, one, at) for one in stream.tasks[: task + 1]]
    rows = np.concatenate([one.test for one in stream.tasks[: task + 1]])
    return stream.test.images[rows], {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_equal(predicted, logits, seen):
    """Compares `ClassPredictions` with logits of evaluation.

    seen: bool `[classes]`.
    """
    np.testing.assert_allclose(predicted.logits[:, seen], logits[:, seen], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(predicted.labels, np.flatnonzero(seen)[logits[:, seen].argmax(axis=1)])
    assert np.isneginf(predicted.logits[:, ~seen]).all()
    np.testing.assert_allclose(predicted.probabilities.sum(axis=1), 1, rtol=1e-5)


def check_program(network, images):
    """Compares the program that is exported with the network itself."""
    program, weights = export.build_program(network.predictor)
    logits = np.asarray(program.call(weights, images))
    np.testing.assert_allclose(logits, network(images).logits, rtol=0, atol=1e-5)


def copy_of(workdir, folder):
    """Returns the run in a copy of its folder."""
    return cdl_jax.load(shutil.copytree(workdir, folder))
