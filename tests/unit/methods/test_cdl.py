"""The CDL method: who asks, who is trained, and what the losses are made of."""

from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scipy.special import softmax

from cdl_jax import config as base
from cdl_jax.errors import UserError
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo
from tests.support.contexts import context

INFO = StreamInfo(6, (3, 3))
PLACE = context(3, 6, task=1)
RNG = np.random.default_rng(5)
BATCH = {"images": RNG.normal(0, 20, (4, 16, 16, 3)).astype(np.float32), "labels": np.array([3, 4, 5, 3])}


def build(distill="kd", **changes):
    config = base.default("cdl", data="glyph_mini", teacher="mini_teacher", student="mini_student", distill=distill)
    for section, dim in ((config.teacher, 12), (config.student, 8)):
        section.update(dim=dim, depth=1, heads=2, image_size=16, weights="random")
    config.learner.update(pool=5, length=2, top_k=2)
    config.update_from_flattened_dict(changes)
    return cdl.build(config, INFO)


def random_variables(method):
    """Values that make every part matter; the class token of a fresh backbone is nearly the same for all pictures."""
    rng = np.random.default_rng(4)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


def compiled(method, variables):
    """(counts and logits of `predict`, each network's class tokens without prompts)."""

    @jax.jit
    def outputs(variables):
        tokens = {
            name: getattr(method, name).backbone.apply({"params": variables[name]["backbone"]}, BATCH["images"])[0]
            for name in method.networks
        }
        return method.predict(variables, BATCH["images"], PLACE), tokens

    (logits, counts), tokens = jax.device_get(outputs(variables))
    return SimpleNamespace(variables=variables, logits=logits, counts=counts, tokens=tokens)


@cache
def taught():
    """What `compiled` tells of a method with KD of weight 1/4, its losses and their gradients."""
    method = build(**{"distill.alpha": 0.25, "cdl.aux_loss_scale": 2.0})

    @jax.jit
    def losses(variables):
        pairs = (("teacher", method.teacher_loss), ("student", method.student_loss))
        return {n: jax.value_and_grad(lambda v, f=f: f(v, BATCH, PLACE), has_aux=True)(variables) for n, f in pairs}

    variables = random_variables(method)
    found = jax.device_get(losses(variables))
    return SimpleNamespace(
        **vars(compiled(method, variables)),
        total={name: float(value) for name, ((value, _), _) in found.items()},
        terms={name: outcome.metrics for name, ((_, outcome), _) in found.items()},
        gradient={name: gradient for name, (_, gradient) in found.items()},
    )


def chosen_by(query, keys):
    """How often each row of the pool is among the two nearest, `[batch, pool]`."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(query), keys)]
    nearest = np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :2]
    return np.array([np.bincount(rows, minlength=len(keys)) for rows in nearest])


@pytest.mark.parametrize(("query", "asked_of"), [("student", "student"), ("own", "teacher")])
def test_the_teacher_s_pool_is_asked_with_the_class_token_of(query, asked_of):
    method = build(**{"cdl.query": query})
    out = compiled(method, random_variables(method))
    expected = chosen_by(out.tokens[asked_of], out.variables["teacher"]["prompts"]["keys_0"])
    np.testing.assert_array_equal(out.counts["teacher"]["layer_0"], expected)
    expected = chosen_by(out.tokens["student"], out.variables["student"]["prompts"]["keys_0"])
    np.testing.assert_array_equal(out.counts["student"]["layer_0"], expected)
    assert len(np.unique(expected, axis=0)) > 1  # pictures choose differently
    assert {name: values.shape for name, values in out.logits.items()} == {"teacher": (4, 6), "student": (4, 6)}


def test_each_phase_trains_prompts_and_heads_of_its_network_alone():
    method = build()
    paths = flatten_dict(jax.eval_shape(method.init, jax.random.key(0)))
    assert [phase.name for phase in method.phases] == ["teacher", "student"]
    for phase in method.phases:
        (update,) = phase.updates
        own = {path[1:] for path in paths if update.trainable(path)}
        assert own == {
            ("prompts", "prompts_0"),
            ("prompts", "keys_0"),
            ("head", "linear", "kernel"),
            ("head", "linear", "bias"),
        }
        assert {path[0] for path in paths if update.trainable(path)} == {phase.name}
        assert update.trainable(("distill", "adapter")) == (phase.name == "student")
    frozen = {path for path in paths if method.is_frozen(path)}
    assert frozen == {path for path in paths if path[1] == "backbone"} and len(frozen) > 20


def test_a_step_of_the_student_gives_the_teacher_no_gradient():
    gradient = taught().gradient
    for learner, other in (("student", "teacher"), ("teacher", "student")):  # the teacher's query is a constant, too
        leaves = jax.tree.leaves(gradient[learner][other])
        assert len(leaves) > 10 and all(np.all(leaf == 0) for leaf in leaves)
        trained = jax.tree.leaves([gradient[learner][learner][part] for part in ("prompts", "head")])
        assert len(trained) == 4 and all(np.abs(leaf).max() > 1e-5 for leaf in trained)


def test_losses_are_the_weighted_sums_of_their_terms():
    out = taught()
    terms = out.terms["student"]
    assert out.total["student"] == terms["loss"]
    assert terms["loss"] == pytest.approx(0.75 * terms["cross_entropy"] + terms["kd"] + terms["pool"], rel=1e-5)
    assert min(terms.values()) > 0.01
    assert out.total["teacher"] == pytest.approx(
        sum(out.terms["teacher"][n] for n in ("cross_entropy", "pool")), rel=1e-5
    )
    for name in ("teacher", "student"):  # the current task's classes are 3, 4 and 5
        own = np.asarray(out.logits[name], np.float64)[:, 3:]
        expected = np.log(np.exp(own).sum(axis=1)) - own[np.arange(4), BATCH["labels"] - 3]
        assert out.terms[name]["cross_entropy"] == pytest.approx(expected.mean(), rel=1e-4)
        keys = out.variables[name]["prompts"]["keys_0"]
        query = out.tokens["student"]
        similarity = (query @ keys.T) / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(keys, axis=1)
        nearest = np.sort(similarity, axis=1)[:, -2:]
        assert out.terms[name]["pool"] == pytest.approx(2 * (1 - nearest).sum(axis=1).mean(), rel=1e-4)
    own, other = (np.asarray(out.logits[name], np.float64)[:, 3:] / 2 for name in ("student", "teacher"))
    p, q = softmax(own, axis=1), softmax(other, axis=1)
    assert terms["kd"] == pytest.approx(0.25 * 4 * (q * np.log(q / p)).sum(axis=1).mean(), rel=1e-4)


def test_alone_there_is_no_teacher_and_the_labels_count_whole():
    alone, pair = build("none", **{"cdl.aux_loss_scale": 2.0}), taught()
    assert alone.networks == ("student",) and [phase.name for phase in alone.phases] == ["student"]
    assert set(jax.eval_shape(alone.init, jax.random.key(0))) == {"student", "distill"}
    own = {name: pair.variables[name] for name in ("student", "distill")}

    def both(variables):
        return alone.student_loss(variables, BATCH, PLACE), alone.predict(variables, BATCH["images"], PLACE)

    (value, outcome), (logits, counts) = jax.jit(both)(own)
    terms = pair.terms["student"]
    assert float(value) == pytest.approx(terms["cross_entropy"] + terms["pool"], rel=1e-5)
    assert set(outcome.metrics) == {"loss", "cross_entropy", "pool"}
    assert set(logits) == set(counts) == {"student"}
    np.testing.assert_allclose(logits["student"], pair.logits["student"], rtol=1e-4, atol=1e-5)


def found_by(method, variables):
    """Probe -> network or value -> logits, each probe compiled by itself, and those of `predict` as "unchanged"."""
    images = BATCH["images"]
    found = {
        name: jax.jit(lambda v, p=p: p.predict(v, images, PLACE))(variables) for name, p in method.probes().items()
    }
    return {"unchanged": jax.jit(lambda v: method.predict(v, images, PLACE)[0])(variables), **found}


def test_without_prompts_each_head_reads_the_class_token_of_its_own_plain_backbone():
    method, out = build(**{"distill.alpha": 0.25}), taught()
    found = found_by(method, out.variables)
    assert set(found) == {"unchanged", "prompts_off"}  # this scheme adds nothing to the student
    for name in ("teacher", "student"):
        head = out.variables[name]["head"]["linear"]
        expected = np.asarray(out.tokens[name], np.float64) @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(found["prompts_off"][name], expected, rtol=1e-4, atol=1e-4)
        assert np.abs(found["prompts_off"][name] - out.logits[name]).max() > 0.01
    assert method.pairs == (("teacher", "student"),) and build("none").pairs == ()


@pytest.mark.parametrize(
    ("scheme", "alpha", "usual"), [("kd_token", 0.5, 0.5), ("kd_token", 0.25, 0.25), ("prompt_mapping", 0.3, 0.5)]
)
def test_two_heads_are_mixed_with_any_weight_and_exactly_so_with_the_usual_one(scheme, alpha, usual):
    small = {"distill.pool": 4, "distill.layers": 1, "distill.length": 2} if scheme == "prompt_mapping" else {}
    method = build(scheme, **{"distill.alpha": alpha, **small})
    variables = random_variables(method)
    found, probe = found_by(method, variables), method.probes()["second_head_weight"]
    assert probe.usual == usual and sorted({*(i / 10 for i in range(11)), usual}) == list(probe.values)
    mixed = found["second_head_weight"]
    np.testing.assert_array_equal(mixed[str(usual)], found["unchanged"]["student"])
    own, second = (np.asarray(mixed[name], np.float64) for name in ("0.0", "1.0"))
    assert np.abs(own - second).max() > 0.1
    for weight in probe.values:
        expected = (1 - weight) * own + weight * second
        np.testing.assert_allclose(mixed[str(weight)], expected, rtol=1e-5, atol=1e-5)
    alone = build("none")
    logits, _ = jax.jit(lambda v: alone.predict(v, BATCH["images"], PLACE))(
        {"student": variables["student"], "distill": {}}
    )
    np.testing.assert_allclose(found["distillation_off"]["student"], logits["student"], rtol=1e-5, atol=1e-5)
    assert np.abs(found["distillation_off"]["student"] - own).max() > 1e-4  # the label head sees the scheme's tokens


def test_tasks_change_nothing_in_a_pool_that_all_of_them_share():
    method, variables = build(), taught().variables
    for changed in (method.start_task(variables, PLACE), method.end_task(variables, PLACE)):
        assert jax.tree.structure(changed) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, changed, variables)


@pytest.mark.parametrize(("query", "width"), [("student", 8), ("own", 12)])
def test_keys_are_as_wide_as_the_queries(query, width):
    shapes = jax.eval_shape(build(**{"cdl.query": query}).init, jax.random.key(0))
    assert shapes["teacher"]["prompts"]["keys_0"].shape == (5, width)
    assert shapes["student"]["prompts"]["keys_0"].shape == (5, 8)


def test_epochs_and_orders_of_the_phases():
    method = build(**{"train.epochs": 7, "cdl.teacher_epochs": 3})
    assert [(phase.epochs, phase.order) for phase in method.phases] == [(3, 0), (7, 1)]
    method = build(**{"train.epochs": 7, "cdl.same_batches": True})
    assert [(phase.epochs, phase.order) for phase in method.phases] == [(7, 0), (7, 0)]
    rates = [float(phase.updates[0].optimizer.learning_rate(jnp.float32(2))) for phase in method.phases]
    assert rates == pytest.approx([1e-3 * np.cos(99 * np.pi / 1200)] * 2, rel=1e-5)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="cdl.query='teacher': use 'student' or 'own'"):
        build(**{"cdl.query": "teacher"})
    with pytest.raises(UserError, match="teacher.image_size=32 and student.image_size=16 differ"):
        build(**{"teacher.image_size": 32})
    method = build(**{"student.weights": ""})
    with pytest.raises(UserError, match="config.student.weights is empty"):
        method.load_pretrained(jax.eval_shape(method.init, jax.random.key(0)))
