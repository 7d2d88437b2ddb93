"""Every learner, scheme and kind of stream: an experiment, or a one-line refusal.

By default each learner is built with `kd` and each scheme with `l2p`, since a refusal depends on one of both;
`pytest -m grid` builds all pairs. What a step computes on each kind is in test_pairs.py.
"""

import functools

import numpy as np
import pytest

from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.errors import UserError
from cdl_jax.training.experiment import Experiment
from tests.support.cdl_pairs import FITTED, PAIRS, STAR, UNTRAINED, tiny_config

# Kind -> options of the stream and changes of the config.
KINDS = {
    "class": ({"num_tasks": 2}, {}),
    "domain": ({"kind": "domain", "num_tasks": 0}, {"data.kind": "domain"}),
    "blurry": ({"kind": "blurry", "num_tasks": 2, "blurry_share": 0.5}, {"data.kind": "blurry"}),
    "online": ({"num_tasks": 2}, {"data.online": True, "train.epochs": 1, "cdl.schedule": "interleaved"}),
    "several sets": ({"num_tasks": 0}, {}),
}
ALONE = [(learner, "none") for learner in sorted(UNTRAINED)]


@functools.cache
def dataset(kind):
    """Returns four images of each class.

    The kind "several sets" has two sets, of three and of two classes. Other kinds have four classes, "domain" in two
    domains.
    """
    count = 5 if kind == "several sets" else 4
    labels = np.repeat(np.arange(count, dtype=np.int32), 4)
    domains = np.tile(np.array([0, 0, 1, 1], np.int32), count) if kind == "domain" else None
    split = Split(labels, np.zeros((4 * count, 16, 16, 3), np.uint8), domains=domains)
    names, sizes = ("plain", "inverse") * (kind == "domain"), (3, 2) * (kind == "several sets")
    return Dataset("tiny", tuple("abcde"[:count]), split, split, names, sizes)


@functools.cache
def stream(kind):
    return split_into_tasks(dataset(kind), **KINDS[kind][0])


def refusal(learner, scheme, kind):
    """Returns the reason in the message that refuses a pair; "" if the pair trains."""
    if kind in ("domain", "blurry"):
        for name in ("ease",) * (learner == "ease") + ("past",) * (scheme == "past"):
            return f"and method 'cdl' with (learner|scheme) '{name}' .*: choose data.kind='class'"
    if kind == "online" and learner.split()[0] in FITTED:
        return "the learner fits its head after its last epoch" if scheme != "none" else "data.online=True has one pass"
    return ""


def check_pair(learner, scheme, kind):
    _, changes = KINDS[kind]
    config = tiny_config(learner, scheme, **{"train.batch_size": 4, "eval.batch_size": 4, **changes})
    if scheme == "none":  # there is no teacher to train on the same pass
        config.cdl.schedule = "teacher_first"
    if message := refusal(learner, scheme, kind):
        with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
            Experiment.build(config, stream(kind))
        return
    experiment = Experiment.build(config, stream(kind))
    assert experiment.info.shares_classes == (kind in ("domain", "blurry"))
    for task in experiment.stream.tasks:
        trained = [p for p in experiment.method.phases if not p.sequential and experiment.epochs(task, p)]
        tasks = experiment.method.models.student.learner.trained_tasks
        assert bool(trained) == (tasks == "all" or (tasks == "first" and task.index == 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("learner", "scheme"),
    [*STAR, *ALONE, *(pytest.param(*pair, marks=pytest.mark.grid) for pair in PAIRS if pair not in STAR)],
)
def test_a_pair_is_built_or_refused_on_every_kind_of_stream(learner, scheme, kind):
    check_pair(learner, scheme, kind)
