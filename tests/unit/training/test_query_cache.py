"""What frozen networks tell of test pictures is asked once, and changes no prediction."""

import numpy as np

from cdl_jax.data import stream
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from tests.end_to_end import tiny


def test_queries_of_test_pictures_are_asked_once_and_predict_the_same():
    config = tiny.get_config("learner=l2p")
    config.cdl.query = "own"
    config.teacher.depth = config.student.depth = 1
    program = Experiment.build(config, stream.load(config.data))
    steps = CompiledSteps(program)
    live, frozen = program.initial_variables()
    evaluator = Evaluator(steps)
    asked, step = [], steps.query_step
    steps.query_step = lambda *arguments: asked.append(step(*arguments)) or asked[-1]
    tasks, task = program.stream.tasks, program.stream.tasks[-1]
    place = position(task)
    evaluator.evaluate(live, frozen, tasks[1:3], place)
    assert len(asked) == 2 and set(asked[0]) == {"student", "teacher"}
    accuracy, counts, *_ = evaluator.evaluate(live, frozen, tasks, place)[0]
    told = evaluator.logits(live, frozen, task, place)
    assert len(asked) == len(tasks)  # a task's 32 pictures are one batch
    assert counts["teacher"]["layer_0"][4] and sum(counts["teacher"]["layer_0"][4]) == 2 * 32  # top_k = 2

    without = Evaluator(steps)
    without._cache.data = lambda frozen, tasks: steps.test_loader.data
    for name, logits in without.logits(live, frozen, task, place).items():
        np.testing.assert_allclose(told[name], logits, rtol=1e-5, atol=1e-6)
        right = np.argmax(logits, axis=1) == program.stream.test.labels[task.test]
        assert accuracy[name][-1] == 100 * right.mean()
