"""A pretrained backbone with a learner and a classification head."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models import vit, weights
from cdl_jax.models.learners.base import FittedHead, Learner, Path, Selection
from cdl_jax.models.modules import user_learner

Variables = Mapping[str, Any]


@dataclass(frozen=True)
class PromptedNetwork:
    """A backbone, its learner, and the head on the class token or the prompt tokens.

    Variables are `{"backbone", "prompts", "head", "state"}`. `prompts` has the parameters of the learner. `prompts`
    and `head` are trained, and of `backbone` what the learner selects. `state` has what is stored without training: of
    the learner, under "prompts", of the head, and the "statistics" of a `FittedHead`.

    Attributes:
      backbone: takes prompts and adapters in every block.
      learner: such as a prompt pool.
      head: from features `[batch, width]` to logits `[batch, num_classes]`.
      image_size: side of the images in pixels.
      weights: of the backbone, see `models.weights.load`.
    """

    backbone: vit.ViT
    learner: Learner
    head: nn.Module
    image_size: int
    weights: str | tuple[str, str]

    @property
    def is_fitted(self) -> bool:
        """Returns whether the head is fitted in closed form."""
        return isinstance(self.head, FittedHead)

    def is_trained(self, path: Path) -> bool:
        """Returns whether the optimizer trains the leaf at a path of the variables."""
        return self.learner.trains_backbone(path[1:]) if path[0] == "backbone" else path[0] in ("prompts", "head")

    def is_frozen(self, path: Path) -> bool:
        """Returns whether the leaf at a path of the network's variables never changes."""
        return path[0] == "backbone" and not self.is_trained(path)

    def trained_parts(self, query_dim: int) -> set[str]:
        """Returns which of "backbone", "prompts" and "head" have trained variables.

        query_dim: width of the queries.
        """
        shapes = jax.eval_shape(lambda key: self.init(key, query_dim), jax.random.key(0))
        return {path[0] for path in flatten_dict(shapes) if self.is_trained(path)}

    def init(self, key: jax.Array, query_dim: int) -> dict:
        """Returns fresh variables for queries `[batch, query_dim]`.

        Raises:
          UserError: the learner trains leaves of the backbone and uses queries, which a frozen backbone computes.
        """
        keys = jax.random.split(key, 3)
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        backbone = self.backbone.init(keys[0], images)["params"]
        self.check_queries(backbone)
        learner = self.learner.init_variables(keys[1], jnp.zeros((1, query_dim)), backbone)
        features = self._head_inputs(learner, jnp.zeros((1, self.backbone.dim)))
        head = self.head.init(keys[2], features[0])
        state = {"prompts": learner.get("state", {}), "head": head.get("state", {})}
        if self.is_fitted:
            if len(features) > 1:
                raise UserError(f"{_learner_name(self.learner)}: a FittedHead needs join_features to return one array")
            state["statistics"] = self.head.init_statistics(features[0].shape[-1])
        return {
            "backbone": backbone,
            "prompts": learner.get("params", {}),
            "head": head.get("params", {}),
            "state": state,
        }

    def check_queries(self, backbone: Variables) -> None:
        """Checks that the backbone is frozen where the learner uses queries.

        Raises:
          UserError: the learner trains leaves of the backbone and uses queries, which a frozen backbone computes.
        """
        if self.learner.uses_query and any(map(self.learner.trains_backbone, flatten_dict(backbone))):
            raise UserError(
                f"{_learner_name(self.learner)} trains leaves of the backbone, but queries are those of a frozen one: "
                "set uses_query=False"
            )

    def map_learner_variables(self, variables: Variables, function: Callable[[dict], Variables]) -> dict:
        """Applies `function` to the learner's variables and returns all variables.

        The learner's variables are as in `Learner`.
        """
        learner = {"state": {}, **function(_module_variables(variables, "prompts"))}
        state = {**variables["state"], "prompts": learner["state"]}
        return {**variables, "prompts": learner["params"], "state": state}

    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> dict:
        """Returns the variables with which the task of `context` begins (see `Learner`)."""
        return self.map_learner_variables(variables, lambda own: self.learner.start_task(own, context, key))

    def end_task(self, variables: Variables, context: Context) -> dict:
        """Returns the variables to evaluate after the task of `context` (see `Learner`)."""
        return self.map_learner_variables(variables, lambda own: self.learner.end_task(own, context))

    def query(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Computes the query: the class token of the backbone without the learner.

        Args:
          images: float32 `[batch, image_size, image_size, 3]`.

        Returns:
          float32 `[batch, dim]`, without gradient.
        """
        features, _ = self.backbone.apply({"params": variables["backbone"]}, images)
        return jax.lax.stop_gradient(features)

    def logits_without_prompts(self, variables: Variables, images: jax.Array, context: Context) -> jax.Array:
        """Returns the logits of the backbone without the learner.

        The head is applied to the class token. The logits are float32 `[batch, classes]`.
        """
        learner = _module_variables(variables, "prompts")
        return self._predict(variables, self._head_inputs(learner, self.query(variables, images)), context, False)

    def __call__(
        self, variables: Variables, images: jax.Array, query: jax.Array, context: Context, train: bool, inputs=None
    ) -> dict:
        """Computes the named outputs of the network with its learner.

        Args:
          images: float32 `[batch, image_size, image_size, 3]`.
          query: float32 `[batch, query_dim]`.
          train: whether the learner is in training mode.
          inputs: what a scheme puts into the student (`distill.base.StudentInputs`), default None.

        Returns:
          The outputs of `models.vit.ViT` by name, with `logits` `[batch, classes]` and `prompts`, the `Selection`.
        """
        features, out = self._forward(variables, images, query, context, train, inputs)
        out["logits"] = self._predict(variables, features, context, train)
        return out

    def updated_state(self, variables: Variables, outputs: Mapping[str, Any], context: Context) -> dict:
        """Returns the learner's state after a training step as partial variables.

        Where the state does not change, the partial variables are {}.
        """
        state = self.learner.update_state(_module_variables(variables, "prompts"), outputs, context)
        return {"state": {"prompts": jax.lax.stop_gradient(state)}} if state else {}

    def accumulate(
        self,
        variables: Variables,
        images: jax.Array,
        labels: jax.Array,
        query: jax.Array,
        context: Context,
        inputs=None,
    ) -> dict:
        """Returns the statistics of the `FittedHead` with those of a batch added.

        The statistics are in partial variables. Arguments are as in `__call__` and `FittedHead.accumulate`.
        """
        (features,), _ = self._forward(variables, images, query, context, False, inputs)
        features = self.head.statistics_input(_module_variables(variables, "head"), features)
        statistics = self.head.accumulate(variables["state"]["statistics"], features, labels, context)
        return {"state": {"statistics": statistics}}

    def fit_head(self, variables: Variables, context: Context) -> dict:
        """Returns the variables with the `FittedHead` fitted to its statistics."""
        head = self.head.fit(_module_variables(variables, "head"), variables["state"]["statistics"], context)
        head = {"params": {}, "state": {}, **head}
        return {**variables, "head": head["params"], "state": {**variables["state"], "head": head["state"]}}

    def _forward(self, variables, images, query, context, train, inputs):
        """Returns the features for the head, and the outputs of the first pass.

        The loss of the outputs is the sum over the passes.
        """
        learner = _module_variables(variables, "prompts")
        passes = [
            self._pass(variables["backbone"], own, images, query, context, train, inputs)
            for own in self.learner.passes(learner, context, train)
        ]
        features, out = tuple(features for features, _ in passes), passes[0][1]
        if len(passes) > 1:
            out["prompts"] = out["prompts"].replace(loss=sum(other["prompts"].loss for _, other in passes))
        return self.learner.join_features(features, context, train), out

    def _pass(self, backbone, learner, images, query, context, train, inputs):
        """Returns the features and the named outputs of one pass of the backbone.

        Features are `[batch, dim]`.
        """
        selection = self.learner.apply(learner, query, context, train)
        check_selection(selection, self.learner, len(images), self.backbone.depth, self.backbone.dim)
        prompts = selection.prompts if inputs is None else vit.merge_prompts(inputs.prompts, selection.prompts)
        tokens = {} if inputs is None else {"first_tokens": inputs.first_tokens, "last_tokens": inputs.last_tokens}
        tokens["prompt_tokens"] = selection.tokens
        params = self.learner.adapt_backbone(backbone, learner, context, train)
        features, out = self.backbone.apply({"params": params}, images, prompts, adapters=selection.adapters, **tokens)
        if selection.tokens is not None:
            features = out["prompt_tokens"].mean(axis=1)
        out["prompts"] = self.learner.complete_selection(selection, learner, out, context, train)
        check_selection(out["prompts"], self.learner, len(images), self.backbone.depth, self.backbone.dim)
        return features, out

    def _head_inputs(self, learner, features):
        """Returns the arrays for the head where all passes have the same features."""
        count = len(self.learner.passes(learner, Context.dummy(), False))
        return self.learner.join_features((features,) * count, Context.dummy(), False)

    def _predict(self, variables, features, context, train):
        """Returns the logits float32 `[batch, classes]` of the features."""
        head = partial(self.head.apply, _module_variables(variables, "head"))
        return self.learner.join_logits(tuple(map(head, features)), context, train)


def build(
    section: ConfigDict, options: ConfigDict, *, query_dim: int, num_classes: int, num_tasks: int
) -> PromptedNetwork:
    """Builds a network from its config sections.

    Args:
      section: of the backbone.
      options: of the learner, the section `learner`.
      query_dim: width of the queries.
      num_classes: of the stream.
      num_tasks: of the stream.

    Raises:
      UserError: an option is out of range, or a user's learner does not fulfill its contract.
    """
    family = plugins.load_plugin("models", section.family)
    module = plugins.load_plugin("models.learners", options.name)
    learner = module.build(options, dim=section.dim, key_dim=query_dim, depth=section.depth, num_tasks=num_tasks)
    if not isinstance(learner, Learner):
        raise UserError(
            f"{plugins.describe_function(module.build)} must return a {Learner.__module__}.Learner, but returns "
            f"{type(learner).__name__}"
        )
    is_user_learner = "." in options.name
    if is_user_learner:
        user_learner.check_learner(learner)
    head, source = learner.head(num_classes), weights.from_section(section)
    if is_user_learner:
        user_learner.check_head(learner, head)
    network = PromptedNetwork(family.build(section), learner, head, section.image_size, source)
    if is_user_learner:
        user_learner.check_network(network, query_dim, num_classes, module.__file__)
    return network


def check_selection(selection: Any, learner: Learner, batch: int, depth: int, dim: int) -> None:
    """Checks what a learner returns, while it is traced.

    Args:
      selection: the return value of the learner.
      learner: named in messages.
      batch: number of images.
      depth: number of blocks of the backbone.
      dim: width of the backbone.

    Raises:
      UserError: it is not a `Selection` of prompts for existing blocks, with a scalar loss and one row an image.
    """
    name = _learner_name(learner)
    if not isinstance(selection, Selection):
        raise UserError(f"{name} must return a models.learners.base.Selection, but returns {type(selection).__name__}")
    for layer, prompt in selection.prompts.items():
        if callable(prompt):
            prompt = jax.eval_shape(prompt, jax.ShapeDtypeStruct((batch, dim), jnp.float32))
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
        if prompt.tokens is not None and (prompt.tokens.ndim != 2 or prompt.tokens.shape[1] != dim):
            raise UserError(
                f"{name}: tokens of block {layer} must be [length, {dim}], but are {list(prompt.tokens.shape)}"
            )
    for layer, adapter in selection.adapters.items():
        if not isinstance(adapter, vit.Adapter):
            raise UserError(
                f"{name}: adapters[{layer!r}] must be a models.vit.Adapter, but is {type(adapter).__name__}"
            )
        if layer not in range(depth):
            raise UserError(f"{name}: adapters has block {layer!r}, but the backbone has blocks 0 to {depth - 1}")
    if jnp.shape(selection.loss) != ():
        raise UserError(f"{name}: the loss must be a scalar, but has the shape {list(jnp.shape(selection.loss))}")
    for layer, counts in selection.selected.items():
        if counts.ndim != 2 or counts.shape[0] != batch:
            raise UserError(
                f"{name}: selected[{layer!r}] must be [batch, pool_size] with batch {batch}, but is "
                f"{list(counts.shape)}"
            )


def _learner_name(learner):
    return f"learner {type(learner).__module__}.{type(learner).__name__}"


def _module_variables(variables, part):
    """Returns the variables of `part` as its Flax module takes them."""
    return {"params": variables[part], "state": variables["state"][part]}
