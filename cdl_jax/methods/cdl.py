"""Continual distillation learning: a prompt-based teacher, then a prompt-based student, on each task of a stream.

CDL (arXiv 2407.13911, versions 2 to 4). For each task the teacher's prompts and head are trained with labels; then the
teacher stands still and the student's prompts and heads are trained with labels and the teacher's outputs. Backbones
are frozen; the query of both prompt pools is the class token of the student's own backbone without prompts.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax import names, optim
from cdl_jax.distill.base import Scheme, Spec
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, cross_entropy
from cdl_jax.methods.base import Outcome, Phase, StreamInfo, Update
from cdl_jax.models import heads, vit, weights

OPTIONS = {
    "query": "student",  # whose backbone asks the teacher's pool: "student" (the published programs) or "own"
    "aux_loss_scale": 1.0,  # of the pools' losses; 2 reproduces the published two-device runs, which sum over devices
    "teacher_epochs": 0,  # 0: train.epochs
    "same_batches": False,  # the student sees the teacher's batches again, in the same order and augmentation
}


def defaults(learner="l2p", distill="kd", teacher="vit_b16", student="vit_s16") -> dict:
    """The config sections of this method, for the named learner, scheme and sizes of the two ViTs."""
    return {
        "cdl": OPTIONS,
        "learner": {"name": learner, **names.load("models.prompts", learner).OPTIONS},
        "distill": {"name": distill, **names.load("distill", distill).OPTIONS},
        "teacher": vit.variant(teacher),
        "student": vit.variant(student),
    }


@dataclass(frozen=True)
class Network:
    """A frozen `backbone`, the `prompts` put into it and the `head` on its class token."""

    backbone: Any
    prompts: Any
    head: Any
    image_size: int
    weights: str

    def init(self, key, query_dim):
        keys = jax.random.split(key, 3)
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        context = _blank_context()
        return {
            "backbone": self.backbone.init(keys[0], images)["params"],
            "prompts": self.prompts.init(keys[1], jnp.zeros((1, query_dim)), context, True).get("params", {}),
            "head": self.head.init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"],
        }

    def query(self, variables, images):
        """Class token `[batch, dim]` of the plain backbone, a constant."""
        features, _ = self.backbone.apply({"params": variables["backbone"]}, images)
        return jax.lax.stop_gradient(features)

    def __call__(self, variables, images, query, context, train, inputs=None):
        """Named outputs with `logits` `[batch, classes]` and `prompts` (the pool's `Selection`) among them."""
        selection = self.prompts.apply({"params": variables["prompts"]}, query, context, train)
        prompts = selection.prompts if inputs is None else vit.merge_prompts(inputs.prompts, selection.prompts)
        tokens = {} if inputs is None else {"first_tokens": inputs.first_tokens, "last_tokens": inputs.last_tokens}
        features, out = self.backbone.apply({"params": variables["backbone"]}, images, prompts, **tokens)
        out["logits"] = self.head.apply({"params": variables["head"]}, features)
        out["prompts"] = selection
        return out


@dataclass(frozen=True)
class CDL:
    """See `methods.base.Method`. `teacher` is None where the scheme needs none."""

    teacher: Network | None
    student: Network
    scheme: Scheme
    pool: Any  # the learner's module: its start_task and end_task
    options: Any
    info: StreamInfo
    teacher_phase: tuple[int, optim.Optimizer]
    student_phase: tuple[int, optim.Optimizer]

    @property
    def networks(self):
        return ("student",) if self.teacher is None else ("teacher", "student")

    @property
    def image_size(self):
        return self.student.image_size

    @property
    def phases(self):
        epochs, optimizer = self.student_phase
        update = Update(partial(_trained, ("student", "distill")), optimizer, self.student_loss)
        student = Phase("student", epochs, (update,), order=0 if self.options.same_batches else 1)
        if self.teacher is None:
            return (student,)
        epochs, optimizer = self.teacher_phase
        update = Update(partial(_trained, ("teacher",)), optimizer, self.teacher_loss)
        return (Phase("teacher", epochs, (update,), order=0), student)

    def init(self, key):
        keys = jax.random.split(key, 3)
        dim = self.student.backbone.dim
        variables = {"student": self.student.init(keys[1], dim), "distill": self.scheme.init(keys[2])}
        if self.teacher is not None:
            own = self.options.query == "own"
            variables["teacher"] = self.teacher.init(keys[0], self.teacher.backbone.dim if own else dim)
        return variables

    def load(self, variables):
        loaded = dict(variables)
        for name in self.networks:
            network, old = getattr(self, name), variables[name]
            loaded[name] = {**old, "backbone": weights.load(network.weights, old["backbone"], f"{name}.weights")}
        return loaded

    def frozen(self, path):
        return path[1:2] == ("backbone",)

    def start_task(self, variables, context):
        return self._between_tasks(
            variables, lambda pool, i: self.pool.start_task(pool, context, jax.random.fold_in(context.key, i))
        )

    def end_task(self, variables, context):
        return self._between_tasks(variables, lambda pool, i: self.pool.end_task(pool, context))

    def _between_tasks(self, variables, change):
        new = {
            name: {**variables[name], "prompts": change(variables[name]["prompts"], i)}
            for i, name in enumerate(self.networks)
        }
        return {**variables, **new}

    def teacher_loss(self, variables, batch, context):
        """Cross-entropy over the current classes plus the pool's loss."""
        images = batch["images"]
        out = self.teacher(variables["teacher"], images, self._teacher_query(variables, images), context, train=True)
        allowed = context.current(self.info.num_classes)
        labels = cross_entropy(out["logits"], batch["labels"], allowed)
        pool = self.options.aux_loss_scale * out["prompts"].loss
        total = labels + pool
        return total, Outcome({"loss": total, "cross_entropy": labels, "pool": pool})

    def student_loss(self, variables, batch, context):
        """`label_weight` cross-entropy + distillation + pool loss; one query pass serves student and teacher."""
        images = batch["images"]
        query = self.student.query(variables["student"], images)
        teacher = {}
        if self.teacher is not None:
            teacher_query = query if self.options.query == "student" else self._teacher_query(variables, images)
            teacher = self.teacher(variables["teacher"], images, teacher_query, context, train=False)
            teacher = jax.lax.stop_gradient(teacher)
        return self.student_terms(variables, batch, query, teacher, context)

    def student_terms(self, variables, batch, query, teacher, context):
        """The student's loss for given queries `[batch, dim]` and teacher outputs (empty without a teacher)."""
        inputs = self.scheme.student_inputs(variables["distill"], teacher, len(query))
        out = self.student(variables["student"], batch["images"], query, context, train=True, inputs=inputs)
        labels = cross_entropy(out["logits"], batch["labels"], context.current(self.info.num_classes))
        distilled, terms = self.scheme.loss(variables["distill"], out, teacher, batch["labels"], context)
        pool = self.options.aux_loss_scale * out["prompts"].loss
        total = self.scheme.label_weight * labels + distilled + pool
        return total, Outcome({"loss": total, "cross_entropy": labels, "pool": pool, **terms})

    def predict(self, variables, images, context):
        query = self.student.query(variables["student"], images)
        logits, counts, teacher = {}, {}, {}
        if self.teacher is not None:
            teacher_query = query if self.options.query == "student" else self._teacher_query(variables, images)
            teacher = self.teacher(variables["teacher"], images, teacher_query, context, train=False)
            logits["teacher"], counts["teacher"] = teacher["logits"], teacher["prompts"].selected
        inputs = self.scheme.student_inputs(variables["distill"], teacher, len(images))
        out = self.student(variables["student"], images, query, context, train=False, inputs=inputs)
        logits["student"], counts["student"] = self.scheme.predict(variables["distill"], out), out["prompts"].selected
        return logits, counts

    def _teacher_query(self, variables, images):
        asks = "student" if self.options.query == "student" else "teacher"
        return getattr(self, asks).query(variables[asks], images)


def build(config, info: StreamInfo) -> CDL:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.cdl
    if options.query not in ("student", "own"):
        raise UserError(f"cdl.query={options.query!r}: use 'student' or 'own'")
    if config.teacher.image_size != config.student.image_size:
        raise UserError(
            f"teacher.image_size={config.teacher.image_size} and student.image_size={config.student.image_size} "
            "differ: both networks see the same pictures, set them equal"
        )
    pool = names.load("models.prompts", config.learner.name)

    def network(section, query_dim):
        family = names.load("models", section.family)
        prompts = pool.build(
            config.learner, dim=section.dim, key_dim=query_dim, depth=section.depth, num_tasks=info.num_tasks
        )
        return Network(
            family.build(section), prompts, heads.LinearHead(info.num_classes), section.image_size, section.weights
        )

    def spec(section):
        return Spec(section.dim, section.depth, info.num_classes)

    scheme = names.load("distill", config.distill.name).build(
        config.distill, spec(config.teacher), spec(config.student)
    )
    query_dim = config.student.dim
    teacher = None
    if scheme.needs_teacher:
        teacher = network(config.teacher, query_dim if options.query == "student" else config.teacher.dim)
    epochs = config.train.epochs
    teacher_epochs = options.teacher_epochs or epochs
    return CDL(
        teacher=teacher,
        student=network(config.student, query_dim),
        scheme=scheme,
        pool=pool,
        options=options,
        info=info,
        teacher_phase=(teacher_epochs, optim.build(config.optim, teacher_epochs)),
        student_phase=(epochs, optim.build(config.optim, epochs)),
    )


def _trained(networks, path):
    return path[0] in networks and path[1:2] != ("backbone",)


def _blank_context():
    zero = jnp.zeros((), jnp.int32)
    return Context(task=zero, first=zero, end=zero + 1, epoch=zero, step=zero, progress=zero, key=jax.random.key(0))
