"""The contract of a learner, and functions that prompt pools share.

Each file of this package is one continual learner on a pretrained backbone. It defines
  OPTIONS: its option section; the defaults are the values published for CIFAR-100 and ImageNet-R;
  build(options, *, dim, key_dim, depth, num_tasks): returns a `Learner` for a backbone of width `dim` with `depth`
    blocks, queries of width `key_dim` and a stream of `num_tasks` tasks.
It may define
  check_growth(options, num_tasks, new_options, new_num_tasks): raises a UserError if variables of a run cannot begin
    one of more tasks. Axes of classes and tasks grow at their ends; see `run.branching`.
  teaches_as_saved(options): returns whether a teacher teaches a task with the variables of the task's checkpoint. By
    default yes. `end_task` may change what a teacher computes, after its student was trained.

Prompt learners are pools (`Pool`). A `Learner` may also change the weights of the backbone, add adapters to
its blocks, fit its head in closed form (`FittedHead`), or average several predictions.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Adapter, Prompt

Path = tuple[str, ...]
Variables = Mapping[str, Any]  # {"params": ..., "state": ...}


def _mark_hooks(cls, base):
    """Applies `nn.nowrap` to the hooks of a subclass as to those of `base`.

    Hooks are called outside of `apply`.
    """
    for name, hook in vars(base).items():
        function = vars(cls).get(name)
        if getattr(hook, "nowrap", False) and inspect.isfunction(function) and not hasattr(function, "compact"):
            nn.nowrap(function)


@struct.dataclass
class Selection:
    """The prompts and adapters that a learner adds to the backbone for a batch.

    Attributes:
      prompts: layer -> Prompt of the backbone, or a `jax.tree_util.Partial` that maps the class token `[batch, dim]` at
        the input of the block to the Prompt.
      loss: float32 scalar, the learner's own loss in training, 0 otherwise.
      selected: `layer_<i>` -> int32 `[batch, pool_size]`, how often each row of the pool is selected for an image. If
        all rows are weighted: float32, the absolute weight of each. Empty if nothing is selected.
      tokens: `[batch, n, dim]`, prompts that are tokens of block 0. The head then reads the mean of their outputs.
        None, the default: there are none, and the head reads the class token.
      adapters: layer -> Adapter of the backbone. Empty, the default: blocks compute as they were pretrained.
    """

    prompts: Mapping[int, Prompt | Callable[[jax.Array], Prompt]]
    loss: jax.Array
    selected: Mapping[str, jax.Array]
    tokens: jax.Array | None = None
    adapters: Mapping[int, Adapter] = struct.field(default_factory=dict)


class Learner(nn.Module):
    """A continual learner on a pretrained backbone.

    Everything has a default: no prompts, frozen weights, one head. The variables of a learner are `{"params": ...,
    "state": ...}`. The optimizer trains `params`. It does not change `state`, and checkpoints contain both. All methods
    are pure and compiled once for all tasks. Overriding methods need no `nn.nowrap`.

    Attributes:
      uses_query: whether `__call__` depends on the query, default True. Queries are outputs of a frozen backbone. A
        learner that trains leaves of the backbone (`trains_backbone`) sets it to False.
      trained_tasks: tasks with training by gradients: "all", the default, the "first", or "none". Statistics of a
        `FittedHead` are accumulated in every task.
      needs_own_classes: why each task must have classes that no other task has, as the end of a message; "", the
        default: tasks may share classes.
    """

    uses_query: ClassVar[bool] = True
    trained_tasks: ClassVar[str] = "all"
    needs_own_classes: ClassVar[str] = ""

    def __init_subclass__(cls, **options):
        _mark_hooks(cls, Learner)
        super().__init_subclass__(**options)

    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Returns the prompts and adapters of a batch; by default none.

        Args:
          query: float32 `[batch, key_dim]`, the class token of a frozen backbone without the learner.
          context: the position in the run.
          train: whether this is a training step.
        """
        del query, context, train
        return Selection({}, jnp.zeros(()), {})

    @nn.nowrap
    def init_variables(self, key: jax.Array, query: jax.Array, backbone: Mapping[str, Any]) -> Variables:
        """Returns new variables; by default those that `__call__` declares.

        Args:
          key: of the random numbers.
          query: float32 `[1, key_dim]`, zeros.
          backbone: variables of the backbone, arrays of random numbers; a learner of its weights reads their shapes.
        """
        del backbone
        return self.init(key, query, Context.dummy(), True)

    @nn.nowrap
    def adapt_backbone(
        self, backbone: Mapping[str, Any], variables: Variables, context: Context, train: bool
    ) -> Mapping[str, Any]:
        """Returns the variables with which the backbone computes; by default `backbone`.

        A learner may return other weights, such as W + B A.

        Args:
          backbone: nested dict of the backbone's variables. Gradients flow to the learner, and to the leaves that
            `trains_backbone` selects.
          variables: of the learner.
          context: the position in the run.
          train: whether this is a training step.
        """
        del variables, context, train
        return backbone

    @nn.nowrap
    def trains_backbone(self, path: Path) -> bool:
        """Returns whether the optimizer trains a leaf of the backbone; by default none.

        Trained leaves are in the checkpoint of each task, frozen leaves in one checkpoint of the run.

        Args:
          path: such as `("block_0", "attn", "qkv", "bias")`.
        """
        del path
        return False

    @nn.nowrap
    def learning_rate_factor(self, path: Path) -> float:
        """Returns the factor of the learning rate of a trained leaf; by default 1.

        Args:
          path: begins with "backbone", "prompts" (the learner's parameters) or "head", such as
            `("head", "linear", "kernel")`.
        """
        del path
        return 1.0

    @nn.nowrap
    def passes(self, variables: Variables, context: Context, train: bool) -> tuple[Variables, ...]:
        """Returns the learner's variables of each backbone pass; by default one pass.

        The number of passes is constant. `loss` is the sum over the passes. Named outputs and counts are those of the
        first pass.
        """
        del context, train
        return (variables,)

    @nn.nowrap
    def join_features(self, features: tuple[jax.Array, ...], context: Context, train: bool) -> tuple[jax.Array, ...]:
        """Returns the features for the head; by default those of each pass.

        Args:
          features: of each pass, float32 `[batch, dim]`.
          context: the position in the run.
          train: whether this is a training step.

        Returns:
          Arrays float32 `[batch, width]` of one width in training and evaluation, such as one concatenation.
        """
        del context, train
        return features

    @nn.nowrap
    def join_logits(self, logits: tuple[jax.Array, ...], context: Context, train: bool) -> jax.Array:
        """Returns the prediction float32 `[batch, classes]`; by default the mean.

        Args:
          logits: the head's output for each array of `join_features`, float32 `[batch, classes]`.
          context: the position in the run.
          train: whether this is a training step.
        """
        del context, train
        return logits[0] if len(logits) == 1 else sum(logits) / len(logits)

    @nn.nowrap
    def complete_selection(
        self, selection: Selection, variables: Variables, outputs: Mapping[str, Any], context: Context, train: bool
    ) -> Selection:
        """Returns the completed selection; by default it is unchanged.

        Its loss and counts may depend on the outputs of the pass.

        Args:
          selection: the return value of `__call__`.
          variables: of the learner.
          outputs: the outputs of `models.vit.ViT` by name.
          context: the position in the run.
          train: whether this is a training step.
        """
        del variables, outputs, context, train
        return selection

    @nn.nowrap
    def update_state(self, variables: Variables, outputs: Mapping[str, Any], context: Context) -> Variables:
        """Returns the new "state" after a training step; by default {}, no change.

        An example is a moving average.

        Args:
          variables: of the learner before the step.
          outputs: named outputs of the network in the step.
          context: the position in the run.
        """
        del variables, outputs, context
        return {}

    @nn.nowrap
    def head(self, num_classes: int) -> nn.Module:
        """Returns the classification head.

        It is a Flax module from features `[batch, width]` to logits `[batch, num_classes]`. The default is a
        linear layer with torch's initial values. A `FittedHead` is also fitted in closed form.
        """
        return heads.LinearHead(num_classes)

    @nn.nowrap
    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Returns the variables at the start of the task of `context`.

        By default they are `variables`.
        """
        del context, key
        return variables

    @nn.nowrap
    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Returns the variables to evaluate after the task of `context`.

        All networks have learned the task by then.
        """
        del context
        return variables

    @nn.nowrap
    def check_epochs(self, epochs: int, num_tasks: int) -> None:
        """Checks that the learner trains in the epochs of a task.

        By default every number of epochs is accepted.

        Raises:
          UserError: options of the learner leave no epoch in which it trains.
        """

    @nn.nowrap
    def teacher_variables(self, variables: Variables) -> Variables:
        """Returns the variables with which a teacher teaches a task.

        The teacher has learned the task, and is applied with `train=False`.
        """
        return variables


class Pool(Learner):
    """A prompt pool: a learner whose `__call__` selects prompts for a query."""

    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Selects prompts for a batch, see `Learner`."""
        raise NotImplementedError


class FittedHead(nn.Module):
    """A head that is fitted in closed form at the end of each task.

    The fit is from statistics of the training images. After the network's last training step of a task, each training
    image passes the network once, with the preprocessing of evaluation. The statistics are sums over all tasks so far.
    They are in checkpoints. Evaluations within a task (`eval.every_epochs`) have the head of the task before.

    `__call__` maps features `[batch, width]` to logits `[batch, classes]`. The optimizer trains the head's "params"
    before the fit. Arrays that only `fit` sets are in its collection "state".
    """

    def __init_subclass__(cls, **options):
        _mark_hooks(cls, FittedHead)
        super().__init_subclass__(**options)

    @nn.nowrap
    def init_statistics(self, width: int) -> Mapping[str, jax.Array]:
        """Returns the statistics before the first image, by name.

        width: of the features that the head takes.
        """
        raise NotImplementedError

    @nn.nowrap
    def statistics_input(self, variables: Variables, features: jax.Array) -> jax.Array:
        """Returns the features for the statistics; by default `features`.

        An example is a projection of the features.

        Args:
          variables: of the head, `{"params": ..., "state": ...}`.
          features: float32 `[batch, width]`.
        """
        del variables
        return features

    @nn.nowrap
    def accumulate(
        self, statistics: Mapping[str, jax.Array], features: jax.Array, labels: jax.Array, context: Context
    ) -> Mapping[str, jax.Array]:
        """Returns the statistics with those of one batch added.

        Args:
          statistics: of the earlier batches and tasks.
          features: the return value of `statistics_input`, by default float32 `[batch, width]`.
          labels: int32 `[batch]`.
          context: `context.weight`, float32 `[batch]`, is 0 for padding and 1 for images.
        """
        raise NotImplementedError

    @nn.nowrap
    def fit(self, variables: Variables, statistics: Mapping[str, jax.Array], context: Context) -> Variables:
        """Returns the variables of the head that fit the statistics.

        Args:
          variables: of the head, `{"params": ..., "state": ...}`.
          statistics: of all images of the tasks so far.
          context: the position in the run; `context.key` is that of the fit.
        """
        raise NotImplementedError


def l2_normalize(x: jax.Array) -> jax.Array:
    """Returns `x / max(|x|, 1e-12)` along the last axis; the gradient at zero is zero.

    >>> print(l2_normalize(jnp.array([3.0, 4.0])))
    [0.6 0.8]
    """
    return x / jnp.sqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), 1e-24))


def batchwise_top_k(indices: jax.Array, pool_size: int, top_k: int, weight: jax.Array | None = None) -> jax.Array:
    """Selects the `top_k` rows that most images of the batch select, for all images.

    The rows are those of the pool. The batch is the global batch, over all devices.

    Args:
      indices: int32 `[batch, top_k]`, the rows that each image selects.
      pool_size: number of rows of the pool.
      top_k: number of rows to select.
      weight: float32 `[batch]`, 0 for images that do not count. None, the default: all images count.

    Returns:
      int32 `[batch, top_k]`, the most popular row first. Of equally popular rows the lower index is first.

    >>> batchwise_top_k(jnp.array([[2, 0], [2, 1], [0, 2]]), 3, 2).tolist()
    [[2, 0], [2, 0], [2, 0]]
    """
    counts = jax.nn.one_hot(indices, pool_size, dtype=jnp.float32)
    if weight is not None:
        counts *= weight[:, None, None]
    _, major_indices = jax.lax.top_k(counts.sum(axis=(0, 1)), top_k)
    return jnp.broadcast_to(major_indices, indices.shape)


def split_kv(prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits prompts `[batch, length, dim]` into the keys and the values of a prefix.

    Returns:
      (keys, values), the first and the second half of the vectors, each `[batch, length / 2, dim]`.

    >>> keys, values = split_kv(jnp.arange(4).reshape(1, 4, 1))
    >>> keys[0, :, 0].tolist(), values[0, :, 0].tolist()
    ([0, 1], [2, 3])
    """
    half = prompts.shape[1] // 2
    return prompts[:, :half], prompts[:, half:]


def check_length(length: int, option: str) -> None:
    """Checks that a prompt can be split into keys and values.

    Raises:
      UserError: `length` is odd or below 2. The message names the option.
    """
    if length < 2 or length % 2:
        raise UserError(f"{option}={length} must be even and at least 2: half of a prompt is keys, half values")


def check_layers(layers: int, depth: int, option: str) -> None:
    """Checks that the backbone has as many blocks as are to be prompted.

    Raises:
      UserError: it has fewer, or none is prompted. The message names the option.
    """
    if not 0 < layers <= depth:
        raise UserError(f"{option}={layers}: the backbone has depth {depth}: choose 1 to {depth}")
