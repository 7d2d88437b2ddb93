"""Every method and learner takes every kind of stream, or is refused in one line.

The refusal comes before any work.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import finished_run
from cdl_jax.run import results
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from cdl_jax.training.steps import evaluation_step
from tests.support import learner_runs
from tests.support.methods import FixedMethod

STREAMS = {
    "class": learner_runs.make_stream(),
    "domain": learner_runs.make_stream(kind="domain"),
    "blurry": learner_runs.make_stream(kind="blurry", disjoint_share=0.0, blurry_share=0.5),
}
SMALL = {
    "l2p": {"pool": 4, "length": 2, "top_k": 1},
    "dualprompt": {"length": 2, "general_length": 2, "general_layers": 1, "expert_layers": 1},
    "coda": {"pool": 4, "length": 2, "layers": 2},
    "lae": {"layers": 2, "constant_epochs": 0},
    "os_prompt": {"pool": 4, "length": 2, "layers": 2},
    "ranpac": {"projection": 8},
}
LEARNERS = plugins.list_plugins("models.learners")
METHODS = [name for name in plugins.list_plugins("methods") if name not in ("cdl", "vidt")]
# Why classes in several tasks are refused; the other learners and methods take every kind.
REFUSED = {
    "ease": "method 'cdl' with learner 'ease' gives each class the adapters of one task",
    "dkt": "method 'dkt' gives each learner a class order of its own",
    "eeil": "method 'eeil' selects the images of a class for its memory in one task",
}
# Methods of streams with one task.
ONE_TASK = {"gan": "method 'gan' learns all classes at once, and the stream has 2 tasks: set data.num_tasks=1"}
# Passes over the images of the first task with train.epochs=1; the other learners and methods have one.
PASSES = {name: 2 for name in ("aper", "ranpac", "ease", "slca")}


def learner(name, kind, **changes):
    changes = {f"learner.{key}": value for key, value in SMALL.get(name, {}).items()} | changes
    return learner_runs.build(name, stream=STREAMS[kind], **{"data.kind": kind, **changes})


def method(name, kind, **changes):
    config = base.default(name, data="glyph_mini")
    for section in filter(None, map(config.get, ("teacher", "student", "network"))):
        if section.family == "regnet":
            section.update(depth=4, group_width=8, stem_width=8, w0=8, wa=12.0, wm=2.0, image_size=32)
        elif "depths" in section:
            section.depths = (1,) * len(section.depths)
        elif "depth" in section:
            section.update(depth=1, image_size=32)
    config.augment.update(train="resize", test="resize")
    config.train.update(epochs=1, batch_size=4)
    config.eval.batch_size = 4
    config.devices = 1
    if name == "eeil":
        config.eeil.replay = 4
    config.update_from_flattened_dict({"data.kind": kind, **changes})
    return Experiment.build(config, STREAMS[kind])


def check_traced(build, name):
    """Traces the steps of both kinds, or checks the message of a refusal."""
    for kind in ("domain", "blurry"):
        if name in ONE_TASK:
            with pytest.raises(UserError, match=ONE_TASK[name]):
                build(name, kind)
        elif name in REFUSED:
            with pytest.raises(UserError) as error:
                build(name, kind)
            assert f"data.kind={kind!r} has images of a class in several tasks, and {REFUSED[name]}" in str(error.value)
            assert "\n" not in str(error.value)
        elif kind == "domain":
            CompiledSteps(build(name, kind)).trace()
        else:
            build(name, kind)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_take_every_kind_or_say_why_not(name):
    check_traced(learner, name)


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_every_kind_or_say_why_not(name):
    check_traced(method, name)


@pytest.mark.parametrize("scheme", [name for name in plugins.list_plugins("distill") if name != "none"])
def test_schemes_take_domains(scheme):
    options = {"prompt_mapping": {"layers": 1}, "reviewkd": {}}.get(scheme, {})
    changes = {f"distill.{key}": value for key, value in options.items()}
    changes |= {f"learner.{key}": value for key, value in SMALL["l2p"].items()}
    if scheme == "past":
        with pytest.raises(UserError, match="with scheme 'past' distills over the classes that earlier tasks"):
            learner_runs.build("l2p", scheme, STREAMS["domain"], **{"data.kind": "domain", **changes})
        return
    built = learner_runs.build("l2p", scheme, STREAMS["domain"], **{"data.kind": "domain", **changes})
    CompiledSteps(built).trace()


def check_online(build, name):
    if name in ONE_TASK:
        with pytest.raises(UserError, match=ONE_TASK[name]):
            build(name, "class", **{"data.online": True, "train.epochs": 1})
    elif passes := PASSES.get(name):
        with pytest.raises(UserError, match=rf"data.online=True has one pass .* has {passes} in task \d"):
            build(name, "class", **{"data.online": True, "train.epochs": 1})
    else:
        build(name, "class", **{"data.online": True, "train.epochs": 1})


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_of_one_pass_are_online(name):
    check_online(learner, name)


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_one_pass_are_online(name):
    check_online(method, name)


def test_online_streams_refuse_more_epochs_and_repeats():
    with pytest.raises(UserError, match=r"'cdl' has 2 in task 0 \(student: 2\): set train.epochs=1"):
        learner("none", "class", **{"data.online": True})
    with pytest.raises(UserError, match="augment.repeats=2 repeats it"):
        learner("none", "class", **{"data.online": True, "train.epochs": 1, "augment.repeats": 2})


def test_seeds_may_have_class_orders_of_their_own_in_domains():
    changes = {"seeds": (0, 1), "data.class_order": "shuffle", "data.class_order_seed": -1}
    built = learner("none", "domain", **changes)
    assert built.axis.per_seed_classes
    CompiledSteps(built).trace()


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_read_again_from_the_results_of_its_run(kind):
    built = learner("none", kind)
    tasks = results.collect(built, results.Record(), 0)["stream"]["tasks"]
    assert finished_run.stream_info(json.loads(json.dumps(tasks))) == built.info


def test_evaluation_counts_images_by_their_domain_and_by_all():
    """Labels 0, 0, 1, 1 are predicted as 0, 1, 1, 1, in the domains 0, 1, 0 and all."""
    built = learner("none", "domain")
    labels, predicted, tasks = map(np.array, ([0, 0, 1, 1], [0, 1, 1, 1], [0, 1, 0, -1]))

    class Source:
        crops_on_host = True

        @staticmethod
        def read(data, host_batch):
            return host_batch["images"], jnp.asarray(labels)[host_batch["rows"]]

    def predict(variables, images, context):
        return {"network": jax.nn.one_hot(images[:, 0, 0, 0].astype(int), 4)}, {}

    augmentation = built.config.augment.copy_and_resolve_references()
    augmentation.update(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    step = evaluation_step(FixedMethod(prediction=predict), Source, augmentation, built.info)
    images = np.broadcast_to(predicted[:, None, None, None], (4, 1, 1, 3)).astype(np.uint8)
    batch = {"images": images, "rows": np.arange(4), "weight": np.ones(4, np.float32)}
    sums = step({}, {}, {"tasks": jnp.asarray(tasks)}, batch, position(built.stream.tasks[0]))
    assert sums["network"]["images"].tolist() == [3, 2]
    assert sums["network"]["correct"].tolist() == [3, 1]
