"""Seeds together, each with its own class order, equal separate runs."""

import json

import jax
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.errors import UserError
from cdl_jax.methods.shared.finished_run import find_teacher
from cdl_jax.run import describe, loop, memory
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.runtime.signals import RunInterrupted
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from tests.support.signals import After

SIDE, SEEDS, TASKS = 8, (3, 0), 3
TINY = {"family": "tests.support.tiny_network", "pooled": True, "norm": True, "dim": 4}


def stream(seed, train=(12,) * 6, test=(4,) * 6):
    """Three tasks of two classes; images of a class are noise of one color."""
    rng, kinds = np.random.default_rng(0), 180 * (np.arange(6)[:, None] >> np.arange(3) & 1)[:, None, None]

    def split(counts):
        labels = rng.permutation(np.repeat(np.arange(6, dtype=np.int32), counts))
        return Split(labels, (kinds[labels] + rng.integers(0, 76, (len(labels), SIDE, SIDE, 3))).astype(np.uint8))

    dataset = Dataset("squares", tuple("abcdef"), split(train), split(test))
    return split_into_tasks(dataset, num_tasks=TASKS, class_order="shuffle", class_order_seed=seed)


def program(method="supervised", network=None, data=None, **changes):
    config = base.default(method, data="glyph_mini", network="resnet20" if method == "dkt" else "mini_student")
    config.network.unlock()
    config.network.update(
        {**(network or {"family": TINY["family"], "dim": 8}), "image_size": SIDE, "weights": "random"}
    )
    config.data.update(class_order="shuffle", class_order_seed=-1)
    config.train.update(epochs=3, batch_size=4)
    config.eval.batch_size = 5
    config.augment.train = "shift"
    config.optim.learning_rate = 0.1
    config.log.update(every_steps=2, to=(), report=False)
    config.checkpoint.every_steps = 0
    config.devices = 1
    config.update_from_flattened_dict(changes)
    return Experiment.build(config, data or stream(base.seeds_of(config)[0]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trains both seeds together and each seed alone; returns the parent folder.

    The run of both seeds is stopped in the second task and resumed.
    """
    folder = tmp_path_factory.mktemp("orders")
    for name in ("both", *map(str, SEEDS)):
        (folder / name).mkdir()
    together = program(seeds=SEEDS)
    with pytest.raises(RunInterrupted):
        loop.train(together, folder / "both", After(36))
    assert (folder / "both" / "checkpoints" / "tasks" / "0").exists()
    loop.train(together, folder / "both")
    for seed in SEEDS:
        loop.train(program(seed=seed), folder / str(seed))
    return folder


def read(path):
    return json.loads(path.read_text())


def test_results_equal_those_of_single_runs(runs):
    taken = [program(**changes) for changes in ({"seeds": SEEDS}, *({"seed": seed} for seed in SEEDS))]
    lives = []
    for folder, own in zip(("both", *map(str, SEEDS)), taken, strict=True):
        with Checkpoints(runs / folder, read_only=True) as checkpoints:
            assert checkpoints.finished_tasks() == list(range(TASKS))
            lives.append(jax.device_get(checkpoints.restore_task(TASKS - 1, own.abstract_variables()[0])))
    for index, seed in enumerate(SEEDS):
        ours, alone = (read(runs / f / "results.json") for f in (f"both/seed_{seed}", str(seed)))
        assert ours["stream"] == alone["stream"]
        assert ours["networks"]["network"]["accuracy_matrix"] == alone["networks"]["network"]["accuracy_matrix"]
        assert ours["networks"]["network"]["pretask_accuracy"] == alone["networks"]["network"]["pretask_accuracy"]
        assert read(runs / f"both/seed_{seed}/config.json")["config"] == read(runs / f"{seed}/config.json")["config"]
        close = lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4)  # noqa: E731
        jax.tree.map(close, lives[0], lives[1 + index])
    first, second = (read(runs / f"both/seed_{seed}/results.json") for seed in SEEDS)
    classes = [[task["classes"] for task in content["stream"]["tasks"]] for content in (first, second)]
    assert classes[0] != classes[1] and sorted(sum(classes[0], [])) == sorted(sum(classes[1], [])) == list("abcdef")
    rows = [content["networks"]["network"]["accuracy_matrix"] for content in (first, second)]
    assert min(row[0][0] for row in rows) > 80 and rows[0] != rows[1]  # of two classes, whose colors are distinguished
    again = loop.evaluate(taken[0], runs / "both", 1)
    assert len(again["networks"]) == 2 and all(of["now"] == of["stored"] for of in again["networks"].values())


def test_images_are_on_the_device_once_and_the_plan_names_both_orders():
    together = program(seeds=SEEDS)
    message = "\n".join(describe.describe(together))
    assert "the order of seed 3" in message and "the order of seed 0" in message
    data = CompiledSteps(together).train_loader.data
    assert data["images"].shape == (72, SIDE, SIDE, 3) and data["labels"].shape == (2, 72)
    for labels, seed in zip(data["labels"], SEEDS, strict=True):
        np.testing.assert_array_equal(labels, stream(seed).train.labels)
    (phase,) = together.method.phases
    for index, seed in enumerate(SEEDS):
        alone = program(seed=seed)
        rows = together.rows(together.stream.tasks[1], phase, 0)[..., index]
        np.testing.assert_array_equal(rows, alone.rows(alone.stream.tasks[1], phase, 0))
    shared = program(seeds=SEEDS, **{"data.class_order_seed": 0})
    assert CompiledSteps(shared).train_loader.data["labels"].shape == (72,) and shared.info.class_names


def test_a_sequential_phase_reads_each_seeds_own_tasks():
    network = {"dim": 8, "depth": 1, "heads": 2, "patch_size": 4}
    together = program("nearest_mean", network, seeds=SEEDS)
    steps = CompiledSteps(together)
    drawn = lambda leaf: np.random.default_rng(2).normal(0, 0.1, leaf.shape).astype(np.float32)  # noqa: E731
    live, frozen = together.abstract_variables()
    live, frozen = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), live), jax.tree.map(drawn, frozen)
    (phase,) = together.method.phases
    for task in together.stream.tasks[:2]:
        state, count = steps.task_state(live), together.steps_per_epoch(task, phase)
        for number, item in enumerate(steps.train_batches(task, phase, 0, 0)):
            place = position(task, step=number, steps=count)
            state = steps.train_step(0)(state, frozen, steps.train_loader.data, item, place, together.seed)
        live = jax.device_get(state.mutable)
    means = live["network"]["means"]
    np.testing.assert_array_equal(means["counts"], [[12] * 4 + [0] * 2] * 2)
    of_class = [
        {c: sums[label] for label, c in enumerate(own.class_order[:4])}
        for own, sums in zip(together.streams, means["sums"], strict=True)
    ]
    common = set(of_class[0]) & set(of_class[1])
    assert 2 <= len(common) < 4
    for c in common:  # whichever label it has, and in whichever task it was learned
        np.testing.assert_allclose(of_class[0][c], of_class[1][c], rtol=1e-5, atol=1e-5)


def test_learners_have_their_own_streams_in_each_seeds_order():
    changes = {"dkt.num_learners": 2, "dkt.stream_order": "shuffled"}
    together, alone = program("dkt", TINY, seeds=SEEDS, **changes), program("dkt", TINY, seed=0, **changes)
    phase = together.method.phases[0]
    taken = [CompiledSteps(own).train_batches(own.stream.tasks[0], phase, 0, 0) for own in (together, alone)]
    for ours, theirs in zip(*taken, strict=True):
        assert ours["rows"].shape == (4, 2, 2)  # images, learners, seeds
        np.testing.assert_array_equal(ours["rows"][..., 1], theirs["rows"])
    labels = np.stack([own.train.labels for own in together.streams])
    for learner, order in enumerate(together.method.streams):
        for seed, rows in enumerate(
            np.moveaxis(together.rows(together.stream.tasks[0], phase, 0)[:, :, learner], -1, 0)
        ):
            assert set(labels[seed][rows.ravel()]) == set(order[:2])


def test_each_seed_replays_images_of_its_own_classes():
    together = program("eeil", TINY, seeds=SEEDS, **{"eeil.replay": 6})
    steps = CompiledSteps(together)
    task = together.stream.tasks[0]
    phase = next(phase for phase in together.method.phases if phase.herding_network)
    live, frozen = together.initial_variables()
    after = memory.select(Evaluator(steps), live, frozen, phase, task)
    for own, rows in zip(together.streams, memory.read_rows(steps, after), strict=True):
        assert rows.shape == (6, 3) and (rows[2:] == -1).all()
        np.testing.assert_array_equal(own.train.labels[rows[:2]], [[0] * 3, [1] * 3])


def test_options_that_cannot_be_combined_raise_errors_of_one_line(runs):
    def refusal(**changes):
        with pytest.raises(UserError) as caught:
            program(**changes)
        assert "\n" not in str(caught.value) and "one by one" in str(caught.value)
        return str(caught.value)

    for counts in ({"train": (12, 12, 12, 12, 12, 13)}, {"test": (4, 4, 4, 4, 4, 5)}):
        message = refusal(seeds=SEEDS, data=stream(3, **counts))
        assert "has other numbers of images in the order of seed 0 than in that of seed 3" in message
    assert "data.validation_fraction holds out different images" in refusal(
        seeds=SEEDS, **{"data.validation_fraction": 0.2}
    )
    with pytest.raises(UserError, match="has one class order, and each of config.seeds has its own .* one by"):
        find_teacher(str(runs / "3"), "", "last", program(seeds=SEEDS).info, {})
    assert find_teacher(str(runs / "3"), "", "last", program(seed=3).info, {}).network == "network"
