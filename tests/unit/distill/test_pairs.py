"""Every learner with every scheme: the gradients of a step in the second task.

Leaves that learn have a gradient, and no others.

Compiling takes the time here, hence the smallest networks, and a star instead of a grid: every learner with `kd` and
every scheme with `l2p` are compiled and their numbers checked. The other pairs are traced, which finds every error of a
shape, a name or an option. Schemes that leave inputs and classes as they are, are traced in one sum. `pytest -m grid`
compiles all pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo
from tests.support.cdl_pairs import FITTED, LEARNERS, OTHERS, SCHEMES, STAR, TRACED, UNTRAINED, build

# Stream kind -> first label and end of its second task, and labels of a batch. An online stream has those of its kind.
KINDS = {
    "class": (2, 4, (2, 3, 3, 2)),
    "domain": (0, 4, (0, 1, 2, 3)),
    "blurry": (0, 3, (0, 2, 2, 1)),
    "several sets": (1, 4, (1, 2, 3, 3)),
}


def place(task, first=None, end=None):
    first, end = (2 * task, 2 * task + 2) if end is None else (first, end)
    numbers = {"task": task, "first": first, "end": end, "epoch": 0, "step": 0}
    return Context(**{k: jnp.int32(v) for k, v in numbers.items()}, progress=jnp.float32(0), key=jax.random.key(3))


def batch(labels=(2, 3, 3, 2)):
    rng = np.random.default_rng(0)
    return {"images": rng.random((4, 16, 16, 3), np.float32), "labels": np.array(labels, np.int32)}


def random_variables(method):
    """Returns NumPy arrays of normal numbers, also where a fresh pool has zeros."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)


def loss_and_gradients(method, loss, transform=jax.jit):
    """Returns loss and gradients of `step_of_kinds` for a class-incremental stream."""
    return step_of_kinds(method, loss, transform)("class")


def step_of_kinds(method, loss, transform=jax.jit):
    """Returns a function of a stream kind to (loss, gradients) in the second task.

    All kinds share one program. The gradients are those of all leaves but backbones and states, zeros included.

    Args:
        transform: `jax.jit`, or a function that traces alone.
    """
    variables = random_variables(method)
    parts = {
        path[:2] for path in flatten_dict(variables) if any(u.trainable(path) for p in method.phases for u in p.updates)
    }
    backbone = flatten_dict(variables["student"]["backbone"])
    is_tuned = any(map(method.models.student.learner.trains_backbone, backbone))
    known = {(name, part) for name in method.networks for part in ("prompts", "head", *["backbone"] * is_tuned)}
    assert parts - {("distill", "params")} == {part for part in known if variables[part[0]][part[1]]}

    def total(learned, variables, batch, context):
        merged = {name: {**variables[name], **parts} for name, parts in learned.items()}
        return loss(merged, batch, context)[0]

    learned = {
        name: {part: tree for part, tree in parts.items() if part not in ("backbone", "state")}
        for name, parts in variables.items()
    }
    program = transform(jax.value_and_grad(total))

    def step(kind):
        first, end, labels = KINDS[kind]
        value, grads = jax.device_get(program(learned, variables, batch(labels), place(1, first, end)))
        return value, flatten_dict(grads)

    return step


def gradients_of_student(learner, scheme, transform=jax.jit, **changes):
    method = build(learner, scheme, **changes)
    return loss_and_gradients(method, method.student_loss, transform)


def check(loss, grads, learns, silent=()):
    """Checks that the loss is finite and positive, and which leaves have gradients.

    The leaves of `learns`, except `silent`, have gradients, and no others.
    """
    assert np.isfinite(loss)
    assert loss > 0
    for path, gradient in grads.items():
        assert np.isfinite(gradient).all(), path
        assert bool(np.any(gradient)) == (path[0] in learns and path[-1] not in silent), path


@pytest.mark.parametrize(
    ("learner", "scheme"), [*STAR, *(pytest.param(*pair, marks=pytest.mark.grid) for pair in OTHERS)]
)
def test_gradients_reach_all_of_the_student_and_none_of_its_teacher(learner, scheme):
    method = build(learner, scheme)
    step = step_of_kinds(method, method.student_loss)
    loss, grads = step("class")
    # Shallow L2P has prompts in block 0 only, so there is nothing to map for block 1.
    unused = {"prompts_1", "keys_1", "attention_1"} if (learner, scheme) == ("l2p", "prompt_mapping") else ()
    check(loss, grads, {"student", "distill"}, unused)
    assert ("teacher" in {path[0] for path in grads}) == (scheme != "none")
    for kernel in student_heads(grads, scheme):  # [dim, classes]
        assert np.any(kernel[:, :2]) == (scheme == "past")  # the old classes
        assert np.any(kernel[:, 2:], axis=0).all()
    for kind in KINDS if not method.needs_own_classes else ("several sets",):
        check_kind(kind, *step(kind), scheme, unused)


def check_kind(kind, loss, grads, scheme, silent):
    """Checks that a step of a stream kind trains the student and the task's classes.

    Of the student's heads, classes of other tasks are trained by the scheme `past` alone.
    """
    check(loss, grads, {"student", "distill"}, silent)
    first, end, _ = KINDS[kind]
    for kernel in student_heads(grads, scheme):
        is_trained = np.any(kernel, axis=0)
        assert is_trained[first:end].all(), kind
        assert scheme == "past" or is_trained.sum() == end - first, kind


@pytest.mark.parametrize(("learner", "scheme"), TRACED)
def test_a_pair_fits_together(learner, scheme):
    loss, grads = gradients_of_student(learner, scheme, lambda f: lambda *arguments: jax.eval_shape(f, *arguments))
    assert (loss.shape, loss.dtype) == ((), np.float32)
    assert ("teacher" in {path[0] for path in grads}) == (scheme != "none")
    assert all(kernel.shape == (8, 4) for kernel in student_heads(grads, scheme))


def student_heads(grads, scheme):
    student = {path: grad for path, grad in grads.items() if path[0] not in ("teacher", "past")}
    heads = [grad for path, grad in student.items() if path[-1] == "kernel" and "head" in path]
    assert len(heads) == (2 if scheme in ("kd_token", "prompt_mapping") else 1)
    return heads


@pytest.mark.parametrize("learner", LEARNERS)
def test_gradients_of_the_teacher_loss_reach_the_teacher_alone(learner):
    method = build(learner, "kd")
    loss, grads = loss_and_gradients(method, method.teacher_loss)
    check(loss, grads, {"teacher"})


def test_logits_can_be_the_compared_features_of_both_networks():
    method = build("l2p", "vkd", **{"distill.teacher_feature": "logits", "distill.student_feature": "logits"})
    check(*loss_and_gradients(method, method.student_loss), {"student", "distill"})


@pytest.mark.parametrize(
    ("learner", "scheme", "warns"),
    [("none", "fitnets", True), ("none", "kd", False), ("none", "kd_token", False), ("apt", "fitnets", False)],
)
def test_features_that_no_task_changes_are_compared_with_a_warning(learner, scheme, warns, caplog):
    build(learner, scheme)
    line = "'none' trains the head alone: only the terms of logits in distill.name='fitnets' change the student"
    assert (line in caplog.text) == warns and len(caplog.records) == warns


def test_every_learner_and_scheme_is_covered():
    covered = {learner.split()[0] for learner in LEARNERS} | UNTRAINED
    assert covered == set(plugins.list_plugins("models.learners"))
    assert set(SCHEMES) == set(plugins.list_plugins("distill"))


@pytest.mark.parametrize(
    ("learner", "message"),
    [("apt", "'apt' has none"), ("none", "'none' has none"), ("l2p tokens", "set learner.prompt_form='prefix'")],
)
def test_only_prefix_prompts_can_be_mapped(learner, message):
    with pytest.raises(UserError, match=message):
        build(learner, "prompt_mapping")


@pytest.mark.parametrize("learner", sorted(UNTRAINED))
@pytest.mark.parametrize("scheme", sorted(SCHEMES.keys() - {"none"}))
def test_a_learner_without_training_has_no_scheme(learner, scheme):
    config = configs.default("cdl", data="glyph_mini", learner=learner, distill=scheme)
    with pytest.raises(UserError, match=f"learner.name='{learner}'|'{learner}' has none"):
        cdl.build(config, StreamInfo(4, (2, 2)))


def test_prompts_that_are_selected_within_the_pass_cannot_be_mapped():
    with pytest.raises(UserError, match="'os_prompt' selects them within its pass: choose l2p"):
        gradients_of_student("os_prompt", "prompt_mapping", lambda f: lambda *arguments: jax.eval_shape(f, *arguments))


@pytest.mark.parametrize("learner", sorted(FITTED))
def test_second_heads_and_pasts_are_refused_where_heads_are_fitted(learner):
    with pytest.raises(UserError, match=f"'kd_token' trains a second head, but learner.name='{learner}' fits its head"):
        build(learner, "kd_token")
    with pytest.raises(
        UserError, match=f"'past' distills .* but learner.name='{learner}' fits its head in closed form"
    ):
        build(learner, "past")


@pytest.mark.parametrize("variant", ["dcdl", "deit"])
def test_prompt_tokens_leave_image_and_distillation_tokens_in_their_places(variant):
    plain, prompted = (build(name, "kd_token", **{"distill.variant": variant}) for name in ("none", "l2p tokens"))
    variables, images, query = random_variables(prompted), batch()["images"], np.ones((4, 8), np.float32)

    def scheme_inputs(variables):
        return prompted.models.scheme.student_inputs(variables["distill"], {}, 4, place(0), True)

    def outputs(method, student, inputs):
        out = method.models.student(student, images, query, place(0), False, inputs)
        return {name: value for name, value in out.items() if name != "prompts"}, out.get("prompts")

    @jax.jit
    def prompted_outputs(variables):
        inputs = scheme_inputs(variables)
        out, selection = outputs(prompted, variables["student"], inputs)
        # The same tokens put ahead of the others by hand, as tokens that the backbone has no special word for.
        first = selection.tokens
        if inputs.first_tokens is not None:
            first = jnp.concatenate([first, inputs.first_tokens], axis=1)
        _, by_hand = prompted.models.student.backbone.apply(
            {"params": variables["student"]["backbone"]}, images, inputs.prompts, first_tokens=first,
            last_tokens=inputs.last_tokens,
        )  # fmt: skip
        return out, {name: by_hand[name] for name in ("first_tokens", "tokens", "block_0/tokens", "block_1/tokens")}

    out, by_hand = jax.device_get(prompted_outputs(variables))
    without = {**variables["student"], "prompts": {}, "state": {"prompts": {}, "head": {}}}
    plain_out = jax.eval_shape(lambda v: outputs(plain, without, scheme_inputs(v))[0], variables)
    assert out["prompt_tokens"].shape == (4, 6, 8)
    for name, value in plain_out.items():
        if name != "logits":
            assert out[name].shape == value.shape, name
    first = by_hand.pop("first_tokens")[:, :6]
    np.testing.assert_allclose(first, out["prompt_tokens"], rtol=1e-4, atol=1e-5)
    for name, tokens in by_hand.items():
        np.testing.assert_allclose(tokens, out[name], rtol=1e-4, atol=1e-5)
    kernel, bias = (variables["student"]["head"]["linear"][name] for name in ("kernel", "bias"))
    expected = first.mean(axis=1) @ kernel + bias
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("token", ["kd_token:variant=deit,length=2", "kd_token:variant=dcdl,length=2"])
def test_terms_that_compare_tokens_leave_the_token_of_another_term_out(token):
    terms = (token, "fitnets:alpha=0", "reviewkd:alpha=0", "attention_transfer:alpha=0", "vkd")
    changes = {"distill.terms": terms, "distill.weights": (1.0,) * len(terms)}
    loss, _ = gradients_of_student(
        "none", "weighted_sum", lambda f: lambda *arguments: jax.eval_shape(f, *arguments), **changes
    )
    assert loss.shape == ()


def test_only_the_coda_rows_of_the_task_have_gradients():
    _, grads = gradients_of_student("coda", "kd")
    for path, gradient in grads.items():
        if path[:2] == ("student", "prompts"):
            rows = np.any(gradient.reshape(4, -1), axis=1)
            assert rows.tolist() == [False, False, True, True], path


def test_coda_rows_start_orthogonal_to_those_before_them():
    pool = build("coda", "kd").models.teacher.learner
    first = jax.jit(pool.init, static_argnums=3)(jax.random.key(0), np.zeros((1, 8), np.float32), place(0), True)
    start = jax.jit(pool.start_task)
    second, again = jax.device_get([start(first, place(task), jax.random.key(1)) for task in (1, 0)])
    for name, rows in second["params"].items():
        flat = np.asarray(rows).reshape(4, -1)
        assert np.abs(flat @ flat.T - np.eye(4)).max() < 1e-6, name
        before = np.asarray(first["params"][name])
        assert np.array_equal(before[:2], rows[:2])
        assert not before[2:].any()
        assert np.array_equal(before, again["params"][name])


def test_apt_merges_its_prompts_at_the_end_of_a_task_and_evaluates_the_merged_prompt():
    method = build("apt", "kd", **{"learner.ema": 0.75})
    end_task = jax.jit(method.end_task)
    live = np.arange(32, dtype=np.float32).reshape(4, 8)
    fresh = random_variables(method)
    fresh["student"]["prompts"] = {"prompts": live}
    first = jax.device_get(end_task(fresh, place(0)))
    assert np.array_equal(first["student"]["state"]["prompts"]["merged"], live)
    first["student"]["prompts"] = {"prompts": 3 * live}
    second = jax.device_get(end_task(first, place(1)))
    assert np.allclose(second["student"]["state"]["prompts"]["merged"], 0.75 * live + 0.25 * 3 * live, rtol=1e-6)
    assert np.array_equal(second["student"]["prompts"]["prompts"], 3 * live)
    pool = {"params": first["student"]["prompts"], "state": first["student"]["state"]["prompts"]}
    query = np.zeros((1, 8), np.float32)
    for train, wanted in ((True, 3 * live), (False, live)):
        additive = jax.jit(
            lambda p, t=train: method.models.student.learner.apply(p, query, place(1), t).prompts[1].additive
        )
        assert np.array_equal(np.stack(additive(pool)), wanted[2:])


@pytest.mark.parametrize(("choice", "same"), [("live", False), ("merged", True)])
def test_an_apt_teacher_uses_its_live_or_its_merged_prompt(choice, same):
    method = build("apt", "kd", **{"learner.teacher_prompts": choice})
    variables = random_variables(method)
    other = {**variables, "teacher": {**variables["teacher"], "prompts": {"prompts": np.ones((4, 12), np.float32)}}}
    loss = jax.jit(lambda v: method.student_loss(v, batch(), place(1))[0])
    losses = [float(loss(v)) for v in (variables, other)]
    assert (losses[0] == losses[1]) == same


def test_prompt_mapping_sets_its_schedule_and_rates():
    method = build("coda", "prompt_mapping")
    (phase,) = method.phases
    teacher, student = phase.updates
    assert (phase.name, teacher.trainable(("teacher", "head")), student.trainable(("student", "head"))) == (
        "both",
        1,
        1,
    )
    assert [round(float(u.optimizer.learning_rate(19.0)), 6) for u in (teacher, student)] == [9.7e-05, 1e-3]
    assert [p.name for p in build("coda", "prompt_mapping", **{"cdl.schedule": "teacher_first"}).phases] == [
        "teacher",
        "student",
    ]


def test_the_student_update_uses_the_teacher_outputs_from_before_the_teacher_update():
    method = build("dualprompt", "prompt_mapping")
    teacher, student = method.phases[0].updates
    variables, images_and_labels = random_variables(method), batch()
    shared = jax.jit(lambda v: teacher.loss(v, images_and_labels, place(1))[1].batch)(variables)
    loss = jax.jit(lambda v: student.loss(v, {**images_and_labels, **shared}, place(1))[0])
    moved = jax.tree.map(lambda x: x + 1, variables["teacher"])
    before, after = (float(loss({**variables, "teacher": t})) for t in (variables["teacher"], moved))
    assert before == after


def test_an_advancing_counter_adds_rows_and_freezes_earlier_ones():
    _, grads = gradients_of_student("coda", "prompt_mapping", **{"distill.counter": "advance"})
    for path, gradient in grads.items():
        if path[:3] == ("distill", "params", "mapping"):
            rows = np.any(gradient.reshape(4, -1), axis=1)
            assert rows.tolist() == [False, False, True, True], path


@pytest.mark.parametrize(("counter", "new"), [("advance", [False, False, True, True]), ("fixed", [False] * 4)])
def test_an_advancing_counter_initializes_the_rows_of_a_new_task(counter, new):
    scheme = build("coda", "prompt_mapping", **{"distill.counter": counter}).models.scheme
    variables = jax.jit(scheme.init)(jax.random.key(0))
    first, second = (scheme.start_task(variables, place(task), jax.random.key(1)) for task in (0, 1))
    before = flatten_dict(variables["params"])
    for path, leaf in flatten_dict(second["params"]).items():
        np.testing.assert_array_equal(flatten_dict(first["params"])[path], before[path])
        changed = np.any((np.asarray(leaf) != before[path]).reshape(len(leaf), -1), axis=1)
        assert changed.tolist() == (new if path[0] == "mapping" else [False] * len(leaf)), path


@pytest.mark.parametrize(
    ("learner", "scheme", "changes", "message"),
    [
        ("coda", "kd", {"learner.pool": 10}, "learner.pool=10 is above 8"),
        ("coda", "kd", {"learner.pool": 5}, "not a multiple of the 2 tasks"),
        ("coda", "kd", {"learner.pool": 1}, "too small for 2 tasks"),
        ("coda", "kd", {"learner.length": 3}, "learner.length=3 must be even"),
        ("coda", "kd", {"learner.layers": 5}, "the backbone has depth 2"),
        ("dualprompt", "kd", {"learner.general_length": 3}, "learner.general_length=3 must be even"),
        ("dualprompt", "kd", {"learner.pool": 1}, "fewer prompts than the stream has tasks"),
        ("dualprompt", "kd", {"learner.expert_layers": 3}, "the backbone has depth 2"),
        ("apt", "kd", {"learner.ema": 1.0}, "learner.ema=1.0 must lie in"),
        ("l2p", "reviewkd", {"distill.levels": 3}, "distill.levels=3"),
        ("l2p", "fitnets", {"student.patch_size": 4}, "the teacher has 5 tokens, the student 17"),
        ("l2p", "kd_token", {"distill.length": 5}, "distill.length=5 must be even"),
        ("l2p", "kd_token", {"distill.n_layers": 3}, "the student has 2 blocks"),
        ("l2p", "kd_token", {"distill.variant": "x"}, "use 'dcdl' or 'deit'"),
        ("l2p", "kd_token", {"distill.token_init": "x"}, "distill.token_init='x': use '', 'uniform' or 'zeros'"),
        ("none", "prompt_mapping", {}, "maps prefixes, and learner.name='none' has none"),
        ("coda", "prompt_mapping", {"distill.counter": "x"}, "distill.counter='x': use 'fixed' or 'advance'"),
        ("l2p", "prompt_mapping", {"distill.mapping": "x"}, "use 'pool' or 'self_attention'"),
        ("l2p", "prompt_mapping", {"distill.layers": 5}, "the backbone has depth 2"),
        ("l2p", "prompt_mapping", {"distill.alpha": 0.0}, "distill.alpha=0.0 leaves one of the student's two heads"),
        ("l2p", "prompt_mapping", {"distill.alpha": 1.0}, "distill.alpha=1.0 leaves one of the student's two heads"),
        ("l2p", "vkd", {"distill.teacher_feature": "attention_0"}, "'attention_0' is no output of the teacher"),
        ("l2p", "vkd", {"distill.student_feature": "clas_token"}, "'clas_token' is no output of the student"),
        ("l2p", "kd", {"cdl.teacher_runs": (1,)}, "cdl.teacher_runs=(1,) must be text that is not empty"),
        ("l2p", "vkd", {"distill.projector": "cailey"}, "did you mean 'cayley'"),
        ("l2p", "vkd", {"distill.teacher_norm": "layr"}, "did you mean 'layer'"),
        ("l2p", "vkd", {"distill.student_norm": "whiten_zca", "distill.norm_epsilon": 0.0}, "set 0.01"),
        ("l2p", "vkd", {"distill.feature_loss": "l1"}, "use 'smooth_l1' or 'mse'"),
        ("l2p", "vkd", {"distill.feature_weight": -1.0}, "distill.feature_weight=-1.0 must not be negative"),
        ("l2p", "vkd", {"distill.classes": "all"}, "distill.classes='all': use 'current' or 'seen'"),
        ("l2p", "kd", {"cdl.schedule": "x"}, "use 'teacher_first', 'interleaved_epochs' or 'interleaved'"),
        ("l2p", "kd", {"cdl.schedule": "interleaved", "cdl.teacher_epochs": 3}, "cdl.teacher_epochs has no meaning"),
        (
            "l2p",
            "kd",
            {"cdl.schedule": "interleaved", "cdl.teacher_runs": ("run",)},
            "has no meaning with cdl.teacher_runs",
        ),
        (
            "l2p",
            "kd",
            {"cdl.schedule": "interleaved_epochs", "cdl.teacher_epochs": 3, "train.epochs": 2},
            "cdl.teacher_epochs=3 must be a multiple of train.epochs=2",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(learner, scheme, changes, message):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        build(learner, scheme, **changes)
    assert message in str(error.value)
