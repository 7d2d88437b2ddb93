"""A step is compiled once a canvas; a batch runs on the program of its canvas."""

from types import SimpleNamespace

import numpy as np

from cdl_jax.training.compiled import CompiledSteps


def steps_for(*canvases):
    steps, compiled = object.__new__(CompiledSteps), []
    steps.train_loader = SimpleNamespace(canvases=canvases)

    def compiled_step(index, size=0, num_steps=1, canvas=None):
        compiled.append((index, size, canvas))
        return lambda *arguments: (canvas, len(arguments))

    steps.compiled_step = compiled_step
    return steps, compiled


def test_a_batch_runs_on_the_program_of_its_canvas():
    steps, compiled = steps_for((64, 64), (64, 128))
    step = steps.train_step(1, 8)
    assert compiled == []
    for canvas in ((64, 128), (64, 64)):
        batch = {"images": np.zeros((8, *canvas, 3), np.uint8)}
        assert step("state", "frozen", {}, batch, "position", "seed") == (canvas, 6)
    assert compiled == [(1, 8, (64, 128)), (1, 8, (64, 64))]


def test_one_shape_is_compiled_before_the_first_batch():
    for canvases in ((), ((64, 64),)):
        steps, compiled = steps_for(*canvases)
        steps.train_step(0)
        assert compiled == [(0, 0, None)]
