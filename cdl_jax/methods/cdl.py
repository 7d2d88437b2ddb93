"""Continual distillation learning of a prompt-based teacher and student.

CDL (arXiv 2407.13911, versions 2 to 4) trains both networks on each task of a stream. First the teacher's prompts and
head are trained with the labels. Then the teacher is fixed, and the student's prompts and heads are trained with the
labels and the teacher's outputs. Backbones are frozen. The query of both prompt pools is the class token of the
student's backbone without prompts. Version 1 trains both networks on each batch: first the teacher, then the student
with the teacher's outputs from before the teacher's step. Teachers may also come from finished runs of any method; then
only the student is trained.

Variables: `{"teacher": network, "student": network, "distill": variables of the scheme}`. With teachers of finished
runs, `"teachers": {"0": ...}` replaces "teacher". A network is `{"backbone", "prompts", "head", "state"}`, see
`PromptedNetwork`. `backbone` is frozen, except for leaves that the learner trains. `prompts` has the parameters of the
learner. `state` has what is stored without gradients: of the learner, of the head, and statistics. With a scheme that
reads the student's past, "past" has the changing leaves of the student as they were before the task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.config import flatten, is_resumable
from cdl_jax.distill.base import Outputs
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, cross_entropy
from cdl_jax.methods.base import (
    CachesQueries,
    Method,
    Outcome,
    Path,
    Phase,
    Probe,
    StreamInfo,
    Update,
    Variables,
    join,
    split,
)
from cdl_jax.methods.shared import cdl_networks, cdl_probes, user_scheme
from cdl_jax.methods.shared.teacher_student import TeacherStudent
from cdl_jax.models import vit, weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.features import named_features
from cdl_jax.options import Option, change_defaults

OPTIONS = {
    "teacher_query": Option(
        "student",
        "backbone that computes the query of the teacher's pool: the student's (the authors' code), or the teacher's",
        choices=("student", "teacher"),
    ),
    "aux_loss_scale": Option(
        1.0, "factor of the pools' losses; 2 reproduces the published two-device runs, which sum them"
    ),
    "teacher_epochs": Option(0, "epochs of the teacher in each task; 0: train.epochs"),
    # "interleaved": the student gets the teacher's training-mode outputs from before the teacher's step on that batch.
    "schedule": Option(
        "teacher_first",
        "teacher_first: all its epochs, then the student's; interleaved_epochs: a student's epoch after each share "
        "of the teacher's; interleaved: both on each batch (version 1)",
        choices=("teacher_first", "interleaved_epochs", "interleaved"),
    ),
    "student_schedule": Option(
        "",
        "schedule of the student's learning rate; empty: optim.schedule",
        choices=("", *optim.OPTIONS["schedule"].choices),
    ),
    "teacher_runs": Option(
        (), "working directories of finished runs as teachers; the outputs of several are averaged", item_type=str
    ),
    "teacher_network": Option(
        "", 'a network of those runs; empty: "teacher" if the run trained one of that name, else its last'
    ),
    "teacher_checkpoint": Option(
        "same_task",
        "weights of those networks: after the task that the student is training, or after the last task",
        choices=("same_task", "last"),
    ),
}


_LEARNER = "the learner: a name of --list, or a dotted path"
_SCHEME = "the distillation scheme: a name of --list, or a dotted path"


def defaults(
    learner: str = "l2p", distill: str = "kd", teacher: str = "vit_b16", student: str = "vit_s16"
) -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for the named learner, scheme and ViTs.

    A scheme's `PRESET` replaces defaults.

    Raises:
      UserError: a name is unknown, or the `PRESET` has a section that is none of these or is no dict.
    """
    scheme = plugins.load_plugin("distill", distill)
    sections = {
        "cdl": OPTIONS,
        "learner": {"name": Option(learner, _LEARNER), **plugins.load_plugin("models.learners", learner).OPTIONS},
        "distill": {"name": Option(distill, _SCHEME), **scheme.OPTIONS},
        "teacher": families.network_options(teacher, (vit,)),
        "student": families.network_options(student, (vit,)),
    }
    for section, preset in (plugins.optional_part("distill", distill, "PRESET") or {}).items():
        where = f"{scheme.__file__}: PRESET[{section!r}]"
        if not isinstance(preset, Mapping):
            raise UserError(f"{where} must be a dict of options and their defaults, not {preset!r}")
        if section not in sections:
            raise UserError(f"{where} is no section of a config: {plugins.did_you_mean(section, sections)}")
        known = sections[section]
        sections[section] = change_defaults(known, **{key: value for key, value in preset.items() if key in known})
    return sections


def teacher_options(config: ConfigDict) -> dict[str, Any] | None:
    """Returns the options that determine the teacher of a run.

    Two runs with equal options have equal teachers after each task, whatever their students, because a teacher that is
    trained first does not depend on its student. Only the query of its pool may be computed by the student's backbone.

    Args:
      config: a resolved config.

    Returns:
      The flat options; None if the run trains no teacher, or none that another run can use for its student.
    """
    options, flat = config.cdl, flatten(config)
    teaches_as_saved = plugins.optional_part("models.learners", config.learner.name, "teaches_as_saved")
    is_usable = (
        (teaches_as_saved is None or teaches_as_saved(config.learner))
        and not options.teacher_runs
        and not config.seeds
        and options.schedule == "teacher_first"
        and (options.teacher_network, options.teacher_checkpoint) == ("", "same_task")
        and config.distill.name != "none"
        and "." not in config.distill.name  # a user's scheme may train no teacher
        and not config.checkpoint.keep_tasks
        and not config.train.early_stopping.patience  # its evaluations are those of the student
    )
    unrelated = ("distill.", "eval.", "cdl.student_schedule")
    unrelated += ("student.",) if options.teacher_query == "teacher" else ()
    relevant = {k: v for k, v in flat.items() if not k.startswith(unrelated) and not is_resumable(k)}
    return relevant if is_usable else None


@dataclass(frozen=True)
class CDL(Method, CachesQueries):
    """Trains a teacher and a student, each with a learner, on each task.

    Attributes:
      models: the networks and their scheme.
      options: the section `cdl`.
      info: the stream.
      teacher_phase: epochs and optimizer of the teacher.
      student_phase: epochs and optimizer of the student.
    """

    models: TeacherStudent
    options: ConfigDict
    info: StreamInfo
    teacher_phase: tuple[int, optim.Optimizer]
    student_phase: tuple[int, optim.Optimizer]
    networks: tuple[str, ...]
    image_size: int
    external: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    rounds: int

    bookkeeping: ClassVar[frozenset[str]] = frozenset({"past"})

    @property
    def needs_own_classes(self) -> str:
        parts = (*(network.learner for network in self.models.trained.values()), self.models.scheme)
        return next((part.needs_own_classes for part in parts if part.needs_own_classes), "")

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        tasks, teacher = self.models.student.learner.trained_tasks, self.models.teacher
        (teacher_epochs, teacher_optimizer), (epochs, student_optimizer) = self.teacher_phase, self.student_phase
        student = self._update(("student", "distill"), student_optimizer, self.student_loss)
        student_phases = (Phase("student", epochs, (student,), order=1, tasks=tasks), *self._fit_phases("student"))
        if teacher is None:
            return student_phases
        if self.options.schedule == "interleaved":
            loss = partial(self.teacher_loss, shares_outputs=True)
            updates = (self._update(("teacher",), teacher_optimizer, loss), student)
            return (Phase("both", epochs, updates, tasks=tasks),)
        update = self._update(("teacher",), teacher_optimizer, self.teacher_loss)
        teacher_phase = Phase("teacher", teacher_epochs, (update,), order=0, tasks=tasks)
        return (teacher_phase, *self._fit_phases("teacher"), *student_phases)

    def _update(self, parts: tuple[str, ...], optimizer: optim.Optimizer, loss: Callable) -> Update:
        """Returns the update of the named parts of the variables.

        Each leaf of a network has the rate of the network's learner.
        """
        networks = self.models.trained

        def is_trained(path):
            if path[0] not in parts:
                return False
            return networks[path[0]].is_trained(path[1:]) if path[0] in networks else path[1:2] != ("state",)

        def factor(path):
            return networks[path[0]].learner.learning_rate_factor(path[1:]) if path[0] in networks else 1.0

        return Update(is_trained, optim.scale_rates(optimizer, factor), loss)

    def _fit_phases(self, name: str) -> tuple[Phase, ...]:
        """Returns the phase after which a network's `FittedHead` is fitted.

        The phase is one pass over a task's images. A network without a `FittedHead` has no such phase.
        """
        if not self.models.trained[name].is_fitted:
            return ()
        update = Update(lambda path: False, optim.NO_STEP, partial(self.add_batch, name))
        return (Phase(f"{name}_fit", 1, (update,), sequential=True, finish=partial(self.fit_head, name)),)

    def init(self, key: jax.Array) -> Variables:
        keys, models = jax.random.split(key, 3), self.models
        query_dim = models.student.backbone.dim
        variables = {"student": models.student.init(keys[1], query_dim), "distill": models.scheme.init(keys[2])}
        if models.teacher is not None:
            query_dim = models.trained[models.query_source("teacher")].backbone.dim
            variables["teacher"] = models.teacher.init(keys[0], query_dim)
        if models.run_teachers:
            variables["teachers"] = {str(i): teacher.init() for i, teacher in enumerate(models.run_teachers)}
        if models.scheme.keeps_past:
            variables["past"] = self._changing_leaves(variables["student"])
        return variables

    def _changing_leaves(self, student: Variables) -> Variables:
        """Returns a copy of the student's leaves that training changes."""
        changing, _ = split(student, lambda path: not self.models.student.is_frozen(path))
        return jax.tree.map(jnp.copy, changing)

    def load_pretrained(self, variables: Variables) -> Variables:
        loaded = dict(variables)
        for name, network in self.models.trained.items():
            backbone = weights.load(network.weights, variables[name]["backbone"], f"{name}.weights")
            loaded[name] = {**variables[name], "backbone": backbone}
        if teachers := self.models.run_teachers:
            loaded["teachers"] = {str(i): teacher.load_pretrained() for i, teacher in enumerate(teachers)}
        return loaded

    def is_frozen(self, path: Path) -> bool:
        networks = self.models.trained
        return networks[path[0]].is_frozen(path[1:]) if path[0] in networks else path[0] == "teachers"

    def start_task(self, variables: Variables, context: Context) -> Variables:
        # A key for each name: the student's new rows are the same with any teacher and without one.
        keys = {name: jax.random.fold_in(context.key, i) for i, name in enumerate(("teacher", "student", "distill"))}
        new = dict(variables)
        if self.models.scheme.keeps_past:
            new["past"] = self._changing_leaves(variables["student"])
        for name, network in self.models.trained.items():
            new[name] = network.start_task(variables[name], context, keys[name])
        new["distill"] = self.models.scheme.start_task(variables["distill"], context, keys["distill"])
        return new

    def end_task(self, variables: Variables, context: Context) -> Variables:
        trained = self.models.trained.items()
        return {**variables, **{name: network.end_task(variables[name], context) for name, network in trained}}

    def teacher_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context, *, shares_outputs: bool = False
    ) -> tuple[jax.Array, Outcome]:
        """Returns cross-entropy over the current classes + the learner's loss.

        shares_outputs: whether the outputs, before the teacher's step, are passed to the student's update. Names of
          metrics then begin with "teacher_".
        """
        images, labels, teacher = batch["images"], batch["labels"], self.models.teacher
        query = self.models.query("teacher", variables, images, context)
        out = teacher(variables["teacher"], images, query, context, train=True)
        label_loss = cross_entropy(out["logits"], labels, context.current(self.info.num_classes))
        pool_loss = self.options.aux_loss_scale * out["prompts"].loss
        total = label_loss + pool_loss
        metrics = {"loss": total, "cross_entropy": label_loss, "pool": pool_loss}
        state = self.models.updated_state("teacher", variables, out, context)
        if not shares_outputs:
            return total, Outcome(metrics, state)
        metrics = {f"teacher_{name}": value for name, value in metrics.items()}
        return total, Outcome(metrics, state, {"teacher": jax.lax.stop_gradient(out)})

    def student_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns `label_weight` cross-entropy + distillation + the learner's loss.

        One pass of the student's backbone computes the query of student and teacher.
        """
        images, labels, models = batch["images"], batch["labels"], self.models
        scheme, student = models.scheme, models.student
        query = models.query("student", variables, images, context)
        if "teacher" in batch:
            teacher_out = batch["teacher"]
        else:
            teacher_out = jax.lax.stop_gradient(models.teacher_outputs(variables, images, query, context))
        inputs = scheme.student_inputs(variables["distill"], teacher_out, len(query), context, True)
        out = student(variables["student"], images, query, context, train=True, inputs=inputs)
        if scheme.keeps_past:
            out["past"] = jax.lax.stop_gradient(self._past_outputs(variables, images, query, context))
        label_loss = cross_entropy(out["logits"], labels, context.current(self.info.num_classes))
        distillation, metrics = scheme.loss(variables["distill"], out, teacher_out, labels, context)
        pool_loss = self.options.aux_loss_scale * out["prompts"].loss
        total = scheme.label_weight * label_loss + distillation + pool_loss
        metrics = {"loss": total, "cross_entropy": label_loss, "pool": pool_loss, **metrics}
        return total, Outcome(metrics, models.updated_state("student", variables, out, context))

    def _past_outputs(self, variables, images, query, context):
        """Returns the named outputs of the student before the task.

        They are those of evaluation after the earlier tasks.
        """
        zero = jnp.zeros_like(context.first)
        past_context = context.replace(
            task=jnp.maximum(context.task - 1, 0), first=zero, end=jnp.maximum(context.first, 1)
        )
        past = join(variables["student"], variables["past"])
        return self.models.student(past, images, query, past_context, train=False)

    def add_batch(
        self, name: str, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Adds a batch to the statistics of a network's `FittedHead`. The loss is 0."""
        statistics = self.models.accumulate(name, variables, batch, context)
        return jnp.zeros(()), Outcome({"images": context.weight.sum()}, statistics)

    def fit_head(self, name: str, variables: Variables, context: Context) -> Variables:
        """Returns the variables with a network's `FittedHead` fitted to its statistics."""
        # The numbers 0 to 2 are those of `start_task`.
        context = context.replace(key=jax.random.fold_in(context.key, {"teacher": 3, "student": 4}[name]))
        return {**variables, name: self.models.trained[name].fit_head(variables[name], context)}

    def queries(self, frozen: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Computes the queries of images for learners that use queries.

        Returns:
          Network -> query float32 `[batch, dim]` of its backbone.
        """
        users = [name for name, network in self.models.trained.items() if network.learner.uses_query]
        sources = dict.fromkeys(map(self.models.query_source, users))
        return {name: self.models.trained[name].query(frozen[name], images) for name in sources}

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        teacher_out, out = self.models.evaluate(variables, images, context)
        logits = {"teacher": teacher_out["logits"]} if teacher_out else {}
        counts = {"teacher": teacher_out["prompts"].selected} if self.models.teacher is not None else {}
        logits["student"] = self.models.scheme.predict(variables["distill"], out)
        counts["student"] = out["prompts"].selected
        return logits, counts

    def features(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, dict]:
        """Returns the features of teacher and student with their learners."""
        teacher_out, out = self.models.evaluate(variables, images, context)
        teacher = {"teacher": named_features(teacher_out)} if teacher_out else {}
        return {**teacher, "student": named_features(out)}

    def probes(self) -> dict[str, Probe]:
        return cdl_probes.probes(self.models)

    def teacher_outputs(
        self,
        network: str,
        variables: Variables,
        images: jax.Array,
        context: Context,
        use_batch_statistics: bool = False,
    ) -> Outputs:
        return self.models.outputs_as_teacher(network, variables, images, context)


def build(config: ConfigDict, info: StreamInfo) -> CDL:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together.
    """
    options, epochs = config.cdl, config.train.epochs
    models = cdl_networks.build(config, info)
    teacher_epochs = options.teacher_epochs or epochs
    student_optim = ConfigDict({**config.optim, "schedule": options.student_schedule or config.optim.schedule})
    method = CDL(
        models=models,
        options=options,
        info=info,
        teacher_phase=(teacher_epochs, optim.build(config.optim, teacher_epochs)),
        student_phase=(epochs, optim.build(student_optim, epochs)),
        networks=models.names,
        image_size=models.student.image_size,
        external=("teacher",) if models.run_teachers else (),
        pairs=(("teacher", "student"),) if "teacher" in models.names else (),
        rounds=epochs if options.schedule == "interleaved_epochs" else 1,
    )
    if "." in config.distill.name:  # a user's file
        user_scheme.check_loss(method, plugins.load_plugin("distill", config.distill.name))
    return method
