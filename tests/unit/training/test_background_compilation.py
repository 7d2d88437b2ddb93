"""Threads compile each program of a run once, and calls of the steps use it."""

import jax
import jax.monitoring
import numpy as np
import pytest

from cdl_jax import main
from cdl_jax.data import loaders
from cdl_jax.run import start
from cdl_jax.runtime.compilation_queue import CompilationQueue
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.state import position
from tests.end_to_end.command import TINY


def test_a_program_is_taken_once_and_a_call_uses_it():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    function, queue = jax.jit(lambda x: 3 * x + 1), CompilationQueue(threads=1)
    queue.add("line", function.lower(jax.ShapeDtypeStruct((4,), "float32")))
    assert queue.take("line")(np.full(4, 2, np.float32)).tolist() == [7] * 4
    assert function(np.full(4, 3, np.float32)).tolist() == [10] * 4
    assert len(compiled) == 1 and queue.take("line") is None


def test_cancel_removes_the_programs_that_no_thread_has_begun():
    queue = CompilationQueue(threads=1)
    for name in range(3):
        queue.add(name, jax.jit(lambda x, name=name: x + name).lower(jax.ShapeDtypeStruct((2,), "float32")))
    queue.cancel()
    assert [queue.take(name) for name in range(3)] == [None] * 3


@pytest.mark.parametrize("cpus", [1, 2])
def test_evaluation_and_phases_are_compiled_once(cpus, monkeypatch):
    monkeypatch.setattr(loaders, "usable_cpus", lambda: cpus)
    config = main.parse(["cdl_jax", "--config", f"{TINY}:learner=l2p", "--workdir=unused"]).config
    config.teacher.depth = config.student.depth = 1
    experiment = start.build_experiment(config)
    steps, compiled = CompiledSteps(experiment), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, fun_name="", **_: compiled.append(fun_name) if "backend_compile" in event else None
    )
    steps.trace()
    steps.compile_evaluation_in_background()
    steps.compile_training_in_background()
    steps.finish_evaluation_compilation()
    programs = [steps.train_step(index) for index in range(len(experiment.method.phases))]
    assert len(programs) == 2 and not steps._queue._programs
    # The steps of both phases; with a second CPU also queries and evaluation.
    assert compiled.count("jit(on_gathered)") == (4 if cpus > 1 else 2)
    mutable, frozen = experiment.initial_variables()
    evaluator, tasks = experiment.problem.make_evaluator(steps), experiment.stream.tasks
    evaluator.evaluate(mutable, frozen, tasks[:1], position(tasks[0]))
    assert compiled.count("jit(on_gathered)") == 4
