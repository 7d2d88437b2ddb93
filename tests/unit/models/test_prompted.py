"""A learner's selection is checked while it is traced."""

import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from cdl_jax.errors import UserError
from cdl_jax.models.learners.base import Pool, Selection
from cdl_jax.models.modules.prompted import check_selection
from cdl_jax.models.vit import Adapter, Prompt

ROWS = jnp.zeros((4, 2, 8))
SOUND = Selection({0: Prompt(prefix=(ROWS, ROWS))}, jnp.float32(0), {"layer_0": jnp.zeros((4, 3), jnp.int32)})


class Mine(Pool):
    """A user's pool."""


def check(selection):
    check_selection(selection, Mine(), batch=4, depth=3, dim=8)


def test_a_sound_selection_passes():
    check(SOUND)
    check(Selection({}, 0.0, {}))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"prompts": {}}, r"must return a models.learners.base.Selection, but returns dict$"),
        (Selection({0: (ROWS, ROWS)}, 0.0, {}), r"prompts\[0\] must be a models.vit.Prompt, but is tuple$"),
        (Selection({9: SOUND.prompts[0]}, 0.0, {}), "prompts has block 9, but the backbone has blocks 0 to 2$"),
        (
            Selection({1: Prompt(prefix=(ROWS[0], ROWS[0]))}, 0.0, {}),
            r"keys and values of block 1 must be \[batch, length, dim\] with batch 4, but are \[2, 8\]$",
        ),
        (Selection({0: Partial(lambda token: token)}, 0.0, {}), r"prompts\[0\] must be a models.vit.Prompt, but is "),
        (Selection({}, 0.0, {}, adapters={0: None}), r"adapters\[0\] must be a models.vit.Adapter, but is NoneType$"),
        (Selection({}, 0.0, {}, adapters={3: Adapter()}), "adapters has block 3, but the backbone has blocks 0 to 2$"),
        (Selection({}, jnp.zeros(4), {}), r"the loss must be a scalar, but has the shape \[4\]$"),
        (Selection({}, 0.0, {"layer_0": jnp.zeros(3)}), r"selected\['layer_0'\] must be \[batch, pool_size\]"),
    ],
)
def test_other_selections_are_refused(selection, message):
    with pytest.raises(UserError, match=r"^learner .*test_prompted\.Mine.*" + message):
        check(selection)
