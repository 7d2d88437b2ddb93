"""SimpleCIL: prototypes are the class means of the frozen backbone.

The class of the largest cosine is predicted.
"""

import jax
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.methods.base import join
from tests.support.learner_runs import LABELS, build, outputs, plain_features, train


def class_means(features, labels):
    """Returns the means of the rows of each class in float64."""
    return np.stack([np.float64(features)[labels == c].mean(axis=0) for c in range(4)])


def cosines(features, vectors):
    features, vectors = np.float64(features), np.float64(vectors)
    return features @ vectors.T / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)


def test_the_class_means_of_the_frozen_backbone_are_compared_by_their_cosines(tmp_path):
    experiment = build("simple_cil")
    assert [phase.name for phase in experiment.method.phases] == ["student", "student_fit"]
    run = train(experiment, tmp_path)
    assert not run.compiles_again
    student = run.after["student"]
    features, _ = plain_features(experiment, run.frozen["student"]["backbone"])
    means = class_means(features, LABELS)
    assert not jax.tree.leaves((student["prompts"], student["head"]))
    np.testing.assert_array_equal(student["state"]["statistics"]["counts"], [5, 4, 6, 4])
    np.testing.assert_allclose(student["state"]["head"]["prototypes"], means, rtol=1e-4, atol=1e-5)
    logits = cosines(features, means)
    own = join(run.frozen, run.after)["student"]
    np.testing.assert_allclose(outputs(experiment, own)["logits"], logits, rtol=1e-4, atol=1e-5)
    predicted = logits.argmax(axis=1)
    expected = [100 * (predicted == LABELS)[LABELS // 2 == task].mean() for task in (0, 1)]
    assert run.results["networks"]["student"]["accuracy_matrix"][1] == pytest.approx(expected)


def test_distillation_is_refused():
    with pytest.raises(UserError, match="distill.name='kd' has no effect, because learner.name='simple_cil' trains in"):
        build("simple_cil", "kd")
