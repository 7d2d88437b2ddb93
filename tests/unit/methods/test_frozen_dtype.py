"""Frozen kernels in bfloat16: predictions, memory, checkpoints, run as a teacher."""

import re

import jax
import numpy as np
import pytest

from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import finished_run
from cdl_jax.run import describe, loop
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from tests.end_to_end import tiny
from tests.support.contexts import context


def build(dtype):
    """Returns steps, mutable and frozen variables of one student with one wide block."""
    config = tiny.get_config("learner=none,distill=none")
    config.student.update(depth=1, dim=256)
    config.data.update(num_tasks=1, max_train_per_class=4, class_order="0,1,2,3,4,5,6,7")
    config.train.update(epochs=1)
    config.eval.forward_transfer = False
    config.log.update(report=False, to=())
    config.frozen_dtype = dtype
    experiment = Experiment.build(config, stream.load(config.data))
    return CompiledSteps(experiment), *experiment.initial_variables()


@pytest.fixture(scope="module")
def half():
    return build("bfloat16")


@pytest.fixture(scope="module")
def full():
    return build("float32")


def logits_shape(teacher, side):
    """Returns the shape of a teacher's logits for two images."""
    images, step_context = np.zeros((2, side, side, 3), np.float32), context(end=8)
    return jax.eval_shape(lambda variables: teacher.outputs(variables, images, step_context), teacher.init())[
        "logits"
    ].shape


def types(tree):
    return {path[-1].key: leaf.dtype.name for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_only_frozen_kernels_are_cast(half, full):
    (_, mutable, frozen), (_, mutable_full, frozen_full) = half, full
    dtypes = types(frozen)
    assert dtypes.pop("kernel") == "bfloat16" and set(dtypes.values()) == {"float32"} >= {dtypes["scale"]}
    jax.tree.map(np.testing.assert_array_equal, mutable, mutable_full)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), b, rtol=2**-8), frozen, frozen_full)
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (frozen, frozen_full)]
    assert 0.5 < size[0] / size[1] < 0.51


def test_logits_are_equal_within_the_precision_of_the_type(half, full):
    logits = []
    for steps, mutable, frozen in (half, full):
        (task,) = steps.experiment.stream.tasks
        logits.append(Evaluator(steps).logits(mutable, frozen, task, position(task))["student"])
    assert logits[0].dtype == np.float32
    difference = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
    assert 1e-5 < difference < 2e-2


def test_reported_memory_falls_by_the_saved_bytes(half, full):
    reported, saved = [], 2 * (768 * 256 + 12 * 256**2) / 2**20
    for steps, *_ in (half, full):
        text = "\n".join(describe.describe(steps.experiment))
        reported.append(float(re.search(r"memory of a device ([\d.]+) MiB held", text)[1]))
    assert reported[1] - reported[0] == pytest.approx(saved, abs=0.11)


def test_run_is_evaluated_again_and_is_a_teacher(half, tmp_path):
    steps, *_ = half
    experiment = steps.experiment
    loop.train(experiment, tmp_path, steps=steps)
    (accuracies,) = loop.evaluate(experiment, tmp_path, None)["networks"].values()
    assert accuracies["now"] == accuracies["stored"]
    frozen = experiment.abstract_variables()[1]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        stored = checkpoints.restore_frozen(frozen)
    assert types(stored) == types(frozen)
    teacher = finished_run.find_teacher(tmp_path, "", "same_task", experiment.info, experiment.config.augment)
    assert logits_shape(teacher, 48) == (2, 8)  # images of any size
    loaded = teacher.load_pretrained()["frozen"]
    assert types(loaded) == types(frozen) == types(teacher.init()["frozen"])
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.device_get(stored))


def test_other_dtypes_are_refused_in_one_line():
    with pytest.raises(UserError, match="config.frozen_dtype='float16': use 'auto', 'float32' or 'bfloat16'$"):
        build("float16")
