"""A frozen backbone with a prompt pool and a classification head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models import vit
from cdl_jax.models.learners.base import Pool, Selection

Variables = Mapping[str, Any]


@dataclass(frozen=True)
class PromptedNetwork:
    """A frozen backbone, its prompt pool, and the head on the class token or on the prompt tokens.

    Variables are `{"backbone", "prompts", "head", "state"}`. `prompts` and `head` are trained. `state` has what the
    pool and the head store without training it.

    Attributes:
      backbone: takes prompts in every block.
      prompts: the prompt pool.
      head: from features `[batch, dim]` to logits `[batch, num_classes]`.
      image_size: side of the images in pixels.
      weights: of the backbone, see `models.weights.load`.
    """

    backbone: vit.ViT
    prompts: Pool
    head: nn.Module
    image_size: int
    weights: str | tuple[str, str]

    def init(self, key: jax.Array, query_dim: int) -> dict:
        """Returns fresh variables for queries `[batch, query_dim]`."""
        keys = jax.random.split(key, 3)
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        prompts = self.prompts.init(keys[1], jnp.zeros((1, query_dim)), Context.dummy(), True)
        head = self.head.init(keys[2], jnp.zeros((1, self.backbone.dim)))
        return {
            "backbone": self.backbone.init(keys[0], images)["params"],
            "prompts": prompts.get("params", {}),
            "head": head["params"],
            "state": {"prompts": prompts.get("state", {}), "head": head.get("state", {})},
        }

    def map_prompt_variables(self, variables: Variables, function: Callable[[dict], Variables]) -> dict:
        """Applies `function` to the variables of the pool and returns all variables (see `Pool`)."""
        prompts = {"state": {}, **function(_module_variables(variables, "prompts"))}
        state = {**variables["state"], "prompts": prompts["state"]}
        return {**variables, "prompts": prompts["params"], "state": state}

    def query(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Computes the query: the class token of the backbone without prompts.

        Args:
          images: float32 `[batch, image_size, image_size, 3]`.

        Returns:
          float32 `[batch, dim]`, without gradient.
        """
        features, _ = self.backbone.apply({"params": variables["backbone"]}, images)
        return jax.lax.stop_gradient(features)

    def logits_without_prompts(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Applies the head to the class token of the backbone without prompts: float32 `[batch, classes]`."""
        return self.head.apply(_module_variables(variables, "head"), self.query(variables, images))

    def __call__(
        self, variables: Variables, images: jax.Array, query: jax.Array, context: Context, train: bool, inputs=None
    ) -> dict:
        """Computes the named outputs of the network with its prompts.

        Args:
          images: float32 `[batch, image_size, image_size, 3]`.
          query: float32 `[batch, query_dim]`.
          train: whether the pool is in training mode.
          inputs: what a scheme puts into the student (`distill.base.StudentInputs`), default None.

        Returns:
          The outputs of `models.vit.ViT` by name, with `logits` `[batch, classes]` and `prompts`, the `Selection`.
        """
        selection = self.prompts.apply(_module_variables(variables, "prompts"), query, context, train)
        check_selection(selection, self.prompts, len(images), self.backbone.depth)
        prompts = selection.prompts if inputs is None else vit.merge_prompts(inputs.prompts, selection.prompts)
        tokens = {} if inputs is None else {"first_tokens": inputs.first_tokens, "last_tokens": inputs.last_tokens}
        tokens["prompt_tokens"] = selection.tokens
        features, out = self.backbone.apply({"params": variables["backbone"]}, images, prompts, **tokens)
        if selection.tokens is not None:
            features = out["prompt_tokens"].mean(axis=1)
        out["logits"] = self.head.apply(_module_variables(variables, "head"), features)
        out["prompts"] = selection
        return out


def check_selection(selection: Any, pool: Pool, batch: int, depth: int) -> None:
    """Checks what a pool returns, while it is traced.

    Args:
      selection: the return value of the pool.
      pool: named in messages.
      batch: number of images.
      depth: number of blocks of the backbone.

    Raises:
      UserError: it is not a `Selection` of prompts for existing blocks, with a scalar loss and one row an image.
    """
    name = f"learner {type(pool).__module__}.{type(pool).__name__}"
    if not isinstance(selection, Selection):
        raise UserError(f"{name} must return a models.learners.base.Selection, but returns {type(selection).__name__}")
    for layer, prompt in selection.prompts.items():
        if not isinstance(prompt, vit.Prompt):
            raise UserError(f"{name}: prompts[{layer!r}] must be a models.vit.Prompt, but is {type(prompt).__name__}")
        if layer not in range(depth):
            raise UserError(f"{name}: prompts has block {layer!r}, but the backbone has blocks 0 to {depth - 1}")
        for part in (*(prompt.prefix or ()), *(prompt.suffix or ())):
            if part.ndim != 3 or part.shape[0] not in (1, batch):
                raise UserError(
                    f"{name}: keys and values of block {layer} must be [batch, length, dim] with batch {batch}, but "
                    f"are {list(part.shape)}"
                )
    if jnp.shape(selection.loss) != ():
        raise UserError(f"{name}: the loss must be a scalar, but has the shape {list(jnp.shape(selection.loss))}")
    for layer, counts in selection.selected.items():
        if counts.ndim != 2 or counts.shape[0] != batch:
            raise UserError(
                f"{name}: selected[{layer!r}] must be [batch, pool_size] with batch {batch}, but is "
                f"{list(counts.shape)}"
            )


def _module_variables(variables, part):
    """Returns the variables of `part` as its Flax module takes them."""
    return {"params": variables[part], "state": variables["state"][part]}
