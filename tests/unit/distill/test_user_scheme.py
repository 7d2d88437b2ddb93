"""Mistakes in a user's scheme: one line with file and function, before compiling."""

import sys

import jax
import pytest

from cdl_jax import config as base
from cdl_jax.errors import UserError
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo

SCHEME = """
from cdl_jax.distill.base import Scheme
OPTIONS = {"alpha": 0.5}
def loss(variables, student, teacher, labels, context):
    value = ((student["logits"] - teacher["logits"]) ** 2).mean()
    return value, {"mse": value}
def build(options, teacher, student):
    return Scheme(loss=loss, label_weight=options.alpha)
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function of a scheme's text to (file, function that builds CDL)."""

    def build(text):
        (tmp_path / "userpart").mkdir()
        (tmp_path / "userpart" / "__init__.py").write_text("")
        file = tmp_path / "userpart" / "scheme.py"
        file.write_text(text)
        config = base.default(
            "cdl", data="glyph_mini", teacher="mini_teacher", student="mini_student", distill="userpart.scheme"
        )
        for section, dim in ((config.teacher, 12), (config.student, 8)):
            section.update(dim=dim, depth=1, heads=2, image_size=16, weights="random")
        config.teacher.depth = 2
        return file, lambda: cdl.build(config, StreamInfo(6, (3, 3)))

    monkeypatch.syspath_prepend(tmp_path)
    yield build
    for name in [name for name in sys.modules if name.split(".")[0] == "userpart"]:
        del sys.modules[name]


def test_a_correct_scheme_is_accepted_without_compilation(build, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert build(SCHEME)[1]().models.scheme.needs == ("logits",)


RETURN_VALUE, RETURN_SCHEME = 'return value, {"mse": value}', "return Scheme(loss=loss, label_weight=options.alpha)"


@pytest.mark.parametrize(
    ("original", "text", "message"),
    [
        (RETURN_SCHEME, "Scheme(loss=loss)", "{file}: function build must return a cdl_jax.distill.base.Scheme, but "
         "returns NoneType"),
        (RETURN_VALUE, "return value", "{file}: function loss must return (loss, {{name: scalar}}), but returns "),
        (RETURN_VALUE, "return value, {}, 0", "(loss, {{name: scalar}}), but returns a tuple of 3"),
        (RETURN_VALUE, "return value, value", "{file}: function loss must return (loss, {{name: scalar}}), but the "
         "second value is of type "),
        (RETURN_VALUE, "return student['logits'].mean(axis=1), {}", "but the loss has the shape [2] instead of"),
        (RETURN_VALUE, "return value, {'all': student['logits']}", "but all has the shape [2, 6] instead of"),
        ("teacher, labels, context", "teacher, context", "{file}: function loss has the arguments (variables, student, "
         "teacher, context), but is called with (variables, student, teacher, labels, context)"),
        ("loss=loss", "loss=None", "{file}: function build: loss of the scheme must be a function of (variables, "),
        ("loss=loss", "loss=loss, init=lambda: {}", "{file}: function build.<lambda> has the arguments (), but is "
         "called with (key)"),
        ("loss=loss", "loss=loss, needs='logits'", "{file}: function build: needs='logits' must be a tuple of names"),
        ("loss=loss", "loss=loss, needs=('logits', 'block_9/tokens')", "{file}: function build: needs names "
         "'block_9/tokens', which is not an output of the teacher (attention"),
        ('teacher["logits"]', 'teacher["block_0/tokens"].mean()', "{file}: function loss reads 'block_0/tokens' of the "
         "teacher: name it in the needs of the scheme"),
        ("loss=loss", "loss=loss, student_inputs=lambda v, teacher, *rest: teacher['prompts']", "{file}: function build"
         ".<lambda> reads 'prompts' of the teacher: name it in the needs of the scheme"),
        ('teacher["logits"]', 'student["block_1/tokens"]', "plug-in {file}, line 5: KeyError: "),
        ('teacher["logits"]', 'teacher["logit"]', "plug-in {file}, line 5: KeyError: "),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_file_and_function(build, original, text, message):
    assert original in SCHEME
    file, build_method = build(SCHEME.replace(original, text))
    with pytest.raises(UserError) as caught:
        build_method()
    assert message.format(file=file) in str(caught.value)
