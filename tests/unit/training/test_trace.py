"""All steps of a run are traced before the first step, without compilation."""

import jax
import jax.monitoring
import pytest

from cdl_jax import main
from cdl_jax.errors import UserError
from cdl_jax.run import start
from cdl_jax.training import steps
from cdl_jax.training.compiled import CompiledSteps
from tests.end_to_end.command import TINY

OWN_ORDERS = [
    *("--config.seeds=(0,1)", "--config.data.class_order=shuffle", "--config.data.class_order_seed=-1"),
    *("--config.data.max_train_per_class=16", "--config.data.max_test_per_class=8", "--config.train.batch_size=16"),
]
EEIL = [
    *("--config.data.name=glyph_mini", "--config.data.num_tasks=5"),
    *("--config.eeil.replay=80", "--config.network.depths=(1,1,1)"),
]


def experiment(config, *changes):
    """Returns the experiment of a command line."""
    return start.build_experiment(main.parse(["cdl_jax", "--config", config, "--workdir=unused", *changes]).config)


def program(config, *changes):
    """Returns the compiled steps of a command line."""
    return CompiledSteps(experiment(config, *changes))


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (TINY, []),
        (TINY, ["--config.device_data_limit_mb=0"]),
        ("quickstart:distill=none", ["--config.seeds=(0,1)"]),
        ("quickstart:distill=none", OWN_ORDERS),
        ("okddip_glyph:tasks=5", OWN_ORDERS),
        ("reference", OWN_ORDERS),
        ("dkt:baseline=eeil", EEIL),
        ("dkt_glyph", ["--config.network.depths=(1,1)"]),
    ],
)
def test_all_steps_are_traced_without_compilation(config, changes):
    made, compiled = program(config, *changes), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    made.trace()
    assert config != TINY or not compiled  # other methods compile the initialization of constants


def test_initial_variables_and_updates_are_traced_once(monkeypatch):
    built, traced = experiment(f"{TINY}:learner=none,distill=none"), []

    def counted(name, function):
        return lambda *arguments: traced.append(name) or function(*arguments)

    object.__setattr__(built.method, "init", counted("init", built.method.init))
    monkeypatch.setattr(steps, "apply_update", counted("update", steps.apply_update))
    made = CompiledSteps(built)
    made.trace()
    built.initial_variables()
    made.train_step(0)
    assert len(built.method.phases) == 1 and sorted(traced) == ["init", "update"]


@pytest.mark.parametrize("part", ["predict", "extra_metrics", "end_task", "start_task", "queries"])
def test_a_failing_part_of_a_method_is_found(part):
    made = program(TINY)

    def fails(*_, **__):
        raise UserError(f"{part} does not fit")

    object.__setattr__(made.experiment.method, part, fails)
    made = CompiledSteps(made.experiment)
    with pytest.raises(UserError, match=f"{part} does not fit"):
        made.trace()


def test_the_features_of_a_herding_network_are_traced():
    made = program("dkt:baseline=eeil", *EEIL)
    object.__setattr__(made.experiment.method, "features", lambda *_: {"network": {}})
    with pytest.raises(KeyError, match="features"):
        made.trace()


def test_a_step_for_another_device_takes_shapes_and_returns_the_state():
    steps_of_run = program(TINY)
    for index, phase in enumerate(steps_of_run.experiment.method.phases):
        step, inputs = steps_of_run.traceable_step(index)
        state = jax.eval_shape(step, *inputs)
        expected = jax.tree.map(lambda x: (x.shape, x.dtype), steps_of_run.abstract_state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == expected, phase.name
