"""Adaptation of the backbone in the first task, before a fitted head.

In the first task the parameters of one efficient method are trained with a cosine classifier. Then they are constants.
APER and RanPAC have such an adaptation.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import Learner, Selection, Variables
from cdl_jax.models.learners.shared.bottlenecks import init_bottlenecks, parallel_adapters
from cdl_jax.models.learners.shared.fitted_heads import select_logits
from cdl_jax.models.vit import Prompt
from cdl_jax.options import Option

OPTIONS = {
    "adaptation": Option(
        "adapter",
        "what the first task trains; adapter: bottlenecks beside the MLPs; ssf: scale and shift of each layer's "
        "output; vpt: tokens for each block; none: nothing",
        choices=("adapter", "ssf", "vpt", "none"),
    ),
    "rank": Option(64, "of adapters: width of the bottleneck", minimum=1),
    "scale": Option(0.1, "of adapters: factor of their output"),
    "dropout": Option(0.1, "of adapters: rate of dropout in the bottleneck", below=1),
    "tokens": Option(5, "of vpt: tokens of each block", minimum=1),
}


class FirstTaskLearner(Learner):
    """Trains an adaptation of the backbone in the first task alone.

    Parameters: of adapters those of `bottlenecks.init_bottlenecks`, of all blocks; of ssf `scale` and `shift`, trees of
    arrays `[width]`, of each dense layer and norm; of vpt `tokens` `[depth, tokens, dim]`.

    Attributes:
      adaptation: "adapter", "ssf", "vpt" or "none", see `OPTIONS`.
      rank: width of the bottleneck.
      scale: factor of the adapters' outputs.
      dropout: rate of dropout in the bottleneck.
      tokens: tokens of each block.
      dim: width of the backbone.
      depth: number of blocks.
    """

    uses_query: ClassVar[bool] = False

    adaptation: str
    rank: int
    scale: float
    dropout: float
    tokens: int
    dim: int
    depth: int

    @property
    def trained_tasks(self) -> str:
        """Returns "none" without an adaptation, else "first"."""
        return "none" if self.adaptation == "none" else "first"

    @nn.nowrap
    def init_variables(self, key: jax.Array, query: jax.Array, backbone: Mapping[str, Any]) -> Variables:
        """Returns the initial parameters; adapters change nothing at first."""
        del query
        if self.adaptation == "adapter":
            return {"params": init_bottlenecks(key, self.depth, self.dim, self.rank)}
        if self.adaptation == "ssf":
            return {"params": init_scales_and_shifts(key, backbone)}
        if self.adaptation == "vpt":
            bound = (6 / (len(backbone["patch_embed"]["kernel"]) + self.dim)) ** 0.5
            return {"params": {"tokens": jax.random.uniform(key, (self.depth, self.tokens, self.dim), jnp.float32,
                                                            -bound, bound)}}  # fmt: skip
        return {}

    @nn.compact
    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Returns the adapters or the tokens.

        Variables without parameters have neither, see `frozen`.
        """
        prompts, adapters = {}, {}
        params = self.variables.get("params", {})
        if params and self.adaptation == "adapter":
            adapters = parallel_adapters(params, self.scale, self.dropout, context.key if train else None)
        if params and self.adaptation == "vpt":
            prompts = {block: Prompt(tokens=rows) for block, rows in enumerate(params["tokens"])}
        return Selection(prompts, jnp.zeros(()), {}, adapters=adapters)

    @nn.nowrap
    def adapt_backbone(
        self, backbone: Mapping[str, Any], variables: Variables, context: Context, train: bool
    ) -> Mapping[str, Any]:
        """Returns the weights with scales and shifts.

        Scales and shifts are linear maps of the layers' outputs.
        """
        del context, train
        if self.adaptation != "ssf" or not variables["params"]:
            return backbone
        return scale_and_shift(backbone, variables["params"]["scale"], variables["params"]["shift"])

    @nn.nowrap
    def join_logits(self, logits: tuple[jax.Array, ...], context: Context, train: bool) -> jax.Array:
        """Returns the cosine classifier's logits in training, the fit's in evaluation."""
        del context
        return logits[0] if self.adaptation == "none" else select_logits(logits, train)


def frozen(variables: Variables) -> Variables:
    """Returns the variables with which the backbone computes as it was pretrained.

    `variables` are those of a `FirstTaskLearner`.
    """
    return {**variables, "params": {}}


def init_scales_and_shifts(key: jax.Array, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the initial scales and shifts of all layers with a bias.

    Scales are from N(1, 0.02^2), shifts from N(0, 0.02^2).

    Args:
      key: of the random numbers.
      backbone: nested dict of the backbone's variables.
    """
    shapes = {path[:-1]: leaf.shape for path, leaf in flatten_dict(backbone).items() if path[-1] == "bias"}
    keys = jax.random.split(key, (len(shapes), 2))
    numbers = {
        path: 0.02 * jnp.stack([jax.random.normal(k, shape) for k in pair])
        for pair, (path, shape) in zip(keys, sorted(shapes.items()), strict=True)
    }
    scales, shifts = ({path: offset + pair[i] for path, pair in numbers.items()} for i, offset in enumerate((1.0, 0.0)))
    return {"scale": unflatten_dict(scales), "shift": unflatten_dict(shifts)}


def scale_and_shift(backbone: Mapping[str, Any], scale: Mapping[str, Any], shift: Mapping[str, Any]) -> dict[str, Any]:
    """Returns weights with which each layer computes `scale * y + shift` instead of y.

    SSF (Lian et al., 2022).

    >>> layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    >>> new = scale_and_shift({"fc": layer}, {"fc": jnp.array([1.0, 2.0])}, {"fc": jnp.array([0.0, 5.0])})
    >>> new["fc"]["kernel"][0].tolist(), new["fc"]["bias"].tolist()
    ([1.0, 2.0], [1.0, 7.0])
    """
    flat, scales, shifts = flatten_dict(backbone), flatten_dict(scale), flatten_dict(shift)
    for path, leaf in flat.items():
        if path[:-1] in scales:
            flat[path] = leaf * scales[path[:-1]] + (shifts[path[:-1]] if path[-1] == "bias" else 0)
    return unflatten_dict(flat)
