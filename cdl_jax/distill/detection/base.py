"""The contract of distillation schemes of detectors.

The contract is that of `distill.base`, over tokens. The file of a scheme defines `OPTIONS` and
`build(options, teacher, student) -> Scheme`. A `NetworkSpec` gives the width of a detector's tokens as `dim`, and the
shapes of its outputs. The scheme's `loss` gets outputs with these entries:

    patch_maps: for each level float `[N, h, w, dim]`, the projected feature maps.
    body_tokens: float `[N, Q, dim]`, the projected detection tokens of the backbone.
    neck_tokens: float `[L, N, Q, dim]`, the detection tokens before and after each decoder layer.
    inside: for each level bool `[G, B, h, w]`, only of the student: the positions of a feature map that exist, those
        within the extent of the group. N = G B.

A loss is computed over each group of B images, the images of one device in the authors' code, and averaged over the
groups. So the number of devices has no effect.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.distill.base import NetworkSpec, Outputs
from cdl_jax.errors import UserError
from cdl_jax.options import Option

# Of all schemes.
OPTIONS = {
    "weight": Option(4.0, "weight of the distillation loss", above=0),
    "patches": Option(True, "compare the projected feature maps of all levels"),
    "body": Option(True, "compare the detection tokens of the backbone"),
    "neck": Option(True, "compare the detection tokens of the neck, at all levels"),
}


def check(options: Mapping[str, Any], teacher: NetworkSpec, student: NetworkSpec) -> None:
    """Checks that tokens are compared, and that those of both detectors correspond.

    Args:
      options: with the keys of `OPTIONS`.
      teacher, student: the detectors. Shapes that `outputs` lacks are not checked.

    Raises:
      UserError: nothing is compared, or the numbers of tokens or levels differ.
    """
    if not (options["patches"] or options["body"] or options["neck"]):
        raise UserError("distill.patches, body and neck are False, so nothing is distilled; set one of them")
    for term, output, axis, name in (
        ("body", "body_tokens", 1, "detection tokens"),
        ("neck", "neck_tokens", 2, "detection tokens"),
        ("neck", "neck_tokens", 0, "prediction levels"),
    ):
        shapes = [network.outputs.get(output) for network in (teacher, student)]
        numbers = [shape[axis] for shape in shapes if shape]
        if options[term] and len(set(numbers)) > 1:
            raise UserError(
                f"the teacher has {numbers[0]} {name}, the student {numbers[1]}: distillation compares them one by "
                f"one; use equal numbers, or distill.{term}=False"
            )


def token_rows(outputs: Outputs, options: Mapping[str, Any], groups: int) -> dict[str, jax.Array]:
    """Returns the compared tokens of each group as rows, at least float32.

    >>> outputs = {"body_tokens": jnp.zeros((4, 5, 8)), "neck_tokens": jnp.zeros((3, 4, 5, 8))}
    >>> rows = token_rows(outputs, {"patches": False, "body": True, "neck": True}, groups=2)
    >>> {name: array.shape for name, array in rows.items()}
    {'body': (2, 10, 8), 'neck': (2, 30, 8)}

    Args:
      outputs: of a detector.
      options: which kinds of tokens are compared.
      groups: G.

    Returns:
      `{"patch_1": [G, rows, dim], ..., "body": ..., "neck": ...}`.
    """
    tokens = {}
    if options["patches"]:
        tokens |= {f"patch_{level + 1}": values for level, values in enumerate(outputs["patch_maps"])}
    if options["body"]:
        tokens["body"] = outputs["body_tokens"]
    if options["neck"]:
        tokens["neck"] = jnp.moveaxis(outputs["neck_tokens"], 0, 1)
    return {
        name: values.reshape(groups, -1, values.shape[-1]).astype(jnp.promote_types(values.dtype, jnp.float32))
        for name, values in tokens.items()
    }


def counted_rows(outputs: Outputs, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns whether each row exists.

    Positions of feature maps exist within the extent. All other tokens exist.

    Args:
      outputs: of the student, with `inside`.
      rows: `token_rows` of the student.

    Returns:
      name -> bool `[G, rows]`.
    """
    inside = {f"patch_{level + 1}": mask for level, mask in enumerate(outputs["inside"])}
    return {
        name: inside[name].reshape(values.shape[:2]) if name in inside else jnp.ones(values.shape[:2], bool)
        for name, values in rows.items()
    }
