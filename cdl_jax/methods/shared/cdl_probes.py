"""Predictions of the method `cdl` for `--mode=analyze`.

A part of the method is switched off, or the second head has another weight.
"""

from collections.abc import Sequence
from functools import partial

import jax

from cdl_jax.losses import Context
from cdl_jax.methods.base import Probe, Variables
from cdl_jax.methods.shared.teacher_student import TeacherStudent

Logits = dict[str, jax.Array]  # name -> float32 `[batch, classes]`


def probes(models: TeacherStudent) -> dict[str, Probe]:
    """Returns the probes of a teacher and a student by name."""
    found, scheme = {"prompts_off": Probe(partial(predict_without_prompts, models))}, models.scheme
    if scheme.changes_prediction:
        found["distillation_off"] = Probe(partial(predict_without_scheme, models))
    if scheme.second_head is not None:
        usual = float(scheme.second_weight)
        values = tuple(sorted({usual, *(step / 10 for step in range(11))}))
        found["second_head_weight"] = Probe(partial(predict_with_weights, models, values), values, usual, "student")
    return found


def predict_without_prompts(
    models: TeacherStudent, variables: Variables, images: jax.Array, context: Context
) -> Logits:
    """Applies each head to the class token of its backbone without prompts."""
    networks = models.trained.items()
    return {name: network.logits_without_prompts(variables[name], images, context) for name, network in networks}


def predict_without_scheme(models: TeacherStudent, variables: Variables, images: jax.Array, context: Context) -> Logits:
    """Applies the student with its own prompts and its first head."""
    query = models.query("student", variables, images, context)
    return {"student": models.student(variables["student"], images, query, context, train=False)["logits"]}


def predict_with_weights(
    models: TeacherStudent, values: Sequence[float], variables: Variables, images: jax.Array, context: Context
) -> Logits:
    """Computes the student's logits for each weight of the second head.

    Returns:
      `{str(value): logits}` for each of `values`.
    """
    _, out = models.evaluate(variables, images, context)
    logits = models.scheme.predict_with_weights(variables["distill"], out, values)
    return {str(value): z for value, z in zip(values, logits, strict=True)}
