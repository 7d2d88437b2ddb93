"""ViDT (arXiv 2110.03921): detectors that learn from labels and from a teacher.

The loss is that of the matched queries (see `methods.shared.detection_losses`). A scheme of `distill.detection` adds
the distance from the tokens of a teacher, a larger detector: VkD's orthogonal projection (arXiv 2403.06213) or ViDT's
token matching. The teacher is frozen, or learns the same images beside the student. In a stream of tasks, the student
can also imitate its own past, its outputs from before the task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.data.detection import canvases, transforms
from cdl_jax.distill.base import NetworkSpec, Outputs, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import Method, Outcome, Path, Phase, StreamInfo, Update, Variables
from cdl_jax.methods.shared import detection_losses, detection_optimizer, detection_token_labels
from cdl_jax.methods.shared import detection_teachers as detectors
from cdl_jax.models.detection import state_dicts, vidt
from cdl_jax.options import Option, change_defaults
from cdl_jax.options import defaults as option_defaults

PROBLEM = "detection"

OPTIONS = {
    **detection_losses.OPTIONS,
    "classes": Option(
        "all",
        "classes whose logits the loss of the labels trains: all outputs, or those of the current task; objects of "
        "other tasks are not annotated, so with all they are learned as background",
        choices=("all", "current"),
    ),
    "teacher_training": Option(
        "frozen", "whether the teacher is trained before, or beside the student with the same images",
        choices=("frozen", "beside"),
    ),
    "teacher_network": Option("", "network of the teacher's run; empty: the last one"),
    "teacher_checkpoint": Option(
        "last",
        "weights of the teacher's run: after its last task, or after the task that the student learns",
        choices=("last", "same_task"),
    ),
    "past_weight": Option(0.0, "weight of the distance from the student's own predictions before the task"),
    "past_tokens_weight": Option(0.0, "weight of the distance from its own detection tokens before the task"),
}  # fmt: skip

_HIDDEN = -30.0  # a logit whose focal loss and gradient are 0 in float32


def defaults(
    student: str = "vidt_nano", teacher: str = "vidt_base", distill: str = "none"
) -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for the named networks and scheme.

    Args:
      student: a key of `models.detection.vidt.SIZES`.
      teacher: likewise; without effect if `distill` is "none".
      distill: a scheme of `distill.detection`.

    Raises:
      UserError: there is no network or scheme of the name.
    """
    scheme = plugins.load_plugin("distill.detection", distill)
    sections = {
        "vidt": OPTIONS,
        "token_labels": detection_token_labels.OPTIONS,
        "optim": detection_optimizer.OPTIONS,
        "augment": {**transforms.OPTIONS, **canvases.OPTIONS},
        "distill": {"name": Option(distill, "the distillation scheme"), **scheme.OPTIONS},
        "student": _network_options(student),
    }
    return sections if distill == "none" else {**sections, "teacher": _network_options(teacher)}


def _network_options(name):
    weights = Option("", "a file of a detector or of a Swin classifier, the folder of a teacher's run, or random")
    return {**change_defaults(vidt.OPTIONS, **plugins.lookup(vidt.SIZES, name, "detector")), "weights": weights}


@dataclass(frozen=True)
class ViDT(Method):
    """Trains a detector, with an optional teacher.

    Variables are `{"student"}`, with options also `"teacher"`, `"distill"` and `"past"`, the student before the task.

    Attributes:
      student: the detector.
      teacher: the frozen teacher, `detection_teachers.NoTeacher`, or the detector that learns beside the student.
      scheme: the distillation loss.
      options: the section `vidt`.
      token_labels: the section of this name.
      info: the stream.
      weights: files of student and teacher, "random", by name of the network.
      group_size: images of a group of a batch.
      epochs: passes over the data of a task.
      optimizer: of each network.
    """

    bookkeeping = frozenset({"past"})
    loss_classes = ""

    student: nn.Module
    teacher: Any
    scheme: Scheme
    options: ConfigDict
    token_labels: ConfigDict
    info: StreamInfo
    weights: Mapping[str, str]
    group_size: int
    epochs: int
    optimizer: optim.Optimizer
    image_size: int = 0

    @property
    def networks(self) -> tuple[str, ...]:
        return ("teacher", "student") if self._teacher_is_trained else ("student",)

    @property
    def _teacher_is_trained(self):
        return isinstance(self.teacher, nn.Module)

    @property
    def label_maps(self) -> bool:
        trained = (self.student, self.teacher) if self._teacher_is_trained else (self.student,)
        return any(network.token_label for network in trained)

    @property
    def _has_sigmoids(self):
        return self.options.class_loss == "focal"

    @property
    def _uses_past(self):
        return self.options.past_weight > 0 or self.options.past_tokens_weight > 0

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        def trains(*networks: str) -> Callable[[Path], bool]:
            return lambda path: path[0] in networks and path[1] == "params"

        updates = (Update(trains("student", "distill"), self.optimizer, self.student_loss),)
        if self._teacher_is_trained:
            updates = (Update(trains("teacher"), self.optimizer, self.teacher_loss), *updates)
        return (Phase("student", self.epochs, updates),)

    def init(self, key: jax.Array) -> Variables:
        keys = [jax.random.fold_in(key, i) for i in range(3)]
        variables = {"student": detectors.init(self.student, keys[0])}
        if self._teacher_is_trained:
            variables["teacher"] = detectors.init(self.teacher, keys[1])
        else:
            variables["teacher"] = self.teacher.init(keys[1])
        variables["distill"] = self.scheme.init(keys[2])
        if self._uses_past:
            variables["past"] = variables["student"]
        return {name: tree for name, tree in variables.items() if tree}

    def load_pretrained(self, variables: Variables) -> Variables:
        loaded = {"student": detectors.load(self.weights["student"], variables["student"], "student.weights")}
        if self._teacher_is_trained:
            loaded["teacher"] = detectors.load(self.weights["teacher"], variables["teacher"], "teacher.weights")
        elif "teacher" in variables:
            loaded["teacher"] = self.teacher.load_pretrained(variables["teacher"])
        return {**variables, **loaded}

    def is_frozen(self, path: Path) -> bool:
        return path[0] == "teacher" and not self._teacher_is_trained

    def start_task(self, variables: Variables, context: Context) -> Variables:
        if not self._uses_past:
            return variables
        # A copy, as training steps reuse the buffers of both.
        return {**variables, "past": jax.tree.map(jnp.copy, variables["student"])}

    def teacher_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns the loss of a teacher that learns beside the student.

        See `methods.base.Update`.
        """
        out = detectors.apply(self.teacher, variables["teacher"], batch, jax.random.fold_in(context.key, 1))
        loss, terms = self._label_loss(out, batch, context)
        return loss, Outcome({f"teacher_{name}": value for name, value in {"loss": loss, **terms}.items()})

    def student_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns the loss of labels, teacher and past, see `methods.base.Update`."""
        out = detectors.apply(self.student, variables["student"], batch, context.key)
        loss, metrics = self._label_loss(out, batch, context)
        if self.scheme.needs:
            teacher = jax.lax.stop_gradient(self._teacher_outputs(variables, batch, context))
            groups = len(batch["images"]) // self.group_size
            inside = tuple(x.reshape(groups, self.group_size, *x.shape[1:]) for x in out["inside"])
            distance, terms = self.scheme.loss(
                variables.get("distill", {}), {**out, "inside": inside}, teacher, batch["labels"], context
            )
            loss, metrics = self.scheme.label_weight * loss + distance, {**metrics, **terms}
        if self._uses_past:
            distance, terms = self._past_loss(variables["past"], out, batch, context)
            loss, metrics = loss + distance, {**metrics, **terms}
        return loss, Outcome({"loss": loss, **metrics})

    def predict(self, variables: Variables, images: Mapping[str, Any], context: Context) -> tuple[dict, dict]:
        def of_last_level(out):
            logits = out["logits"][-1]
            return {"logits": logits if self._has_sigmoids else binary_logits(logits), "boxes": out["boxes"][-1]}

        outputs = {name: self.teacher_outputs(name, variables, images, context) for name in self.networks}
        return {name: of_last_level(out) for name, out in outputs.items()}, {}

    def teacher_outputs(
        self, network: str, variables: Variables, images: Mapping[str, Any], context: Context,
        use_batch_statistics: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        module = self.student if network == "student" else self.teacher
        return detectors.apply(module, variables[network], images)

    def published_parameters(self, variables: Variables) -> dict[str, int]:
        counts = {}
        for name in ("student", "teacher"):
            params = variables.get(name, {}).get("params")
            if params:
                unused = state_dicts.unused_shapes(params).values()
                counts[name] = sum(x.size for x in jax.tree.leaves(params)) + sum(map(int, map(np.prod, unused)))
        return counts

    def export(self, variables: Variables) -> dict[str, Variables]:
        return {"weights": variables["student"]}

    def _teacher_outputs(self, variables, batch, context):
        if self._teacher_is_trained:
            return detectors.apply(self.teacher, variables["teacher"], batch)
        return self.teacher.outputs(variables["teacher"], batch, context)

    def _label_loss(self, out, batch, context):
        """Returns the loss of the labels, and its terms of the last level."""
        if self.options.classes == "current":
            columns = self._columns(context.current(self.info.num_classes), out["logits"].shape[-1])
            out = {**out, "logits": jnp.where(columns, out["logits"], _HIDDEN)}
            # Column 0 of token labels is that of any object of the task.
            token_logits = [jnp.where(columns.at[0].set(True), z, _HIDDEN) for z in out.get("token_logits", ())]
            out |= {"token_logits": token_logits} if token_logits else {}
        groups = len(batch["images"]) // self.group_size
        loss, terms = detection_losses.detection_loss(self.options, out, batch, groups)
        terms = {name: value for name, value in terms.items() if not name[-1].isdigit()}
        if "token_logits" in out:
            token_loss, token_terms = self._token_loss(out, batch, groups)
            loss, terms = loss + token_loss, {**terms, **token_terms}
        return loss, terms

    def _token_loss(self, out, batch, groups):
        """Returns the weighted loss of the token labels, and its terms."""
        shares = [
            detection_token_labels.class_shares(
                batch["label_maps"], logits.shape[-1], batch["extents"], _map_extents(inside), inside.shape[1:]
            )
            for logits, inside in zip(out["token_logits"], out["inside"], strict=True)
        ]
        normalizer = detection_losses.object_normalizer(batch["valid"], groups)
        return detection_token_labels.token_losses(
            self.token_labels, out["token_logits"], shares, out["inside"], normalizer
        )

    def _columns(self, classes, outputs):
        """Returns the outputs of some classes, bool `[outputs]`."""
        return jnp.zeros(outputs, bool).at[np.array(self.info.class_ids)].set(classes)

    def _past_loss(self, past, out, batch, context):
        """Computes the weighted distance from the student before the task.

        Returns:
          The distance, 0 in the first task, and its terms.
        """

        def distances():
            old = jax.lax.stop_gradient(detectors.apply(self.student, past, batch))
            columns = self._columns(jnp.arange(self.info.num_classes) < context.first, out["logits"].shape[-1])
            return prediction_distance(out, old, columns), token_distance(out, old)

        zeros = (jnp.zeros(()),) * 2
        predictions, tokens = jax.lax.cond(context.task > 0, distances, lambda: zeros)
        total = self.options.past_weight * predictions + self.options.past_tokens_weight * tokens
        return total, {"loss_past": predictions, "loss_past_tokens": tokens}


def _map_extents(is_inside):
    """Returns (height, width) of the rectangle at the top left of each map.

    Args:
      is_inside: bool `[N, h, w]`, True in the rectangle.

    Returns:
      int32 `[N, 2]`.
    """
    return jnp.stack([is_inside[:, :, 0].sum(axis=1), is_inside[:, 0].sum(axis=1)], axis=1)


def binary_logits(logits: jax.Array) -> jax.Array:
    """Converts logits of a softmax to logits of a sigmoid for each class.

    The last class of the softmax is the background, which has no sigmoid.

    >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    >>> [round(float(p), 3) for p in jax.nn.sigmoid(binary_logits(logits))]
    [0.5, 0.3]

    Args:
      logits: `[..., classes + 1]`.

    Returns:
      `[..., classes]`, with the probabilities of the softmax.
    """
    log_p = jax.nn.log_softmax(logits)[..., :-1]
    return log_p - jnp.log1p(-jnp.exp(log_p))


def prediction_distance(student: Outputs, past: Outputs, columns: jax.Array) -> jax.Array:
    """Computes the distance of two detectors' predictions, query by query.

    The distance is the mean over levels and images. A query contributes the Kullback-Leibler divergence of the sigmoids
    of the old classes, and the L1 distance of its boxes, weighted by the largest old probability of the past detector.
    Terms of an image are summed over queries.

    Args:
      student: `logits` `[L, N, Q, K]` and `boxes` `[L, N, Q, 4]`.
      past: likewise.
      columns: bool `[K]`, the outputs of the old classes.

    Returns:
      A scalar.
    """
    targets = jax.nn.sigmoid(past["logits"])
    divergence = optax.sigmoid_binary_cross_entropy(student["logits"], targets)
    divergence -= optax.sigmoid_binary_cross_entropy(past["logits"], targets)
    confidence = jnp.where(columns, targets, 0).max(axis=-1)
    boxes = confidence * jnp.abs(student["boxes"] - past["boxes"]).sum(axis=-1)
    return (jnp.where(columns, divergence, 0).sum(axis=-1) + boxes).sum(axis=-1).mean()


def token_distance(student: Outputs, past: Outputs) -> jax.Array:
    """Computes the smooth-L1 distance of two detectors' detection tokens.

    The distance is the sum of two means: over the tokens of the backbone, and over those of the neck.

    Args:
      student: `body_tokens` `[N, Q, dim]`; with a neck also `neck_tokens` `[L, N, Q, dim]`.
      past: likewise.

    Returns:
      A scalar.
    """
    names = [name for name in ("body_tokens", "neck_tokens") if name in student]
    return sum(optax.huber_loss(student[name], past[name]).mean() for name in names)


def build(config: ConfigDict, info: StreamInfo) -> ViDT:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together, or the teacher is missing or does not fit.
    """
    options, section = config.vidt, config.student
    detection_losses.check(options, "vidt")
    _check(config, info)
    num_outputs = max(info.class_ids) + 1
    student, teacher, spec = vidt.build(section, num_outputs), detectors.NoTeacher(), _spec(section, num_outputs)
    if config.distill.name != "none":
        teacher = vidt.build(config.teacher, num_outputs)
    scheme = plugins.load_plugin("distill.detection", config.distill.name).build(
        config.distill, _spec(config.get("teacher", section), num_outputs), spec
    )
    if config.distill.name != "none" and options.teacher_training == "frozen":
        teacher = detectors.build(config, info, teacher)
    return ViDT(
        student=student,
        teacher=teacher,
        scheme=scheme,
        options=options,
        # Runs of teachers from before these options lack the section.
        token_labels=config.get("token_labels", ConfigDict(option_defaults(detection_token_labels.OPTIONS))),
        info=info,
        weights={name: config[name].weights for name in ("student", "teacher") if name in config},
        group_size=config.augment.group_size,
        epochs=config.train.epochs,
        optimizer=detection_optimizer.build(config.optim, config.train.epochs),
    )


def _spec(section, num_outputs):
    """Returns the shapes of a detector's tokens for one image."""
    outputs = {"body_tokens": (1, section.queries, section.dim)}
    if section.neck:
        outputs["neck_tokens"] = (section.decoder_layers + 1, 1, section.queries, section.dim)
    return NetworkSpec(section.dim, 0, section.queries, num_outputs, 0, None, None, outputs=outputs)


def _check(config, info):
    """Checks options that depend on each other.

    Raises:
      UserError: options do not fit together.
    """
    options, section = config.vidt, config.student
    if section.neck != (options.class_loss == "focal"):
        fitting = "focal" if section.neck else "softmax"
        raise UserError(f"student.neck={section.neck} needs vidt.class_loss={fitting!r}")
    if config.distill.name == "none":
        if options.teacher_training == "beside":
            raise UserError("vidt.teacher_training='beside' needs a scheme: name it after distill=")
    else:
        _check_teacher(config.teacher, section)
    for key, needs_sigmoids in (
        ("classes", options.classes == "current"), ("past_weight", options.past_weight > 0)
    ):  # fmt: skip
        if needs_sigmoids and not section.neck:
            raise UserError(f"vidt.{key}={options[key]!r} needs a sigmoid for each class: set student.neck=True")
    if info.num_tasks == 1:
        for key in ("past_weight", "past_tokens_weight"):
            if options[key]:
                raise UserError(f"vidt.{key}={options[key]}: a stream of one task has no past: set it to 0")


def _check_teacher(teacher, student):
    if not (teacher.neck and student.neck):
        raise UserError("distillation compares maps and tokens of the neck: set teacher.neck and student.neck to True")
    if teacher.cross_scale_fusion != student.cross_scale_fusion:
        raise UserError(
            "teacher.cross_scale_fusion and student.cross_scale_fusion order the maps differently: set them equal"
        )
