"""VkD for classification (arXiv 2403.06213): a student learns from labels and from a trained teacher's last feature.

The class head learns from the soft labels of mixed pictures, the distillation head (the class head, where a network has
one alone) from the teacher's logits, and one vector of the student, orthogonally projected, from the teacher's
normalised one; see `distill.vkd`. The teacher stands still, sees the same mixed pictures and may be of any family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cdl_jax import optim, plugins
from cdl_jax.data.transforms import augment, mixing
from cdl_jax.distill import vkd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, mask_classes, soft_cross_entropy
from cdl_jax.methods import kd
from cdl_jax.methods.base import Method, Outcome, Phase, StreamInfo, Update
from cdl_jax.methods.shared import finished_run
from cdl_jax.methods.shared.peer_losses import top_k_correct
from cdl_jax.models import weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply

OPTIONS = {
    "label_loss": "cross_entropy",  # or "binary": a yes or no for each class, yes where its soft label is not zero
    # Of a teacher's run: its network after the task that the student learns ("same_task"), or after its "last".
    "teacher_checkpoint": "same_task",
    "teacher_network": "",  # which network of that run; "": "teacher" where the run trained one, else its last
    # Evaluates, as the network `student_ema`, a running mean of the student's weights and statistics too. A task starts
    # it at the student; its decay goes in a line from the first number to the second over the task.
    "ema": False,
    "ema_decay": (0.996, 1.0),
    # What the teacher tells of each picture is computed once a task and kept on the device, in checkpoints too; for
    # pictures that are neither augmented nor mixed.
    "cache_teacher": False,
}


def defaults(network="deit_ti_conv", teacher="regnety_160") -> dict:
    """The config sections of this method, for the named networks of student and teacher.

    `teacher.weights` names a file, or the working directory of a finished run of the method `supervised`.
    """
    sizes = {
        "student": families.network_options(network),
        "teacher": {**families.network_options(teacher), "weights": ""},
    }
    return {"vkd": OPTIONS, "mixing": mixing.OPTIONS, "distill": {"name": "vkd", **vkd.OPTIONS}, **sizes}


@dataclass(frozen=True)
class VkD(Method):
    """See `methods.base.Method`. `teacher` is a module, or a `finished_run.RunTeacher` of another run.

    torch_names: of student and teacher, see `weights.load_network`.
    accumulate: how many batches make a step of the optimizer.
    condense: where what the teacher tells is cached, the function that makes its outputs as small as the loss allows.
    """

    bookkeeping = frozenset({"cache"})

    student: Any
    teacher: Any
    scheme: Scheme
    options: Any
    mixing: Any
    info: StreamInfo
    image_size: int
    weights: tuple[str | tuple[str, str], str | tuple[str, str]]
    torch_names: tuple[Any, Any]
    epochs: int
    optimizer: optim.Optimizer
    accumulate: int = 1
    condense: Callable[[Any], dict] | None = None
    external: tuple[str, ...] = ("teacher",)

    @property
    def networks(self):
        return ("teacher", "student", "student_ema") if self.options.ema else ("teacher", "student")

    @property
    def loss_classes(self):
        return "current" if self.options.label_loss == "cross_entropy" else ""

    @property
    def pairs(self):
        return tuple(("teacher", student) for student in self.networks[1:])

    @property
    def phases(self):
        trained = lambda path: path[:2] in (("student", "params"), ("distill", "params"))  # noqa: E731
        none = lambda path: False  # noqa: E731
        still = optim.Optimizer(optax.identity(), self.optimizer.learning_rate)
        updates = (Update(trained, self.optimizer, self.loss),)
        if self.options.ema:  # behind the step, whose weights it averages
            updates += (Update(none, still, self.average),)
        cache = Phase("cache", 1, (Update(none, still, self.cache_teacher_outputs),), sequential=True)
        return (*((cache,) if self.condense else ()), Phase("student", self.epochs, updates))

    def init(self, key):
        keys, images = [jax.random.fold_in(key, i) for i in range(3)], _pictures(self.image_size)
        of_run = isinstance(self.teacher, finished_run.RunTeacher)
        teacher = self.teacher.init() if of_run else self.teacher.init(keys[1], images)
        student = self.student.init(keys[0], images)
        variables = {"student": student, "teacher": teacher, "distill": self.scheme.init(keys[2])}
        if self.options.ema:
            variables["student_ema"] = student
        if self.condense:
            told = jax.eval_shape(lambda: self.condense(self._told(variables, images, Context.dummy())))
            rows = self.info.train_images
            variables["cache"] = jax.tree.map(lambda x: jnp.zeros((rows, *x.shape[1:]), x.dtype), told)
        return variables

    def load_pretrained(self, variables):
        if isinstance(self.teacher, finished_run.RunTeacher):
            loaded = {"teacher": self.teacher.load()}
        else:
            loaded = {"teacher": self._read(1, variables["teacher"], "teacher.weights")}
            if self.weights[1] != "random" and _left_out(loaded["teacher"]):
                raise UserError(
                    f"teacher.weights={self.weights[1]!r} tells other classes apart than this stream's "
                    f"{self.info.num_classes}: train the teacher on them (method supervised) and name that run"
                )
        student = self._read(0, variables["student"], "student.weights")
        return {**variables, **loaded, **{name: student for name in self.networks[1:]}}

    def _read(self, which, network, key):
        return weights.load_network(self.weights[which], network, key, self.torch_names[which])

    def is_frozen(self, path):
        return path[0] == "teacher"

    def start_task(self, variables, context):
        if not self.options.ema:
            return variables
        return {**variables, "student_ema": jax.tree.map(jnp.copy, variables["student"])}  # of its own memory

    def loss(self, variables, batch, context):
        allowed = context.current(self.info.num_classes)
        keys = jax.random.split(context.key)
        images, targets = mixing.mixup_or_cutmix(batch["images"], batch["labels"], allowed, keys[0], self.mixing)
        if self.condense:
            told = jax.tree.map(lambda kept: kept[batch["rows"]], variables["cache"])
        else:
            told = jax.lax.stop_gradient(self._told(variables, images, context))
        return self.loss_of(variables, images, targets, told, context, keys[1])

    def loss_of(self, variables, images, targets, told, context, key):
        """The loss for soft targets `[batch, classes]` and what the teacher tells; `key` is that of dropout."""
        allowed = context.current(self.info.num_classes)
        (logits, out), stats = apply(self.student, variables["student"], images, True, key)
        labels = _label_loss(self.options.label_loss, out.get("logits_class", logits), targets, allowed)
        out = {**out, "logits": out.get("logits_distilled", logits)}
        distilled, terms = self.scheme.loss(variables["distill"], out, told, None, context)
        total = self.scheme.label_weight * labels + distilled
        new = {"student": stats} if stats else {}
        return total, Outcome({"loss": total, "cross_entropy": labels, **terms}, variables=new)

    def average(self, variables, batch, context):
        """Moves the mean towards the student that the optimizer's step has left; nothing is minimised."""
        del batch
        first, last = self.options.ema_decay
        share = 1 - first - (last - first) * context.progress / self.epochs
        share = jnp.where((context.step + 1) % self.accumulate == 0, share, 0.0)
        mean = optax.incremental_update(variables["student"], variables["student_ema"], share)
        return jnp.zeros(()), Outcome({}, variables={"student_ema": mean})

    def cache_teacher_outputs(self, variables, batch, context):
        """Keeps what the teacher tells of a batch; nothing is minimised."""
        told = self.condense(self._told(variables, batch["images"], context))
        kept = jax.tree.map(lambda kept, new: kept.at[batch["rows"]].set(new), variables["cache"], told)
        return jnp.zeros(()), Outcome({"images": context.weight.sum()}, variables={"cache": kept})

    def predict(self, variables, images, context):
        return {n: self.teacher_outputs(n, variables, images, context)["logits"] for n in self.networks}, {}

    def extra_metrics(self, logits, labels, context):
        """`{name: [batch]}`, see `methods.base.Method`."""
        seen = context.seen(self.info.num_classes)
        return {f"{name}/top5": 100 * top_k_correct(z, labels, 5, seen) for name, z in logits.items()}

    def teacher_outputs(self, network, variables, images, context, use_batch_statistics=False):
        """What a network tells as the teacher of another run (see `methods.base.Method`)."""
        if network == "teacher":
            return self._told(variables, images, context)
        (logits, out), _ = apply(self.student, variables[network], images, False, context.key)
        return {**out, "logits": logits}

    def export(self, variables):
        """File name -> variables that the run writes when it is finished."""
        mean = {"weights_ema": variables["student_ema"]} if self.options.ema else {}
        return {"weights": variables["student"], **mean}

    def _told(self, variables, images, context):
        return _teacher_outputs(self.teacher, variables["teacher"], images, context)


def build(config, info: StreamInfo) -> VkD:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: an option out of range, or a teacher that is missing, of another architecture or without the feature.
    """
    options, section, size = config.vkd, config.student, config.student.image_size
    if options.label_loss not in ("cross_entropy", "binary"):
        raise UserError(f"vkd.label_loss={options.label_loss!r}: use 'cross_entropy' or 'binary'")
    if options.teacher_checkpoint not in ("same_task", "last"):
        raise UserError(f"vkd.teacher_checkpoint={options.teacher_checkpoint!r}: use 'same_task' or 'last'")
    mixing.check(config.mixing, "mixing")
    kinds = [plugins.load_plugin("models", network.family) for network in (section, config.teacher)]
    student, teacher = kinds[0].build(section, info.num_classes), kd.teacher_of(config, info, options)
    if len(options.ema_decay) != 2:
        raise UserError(f"vkd.ema_decay={tuple(options.ema_decay)} must be two numbers: at the start and at the end")
    first, last = options.ema_decay
    if not (0 <= first <= 1 and 0 <= last <= 1):
        raise UserError(f"vkd.ema_decay={tuple(options.ema_decay)}: both decays lie in [0, 1]")
    if options.cache_teacher:
        _check_unchanged(config)
    return VkD(
        student=student,
        teacher=teacher,
        scheme=_scheme(config.distill, student, teacher, info, size),
        options=options,
        mixing=config.mixing,
        info=info,
        image_size=size,
        weights=(weights.from_section(section), weights.from_section(config.teacher)),
        torch_names=tuple(kind.torch_name for kind in kinds),
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
        accumulate=config.optim.accumulate,
        condense=partial(vkd.cacheable_outputs, config.distill) if options.cache_teacher else None,
    )


def _check_unchanged(config):
    """Refuses to cache what a teacher tells of pictures that differ from epoch to epoch."""
    wrong = [f"mixing.{name}={config.mixing[name]}" for name in ("mixup", "cutmix") if config.mixing[name]]
    wrong += [f"augment.{name}={config.augment[name]!r}" for name in augment.stochastic_options(config.augment)]
    if wrong:
        raise UserError(
            f"vkd.cache_teacher=True with {wrong[0]}: a cache needs pictures that are the same in each epoch and as "
            "tested; switch all augmentation and mixing off, or the cache"
        )


def _scheme(options, student, teacher, info, size):
    """The scheme for networks of which no more is known than what they tell."""

    def told():
        images, key = _pictures(size), jax.random.key(0)
        variables = teacher.init() if isinstance(teacher, finished_run.RunTeacher) else teacher.init(key, images)
        _, out = student.apply(student.init(key, images), images)
        return out, _teacher_outputs(teacher, variables, images, Context.dummy())

    of_student, of_teacher = jax.eval_shape(told)
    feature = vkd.output_name(options.student_feature, of_student)
    if feature not in of_student:
        hint = plugins.did_you_mean(feature, of_student)
        raise UserError(f"distill.student_feature={feature!r} is no output of the student: {hint}")
    shapes = {name: value.shape for name, value in of_teacher.items() if hasattr(value, "shape")}
    common = {"num_classes": info.num_classes, "num_tasks": info.num_tasks, "head": None, "learner": None}
    teacher_spec = NetworkSpec(dim=0, depth=0, tokens=0, outputs=shapes, **common)
    return vkd.build(options, teacher_spec, NetworkSpec(dim=of_student[feature].shape[-1], depth=0, tokens=0, **common))


def _label_loss(kind, logits, targets, allowed):
    if kind == "cross_entropy":
        return soft_cross_entropy(mask_classes(logits, allowed), targets)
    each = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), (targets > 0).astype(jnp.float32))
    return jnp.where(allowed, each, 0).sum() / (len(logits) * allowed.sum())


def _teacher_outputs(teacher, variables, images, context):
    if isinstance(teacher, finished_run.RunTeacher):
        return teacher.outputs(variables, images, context)
    (logits, out), _ = apply(teacher, variables, images, False, context.key)
    return {**out, "logits": logits}


def _left_out(variables):
    """Whether a file of weights has left leaves as mere shapes, a classifier of other classes."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables))


def _pictures(size):
    return jnp.zeros((2, size, size, 3))
