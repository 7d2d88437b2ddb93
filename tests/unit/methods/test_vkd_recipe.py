"""Options of the method vkd: the running mean of the student, a cache of the teacher, gradients of several batches.

Runs of the whole program without files, on a few pictures of `glyph_mini`."""

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
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program

PLAIN = {"augment.train": "none", "mixing.mixup": 0.0, "mixing.cutmix": 0.0}


def config_of(**changes):
    config = configs.default("vkd", data="glyph_mini", network="mini_student", teacher="mini_teacher")
    for section, dim in ((config.student, 8), (config.teacher, 12)):
        section.update(family="tests.support.tiny_network", dim=dim, weights="random")
    config.data.update(class_order="0,1,2,3", num_tasks=2, max_train_per_class=10, max_test_per_class=3)
    config.train.update(epochs=2, batch_size=8)
    config.eval.batch_size = 16
    config.optim.update(schedule="cosine", learning_rate=1e-2)
    config.augment.update(mean=(0.7,) * 3, std=(0.3,) * 3)  # no pixel is zero, and so no output
    config.distill.projector = "linear"  # compiles in no time
    config.update_from_flattened_dict({**PLAIN, **changes})
    return config


def learn(config, tasks=1):
    """(live variables after each epoch, or each step of the program's last phase, the program)."""
    program = Program(config, stream.load(config.data))
    program.place_data()
    live, frozen = program.initial_variables()
    seen = []
    for task in program.stream.tasks[:tasks]:
        live = program.start_task(live, frozen, trainer.position(task))
        state = program.task_state(live, frozen)
        for index, phase in enumerate(program.method.phases):
            step = program.train_step(index, state, frozen)
            items, steps, _ = program.train_batches(task, phase, 0, 0, 0)
            each = 1 if phase.sequential else config.optim.accumulate
            for number, item in enumerate(items):
                epoch, at = divmod(number, steps)
                place = trainer.position(task, epoch=epoch, step=at, steps=steps, accumulate=each)
                state = step(state, frozen, program.train_source.data, item, place, program.seed)
                seen.append(jax.device_get(state.live))
        live = program.end_task(state.live, frozen, trainer.position(task))
    return seen, program


@pytest.fixture(scope="module")
def usual():
    """The variables after each step of two tasks, none of the options on."""
    return learn(config_of(), tasks=2)[0]


def assert_alike(one, other, atol):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol, err_msg=str(path))


def test_small_batches_that_are_accumulated_equal_the_large_one():
    settings = {"optim.clip_norm": 0.5, "optim.weight_decay": 0.05, "optim.name": "adamw", "optim.eps": 1e-3}
    large, _ = learn(config_of(**settings, **{"train.batch_size": 8}))
    small, program = learn(config_of(**settings, **{"train.batch_size": 2, "optim.accumulate": 4}))
    assert len(large) == 4 and len(small) == 16
    assert program.steps(program.stream.tasks[0], program.method.phases[0]) == 8
    for i in range(4):
        assert_alike(small[4 * i + 3]["student"]["params"], large[i]["student"]["params"], 1e-6)
        assert_alike(small[4 * i + 3]["distill"], large[i]["distill"], 1e-6)
    assert_alike(small[6]["student"], small[3]["student"], 0)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), large[0]["student"], large[3]["student"])
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_mean_follows_the_student_by_its_decay(accumulate, usual):
    changes = {"vkd.ema": True, "vkd.ema_decay": (0.6, 1.0), "optim.accumulate": accumulate}
    seen, program = learn(config_of(**changes), tasks=2)
    assert program.method.networks == ("teacher", "student", "student_ema")
    per_task, mean = len(seen) // 2, None
    assert per_task == 4  # 20 pictures in batches of 8, twice
    for number, live in enumerate(seen):
        at = number % per_task
        if at == 0:  # a task begins at the student; what the first began with is not seen
            mean = seen[number - 1]["student"] if number else None
        if mean is None:
            continue
        if (at + 1) % accumulate == 0:
            decay = 0.6 + 0.4 * (at - at % accumulate) / per_task
            mean = jax.tree.map(lambda m, s, d=decay: d * m + (1 - d) * s, mean, live["student"])
        assert_alike(live["student_ema"], mean, 1e-6)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), live["student_ema"], live["student"])
    assert max(jax.tree.leaves(apart)) > 1e-3
    assert set(program.method.export(live)) == {"weights", "weights_ema"}
    if accumulate == 1:  # the student learns as it would without
        assert_alike(live["student"], usual[-1]["student"], 1e-6)


def test_the_mean_is_told_under_its_own_name():
    method = vkd.build(config_of(**{"vkd.ema": True}), StreamInfo(4, (2, 2)))
    variables = jax.jit(method.init)(jax.random.key(0))
    assert_alike(variables["student_ema"], variables["student"], 0)
    variables["student_ema"] = jax.tree.map(lambda x: x + 0.1, variables["student"])
    images, context = jnp.ones((2, 32, 32, 3)) * 0.3, Context.dummy()
    logits, _ = method.predict(variables, images, context)
    of_mean = {**variables, "student": variables["student_ema"]}
    told = method.teacher_outputs("student", of_mean, images, context)["logits"]
    np.testing.assert_array_equal(logits["student_ema"], told)
    assert np.abs(logits["student_ema"] - logits["student"]).max() > 0.01
    begun = method.start_task(variables, context)
    assert_alike(begun["student_ema"], variables["student"], 0)


def test_the_label_may_be_among_the_five_largest():
    method = vkd.build(config_of(), StreamInfo(8, (8,)))
    context = Context.dummy().replace(end=jnp.int32(8))
    told = method.extra_metrics({"student": jnp.tile(jnp.arange(8.0), (3, 1))}, jnp.array([7, 3, 2]), context)
    assert told["student/top5"].tolist() == [100, 100, 0]


@pytest.mark.parametrize("limit", [4096, 0])
def test_a_cached_teacher_teaches_the_same(limit, usual):
    cached, program = learn(config_of(**{"resident_limit_mb": limit, "vkd.cache_teacher": True}), tasks=2)
    assert [phase.name for phase in program.method.phases] == ["cache", "student"]
    assert {name: kept.shape for name, kept in cached[-1]["cache"].items()} == {
        "logits": (40, 4), "patch_tokens": (40, 1, 12),
    }  # fmt: skip
    steps = len(usual) // 2
    for task in range(2):
        ahead = len(cached) // 2 - steps
        assert ahead == 3  # 20 pictures in batches of 8
        first, last = task * len(cached) // 2 + ahead, (task + 1) * len(cached) // 2
        assert_alike(cached[last - 1]["student"], usual[(task + 1) * steps - 1]["student"], 1e-5)
        filled = np.abs(cached[first - 1]["cache"]["logits"]).max(axis=1) > 0
        assert filled.sum() == 20 * (task + 1)


def test_a_run_goes_on_within_a_step_of_the_optimizer(tmp_path):
    changes = {"vkd.ema": True, "vkd.cache_teacher": True, "optim.accumulate": 2}
    program = Program(config_of(**changes), stream.load(config_of().data))
    program.place_data()
    live, frozen = program.initial_variables()
    task = program.stream.tasks[0]
    state = program.task_state(program.start_task(live, frozen, trainer.position(task)), frozen)
    ends = []
    with Checkpoints(tmp_path) as checkpoints:
        for start in (0, 1):
            if start:
                shapes = program.abstract_variables()
                _, state, within = checkpoints.restore_newest(shapes[0], program.abstract_state(*shapes))
                assert within
            for index, phase in enumerate(program.method.phases):
                step = program.train_step(index, state, frozen)
                if phase.sequential and start:
                    continue
                items, steps, done = program.train_batches(task, phase, 0, 0, 0 if phase.sequential else start)
                for number, item in enumerate(items, done):
                    place = trainer.position(
                        task, epoch=number // steps, step=number % steps, steps=steps, accumulate=2
                    )
                    state = step(state, frozen, program.train_source.data, item, place, program.seed)
                    if not phase.sequential and number == 0 and not start:
                        checkpoints.save_latest(1, state, {})
                        checkpoints.wait()
            ends.append(jax.device_get(state.live))
    assert_alike(*ends, 0)
    assert set(ends[0]) == {"student", "student_ema", "distill", "cache"}


def test_a_teachers_feature_of_a_convolutional_network_is_cached_as_it_is():
    out = {"logits": jnp.ones((2, 3)), "features": jnp.ones((2, 5)), "shared": jnp.ones((2, 4, 4, 7))}
    options = config_of().distill
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
def test_a_cache_is_refused_where_pictures_change(changes, message):
    config = config_of(**{"vkd.cache_teacher": True, **changes})
    with pytest.raises(UserError, match="^vkd.cache_teacher=True with [^\n]*switch all augmentation[^\n]*$") as error:
        vkd.build(config, StreamInfo(4, (2, 2), (), 40))
    assert message in str(error.value)


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(UserError, match="^vkd.ema_decay=.0.9, 1.5.: both decays lie in .0, 1.$"):
        vkd.build(config_of(**{"vkd.ema_decay": (0.9, 1.5)}), StreamInfo(4, (2, 2)))


def test_more_small_batches_than_pictures_are_refused():
    with pytest.raises(UserError, match="batch_size=8 times config.optim.accumulate=3 is larger than the 20 training"):
        learn(config_of(**{"optim.accumulate": 3}))
    with pytest.raises(UserError, match="^config.train.last_batch='keep' does not go with optim.accumulate above 1"):
        learn(config_of(**{"optim.accumulate": 2, "train.last_batch": "keep"}))
