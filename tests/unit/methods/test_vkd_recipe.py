"""Options of vkd: student's moving average, teacher cache, gradient accumulation.

The tests run the compiled steps without files, on a few images of `glyph_mini`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as configs
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods import vkd
from cdl_jax.methods.base import StreamInfo
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import State, position

WITHOUT_AUGMENTATION = {"augment.train": "none", "mixing.mixup": 0.0, "mixing.cutmix": 0.0}


def make_config(**changes):
    config = configs.default("vkd", data="glyph_mini", network="mini_student", teacher="mini_teacher")
    for section, dim in ((config.student, 8), (config.teacher, 12)):
        section.update(family="tests.support.tiny_network", dim=dim, weights="random")
    config.data.update(class_order="0,1,2,3", num_tasks=2, max_train_per_class=10, max_test_per_class=3)
    config.train.update(epochs=2, batch_size=8)
    config.eval.batch_size = 16
    config.optim.update(schedule="cosine", learning_rate=1e-2)
    config.augment.update(mean=(0.7,) * 3, std=(0.3,) * 3)  # no pixel is zero, so no output is
    config.distill.projector = "linear"  # compiles fast
    config.update_from_flattened_dict({**WITHOUT_AUGMENTATION, **changes})
    return config


def train(config, tasks=1):
    """Trains and returns the mutable variables after each step, and the experiment."""
    experiment = Experiment.build(config, stream.load(config.data))
    steps = CompiledSteps(experiment)
    mutable, frozen = experiment.initial_variables()
    history = []
    for task in experiment.stream.tasks[:tasks]:
        state = steps.task_state(steps.start_task(mutable, frozen, position(task)))
        for index, phase in enumerate(experiment.method.phases):
            step, count = steps.train_step(index), experiment.steps_per_epoch(task, phase)
            accumulate = 1 if phase.sequential else config.optim.accumulate
            for number, batch in enumerate(steps.train_batches(task, phase, 0, 0)):
                epoch, at = divmod(number, count)
                at = position(task, epoch=epoch, step=at, steps=count, accumulate=accumulate)
                state = step(state, frozen, steps.train_loader.data, batch, at, experiment.seed)
                history.append(jax.device_get(state.mutable))
        mutable = steps.end_task(state.mutable, frozen, position(task))
    return history, experiment


@pytest.fixture(scope="module")
def baseline():
    """The variables after each step of two tasks, without any of the options."""
    return train(make_config(), tasks=2)[0]


def assert_trees_close(actual, expected, atol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=str(path))


def test_accumulated_small_batches_equal_one_large_batch():
    settings = {"optim.clip_norm": 0.5, "optim.weight_decay": 0.05, "optim.name": "adamw", "optim.eps": 1e-3}
    large, _ = train(make_config(**settings, **{"train.batch_size": 8}))
    small, experiment = train(make_config(**settings, **{"train.batch_size": 2, "optim.accumulate": 4}))
    assert len(large) == 4 and len(small) == 16
    assert experiment.steps_per_epoch(experiment.stream.tasks[0], experiment.method.phases[0]) == 8
    for i in range(4):
        assert_trees_close(small[4 * i + 3]["student"]["params"], large[i]["student"]["params"], 1e-6)
        assert_trees_close(small[4 * i + 3]["distill"], large[i]["distill"], 1e-6)
    assert_trees_close(small[6]["student"], small[3]["student"], 0)
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), large[0]["student"], large[3]["student"])
    assert max(jax.tree.leaves(change)) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moving_average_follows_the_student_by_its_decay(accumulate, baseline):
    changes = {"vkd.ema": True, "vkd.ema_decay": (0.6, 1.0), "optim.accumulate": accumulate}
    mutable_after_steps, experiment = train(make_config(**changes), tasks=2)
    assert experiment.method.networks == ("teacher", "student", "student_ema")
    per_task, average = len(mutable_after_steps) // 2, None
    assert per_task == 4  # 20 images in batches of 8, two epochs
    for number, mutable in enumerate(mutable_after_steps):
        step = number % per_task
        if step == 0:  # the average starts at the student; the first task's start is not recorded
            average = mutable_after_steps[number - 1]["student"] if number else None
        if average is None:
            continue
        if (step + 1) % accumulate == 0:
            decay = 0.6 + 0.4 * (step - step % accumulate) / per_task
            average = jax.tree.map(lambda a, s, d=decay: d * a + (1 - d) * s, average, mutable["student"])
        assert_trees_close(mutable["student_ema"], average, 1e-6)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), mutable["student_ema"], mutable["student"])
    assert max(jax.tree.leaves(difference)) > 1e-3
    assert set(experiment.method.export(mutable)) == {"weights", "weights_ema"}
    if accumulate == 1:  # the student is the same as without the average
        assert_trees_close(mutable["student"], baseline[-1]["student"], 1e-6)


def test_moving_average_is_a_network_of_its_own():
    method = vkd.build(make_config(**{"vkd.ema": True}), StreamInfo(4, (2, 2)))
    variables = jax.jit(method.init)(jax.random.key(0))
    assert_trees_close(variables["student_ema"], variables["student"], 0)
    variables["student_ema"] = jax.tree.map(lambda x: x + 0.1, variables["student"])
    images, context = jnp.ones((2, 32, 32, 3)) * 0.3, Context.dummy()
    logits, _ = method.predict(variables, images, context)
    averaged = {**variables, "student": variables["student_ema"]}
    expected = method.teacher_outputs("student", averaged, images, context)["logits"]
    np.testing.assert_array_equal(logits["student_ema"], expected)
    assert np.abs(logits["student_ema"] - logits["student"]).max() > 0.01
    started = method.start_task(variables, context)
    assert_trees_close(started["student_ema"], variables["student"], 0)


def test_top5_counts_labels_among_the_five_largest_logits():
    method = vkd.build(make_config(), StreamInfo(8, (8,)))
    context = Context.dummy().replace(end=jnp.int32(8))
    metrics = method.extra_metrics({"student": jnp.tile(jnp.arange(8.0), (3, 1))}, jnp.array([7, 3, 2]), context)
    assert metrics["student/top5"].tolist() == [100, 100, 0]


@pytest.mark.parametrize("limit", [4096, 0])
def test_cached_teacher_outputs_give_the_same_student(limit, baseline):
    cached, experiment = train(make_config(**{"device_data_limit_mb": limit, "vkd.cache_teacher": True}), tasks=2)
    assert [phase.name for phase in experiment.method.phases] == ["cache", "student"]
    assert {name: cache.shape for name, cache in cached[-1]["cache"].items()} == {
        "logits": (40, 4), "patch_tokens": (40, 1, 12),
    }  # fmt: skip
    steps = len(baseline) // 2
    for task in range(2):
        cache_steps = len(cached) // 2 - steps
        assert cache_steps == 3  # 20 images in batches of 8
        first, last = task * len(cached) // 2 + cache_steps, (task + 1) * len(cached) // 2
        assert_trees_close(cached[last - 1]["student"], baseline[(task + 1) * steps - 1]["student"], 1e-5)
        filled = np.abs(cached[first - 1]["cache"]["logits"]).max(axis=1) > 0
        assert filled.sum() == 20 * (task + 1)


def test_run_resumes_within_an_accumulated_step(tmp_path):
    changes = {"vkd.ema": True, "vkd.cache_teacher": True, "optim.accumulate": 2}
    experiment = Experiment.build(make_config(**changes), stream.load(make_config().data))
    steps = CompiledSteps(experiment)
    mutable, frozen = experiment.initial_variables()
    task = experiment.stream.tasks[0]
    state = steps.task_state(steps.start_task(mutable, frozen, position(task)))
    ends = []
    with Checkpoints(tmp_path) as checkpoints:
        for start in (0, 1):
            if start:
                shapes = experiment.abstract_variables()[0], steps.abstract_state
                _, saved, within = checkpoints.restore_newest(*shapes)
                assert within
                state = State.from_saved(saved)
            for index, phase in enumerate(experiment.method.phases):
                step, count = steps.train_step(index), experiment.steps_per_epoch(task, phase)
                if phase.sequential and start:
                    continue
                done = 0 if phase.sequential else start
                for number, batch in enumerate(steps.train_batches(task, phase, 0, done), done):
                    at = position(task, epoch=number // count, step=number % count, steps=count, accumulate=2)
                    state = step(state, frozen, steps.train_loader.data, batch, at, experiment.seed)
                    if not phase.sequential and number == 0 and not start:
                        checkpoints.save_latest(1, state, {})
                        checkpoints.wait()
            ends.append(jax.device_get(state.mutable))
    assert_trees_close(*ends, 0)
    assert set(ends[0]) == {"student", "student_ema", "distill", "cache"}


def test_cache_has_one_vector_per_image_of_a_convolutional_teacher():
    out = {"logits": jnp.ones((2, 3)), "features": jnp.ones((2, 5)), "shared": jnp.ones((2, 4, 4, 7))}
    options = make_config().distill
    assert vkd.vkd.cacheable_outputs(options, out).keys() == {"logits", "features"}
    options.teacher_feature = "shared"
    assert vkd.vkd.cacheable_outputs(options, out)["shared"].shape == (2, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment.flip": True}, "augment.flip=True"),
        ({"augment.train": "shift"}, "augment.train='shift'"),
        ({"augment.jitter": 0.3}, "augment.jitter=0.3"),
        ({"augment.train": "resize"}, "augment.train='resize'"),
        ({"mixing.cutmix": 1.0}, "mixing.cutmix=1.0"),
    ],
)
def test_cache_is_refused_with_augmentation_or_mixing(changes, message):
    config = make_config(**{"vkd.cache_teacher": True, **changes})
    with pytest.raises(UserError, match="^vkd.cache_teacher=True with [^\n]*switch all augmentation[^\n]*$") as error:
        vkd.build(config, StreamInfo(4, (2, 2), (), 40))
    assert message in str(error.value)


def test_ema_decay_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"^config.vkd.ema_decay=\(0.9, 1.5\) must lie in \[0, 1\]$"):
        configs.check(make_config(**{"vkd.ema_decay": (0.9, 1.5)}))
    with pytest.raises(UserError, match=r"^config.vkd.ema_decay=\(0.9,\) must have 2 items$"):
        configs.check(make_config(**{"vkd.ema_decay": (0.9,)}))
    with pytest.raises(UserError, match=r"^config.vkd.ema_decay=\('a', 'b'\) must be numbers$"):
        configs.check(make_config(**{"vkd.ema_decay": ("a", "b")}))


def test_accumulation_over_more_images_than_the_task_has_is_refused():
    with pytest.raises(UserError, match="batch_size=8 times config.optim.accumulate=3 is larger than the 20 training"):
        train(make_config(**{"optim.accumulate": 3}))
    with pytest.raises(UserError, match="^config.train.last_batch='keep' cannot be combined with optim.accumulate"):
        train(make_config(**{"optim.accumulate": 2, "train.last_batch": "keep"}))
