"""Mistakes in user learners: one line with file and hook, before compilation."""

import sys

import jax
import pytest

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo
from cdl_jax.models.learners.base import FittedHead, Learner
from tests.support import tiny_learners

TEXT = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from cdl_jax.models.learners.base import FittedHead, Learner

OPTIONS = {}

class Head(FittedHead):
    classes: int

    @nn.compact
    def __call__(self, features):
        return features @ self.variable("state", "means", jnp.zeros, (features.shape[-1], self.classes)).value

    def init_statistics(self, width):
        return {"sums": jnp.zeros((width, self.classes)), "counts": jnp.zeros(self.classes)}

    def accumulate(self, statistics, features, labels, context):
        rows = jax.nn.one_hot(labels, self.classes) * context.weight[:, None]
        return {"sums": statistics["sums"] + features.T @ rows, "counts": statistics["counts"] + rows.sum(0)}

    def fit(self, variables, statistics, context):
        return {"state": {"means": statistics["sums"] / statistics["counts"]}}

class Means(Learner):
    uses_query = False
    trained_tasks = "first"

    def init_variables(self, key, query, backbone):
        return {"params": {"scale": jnp.ones(3)}, "state": {"old": jnp.ones(3)}}

    def head(self, num_classes):
        return Head(num_classes)

    def trains_backbone(self, path):
        return path[-1] == "bias"

    def learning_rate_factor(self, path):
        return 0.5

    def adapt_backbone(self, backbone, variables, context, train):
        return {**backbone, "cls_token": 2 * backbone["cls_token"]}

    def passes(self, variables, context, train):
        return (variables, variables)

    def join_features(self, features, context, train):
        return (features[0] + features[1],)

    def join_logits(self, logits, context, train):
        return logits[0]

    def update_state(self, variables, outputs, context):
        return {"old": variables["params"]["scale"]}

    def start_task(self, variables, context, key):
        return variables

def build(options, *, dim, key_dim, depth, num_tasks):
    return Means()
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Yields a function: learner's text -> (file, function that builds CDL with it)."""

    def build(text, distill="none"):
        (tmp_path / "userpart").mkdir()
        (tmp_path / "userpart" / "__init__.py").write_text("")
        file = tmp_path / "userpart" / "learner.py"
        file.write_text(text)
        config = base.default(
            "cdl", data="glyph_mini", learner="userpart.learner", distill=distill, student="mini_student"
        )
        for section in (config.teacher, config.student):
            section.update(dim=8, depth=2, heads=2, image_size=16, weights="random")
        return file, lambda: cdl.build(config, StreamInfo(6, (3, 3)))

    monkeypatch.syspath_prepend(tmp_path)
    yield build
    for name in [name for name in sys.modules if name.split(".")[0] == "userpart"]:
        del sys.modules[name]


def test_a_correct_learner_is_accepted_without_compilation_and_without_nowrap(build, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))
    student = build(TEXT)[1]().models.student
    assert student.is_fitted and student.learner.trained_tasks == "first"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({'"first"': '"none"'}, "trains in no task (trained_tasks='none')"),
        (
            {'"params": {"scale": jnp.ones(3)}': '"params": {}', '["params"]["scale"]': '["state"]["old"]'},
            "has no parameters to train",
        ),
    ],
)
def test_a_scheme_whose_loss_trains_nothing_is_refused(build, changes, reason):
    text = TEXT.replace("    def trains_backbone", "    def _trains") if len(changes) > 1 else TEXT
    for original, new in changes.items():
        assert original in text
        text = text.replace(original, new)
    with pytest.raises(UserError) as caught:
        build(text, distill="kd")[1]()
    assert str(caught.value) == (
        f"distill.name='kd' has no effect, because learner.name='userpart.learner' {reason}: choose distill=none, or "
        "a learner that trains by gradients"
    )


HEAD, MEANS = "{file}: class Head: ", "{file}: class Means: "


@pytest.mark.parametrize(
    ("original", "text", "message"),
    [
        ("trains_backbone", "train_backbone", MEANS + "'train_backbone' is no part of cdl_jax.models.learners.base."
         "Learner: did you mean 'trains_backbone'? if not, choose another name, such as '_train_backbone'"),
        ("uses_query", "use_query", MEANS + "'use_query' is no part of "),
        ("def accumulate", "def acumulate", HEAD + "'acumulate' is no part of cdl_jax.models.learners.base.FittedHead: "
         "did you mean 'accumulate'? "),
        ("def accumulate", "def other", HEAD + "a FittedHead must define accumulate"),
        ("trains_backbone(self, path)", "trains_backbone(self)", "{file}: function Means.trains_backbone has the "
         "arguments (self), but is called with (self, path): too many positional arguments"),
        ("accumulate(self, statistics, features, labels, context)", "accumulate(self, statistics, features, labels)",
         "{file}: function Head.accumulate has the arguments (self, statistics, features, labels), but is called "),
        ('"bias"', '"biases"', MEANS + "trains_backbone selects no leaf of the backbone: its paths are such as ('"),
        ("return 0.5", "return None", MEANS + "learning_rate_factor must return a number from 0 on, but returns None "),
        ('"first"', '"never"', MEANS + "trained_tasks='never' must be one of 'all', 'first', 'none'"),
        ("return Head(num_classes)", "Head(num_classes)", MEANS + "head must return a flax.linen.Module, but returns "
         "NoneType"),
        ('"old": jnp.ones(3)}', '"old": jnp.ones(3)}, "cache": {}', MEANS + "init_variables returns 'cache', but the "
         'variables of a learner are "params" and "state"'),
        ("return (variables, variables)", "return [variables, variables]", MEANS + "passes must return a tuple of "
         "variables, but returns list"),
        ("return (features[0] + features[1],)", "return features[0] + features[1]", MEANS + "join_features must return "
         "a tuple of arrays, but returns [2, 8]"),
        ("return logits[0]", "return logits[0].mean(0)", MEANS + "logits must be [2, 6] for 2 images of 6 classes, but "
         "are [6]"),
        ("2 * backbone", "jnp.tile(backbone['cls_token'], 2) if True else", MEANS + "adapt_backbone must return "
         "cls_token float32 [1, 1, 8], but returns float32 [1, 1, 16]"),
        ('{"old": variables["params"]["scale"]}', '{"new": variables["params"]["scale"]}', MEANS + "update_state "
         "returns new, which is not one of "),
        ("return variables\n", 'return {"params": variables["params"]}\n', MEANS + "start_task must return state/old "
         "float32 [3], but leaves it out"),
        (', "counts": statistics["counts"] + rows.sum(0)}', "}", HEAD + "accumulate must return counts float32 [6], "
         "but leaves it out"),
        ("rows.sum(0)", "rows.sum()[None, None]", HEAD + "accumulate must return counts float32 [6], but returns "
         "float32 [1, 6]"),
        ('"state": {"means": s', '"state": {"mean": s', HEAD + "fit returns state/mean, which is not one of "
         "state/means"),
        ('variable("state", "means", jnp.zeros, (features.shape[-1], self.classes)).value', 'param("means", '
         'nn.initializers.zeros, (features.shape[-1], self.classes))', HEAD + "fit must return params"
         "/means float32 [8, 6], but leaves it out"),
        ("context.weight", "context.weights", "plug-in {file}, line 20: AttributeError: "),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_file_and_hook(build, original, text, message):
    assert original in TEXT
    file, build_method = build(TEXT.replace(original, text))
    with pytest.raises(UserError) as caught:
        build_method()
    assert message.format(file=file) in str(caught.value)


def test_hooks_of_correct_learners_are_not_taken_for_mistyped_ones():
    for name in plugins.list_plugins("models.learners"):
        module = plugins.load_plugin("models.learners", name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Learner) and value is not Learner:
                plugins.check_hooks(value, Learner)
    plugins.check_hooks(tiny_learners.RidgeHead, FittedHead)
