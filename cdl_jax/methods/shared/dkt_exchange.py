"""What learners of DKT tell each other, when, and who hears it: the part of a step in which nobody is trained.

Variables: `"published"`, what travelled, with an axis of learners in front; `"exchange"`, counters and who hears whom.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.methods.base import Outcome
from cdl_jax.methods.shared import topology


@dataclass(frozen=True, eq=False)
class Exchange:
    """Of the learners `names`, all of one kind (see `methods.learners`); `matrix` and `options` as those of `DKT`."""

    learner: Any
    names: tuple[str, ...]
    matrix: np.ndarray
    options: Any
    num_classes: int

    @property
    def happens(self) -> bool:
        """Whether anybody hears anybody."""
        return bool(self.matrix.any())

    @property
    def public(self) -> int:
        """How many training pictures all may see without labels; 0 where what travels is not about these."""
        return self.options.public if self.options.exchange_mode == "predictions" else 0

    def state(self, variables) -> dict:
        """The variables of the exchange before anything was published."""
        if not self.happens:
            return {}
        state = {
            "begun": {unit: jnp.zeros((), jnp.int32) for unit in topology.UNITS},
            "rounds": jnp.zeros((), jnp.int32),
            "messages": jnp.zeros((), jnp.int32),
            "announced": jnp.zeros(len(self.names), bool),
            "matrix": jnp.asarray(self.matrix),
        }
        if self.options.exchange_mode == "weights":  # nothing is kept of what was told
            return {"exchange": state}
        return {"published": self._published(variables), "exchange": state}

    def _published(self, variables):
        """What the learners tell at an exchange, stacked: their weights, or nothing yet of public pictures."""
        if not self.public:
            return self._all(variables)
        size, batch = self.learner.image_size, self.options.public_batch
        images = jnp.zeros((batch, size, size, 3))
        return {"images": images, "logits": jnp.zeros((len(self.names), batch, self.num_classes))}

    def _all(self, variables):
        """The learners' own variables, stacked."""
        return stacked([variables[name] for name in self.names])

    def present(self, task) -> jax.Array:
        """bool `[learners]`: who has joined and not left when a task is learnt."""
        joins, leaves = self.options.joins or (0,) * len(self.names), self.options.leaves
        here = task >= jnp.array(joins)
        return here & (task < jnp.array(leaves)) if leaves else here

    def __call__(self, variables, batch, context):
        """Publishes, if it is time: before the step's update, and by all who take part at once (a loss of 0)."""
        options, state, count = self.options, variables["exchange"], len(self.names)
        begins = {"steps": True, "epochs": context.step == 0, "tasks": (context.step == 0) & (context.epoch == 0)}
        unit = options.exchange_unit
        due = begins[unit] & (state["begun"][unit] % options.exchange_interval == 0)
        present = self.present(context.task)
        there = jax.random.uniform(jax.random.fold_in(context.key, 1), (count,)) < options.participation
        tells = due & present & there
        matrix = self._matrix_now(due, state["matrix"], jax.random.fold_in(context.key, 2))
        hears = tells if options.exchange_mode == "weights" else present  # who gossips both tells and hears
        reached = ((matrix > 0) & hears[:, None] & tells).sum()
        # Logits are of the pictures of one exchange: who missed it has said nothing about these.
        announced = jnp.where(due, tells, state["announced"]) if self.public else state["announced"] | tells
        new = {
            "begun": {unit: n + begins[unit] for unit, n in state["begun"].items()},
            "rounds": state["rounds"] + due,
            "messages": state["messages"] + reached,
            "announced": announced,
            "matrix": matrix,
        }
        changed = {"exchange": new, **self._after(variables, batch, context, due, tells, matrix)}
        return jnp.zeros(()), Outcome({"messages": reached}, variables=changed)

    def _matrix_now(self, due, matrix, key):
        """Who hears whom from now on: others only where peers are drawn anew."""
        count, peers = len(self.names), self.options.random_peers
        if not peers:
            return matrix
        scores = jax.random.uniform(key, (count, count)) - 2 * jnp.eye(count)
        drawn = jax.nn.one_hot(jax.lax.top_k(scores, peers)[1], count).sum(axis=1) / peers
        return jnp.where(due, drawn, matrix)

    def _after(self, variables, batch, context, due, tells, matrix):
        """Partial variables after an exchange."""
        if self.options.exchange_mode == "weights":
            own = self._all(variables)
            mixed = jax.lax.cond(due, self._gossip, lambda own, *_: own, own, tells, matrix)
            return {name: jax.tree.map(lambda x, i=i: x[i], mixed) for i, name in enumerate(self.names)}
        published = variables["published"]
        if not self.public:
            own = self._all(variables)
            return {"published": jax.tree.map(lambda new, old: _where(tells, new, old), own, published)}

        def answer(images):
            told = [self.heard(variables[name], variables, images, context) for name in self.names]
            return {"images": images, "logits": jnp.stack(told)}

        return {"published": jax.lax.cond(due, answer, lambda _: published, batch["public"])}

    def _gossip(self, own, tells, matrix):
        """Each who takes part moves towards the mean of those whom it hears and who take part as well."""
        share = matrix * tells
        heard = share.sum(axis=1)
        share = self.options.gossip_share * share / jnp.where(heard > 0, heard, 1)[:, None]
        moves = tells & (heard > 0)
        keep = jnp.where(moves, 1 - self.options.gossip_share, 1.0)

        def mix(x):
            mixed = jnp.tensordot(share, x, axes=1) + keep.reshape(-1, *[1] * (x.ndim - 1)) * x
            return _where(moves, mixed, x)

        return jax.tree.map(lambda x: mix(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, own)

    def told(self, variables, context) -> dict:
        """What all learners read and none of them trains: what was published, who hears whom, who is present."""
        frozen = {part: variables[part] for part in ("shared", "teachers") if part in variables}
        if self.happens and self.options.exchange_mode != "weights":
            state = variables["exchange"]
            frozen["published"] = variables["published"]
            frozen["matrix"] = state["matrix"] * state["announced"]
        frozen["present"] = self.present(context.task)
        return jax.lax.stop_gradient(frozen)

    def heard(self, own, shared, images, context) -> jax.Array:
        """CL logits `[batch, classes]` of one who is heard; its running statistics stay as they are."""
        use_batch_statistics = self.options.teacher_bn == "batch"
        return self.learner(own, shared.get("shared"), images, use_batch_statistics, context, context.key).cl

    def counters(self, live) -> dict:
        """What was exchanged until now: rounds, and million bytes over all learners, in all and at each of them."""
        if not self.happens:
            return {}
        messages, rounds = int(live["exchange"]["messages"]), int(live["exchange"]["rounds"])
        total = messages * self.message_bytes(live) / 1e6
        return {"rounds": rounds, "exchanged_mb": total, "exchanged_mb_per_round": total / max(rounds, 1)}

    def message_bytes(self, live) -> int:
        """Bytes that one learner sends to another at an exchange."""
        if self.public:
            return 4 * self.options.public_batch * self.num_classes
        leaves = jax.tree.leaves(live[self.names[0]])
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def stacked(trees):
    """Trees of one structure as one, with an axis of them in front of each leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def normalised(weights) -> jax.Array:
    """`weights` with sum 1, or all 0."""
    total = weights.sum()
    return weights / jnp.where(total > 0, total, 1.0)


def _where(chosen, new, old):
    return jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, old)
