"""Early stopping: a task ends with its best weights, after a kill too."""

import numpy as np
import pytest

from cdl_jax import config as configs
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.run import loop
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from tests.end_to_end.command import last_weights

EPOCHS, STEPS = 5, 10  # epochs a task at most, steps an epoch


def program(method="supervised", **changes):
    config = configs.default(method, data="glyph_mini", network="slim_resnet18")
    config.network.update(width=2, depths=(1, 1), image_size=32)
    config.data.update(num_tasks=2, max_train_per_class=16, max_test_per_class=8)
    config.train.update(epochs=EPOCHS, batch_size=16)
    # No accuracy surpasses another by so much: every task ends with its second evaluation.
    config.train.early_stopping.update(patience=1, margin=100.0)
    config.eval.update(every_epochs=1, forward_transfer=False, batch_size=160)
    config.optim.update(learning_rate=0.01, schedule="constant")
    config.checkpoint.every_steps = 4
    config.log.update(every_steps=7, to=())
    config.update_from_flattened_dict(changes)
    return Experiment.build(config, stream.load(config.data))


@pytest.fixture(scope="module")
def built():
    """Compiled once for all runs here, which have nothing else in common."""
    experiment = program()
    return experiment, CompiledSteps(experiment)


@pytest.fixture(scope="module")
def uninterrupted(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    (results,) = loop.train(built[0], folder, steps=built[1])
    return folder, results


def test_a_task_ends_with_the_weights_of_its_best_evaluation(uninterrupted):
    folder, results = uninterrupted
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert sum('"headline"' in line for line in lines) == 2 * 2  # tasks, evaluations within each
    assert f'"step": {2 * 2 * STEPS}' in lines[-1]
    for task, row in enumerate(results["networks"]["network"]["accuracy_matrix"]):
        assert results["best"][str(task)]["value"] == pytest.approx(np.mean(row))
        assert results["best"][str(task)]["epochs"] in (1, 2)


def test_killed_twice_it_ends_with_the_same_bits(built, uninterrupted, tmp_path, monkeypatch):
    """The run is killed between the two evaluations of the first and second task."""
    save, left = Checkpoints.save_latest, []

    def killed(self, step, *arguments):
        save(self, step, *arguments)
        if step in left:
            left.remove(step)
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save_latest", killed)
    left += [STEPS + 2, 3 * STEPS + 2]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.train(built[0], tmp_path, steps=built[1])
    (results,) = loop.train(built[0], tmp_path, steps=built[1])
    assert not left and results["best"] == uninterrupted[1]["best"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted[0] / "metrics.jsonl").read_bytes()
    for task in (0, 1):
        ours, theirs = last_weights(tmp_path, task), last_weights(uninterrupted[0], task)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("supervised", {"eval.every_epochs": 0}, "needs config.eval.every_epochs"),
        ("supervised", {"seeds": (0, 1)}, "run the seeds one by one"),
        ("supervised", {"train.early_stopping.margin": -1.0}, "must not be negative"),
        ("dkt", {"dkt.update_order": "sequential"}, "has 2 phases a task"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(method, changes, message):
    with pytest.raises(UserError) as error:
        program(method, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)
