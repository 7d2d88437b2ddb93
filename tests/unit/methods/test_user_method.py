"""Mistakes in user methods: one line with file and function, before compilation."""

import sys

import jax
import pytest

from cdl_jax import config as base
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.experiment import Experiment

TEXT = """
from dataclasses import dataclass
from functools import cached_property
from typing import Any
import flax.linen as nn
import jax.numpy as jnp
from cdl_jax import optim
from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import Method, Outcome, Phase, Update

OPTIONS = {"factor": 1.0}

def defaults():
    return {"own": OPTIONS}

@dataclass(frozen=True)
class Linear(Method):
    config: Any
    net: nn.Module
    image_size: int = 32
    networks: tuple = ("network",)

    @cached_property
    def phases(self):
        optimizer = optim.build(self.config.optim, 2)
        update = Update(lambda path: True, optimizer, self.loss)
        return (Phase("network", 2, (update,)),)

    def init(self, key):
        return {"network": self.net.init(key, jnp.zeros((1, 32 * 32 * 3)))}

    def logits(self, variables, images):
        assert self.config.own.factor == 1
        return self.net.apply(variables["network"], images.reshape(len(images), -1))

    def loss(self, variables, batch, context):
        logits = self.logits(variables, batch["images"])
        value = cross_entropy(logits, batch["labels"], context.seen(logits.shape[1]))
        return value, Outcome({"loss": value})

    def predict(self, variables, images, context):
        return {"network": self.logits(variables, images)}, {}

def build(config, info):
    return Linear(config, nn.Dense(info.num_classes))
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Yields a function: method's text -> (file, function that builds the experiment)."""

    def write_method(text):
        (tmp_path / "userpart").mkdir()
        (tmp_path / "userpart" / "__init__.py").write_text("")
        file = tmp_path / "userpart" / "method.py"
        file.write_text(text)

        def build():
            config = base.default("userpart.method", data="glyph_mini")
            config.update_from_flattened_dict({"data.num_tasks": 2, "train.batch_size": 8, "eval.batch_size": 4})
            return Experiment.build(config, stream.load(config.data, 0))

        return file, build

    monkeypatch.syspath_prepend(tmp_path)
    yield write_method
    for name in [name for name in sys.modules if name.split(".")[0] == "userpart"]:
        del sys.modules[name]


def test_a_correct_method_is_accepted_without_compilation(write, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))
    CompiledSteps(write(TEXT)[1]()).trace()


CLASS, LOSS = "{file}: class Linear: ", "{file}: function Linear.loss "
PREDICT = CLASS + "predict must return ({{network: logits}}, {{network: counts}})"
OUTCOME = LOSS + "must return (loss, cdl_jax.methods.base.Outcome({{name: scalar}})), but "


@pytest.mark.parametrize(
    ("original", "text", "message"),
    [
        ("return Linear(", "Linear(", "{file}: function build must return a cdl_jax.methods.base.Method, but returns "
         "NoneType"),
        ('return {"network": self.logits(variables, images)}', 'return {"net": self.logits(variables, images)}',
         PREDICT + " for its networks=('network',), but returns logits of ('net',)"),
        ("images)}, {}", "images)}", PREDICT + ", but returns dict"),
        ("images)}, {}", "images)}, {}, {}", PREDICT + ", but returns (dict, dict, dict)"),
        ("images)}, {}", "images)[:, :1]}, {}", PREDICT + ", but the logits of 'network' are [4, 1] for 4 images "
         "of 20 classes"),
        ('Outcome({"loss": value})', '{"loss": value}', OUTCOME + "the second value is of type dict"),
        ('return value, Outcome({"loss": value})', "return value", OUTCOME + "returns "),
        ('"loss": value})', '"loss": batch["images"]})', OUTCOME + "'loss' is no scalar with a name"),
        ('{"loss": value})', '{1: value})', OUTCOME + "1 is no scalar with a name"),
        ('{"loss": value})', '{"loss": value}, {"network": {"mean": value}})', OUTCOME + "its variables have "
         "('network', 'mean'), which init has not"),
        ('return {"network": self.net.init', '{"network": self.net.init', CLASS + "init must return a dict of "
         "variables, but returns NoneType"),
        ("    def init(", "    def end_task(self, variables, context):\n        pass\n\n    def init(", CLASS +
         "end_task must return a dict of variables, but returns NoneType"),
        ("(update,))", "(update,), finish=lambda v, context: {})", CLASS + "finish of phase 'network' must return "
         "network/params/bias float32 [20], but leaves it out"),
        ("    def init(", "    def extra_metrics(self, logits, labels, context):\n        return {'m': 1.0 * labels[0]}"
         "\n\n    def init(", CLASS + "extra_metrics must return a dict of arrays, one item an image"),
        ('(Phase("network", 2, (update,)),)', 'Phase("network", 2, (update,))', CLASS + "phases must be a tuple of "
         "Phase, such as (first,), but is Phase"),
        ("(update,)", "(update)", CLASS + "phase 'network': updates must be a tuple of Update, such as (first,), but "
         "is Update"),
        ("(update,)", "(optimizer,)", CLASS + "phase 'network': updates must be a tuple of Update, but has an item "
         "that is Optimizer"),
        ("(update,))", "(update,), tasks='once')", CLASS + "phase 'network': tasks='once' must be one of 'all', "),
        ("lambda path: True, optimizer", "lambda path: True, 0.1", CLASS + "phase 'network': the optimizer must be a "
         "cdl_jax.optim.Optimizer, but is float"),
        ("loss(self, variables, batch, context)", "loss(self, variables, batch)", LOSS + "has the arguments "
         "(variables, batch), but is called with (variables, batch, context): "),
        ("predict(self, variables, images, context)", "predict(self, variables, images)", "{file}: function Linear."
         "predict has the arguments (self, variables, images), but is called with (self, variables, images, context)"),
        ("    def init(", "    def end_tasks(self, variables, context):\n        return variables\n\n    def init(",
         CLASS + "'end_tasks' is no part of cdl_jax.methods.base.Method: did you mean 'end_task'?"),
        ("networks: tuple = (", "headline: tuple = ('student',)\n    networks: tuple = (", CLASS + "'student' is not "
         "one of its networks=('network',)"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_file_and_function(write, original, text, message):
    assert original in TEXT
    file, build = write(TEXT.replace(original, text))
    with pytest.raises(UserError) as caught:
        CompiledSteps(build()).trace()
    assert message.format(file=file) in str(caught.value)


def test_weights_that_do_not_fit_are_reported_before_the_first_step(write):
    loads = "    def load_pretrained(self, variables):\n        pass\n\n    def init("
    file, build = write(TEXT.replace("    def init(", loads))
    with pytest.raises(UserError) as caught:
        build().initial_variables()
    assert str(caught.value) == (
        f"{file}: class Linear: load_pretrained must return a dict of variables, but returns NoneType"
    )
