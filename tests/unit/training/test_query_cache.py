"""Queries of test images are computed once, and predictions are the same."""

import numpy as np

from cdl_jax.data import stream
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from tests.end_to_end import tiny


def test_queries_are_computed_once_and_predictions_are_equal():
    config = tiny.get_config("learner=l2p")
    config.cdl.teacher_query = "teacher"
    config.teacher.depth = config.student.depth = 1
    program = Experiment.build(config, stream.load(config.data))
    steps = CompiledSteps(program)
    live, frozen = program.initial_variables()
    evaluator = Evaluator(steps)
    computed, step = [], steps.query_step
    steps.query_step = lambda *arguments: computed.append(step(*arguments)) or computed[-1]
    tasks, task = program.stream.tasks, program.stream.tasks[-1]
    place = position(task)
    evaluator.evaluate(live, frozen, tasks[1:3], place)
    assert len(computed) == 2 and set(computed[0]) == {"student", "teacher"}
    accuracy, counts, *_ = evaluator.evaluate(live, frozen, tasks, place)[0]
    logits_cached = evaluator.logits(live, frozen, task, place)
    assert len(computed) == len(tasks)  # the 32 images of a task are one batch
    assert counts["teacher"]["layer_0"][4] and sum(counts["teacher"]["layer_0"][4]) == 2 * 32  # top_k = 2

    without = Evaluator(steps)
    without._cache.data = lambda frozen, tasks: steps.test_loader.data
    for name, logits in without.logits(live, frozen, task, place).items():
        np.testing.assert_allclose(logits_cached[name], logits, rtol=1e-5, atol=1e-6)
        right = np.argmax(logits, axis=1) == program.stream.test.labels[task.test]
        assert accuracy[name][-1] == 100 * right.mean()
