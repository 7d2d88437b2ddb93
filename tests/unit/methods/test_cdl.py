"""The CDL method: queries, trained parts, losses and probes."""

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
CONTEXT = context(3, 6, task=1)
RNG = np.random.default_rng(5)
BATCH = {"images": RNG.normal(0, 20, (4, 16, 16, 3)).astype(np.float32), "labels": np.array([3, 4, 5, 3])}


def build(distill="kd", **changes):
    config = base.default("cdl", data="glyph_mini", teacher="mini_teacher", student="mini_student", distill=distill)
    for section, dim in ((config.teacher, 12), (config.student, 8)):
        section.update(dim=dim, depth=1, heads=2, image_size=16, weights="random")
    config.learner.update(pool=5, length=2, top_k=2)
    config.update_from_flattened_dict(changes)
    base.check(config)
    return cdl.build(config, INFO)


def random_variables(method):
    """Draws random leaves: a new backbone has nearly one class token for all images."""
    rng = np.random.default_rng(4)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


def evaluate(method, variables):
    """Returns counts and logits of `predict`, and networks' tokens without prompts."""

    @jax.jit
    def outputs(variables):
        tokens = {
            name: network.backbone.apply({"params": variables[name]["backbone"]}, BATCH["images"])[0]
            for name, network in method.models.trained.items()
        }
        return method.predict(variables, BATCH["images"], CONTEXT), tokens

    (logits, counts), tokens = jax.device_get(outputs(variables))
    return SimpleNamespace(variables=variables, logits=logits, counts=counts, tokens=tokens)


@cache
def reference():
    """Returns the result of `evaluate`, losses and gradients, for KD of weight 1/4."""
    method = build(**{"distill.alpha": 0.25, "cdl.aux_loss_scale": 2.0})

    @jax.jit
    def losses(variables):
        pairs = (("teacher", method.teacher_loss), ("student", method.student_loss))
        return {n: jax.value_and_grad(lambda v, f=f: f(v, BATCH, CONTEXT), has_aux=True)(variables) for n, f in pairs}

    variables = random_variables(method)
    results = jax.device_get(losses(variables))
    return SimpleNamespace(
        **vars(evaluate(method, variables)),
        total={name: float(value) for name, ((value, _), _) in results.items()},
        terms={name: outcome.metrics for name, ((_, outcome), _) in results.items()},
        gradient={name: gradient for name, (_, gradient) in results.items()},
    )


def selection_counts(query, keys):
    """Returns 1 for a query's two nearest rows of the pool, else 0, `[batch, pool]`."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(query), keys)]
    nearest = np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :2]
    return np.array([np.bincount(rows, minlength=len(keys)) for rows in nearest])


@pytest.mark.parametrize(("query", "backbone"), [("student", "student"), ("teacher", "teacher")])
def test_query_of_the_teachers_pool_is_a_class_token(query, backbone):
    method = build(**{"cdl.teacher_query": query})
    out = evaluate(method, random_variables(method))
    expected = selection_counts(out.tokens[backbone], out.variables["teacher"]["prompts"]["keys_0"])
    np.testing.assert_array_equal(out.counts["teacher"]["layer_0"], expected)
    expected = selection_counts(out.tokens["student"], out.variables["student"]["prompts"]["keys_0"])
    np.testing.assert_array_equal(out.counts["student"]["layer_0"], expected)
    assert len(np.unique(expected, axis=0)) > 1  # images select different rows
    assert {name: values.shape for name, values in out.logits.items()} == {"teacher": (4, 6), "student": (4, 6)}


def test_each_phase_trains_only_prompts_and_head_of_its_network():
    method = build()
    paths = flatten_dict(jax.eval_shape(method.init, jax.random.key(0)))
    assert [phase.name for phase in method.phases] == ["teacher", "student"]
    for phase in method.phases:
        (update,) = phase.updates
        trained = {path[1:] for path in paths if update.trainable(path)}
        assert trained == {
            ("prompts", "prompts_0"),
            ("prompts", "keys_0"),
            ("head", "linear", "kernel"),
            ("head", "linear", "bias"),
        }
        assert {path[0] for path in paths if update.trainable(path)} == {phase.name}
        assert update.trainable(("distill", "adapter")) == (phase.name == "student")
    frozen = {path for path in paths if method.is_frozen(path)}
    assert frozen == {path for path in paths if path[1] == "backbone"} and len(frozen) > 20


def test_losses_have_no_gradient_for_the_other_network():
    gradient = reference().gradient
    for learner, other in (("student", "teacher"), ("teacher", "student")):  # the query has no gradient either
        leaves = jax.tree.leaves(gradient[learner][other])
        assert len(leaves) > 10 and all(np.all(leaf == 0) for leaf in leaves)
        trained = jax.tree.leaves([gradient[learner][learner][part] for part in ("prompts", "head")])
        assert len(trained) == 4 and all(np.abs(leaf).max() > 1e-5 for leaf in trained)


def test_losses_are_the_weighted_sums_of_their_parts():
    out = reference()
    terms = out.terms["student"]
    assert out.total["student"] == terms["loss"]
    assert terms["loss"] == pytest.approx(0.75 * terms["cross_entropy"] + terms["kd"] + terms["pool"], rel=1e-5)
    assert min(terms.values()) > 0.01
    assert out.total["teacher"] == pytest.approx(
        sum(out.terms["teacher"][n] for n in ("cross_entropy", "pool")), rel=1e-5
    )
    for name in ("teacher", "student"):  # the current task's classes are 3, 4 and 5
        logits = np.asarray(out.logits[name], np.float64)[:, 3:]
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), BATCH["labels"] - 3]
        assert out.terms[name]["cross_entropy"] == pytest.approx(expected.mean(), rel=1e-4)
        keys = out.variables[name]["prompts"]["keys_0"]
        query = out.tokens["student"]
        similarity = (query @ keys.T) / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(keys, axis=1)
        nearest = np.sort(similarity, axis=1)[:, -2:]
        assert out.terms[name]["pool"] == pytest.approx(2 * (1 - nearest).sum(axis=1).mean(), rel=1e-4)
    student, teacher = (np.asarray(out.logits[name], np.float64)[:, 3:] / 2 for name in ("student", "teacher"))
    p, q = softmax(student, axis=1), softmax(teacher, axis=1)
    assert terms["kd"] == pytest.approx(0.25 * 4 * (q * np.log(q / p)).sum(axis=1).mean(), rel=1e-4)


def test_without_a_scheme_there_is_no_teacher_and_labels_have_weight_1():
    method, pair = build("none", **{"cdl.aux_loss_scale": 2.0}), reference()
    assert method.networks == ("student",) and [phase.name for phase in method.phases] == ["student"]
    assert set(jax.eval_shape(method.init, jax.random.key(0))) == {"student", "distill"}
    variables = {name: pair.variables[name] for name in ("student", "distill")}

    def both(variables):
        return method.student_loss(variables, BATCH, CONTEXT), method.predict(variables, BATCH["images"], CONTEXT)

    (value, outcome), (logits, counts) = jax.jit(both)(variables)
    terms = pair.terms["student"]
    assert float(value) == pytest.approx(terms["cross_entropy"] + terms["pool"], rel=1e-5)
    assert set(outcome.metrics) == {"loss", "cross_entropy", "pool"}
    assert set(logits) == set(counts) == {"student"}
    np.testing.assert_allclose(logits["student"], pair.logits["student"], rtol=1e-4, atol=1e-5)


def run_probes(method, variables):
    """Returns probe -> network or value -> logits; "unchanged" has those of `predict`."""
    images = BATCH["images"]
    results = {
        name: jax.jit(lambda v, p=p: p.predict(v, images, CONTEXT))(variables) for name, p in method.probes().items()
    }
    return {"unchanged": jax.jit(lambda v: method.predict(v, images, CONTEXT)[0])(variables), **results}


def test_probe_without_prompts_applies_each_head_to_its_backbones_class_token():
    method, out = build(**{"distill.alpha": 0.25}), reference()
    results = run_probes(method, out.variables)
    assert set(results) == {"unchanged", "prompts_off"}  # this scheme does not change the prediction
    for name in ("teacher", "student"):
        head = out.variables[name]["head"]["linear"]
        expected = np.asarray(out.tokens[name], np.float64) @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(results["prompts_off"][name], expected, rtol=1e-4, atol=1e-4)
        assert np.abs(results["prompts_off"][name] - out.logits[name]).max() > 0.01
    assert method.pairs == (("teacher", "student"),) and build("none").pairs == ()


@pytest.mark.parametrize(
    ("scheme", "alpha", "usual"), [("kd_token", 0.5, 0.5), ("kd_token", 0.25, 0.25), ("prompt_mapping", 0.3, 0.5)]
)
def test_probe_of_the_second_head_mixes_two_heads_with_each_weight(scheme, alpha, usual):
    small = {"distill.pool": 4, "distill.layers": 1, "distill.length": 2} if scheme == "prompt_mapping" else {}
    method = build(scheme, **{"distill.alpha": alpha, **small})
    variables = random_variables(method)
    results, probe = run_probes(method, variables), method.probes()["second_head_weight"]
    assert probe.usual == usual and sorted({*(i / 10 for i in range(11)), usual}) == list(probe.values)
    by_weight = results["second_head_weight"]
    np.testing.assert_array_equal(by_weight[str(usual)], results["unchanged"]["student"])
    first, second = (np.asarray(by_weight[name], np.float64) for name in ("0.0", "1.0"))
    assert np.abs(first - second).max() > 0.1
    for weight in probe.values:
        expected = (1 - weight) * first + weight * second
        np.testing.assert_allclose(by_weight[str(weight)], expected, rtol=1e-5, atol=1e-5)
    student_only = build("none")
    logits, _ = jax.jit(lambda v: student_only.predict(v, BATCH["images"], CONTEXT))(
        {"student": variables["student"], "distill": {}}
    )
    np.testing.assert_allclose(results["distillation_off"]["student"], logits["student"], rtol=1e-5, atol=1e-5)
    assert np.abs(results["distillation_off"]["student"] - first).max() > 1e-4  # the scheme has tokens


def test_task_boundaries_leave_a_shared_pool_unchanged():
    method, variables = build(), reference().variables
    for changed in (method.start_task(variables, CONTEXT), method.end_task(variables, CONTEXT)):
        assert jax.tree.structure(changed) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, changed, variables)


@pytest.mark.parametrize(("query", "width"), [("student", 8), ("teacher", 12)])
def test_keys_have_the_width_of_the_queries(query, width):
    shapes = jax.eval_shape(build(**{"cdl.teacher_query": query}).init, jax.random.key(0))
    assert shapes["teacher"]["prompts"]["keys_0"].shape == (5, width)
    assert shapes["student"]["prompts"]["keys_0"].shape == (5, 8)


def test_phases_have_their_epochs_and_batch_orders():
    method = build(**{"train.epochs": 7, "cdl.teacher_epochs": 3})
    assert [(phase.epochs, phase.order) for phase in method.phases] == [(3, 0), (7, 1)]
    method = build(**{"train.epochs": 7})
    assert [(phase.epochs, phase.order) for phase in method.phases] == [(7, 0), (7, 1)]
    rates = [float(phase.updates[0].optimizer.learning_rate(jnp.float32(2))) for phase in method.phases]
    assert rates == pytest.approx([1e-3 * np.cos(99 * np.pi / 1200)] * 2, rel=1e-5)


def test_options_that_do_not_fit_together_are_refused():
    with pytest.raises(UserError, match="cdl.teacher_query='own': use 'student' or 'teacher'"):
        build(**{"cdl.teacher_query": "own"})
    with pytest.raises(UserError, match="teacher.image_size=32 and student.image_size=16 differ"):
        build(**{"teacher.image_size": 32})
    method = build(**{"student.weights": ""})
    with pytest.raises(UserError, match="config.student.weights is empty"):
        method.load_pretrained(jax.eval_shape(method.init, jax.random.key(0)))
