"""The loss of one learner of DKT.

The loss is the cross-entropy of the CL head, plus the weighted loss of imitation of the ST head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data.transforms import mixing
from cdl_jax.losses import Context, mask_classes
from cdl_jax.methods.base import StreamInfo, Variables
from cdl_jax.methods.shared import dkt_losses, finished_run
from cdl_jax.methods.shared.dkt_exchange import Exchange, normalize_weights
from cdl_jax.methods.shared.dkt_learners import Learner, LearnerOutputs


@dataclass(frozen=True, eq=False, kw_only=True)
class LearnerLoss:
    """Computes `CE(cl, labels) + w student_loss(st, target)` of one learner.

    Attributes:
      learner: the kind of all learners.
      exchange: between the learners.
      run_teachers: networks of finished runs, which replace the peers as teachers.
      label_ranks: int `[learners, classes]`, position of each label in the learner's class order.
      options: the config section `dkt`.
      info: of the stream.
      epochs: of each task.
    """

    learner: Learner
    exchange: Exchange
    run_teachers: tuple[finished_run.RunTeacher, ...]
    label_ranks: np.ndarray
    options: Any
    info: StreamInfo
    epochs: int

    @property
    def trains_st_heads(self) -> bool:
        """Whether the ST heads have a loss."""
        learns_from_peers = self.options.exchange_mode != "weights" and self.exchange.enabled
        return self.options.st_loss != "none" and (bool(self.run_teachers) or learns_from_peers)

    def __call__(
        self,
        variables: Variables,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
        shared: Mapping[str, Any],
        context: Context,
    ) -> tuple[jax.Array, Variables, dict[str, jax.Array]]:
        """Computes the loss of one learner.

        Args:
          variables: of the learner.
          images: float32 `[batch, size, size, 3]`.
          labels: int32 `[batch]`.
          index: int32 scalar, of the learner; may be traced.
          shared: see `Exchange.shared_inputs`.
          context: of the step.

        Returns:
          The loss, new running statistics, and metrics. A learner that is absent from the task has a loss of 0 and
          keeps its statistics.
        """
        key = jax.random.fold_in(context.key, 8 + index)
        images, pasted_labels, own_area = self._cutmix(images, labels, jax.random.fold_in(key, 0), context)
        outputs = self.learner(variables, shared.get("shared"), images, True, context, jax.random.fold_in(key, 1))
        masked_logits = mask_classes(outputs.cl_logits, self.class_mask(index, context))
        class_loss = self._class_loss(masked_logits, labels, pasted_labels, own_area)
        loss, metrics = class_loss + outputs.extra_loss, {"class_loss": class_loss}
        if self.trains_st_heads:
            st_loss, weight = self._st_loss_and_weight(variables, outputs, images, index, shared, context, key)
            loss, metrics = loss + weight * st_loss, {**metrics, "student_loss": st_loss, "kd_weight": weight}
        active = shared["present"][index]
        old_stats = {part: variables[part] for part in outputs.stats}
        stats = jax.tree.map(lambda new, old: jnp.where(active, new, old), outputs.stats, old_stats)
        accuracy = 100 * (masked_logits.argmax(axis=-1) == labels).mean()
        return jnp.where(active, loss, 0.0), stats, {**metrics, "accuracy": accuracy}

    def _cutmix(
        self, images: jax.Array, labels: jax.Array, key: jax.Array, context: Context
    ) -> tuple[jax.Array, jax.Array, jax.Array | float]:
        """Applies CutMix to a batch.

        Returns:
          The mixed images, the labels of their pasted parts, and the share of their own area.
        """
        options = self.options
        if not options.cutmix:
            return images, labels, 1.0
        probability = mixing.cutmix_probability(options.cutmix_ramp, options.cutmix, context.epoch, self.epochs)
        return mixing.cutmix(images, labels, key, probability)

    def class_mask(self, index: int | jax.Array, context: Context) -> jax.Array:
        """Returns the classes of a learner's cross-entropy: bool `[classes]`."""
        ranks = jnp.asarray(self.label_ranks)[index]
        return context.mask(self.options.classes, self.info.num_classes)[ranks]

    def _class_loss(
        self, masked_logits: jax.Array, labels: jax.Array, pasted_labels: jax.Array, own_area: jax.Array | float
    ) -> jax.Array:
        """Computes the cross-entropy of the CL head.

        `own_area` weights the labels of mixed images.
        """
        loss = dkt_losses.class_loss(masked_logits, labels, self.options.reduction)
        if not self.options.cutmix or self.options.cutmix_labels != "mixed":
            return loss
        pasted_loss = dkt_losses.class_loss(masked_logits, pasted_labels, self.options.reduction)
        return own_area * loss + (1 - own_area) * pasted_loss

    def _st_loss_and_weight(
        self,
        variables: Variables,
        outputs: LearnerOutputs,
        images: jax.Array,
        index: jax.Array,
        shared: Mapping[str, Any],
        context: Context,
        key: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the loss of the ST head, and its weight.

        The loss is that of the public images where there are any.
        """
        if self.exchange.num_public:
            public_images, key = shared["published"]["images"], jax.random.fold_in(key, 2)
            outputs = self.learner(variables, shared.get("shared"), public_images, True, context, key)
        target, has_target = self.st_target(images, index, shared, context)
        options = self.options
        loss = dkt_losses.student_loss(
            outputs.st_logits, target, options.st_loss, options.temperature, options.reduction
        )
        # Without a target the loss is finite and its weight is 0.
        return loss, dkt_losses.kd_weight(options, context.task, self.info.num_tasks) * has_target

    def st_target(
        self, images: jax.Array, index: int | jax.Array, shared: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, jax.Array | bool]:
        """Computes the target of a learner's ST head.

        Args:
          images: float32 `[batch, size, size, 3]`; unused where the target is for the public images.
          index: of the learner; may be traced.
          shared: see `Exchange.shared_inputs`.
          context: of the step.

        Returns:
          The target, float32 `[batch, classes]`, and whether there is one: a teacher, or a peer that has published.
        """
        if self.run_teachers:
            return self._target_of_teachers(images, shared, context), True
        weights = shared["matrix"][index]
        if self.exchange.num_public:
            targets = self._target(shared["published"]["logits"])
            return jnp.tensordot(normalize_weights(weights), targets, axes=1), weights.any()
        return self._target_of_peers(images, weights, shared, context), weights.any()

    def _target(self, logits: jax.Array) -> jax.Array:
        return dkt_losses.student_target(logits, self.options.st_loss, self.options.temperature)

    def _target_of_teachers(self, images: jax.Array, shared: Mapping[str, Any], context: Context) -> jax.Array:
        """Computes the target from the mean logits of finished runs."""
        outputs = [
            teacher.outputs(shared["teachers"][str(i)], images, context) for i, teacher in enumerate(self.run_teachers)
        ]
        return self._target(finished_run.average_outputs(outputs)["logits"])

    def _target_of_peers(
        self, images: jax.Array, weights: jax.Array, shared: Mapping[str, Any], context: Context
    ) -> jax.Array:
        """Computes the weighted mean of the targets of peers.

        The peers have their published weights.
        """
        max_peers = self.options.random_peers or int((self.exchange.matrix > 0).sum(axis=1).max())
        target = 0.0
        for weight, peer in zip(*jax.lax.top_k(normalize_weights(weights), max_peers), strict=True):
            peer_variables = jax.tree.map(lambda x, peer=peer: x[peer], shared["published"])
            logits = self.exchange.peer_logits(peer_variables, shared, images, context)
            target += weight * self._target(logits)
        return target
