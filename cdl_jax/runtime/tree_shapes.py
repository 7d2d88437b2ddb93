"""Comparison of the names, shapes and types of two trees of arrays.

Its messages are about a user's plug-in.
"""

from typing import Any

import jax

from cdl_jax.errors import UserError


def check_same(returned: Any, expected: Any, what: str) -> None:
    """Checks that two trees have arrays of the same names, shapes and types.

    Args:
      returned: nested dicts of arrays or their shapes.
      expected: the same.
      what: file and function that returns the tree, for the message.

    Raises:
      UserError: names the first array that differs.

    >>> check_same({"a": jax.ShapeDtypeStruct((2,), "float32")}, {"a": jax.ShapeDtypeStruct((2,), "float32")}, "fit")
    """
    found, wanted = _describe_arrays(returned), _describe_arrays(expected)
    for path in sorted({*found, *wanted}):
        if path not in found:
            raise UserError(f"{what} must return {path} {wanted[path]}, but leaves it out")
        if path not in wanted:
            raise UserError(f"{what} returns {path}, which is not one of {', '.join(sorted(wanted)) or 'no variables'}")
        if found[path] != wanted[path]:
            raise UserError(f"{what} must return {path} {wanted[path]}, but returns {found[path]}")


def _describe_arrays(tree):
    """Returns path -> type and shape as text, such as `{"sums": "float32 [4, 8]"}`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "the value": f"{leaf.dtype} {list(leaf.shape)}"
        for path, leaf in leaves
    }
