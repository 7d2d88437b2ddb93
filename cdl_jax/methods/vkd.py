"""VkD for classification (arXiv 2403.06213).

A student is trained with labels and with the last feature of a trained teacher. The class head is trained with the soft
labels of mixed images. The distillation head (the class head, if the network has only one) is trained with the
teacher's logits. One vector of the student, orthogonally projected, is trained with the teacher's normalized vector;
see `distill.vkd`. The teacher is not trained, gets the same mixed images and may be of any family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.data.transforms import augment, mixing
from cdl_jax.distill import vkd
from cdl_jax.distill.base import NetworkSpec, Outputs, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, mask_classes, soft_cross_entropy
from cdl_jax.methods.base import Method, Outcome, Path, Phase, StreamInfo, Update, Variables
from cdl_jax.methods.shared import teachers
from cdl_jax.methods.shared.peer_losses import top_k_correct
from cdl_jax.models import weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply
from cdl_jax.options import Option

OPTIONS = {
    "label_loss": Option(
        "cross_entropy",
        "loss of the labels; binary: a sigmoid cross-entropy for each class, with target 1 if its soft label is not 0",
        choices=("cross_entropy", "binary"),
    ),
    **teachers.OPTIONS,
    # Each task starts it at the student.
    "ema": Option(
        False,
        "also evaluate an exponential moving average of the student's weights and statistics, as the network "
        "`student_ema`",
    ),
    "ema_decay": Option(
        (0.996, 1.0),
        "decay of that average at the start and at the end of a task, with a linear change between",
        maximum=1,
        lengths=(2,),
    ),
    # Checkpoints hold them too.
    "cache_teacher": Option(
        False,
        "compute the teacher's outputs once a task and store them on the device; only for images that are neither "
        "augmented nor mixed",
    ),
}


def defaults(network: str = "deit_ti_conv", teacher: str = "regnety_160") -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for the named networks of student and teacher.

    `teacher.weights` is to name a file, or the working directory of a finished run of the method `supervised`.
    """
    sizes = {
        "student": families.network_options(network),
        "teacher": families.network_options(teacher, weights=""),
    }
    return {
        "vkd": OPTIONS,
        "mixing": mixing.OPTIONS,
        "distill": {"name": Option("vkd", "the distillation scheme of this method"), **vkd.OPTIONS},
        **sizes,
    }


@dataclass(frozen=True)
class VkD(Method):
    """Trains a student with soft labels and a teacher's logits and feature.

    Variables are `{"student", "teacher", "distill"}`, with options also `"student_ema"` and `"cache"`.

    Attributes:
      student: module of the student, `module(images, train=...) -> (logits, outputs by name)`.
      teacher: the trained teacher.
      scheme: the distillation loss.
      options: the section `vkd`.
      mixing: the section `mixing`.
      info: the stream.
      image_size: side of the student's images in pixels.
      weights: of the student, see `models.weights.load_network`.
      torch_name: names of the student family's arrays in PyTorch's state dicts, or None.
      epochs: passes over the data of a task.
      optimizer: of the student and the scheme.
      accumulate: number of batches in a step of the optimizer.
      condense: function from the teacher's outputs to those that are cached; None: no cache.
    """

    bookkeeping = frozenset({"cache"})

    student: nn.Module
    teacher: teachers.Teacher
    scheme: Scheme
    options: ConfigDict
    mixing: ConfigDict
    info: StreamInfo
    image_size: int
    weights: str | tuple[str, str]
    torch_name: Callable[[str], str] | None
    epochs: int
    optimizer: optim.Optimizer
    accumulate: int = 1
    condense: Callable[[Outputs], dict[str, jax.Array]] | None = None
    external: tuple[str, ...] = ("teacher",)

    @property
    def networks(self) -> tuple[str, ...]:
        return ("teacher", "student", "student_ema") if self.options.ema else ("teacher", "student")

    @property
    def loss_classes(self) -> str:
        return "current" if self.options.label_loss == "cross_entropy" else ""

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple(("teacher", student) for student in self.networks[1:])

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        def is_trained(path):
            return path[:2] in (("student", "params"), ("distill", "params"))

        def no_leaf(path):
            return False

        identity = optim.Optimizer(optax.identity(), self.optimizer.learning_rate)
        updates = (Update(is_trained, self.optimizer, self.loss),)
        if self.options.ema:  # after the step whose weights it averages
            updates += (Update(no_leaf, identity, self.update_ema),)
        student = Phase("student", self.epochs, updates)
        if self.condense is None:
            return (student,)
        return Phase("cache", 1, (Update(no_leaf, identity, self.cache_teacher_outputs),), sequential=True), student

    def init(self, key: jax.Array) -> Variables:
        keys, images = [jax.random.fold_in(key, i) for i in range(3)], _dummy_images(self.image_size)
        student = self.student.init(keys[0], images)
        variables = {
            "student": student, "teacher": self.teacher.init(keys[1]), "distill": self.scheme.init(keys[2]),
        }  # fmt: skip
        if self.options.ema:
            variables["student_ema"] = student
        if self.condense:
            outputs = lambda: self._teacher_outputs(variables, images, Context.dummy())  # noqa: E731
            shapes, rows = jax.eval_shape(lambda: self.condense(outputs())), self.info.train_images
            variables["cache"] = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), shapes)
        return variables

    def load_pretrained(self, variables: Variables) -> Variables:
        teacher = self.teacher.load_pretrained(variables["teacher"])
        student = weights.load_network(self.weights, variables["student"], "student.weights", self.torch_name)
        return {**variables, "teacher": teacher, **{name: student for name in self.networks[1:]}}

    def is_frozen(self, path: Path) -> bool:
        return path[0] == "teacher"

    def start_task(self, variables: Variables, context: Context) -> Variables:
        if not self.options.ema:
            return variables
        # A copy, as training steps reuse the buffers of both.
        return {**variables, "student_ema": jax.tree.map(jnp.copy, variables["student"])}

    def loss(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Mixes the images and returns the student's loss, see `methods.base.Update`."""
        mask = context.current(self.info.num_classes)
        keys = jax.random.split(context.key)
        images, targets = mixing.mixup_or_cutmix(batch["images"], batch["labels"], mask, keys[0], self.mixing)
        if self.condense:
            teacher = jax.tree.map(lambda cache: cache[batch["rows"]], variables["cache"])
        else:
            teacher = jax.lax.stop_gradient(self._teacher_outputs(variables, images, context))
        return self.loss_for_targets(variables, images, targets, teacher, context, keys[1])

    def loss_for_targets(
        self,
        variables: Variables,
        images: jax.Array,
        targets: jax.Array,
        teacher: Outputs,
        context: Context,
        key: jax.Array,
    ) -> tuple[jax.Array, Outcome]:
        """Returns the loss `label_weight label loss + distillation`.

        Args:
          variables: of the method.
          images: float32 `[batch, size, size, 3]`.
          targets: float32 `[batch, classes]`, soft labels.
          teacher: named outputs of the teacher.
          context: position in the stream.
          key: of dropout.
        """
        mask = context.current(self.info.num_classes)
        (logits, out), statistics = apply(self.student, variables["student"], images, True, key)
        label_loss = _label_loss(self.options.label_loss, out.get("logits_class", logits), targets, mask)
        out = {**out, "logits": out.get("logits_distilled", logits)}
        distillation, metrics = self.scheme.loss(variables["distill"], out, teacher, None, context)
        total = self.scheme.label_weight * label_loss + distillation
        new_variables = {"student": statistics} if statistics else {}
        return total, Outcome({"loss": total, "cross_entropy": label_loss, **metrics}, variables=new_variables)

    def update_ema(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Moves the average towards the student after a step of the optimizer.

        The loss is 0.
        """
        del batch
        first, last = self.options.ema_decay
        step_size = 1 - first - (last - first) * context.progress / self.epochs
        step_size = jnp.where((context.step + 1) % self.accumulate == 0, step_size, 0.0)
        average = optax.incremental_update(variables["student"], variables["student_ema"], step_size)
        return jnp.zeros(()), Outcome({}, variables={"student_ema": average})

    def cache_teacher_outputs(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Stores the teacher's outputs of a batch. The loss is 0."""
        outputs = self.condense(self._teacher_outputs(variables, batch["images"], context))
        cache = jax.tree.map(lambda old, new: old.at[batch["rows"]].set(new), variables["cache"], outputs)
        return jnp.zeros(()), Outcome({"images": context.weight.sum()}, variables={"cache": cache})

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        return {name: self.teacher_outputs(name, variables, images, context)["logits"] for name in self.networks}, {}

    def extra_metrics(self, logits: dict, labels: jax.Array, context: Context) -> dict[str, jax.Array]:
        mask = context.seen(self.info.num_classes)
        return {f"{name}/top5": 100 * top_k_correct(z, labels, 5, mask) for name, z in logits.items()}

    def teacher_outputs(
        self,
        network: str,
        variables: Variables,
        images: jax.Array,
        context: Context,
        use_batch_statistics: bool = False,
    ) -> dict[str, jax.Array]:
        if network == "teacher":
            return self._teacher_outputs(variables, images, context)
        (logits, out), _ = apply(self.student, variables[network], images, False, context.key)
        return {**out, "logits": logits}

    def export(self, variables: Variables) -> dict[str, Variables]:
        average = {"weights_ema": variables["student_ema"]} if self.options.ema else {}
        return {"weights": variables["student"], **average}

    def _teacher_outputs(self, variables, images, context):
        return self.teacher.outputs(variables["teacher"], images, context)


def build(config: ConfigDict, info: StreamInfo) -> VkD:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together, or the teacher is missing, has another architecture or lacks the feature.
    """
    options, section = config.vkd, config.student
    family = plugins.load_plugin("models", section.family)
    student = family.build(section, info.num_classes)
    teacher = teachers.build(config, info, options, torch_names=True)
    first, last = options.ema_decay
    _check_losses(config.distill, info.task_sizes)
    if options.cache_teacher:
        _check_images_repeat(config)
    return VkD(
        student=student,
        teacher=teacher,
        scheme=_build_scheme(config.distill, student, teacher, info, section.image_size),
        options=options,
        mixing=config.mixing,
        info=info,
        image_size=section.image_size,
        weights=weights.from_section(section),
        torch_name=family.torch_name,
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
        accumulate=config.optim.accumulate,
        condense=partial(vkd.cacheable_outputs, config.distill) if options.cache_teacher else None,
    )


def _check_losses(options, task_sizes):
    """Refuses a loss of logits alone over one class.

    The softmax over one class is always 1, so the loss is 0.
    """
    sizes = task_sizes if options.classes == "current" else task_sizes[:1]
    if 1 in sizes and not (options.feature_weight or options.label_weight):
        raise UserError(
            "distill.feature_weight=0 and distill.label_weight=0: the loss of the logits spans the one class of task "
            f"{sizes.index(1)}, so it is 0 whatever the weights, and nothing is learned; raise one of these weights"
        )


def _check_images_repeat(config):
    """Refuses a cache of the teacher's outputs if images differ from epoch to epoch."""
    random = [f"mixing.{name}={config.mixing[name]}" for name in ("mixup", "cutmix") if config.mixing[name]]
    random += [f"augment.{name}={config.augment[name]!r}" for name in augment.stochastic_options(config.augment)]
    if random:
        raise UserError(
            f"vkd.cache_teacher=True with {random[0]}: a cache needs images that are the same in each epoch and in "
            "evaluation; switch all augmentation and mixing off, or the cache"
        )


def _build_scheme(options, student, teacher, info, size):
    """Returns the scheme for the shapes of the networks' outputs."""

    def outputs():
        images, key = _dummy_images(size), jax.random.key(0)
        _, student_out = student.apply(student.init(key, images), images)
        return student_out, teacher.outputs(teacher.init(key), images, Context.dummy())

    student_out, teacher_out = jax.eval_shape(outputs)
    feature = vkd.output_name(options.student_feature, student_out)
    if feature not in student_out:
        hint = plugins.did_you_mean(feature, student_out)
        raise UserError(f"distill.student_feature={feature!r} is no output of the student: {hint}")
    spec = partial(
        NetworkSpec, depth=0, tokens=0, num_classes=info.num_classes, num_tasks=info.num_tasks, head=None, learner=None
    )
    return vkd.build(
        options, spec(dim=0, outputs=_array_shapes(teacher_out)), spec(dim=0, outputs=_array_shapes(student_out))
    )


def _array_shapes(outputs):
    """Returns name -> shape of the outputs that are arrays."""
    return {name: value.shape for name, value in outputs.items() if isinstance(value, jax.ShapeDtypeStruct)}


def _label_loss(kind, logits, targets, mask):
    """Returns the loss for soft labels float32 `[batch, classes]`, a scalar."""
    if kind == "cross_entropy":
        return soft_cross_entropy(mask_classes(logits, mask), targets)
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), (targets > 0).astype(jnp.float32))
    return jnp.where(mask, losses, 0).sum() / (len(logits) * mask.sum())


def _dummy_images(size):
    return jnp.zeros((2, size, size, 3))
