"""The exchange of DKT: which learner sends what to whom, and when.

Nothing is trained in it.

Variables that it adds to those of `DKT`, both saved in checkpoints:

    "published"  the most recent state or logits of each learner, stacked along a first axis of learners
    "exchange"   counters and the current mixing matrix
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.losses import Context
from cdl_jax.methods.base import Outcome, Variables
from cdl_jax.methods.shared import topology
from cdl_jax.methods.shared.dkt_learners import Learner
from cdl_jax.models.peers.parallel import stack, unstack


@dataclass(frozen=True, eq=False)
class Exchange:
    """The exchange between learners, called in each step before the update.

    Attributes:
      learner: the kind of all learners.
      names: of the learners.
      matrix: float32 `[learners, learners]`, see `topology.mixing_matrix`.
      options: the config section `dkt`.
      num_classes: of the stream.
    """

    learner: Learner
    names: tuple[str, ...]
    matrix: np.ndarray
    options: Any
    num_classes: int

    @property
    def enabled(self) -> bool:
        """Whether any learner receives anything."""
        return bool(self.matrix.any())

    @property
    def num_public(self) -> int:
        """Number of public training images; 0 unless their logits are exchanged."""
        return self.options.public if self.options.exchange_mode == "predictions" else 0

    def init(self, variables: Mapping[str, Any]) -> Variables:
        """Returns the exchange's variables before the first exchange.

        Args:
          variables: of all learners, by name.

        Returns:
          `{"exchange", "published"}`. With exchange_mode="weights" `{"exchange"}`; without any exchange {}.
        """
        if not self.enabled:
            return {}
        # "begun" counts the begun steps, epochs and tasks; "announced" marks the learners that have published.
        state = {
            "begun": {unit: jnp.zeros((), jnp.int32) for unit in topology.UNITS},
            "rounds": jnp.zeros((), jnp.int32),
            "messages": jnp.zeros((), jnp.int32),
            "announced": jnp.zeros(len(self.names), bool),
            "matrix": jnp.asarray(self.matrix),
        }
        if self.options.exchange_mode == "weights":  # weights are mixed at once and stored nowhere else
            return {"exchange": state}
        return {"published": self._initial_publication(variables), "exchange": state}

    def _initial_publication(self, variables: Mapping[str, Any]) -> Variables:
        """Returns the publication before the first exchange.

        It is the learners themselves, or logits of 0 for images of 0.
        """
        if not self.num_public:
            return self._stacked_learners(variables)
        size, batch = self.learner.image_size, self.options.public_batch
        images = jnp.zeros((batch, size, size, 3))
        return {"images": images, "logits": jnp.zeros((len(self.names), batch, self.num_classes))}

    def _stacked_learners(self, variables: Mapping[str, Any]) -> Variables:
        return stack([variables[name] for name in self.names])

    def active(self, task: int | jax.Array) -> jax.Array:
        """Selects the learners that have joined and not left in a task: bool `[learners]`."""
        joins, leaves = self.options.joins or (0,) * len(self.names), self.options.leaves
        joined = task >= jnp.array(joins)
        return joined & (task < jnp.array(leaves)) if leaves else joined

    def __call__(
        self, variables: Mapping[str, Any], batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Exchanges if it is time; all learners that participate publish at once.

        Args:
          variables: of the run.
          batch: of the step; with public images they are in `batch["public"]`, float32 `[batch, size, size, 3]`.
          context: of the step.

        Returns:
          A loss of 0, and the outcome with the new variables and the number of messages.
        """
        options, state, count = self.options, variables["exchange"], len(self.names)
        begins = {"steps": True, "epochs": context.step == 0, "tasks": (context.step == 0) & (context.epoch == 0)}
        unit = options.exchange_unit
        begun = context.task if unit == "tasks" else state["begun"][unit]  # a task may have several phases
        due = begins[unit] & (begun % options.exchange_interval == 0)
        active = self.active(context.task)
        participates = jax.random.uniform(jax.random.fold_in(context.key, 1), (count,)) < options.participation
        sends = due & active & participates
        matrix = self._update_matrix(due, state["matrix"], jax.random.fold_in(context.key, 2))
        receives = sends if options.exchange_mode == "weights" else active  # gossip goes both ways
        messages = ((matrix > 0) & receives[:, None] & sends).sum()
        # Logits belong to the images of one exchange: a learner that skipped it has published none for these images.
        announced = jnp.where(due, sends, state["announced"]) if self.num_public else state["announced"] | sends
        new_state = {
            "begun": {unit: n + begins[unit] for unit, n in state["begun"].items()},
            "rounds": state["rounds"] + due,
            "messages": state["messages"] + messages,
            "announced": announced,
            "matrix": matrix,
        }
        changed = {"exchange": new_state, **self._apply(variables, batch, context, due, sends, matrix)}
        return jnp.zeros(()), Outcome({"messages": messages}, variables=changed)

    def _update_matrix(self, due: jax.Array, matrix: jax.Array, key: jax.Array) -> jax.Array:
        """Returns the mixing matrix, with random peers drawn anew at an exchange."""
        count, num_random = len(self.names), self.options.random_peers
        if not num_random:
            return matrix
        scores = jax.random.uniform(key, (count, count)) - 2 * jnp.eye(count)
        drawn = jax.nn.one_hot(jax.lax.top_k(scores, num_random)[1], count).sum(axis=1) / num_random
        return jnp.where(due, drawn, matrix)

    def _apply(
        self,
        variables: Mapping[str, Any],
        batch: Mapping[str, Any],
        context: Context,
        due: jax.Array,
        sends: jax.Array,
        matrix: jax.Array,
    ) -> Variables:
        """Returns the partial variables that an exchange changes."""
        if self.options.exchange_mode == "weights":
            learners = self._stacked_learners(variables)
            mixed = jax.lax.cond(due, self._gossip, lambda learners, *_: learners, learners, sends, matrix)
            return dict(zip(self.names, unstack(mixed, len(self.names)), strict=True))
        published = variables["published"]
        if not self.num_public:
            learners = self._stacked_learners(variables)
            return {"published": jax.tree.map(lambda new, old: _select_rows(sends, new, old), learners, published)}

        def publish_logits(images):
            logits = [self.peer_logits(variables[name], variables, images, context) for name in self.names]
            return {"images": images, "logits": jnp.stack(logits)}

        return {"published": jax.lax.cond(due, publish_logits, lambda _: published, batch["public"])}

    def _gossip(self, learners: Variables, sends: jax.Array, matrix: jax.Array) -> Variables:
        """Moves each participating learner towards the mean of its participating peers."""
        weights = matrix * sends
        total = weights.sum(axis=1)
        weights = self.options.gossip_share * weights / jnp.where(total > 0, total, 1)[:, None]
        moves = sends & (total > 0)
        kept_share = jnp.where(moves, 1 - self.options.gossip_share, 1.0)

        def mix(x):
            mixed = jnp.tensordot(weights, x, axes=1) + kept_share.reshape(-1, *[1] * (x.ndim - 1)) * x
            return _select_rows(moves, mixed, x)

        return jax.tree.map(lambda x: mix(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, learners)

    def shared_inputs(self, variables: Mapping[str, Any], context: Context) -> Variables:
        """Returns the inputs that all learners share, without gradients.

        Args:
          variables: of the run.
          context: of the step.

        Returns:
          `{"present": bool [learners], "shared", "teachers", "published", "matrix"}`, the last four where they exist.
        """
        inputs = {part: variables[part] for part in ("shared", "teachers") if part in variables}
        if self.enabled and self.options.exchange_mode != "weights":
            state = variables["exchange"]
            inputs["published"] = variables["published"]
            inputs["matrix"] = state["matrix"] * state["announced"]
        inputs["present"] = self.active(context.task)
        return jax.lax.stop_gradient(inputs)

    def peer_logits(
        self, learner_variables: Mapping[str, Any], shared: Mapping[str, Any], images: jax.Array, context: Context
    ) -> jax.Array:
        """Computes the CL logits of a peer; its running statistics stay unchanged.

        Args:
          learner_variables: of the peer.
          shared: the variables, or shared inputs, that may have the entry "shared".
          images: float32 `[batch, size, size, 3]`.
          context: of the step.

        Returns:
          float32 `[batch, classes]`.
        """
        train = self.options.teacher_bn == "batch"
        return self.learner(learner_variables, shared.get("shared"), images, train, context, context.key).cl_logits

    def counters(self, variables: Mapping[str, Any]) -> dict[str, float]:
        """Counts the exchanges so far and the traffic of all learners together.

        Args:
          variables: of the run.

        Returns:
          `{"rounds", "exchanged_mb", "exchanged_mb_per_round"}`, in 10^6 bytes, or {} without any exchange.
        """
        if not self.enabled:
            return {}
        messages, rounds = int(variables["exchange"]["messages"]), int(variables["exchange"]["rounds"])
        total = messages * self.message_bytes(variables) / 1e6
        return {"rounds": rounds, "exchanged_mb": total, "exchanged_mb_per_round": total / max(rounds, 1)}

    def message_bytes(self, variables: Mapping[str, Any]) -> int:
        """Computes the size in bytes of what one learner sends to another at an exchange."""
        if self.num_public:
            return 4 * self.options.public_batch * self.num_classes
        leaves = jax.tree.leaves(variables[self.names[0]])
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def normalize_weights(weights: jax.Array) -> jax.Array:
    """Scales weights to sum 1; zeros stay zeros.

    Args:
      weights: float32 `[peers]`, not negative.

    Returns:
      float32 `[peers]`.

    Example:
      >>> normalize_weights(jnp.array([1.0, 3.0])).tolist(), normalize_weights(jnp.zeros(2)).tolist()
      ([0.25, 0.75], [0.0, 0.0])
    """
    total = weights.sum()
    return weights / jnp.where(total > 0, total, 1.0)


def _select_rows(mask: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    """Returns the rows of `new` where the mask is True, else those of `old`."""
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)
