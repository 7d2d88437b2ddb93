"""The contract of distillation schemes of detectors: that of `distill.base`, over tokens.

The file of a scheme defines `OPTIONS` and `build(options, teacher, student) -> Scheme`. A `NetworkSpec` gives the width
of a detector's tokens as `dim`, and the shapes of its outputs. The scheme's `loss` gets outputs with these entries:

    patch_maps: for each level float `[N, h, w, dim]`, the projected feature maps.
    body_tokens: float `[N, Q, dim]`, the projected detection tokens of the backbone.
    neck_tokens: float `[L, N, Q, dim]`, the detection tokens before and after each decoder layer.
    extents: int32 `[G, B, 2]`, only of the student: height and width in pixels of each image with the padding of its
        group. Positions of feature maps beyond it do not exist. N = G B.

A loss is computed over each group of B images, the images of one device in the authors' code, and averaged over the
groups. So the number of devices has no effect.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.distill.base import NetworkSpec, Outputs
from cdl_jax.errors import UserError

FINEST_STRIDE = 8  # pixels between positions of the finest feature map; each coarser map has twice as many

TERMS = ("patches", "body", "neck")  # options of a scheme, whether a kind of token is compared


def check(options: Mapping[str, Any], teacher: NetworkSpec, student: NetworkSpec) -> None:
    """Checks the options that schemes share, and that the tokens of both detectors correspond.

    Args:
      options: with the keys of `TERMS` and `weight`.
      teacher, student: the detectors. Shapes that `outputs` lacks are not checked.

    Raises:
      UserError: nothing is compared, the weight is not positive, or the numbers of tokens or levels differ.
    """
    if not any(options[term] for term in TERMS):
        raise UserError(f"distill: {', '.join(TERMS)} are all False, so nothing is distilled; set one of them")
    if not options["weight"] > 0:
        raise UserError(f"distill.weight={options['weight']} must be above 0")
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
      options: which kinds of tokens are compared, see `TERMS`.
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


def counted_rows(outputs: Outputs, options: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns which rows of `token_rows` exist: the positions of feature maps within the extent, and all other tokens.

    Args:
      outputs: of the student, with `extents`.
      options: which kinds of tokens are compared.

    Returns:
      name -> bool `[G, rows]`.
    """
    extents = outputs["extents"]
    rows = token_rows(outputs, options, len(extents))
    counted = {name: jnp.ones(values.shape[:2], bool) for name, values in rows.items()}
    if options["patches"]:
        shapes = [values.shape[1:3] for values in outputs["patch_maps"]]
        inside = positions_inside(extents.reshape(-1, 2), shapes)
        counted |= {f"patch_{level + 1}": mask.reshape(len(extents), -1) for level, mask in enumerate(inside)}
    return counted


def positions_inside(extents: jax.Array, shapes: Sequence[tuple[int, int]]) -> list[jax.Array]:
    """Returns the positions of each feature map that lie within the extents.

    The finest map has a stride of 8 pixels, each coarser one twice the stride of the map before. The order of the
    levels is free.

    >>> [mask[0].astype(int).tolist() for mask in positions_inside(jnp.array([[8, 24]]), [(1, 2), (2, 4)])]
    [[[1, 1]], [[1, 1, 1, 0], [0, 0, 0, 0]]]

    Args:
      extents: int32 `[N, 2]`, height and width in pixels.
      shapes: height and width of each map.

    Returns:
      For each map bool `[N, h, w]`.
    """
    by_size = sorted(range(len(shapes)), key=lambda level: shapes[level][0] * shapes[level][1], reverse=True)
    masks = []
    for level, (height, width) in enumerate(shapes):
        positions = -(-extents // (FINEST_STRIDE << by_size.index(level)))  # rounded up, like the maps
        rows, columns = jnp.arange(height) < positions[:, :1], jnp.arange(width) < positions[:, 1:]
        masks.append(rows[:, :, None] & columns[:, None])
    return masks
