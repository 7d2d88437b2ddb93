"""Frozen kernels stored in half their bytes: predictions, memory, checkpoints, and such a run as a teacher."""

import re

import jax
import numpy as np
import pytest

from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import finished_run
from cdl_jax.run import describe, loop
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program
from tests.end_to_end import tiny
from tests.support.contexts import context


def made(dtype):
    """(program, live and frozen variables) of a student alone, whose one block is wide."""
    config = tiny.get_config("learner=none,distill=none")
    config.student.update(depth=1, dim=256)
    config.data.update(num_tasks=1, max_train_per_class=4, class_order="0,1,2,3,4,5,6,7")
    config.train.update(epochs=1)
    config.eval.forward_transfer = False
    config.log.update(report=False, tensorboard=False)
    config.frozen_dtype = dtype
    program = Program(config, stream.load(config.data))
    program.place_data()
    program.place_data = lambda: None  # what follows finds all compiled
    return program, *program.initial_variables()


@pytest.fixture(scope="module")
def half():
    return made("bfloat16")


@pytest.fixture(scope="module")
def full():
    return made("float32")


def told_of(teacher, side):
    """The shape of what a teacher tells of two pictures."""
    images, place = np.zeros((2, side, side, 3), np.float32), context(end=8)
    return jax.eval_shape(lambda variables: teacher.outputs(variables, images, place), teacher.init())["logits"].shape


def types(tree):
    return {path[-1].key: leaf.dtype.name for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_kernels_alone_are_halved_and_what_is_trained_is_not(half, full):
    (_, live, frozen), (_, same, whole) = half, full
    found = types(frozen)
    assert found.pop("kernel") == "bfloat16" and set(found.values()) == {"float32"} >= {found["scale"]}
    jax.tree.map(np.testing.assert_array_equal, live, same)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), b, rtol=2**-8), frozen, whole)
    size = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (frozen, whole)]
    assert 0.5 < size[0] / size[1] < 0.51


def test_logits_are_equal_within_the_precision_of_the_type(half, full):
    logits = []
    for program, live, frozen in (half, full):
        (task,) = program.stream.tasks
        logits.append(program.logits(live, frozen, task, trainer.position(task))["student"])
    assert logits[0].dtype == np.float32
    apart = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
    assert 1e-5 < apart < 2e-2


def test_memory_that_is_told_falls_by_the_bytes_saved(half, full):
    held, saved = [], 2 * (768 * 256 + 12 * 256**2) / 2**20
    for program, *_ in (half, full):
        held.append(float(re.search(r"memory of a device ([\d.]+) MiB held", describe.describe(program))[1]))
    assert held[1] - held[0] == pytest.approx(saved, abs=0.11)


def test_a_run_is_evaluated_again_and_teaches_from_what_it_stored(half, tmp_path):
    program, *_ = half
    loop.train(program, tmp_path)
    (told,) = loop.evaluate(program, tmp_path, None)["networks"].values()
    assert told["now"] == told["stored"]
    frozen = program.abstract_variables()[1]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        stored = checkpoints.restore_frozen(frozen)
    assert types(stored) == types(frozen)
    teacher = finished_run.find_teacher(tmp_path, "", "same_task", program.info, program.config.augment)
    assert told_of(teacher, 48) == (2, 8)  # pictures of any size
    taught = teacher.load()["frozen"]
    assert types(taught) == types(frozen) == types(teacher.init()["frozen"])
    jax.tree.map(np.testing.assert_array_equal, taught, jax.device_get(stored))


def test_another_type_is_refused_in_one_line():
    with pytest.raises(UserError, match="config.frozen_dtype='float16': use 'float32' or 'bfloat16'$"):
        made("float16")
