"""Growth of variables with classes and tasks, and options that a branch keeps."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax.distill import prompt_mapping, weighted_sum
from cdl_jax.errors import UserError
from cdl_jax.models.learners import coda, os_prompt
from cdl_jax.run import branching
from cdl_jax.run.branching import Growth, Parent, check_options

GROWTH = Growth(((10, 12), (5, 6)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((4, 10), (4, 12)),  # a head
        ((5, 3), (6, 3)),  # one entry a task
        ((20, 3), (24, 3)),  # four entries a task: a pool, or spaces that are joined
        ((10, 5, 7), (12, 6, 7)),
        ((), ()),
    ],
)
def test_axes_of_classes_and_tasks_may_grow(old, new):
    assert GROWTH._explains(np.zeros(old), np.zeros(new))


@pytest.mark.parametrize(("old", "new"), [((4,), (5,)), ((10,), (11,)), ((12,), (10,)), ((10, 2), (12,)), ((7,), (9,))])
def test_other_axes_may_not(old, new):
    assert not GROWTH._explains(np.zeros(old), np.zeros(new))
    assert not Growth(())._explains(np.zeros(10), np.zeros(12))
    assert not GROWTH._explains(np.zeros(10, np.float32), np.zeros(12, np.int32))


def test_grown_variables_have_the_old_bits_in_front_and_initial_values_behind():
    rng = np.random.default_rng(0)
    old = {"head": rng.normal(size=(3, 10)).astype(np.float32), "scale": np.float32(2)}
    new = {"head": rng.normal(size=(3, 12)).astype(np.float32), "scale": np.float32(1)}
    grown = GROWTH.apply(old, new)
    assert grown["head"][:, :10].tobytes() == old["head"].tobytes() and grown["head"].dtype == np.float32
    np.testing.assert_array_equal(grown["head"][:, 10:], new["head"][:, 10:])
    assert grown["scale"] == 2


@pytest.mark.parametrize(
    "key",
    ["method", "seeds", "student.depth", "teacher.weights", "network.dropout", "cdl.teacher_runs", "learner.name",
     "learner.init_scale", "augment.mean", "eval.forward_transfer", "frozen_dtype", "data.name"],
)  # fmt: skip
def test_a_branch_keeps_networks_initial_values_and_evaluation(key):
    with pytest.raises(UserError, match=rf"config.{key}: 1 -> 2: a branch keeps this option of its parent runs/a"):
        check_options(Parent("runs/a", 0, "", {key: (1, 2)}))


def test_a_branch_keeps_what_selects_the_images_of_blurry_tasks():
    data = {"kind": "blurry", "class_order_seed": -1}
    config = ConfigDict({"data": data})
    for key in ("data.blurry_share", "data.class_order_seed", "seed"):
        parent = Parent("runs/a", 0, "", {key: (1, 2)})
        with pytest.raises(UserError, match=rf"config.{key}: 1 -> 2: tasks of a blurry stream that the parent runs/a"):
            branching._check_blurry_options(parent, config)
        branching._check_blurry_options(parent, ConfigDict({"data": {**data, "kind": "class"}}))
    branching._check_blurry_options(Parent("runs/a", 0, "", {"train.epochs": (1, 2)}), config)


def test_initial_accuracies_end_before_the_first_task_with_other_classes(monkeypatch):
    record = SimpleNamespace(initial_accuracy={"network": [1.0, 2.0, 3.0]})
    tasks = [{"classes": ["a"]}, {"classes": ["b"]}, {"classes": ["c"]}, {"classes": ["d"]}]
    monkeypatch.setattr(branching.results, "tasks_of", lambda _: tasks)
    branching._forget_other_tasks(record, None, tasks[:3])
    assert record.initial_accuracy == {"network": [1.0, 2.0, 3.0]}
    branching._forget_other_tasks(record, None, [tasks[0], tasks[2], tasks[1]])
    assert record.initial_accuracy == {"network": [1.0]}


def test_the_tasks_of_each_seed_are_compared(monkeypatch):
    recorded = [[{"classes": ["a"]}, {"classes": ["b"]}], [{"classes": ["b"]}, {"classes": ["a"]}]]
    monkeypatch.setattr(branching, "recorded_tasks", lambda _: recorded)
    monkeypatch.setattr(branching.results, "tasks_of", lambda stream: stream.tasks)
    streams = [SimpleNamespace(num_tasks=2, num_classes=2, tasks=recorded[0]) for _ in range(2)]
    run = SimpleNamespace(folder="runs/a", class_names=("a", "b"))
    with pytest.raises(UserError, match="the classes or images of task 0 differ"):
        branching.check_stream(run, 0, SimpleNamespace(streams=streams, stream=streams[0]), False)


def test_a_branch_may_change_training():
    keys = ("seed", "train.epochs", "optim.learning_rate", "augment.train", "distill.alpha", "learner.key_loss")
    check_options(Parent("runs/a", 0, "", {key: (1, 2) for key in (*keys, "cdl.teacher_epochs", "data.max_tasks")}))


@pytest.mark.parametrize("learner", [coda, os_prompt])
def test_each_task_keeps_its_rows_of_a_pool(learner):
    learner.check_growth({"pool": 10}, 5, {"pool": 12}, 6)
    with pytest.raises(UserError, match="so 6 tasks need learner.pool=12"):
        learner.check_growth({"pool": 10}, 5, {"pool": 10}, 6)


def test_each_task_keeps_its_rows_of_the_mapping_of_prompts():
    def config(**changes):
        made = configs.default("cdl", data="glyph_mini", distill="prompt_mapping")
        made.distill.update(changes)
        return made

    pool = config().learner.pool
    prompt_mapping.check_growth(config(), 3, config(pool=pool // 3 * 5), 5)
    prompt_mapping.check_growth(config(mapping="self_attention"), 3, config(mapping="self_attention"), 5)
    with pytest.raises(UserError, match=rf"so 5 tasks need distill.pool={pool // 3 * 5}, not {pool}"):
        prompt_mapping.check_growth(config(), 3, config(), 5)


def test_a_term_of_a_sum_keeps_its_rows_too():
    def config(terms):
        made = configs.default("cdl", data="glyph_mini", distill="weighted_sum")
        made.distill.update(terms=terms, weights=(1.0,) * len(terms))
        return made

    weighted_sum.check_growth(config(("kd", "prompt_mapping:pool=6")), 3, config(("kd", "prompt_mapping:pool=10")), 5)
    with pytest.raises(UserError, match="so 5 tasks need distill.pool=10, not 6"):
        weighted_sum.check_growth(config(("prompt_mapping:pool=6",)), 3, config(("prompt_mapping:pool=6",)), 5)
