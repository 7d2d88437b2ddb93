"""The evaluated networks of DKT: the heads of each learner, and their ensemble."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.methods.shared import dkt_metrics
from cdl_jax.methods.shared.dkt_learners import LearnerOutputs
from cdl_jax.models.modules.features import named_features


@dataclass(frozen=True)
class EvaluatedNetworks:
    """Names and logits of the evaluated networks.

    The CL head of a learner has the learner's name. Its ST head adds "_st", and the mean of both heads "_both".

    Attributes:
      learners: names of the learners.
      st_heads: whether ST heads are trained, and thus evaluated.
    """

    learners: tuple[str, ...]
    st_heads: bool

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of a learner's networks: CL head, ST head, mean of both."""
        return ("", "_st", "_both") if self.st_heads else ("",)

    @property
    def names(self) -> tuple[str, ...]:
        """See `Method.networks`; the ensemble is that of the CL heads.

        Example:
          >>> EvaluatedNetworks(("a", "b"), st_heads=True).names
          ('a', 'a_st', 'a_both', 'b', 'b_st', 'b_both', 'ensemble')
        """
        ensemble = ("ensemble",) if len(self.learners) > 1 else ()
        return (*(name + suffix for name in self.learners for suffix in self.suffixes), *ensemble)

    @property
    def mean_groups(self) -> dict[str, tuple[str, ...]]:
        """See `Method.mean_groups`.

        Example:
          >>> EvaluatedNetworks(("a", "b"), st_heads=False).mean_groups
          {'mean': ('a', 'b')}
        """
        return {f"mean{suffix}": tuple(name + suffix for name in self.learners) for suffix in self.suffixes}

    @property
    def stream_of(self) -> dict[str, int]:
        """See `Method.stream_of`.

        Example:
          >>> EvaluatedNetworks(("a", "b"), st_heads=False).stream_of
          {'a': 0, 'b': 1}
        """
        return {name + suffix: i for i, name in enumerate(self.learners) for suffix in self.suffixes}

    def logits(self, outputs: Mapping[str, LearnerOutputs]) -> dict[str, jax.Array]:
        """Computes the logits of each network; those of a mean are log mean probabilities.

        Args:
          outputs: of each learner, by name.

        Returns:
          `{network: float32 [batch, classes]}`, for all `names`.
        """
        logits, log_probabilities = {}, []
        for name, learner_outputs in outputs.items():
            log_probabilities.append(jax.nn.log_softmax(learner_outputs.cl_logits))
            logits[name] = learner_outputs.cl_logits
            if self.st_heads:
                logits[f"{name}_st"] = learner_outputs.st_logits
                logits[f"{name}_both"] = _log_mean(
                    [log_probabilities[-1], jax.nn.log_softmax(learner_outputs.st_logits)]
                )
        if len(self.learners) > 1:
            logits["ensemble"] = _log_mean(log_probabilities)
        return logits

    def outputs_of(self, network: str, outputs: Mapping[str, LearnerOutputs]) -> dict[str, jax.Array]:
        """Returns the logits of one network, with the intermediates of its learner.

        Args:
          network: one of `names`.
          outputs: of each learner, by name.
        """
        index = self.stream_of.get(network)
        intermediates = {} if index is None else outputs[self.learners[index]].intermediates
        return {**intermediates, "logits": self.logits(outputs)[network]}

    def features(self, outputs: Mapping[str, LearnerOutputs]) -> dict[str, dict]:
        """Returns the features of each learner; its heads are the last layers.

        Args:
          outputs: of each learner, by name.
        """
        features = {}
        for name, learner_outputs in outputs.items():
            features[name] = {**named_features(learner_outputs.intermediates), "cl": learner_outputs.cl_logits}
            if self.st_heads:
                features[name]["st"] = learner_outputs.st_logits
        return features

    def metrics(
        self, logits: Mapping[str, jax.Array], labels: jax.Array, label_ranks: np.ndarray, end: int | jax.Array
    ) -> dict[str, jax.Array]:
        """Computes the accuracy on unmet classes and that of the authors' test.

        Args:
          logits: network -> float32 `[batch, classes]`.
          labels: int32 `[batch]`.
          label_ranks: int `[learners, classes]`, position of each label in the learner's class order.
          end: int32, number of classes that every learner has met.

        Returns:
          `{name: float32 [batch]}`, in percent.
        """
        metrics = {}
        for suffix in self.suffixes if len(self.learners) > 1 else ():
            scores = [100.0 * (logits[name + suffix].argmax(axis=-1) == labels) for name in self.learners]
            metrics[f"mean{suffix}/accuracy_on_others_classes"] = dkt_metrics.accuracy_on_unmet_classes(
                scores, labels, label_ranks, end
            )
        for name in self.learners:
            metrics[f"{name}/rounded_accuracy"] = 100 * dkt_metrics.rounded_correct(logits[name], labels)
        return metrics


def _log_mean(log_probabilities):
    """Returns the logarithm of mean probabilities.

    It is finite where all of them underflow.
    """
    return jax.nn.logsumexp(jnp.stack(log_probabilities), axis=0) - jnp.log(len(log_probabilities))
