"""Continual distillation learning: on each task of a stream, a prompt-based teacher and a prompt-based student.

CDL (arXiv 2407.13911, versions 2 to 4). On each task the teacher's prompts and head are trained with the labels. Then
the teacher is fixed, and the student's prompts and heads are trained with the labels and the teacher's outputs.
Backbones are frozen. The query of both prompt pools is the class token of the student's backbone without prompts.
Version 1 trains both networks on each batch: first the teacher, then the student with the teacher's outputs from before
the teacher's step. Teachers may also come from finished runs of any method; then only the student is trained.

Variables: `{"teacher": network, "student": network, "distill": variables of the scheme}`. With teachers of finished
runs, `"teachers": {"0": ...}` replaces "teacher". A network is `{"backbone", "prompts", "head", "state"}`. `backbone`
is frozen. `state` has what prompts and head store without training it; it changes between tasks and is in checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.distill.base import Outputs, Scheme, StudentInputs
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, cross_entropy
from cdl_jax.methods.base import CachesQueries, Method, Outcome, Path, Phase, Probe, StreamInfo, Update, Variables
from cdl_jax.methods.shared import cdl_networks, finished_run, user_scheme
from cdl_jax.models import vit, weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.modules.prompted import PromptedNetwork
from cdl_jax.options import Option, change_defaults

OPTIONS = {
    "query": Option(
        "student",
        "backbone that computes the query of the teacher's pool: the student's (the authors' code), or the teacher's "
        "own",
        choices=("student", "own"),
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
    "student_rate": Option(
        "",
        "schedule of the student's learning rate; empty: optim.schedule",
        choices=("", *optim.OPTIONS["schedule"].choices),
    ),
    "teachers": Option(
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


_LEARNER = "the prompt learner: a name of --list, or a dotted path"
_SCHEME = "the distillation scheme: a name of --list, or a dotted path"


def defaults(
    learner: str = "l2p", distill: str = "kd", teacher: str = "vit_b16", student: str = "vit_s16"
) -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for the named prompt pool, scheme and ViTs.

    A scheme's `PRESET` replaces defaults.

    Raises:
      UserError: a name is unknown, or the `PRESET` has a section that is none of these or is no dict.
    """
    scheme = plugins.load_plugin("distill", distill)
    sections = {
        "cdl": OPTIONS,
        "learner": {"name": Option(learner, _LEARNER), **plugins.load_plugin("models.prompts", learner).OPTIONS},
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


@dataclass(frozen=True)
class CDL(Method, CachesQueries):
    """Trains a prompted teacher and a prompted student on each task.

    Attributes:
      teacher: None if the scheme needs no teacher, or teachers of finished runs are used.
      run_teachers: teachers of finished runs.
      student: the student.
      scheme: the distillation scheme.
      options: the section `cdl`.
      info: the stream.
      teacher_phase: epochs and optimizer of the teacher.
      student_phase: epochs and optimizer of the student.
    """

    teacher: PromptedNetwork | None
    run_teachers: tuple[finished_run.RunTeacher, ...]
    student: PromptedNetwork
    scheme: Scheme
    options: ConfigDict
    info: StreamInfo
    teacher_phase: tuple[int, optim.Optimizer]
    student_phase: tuple[int, optim.Optimizer]

    @property
    def networks(self) -> tuple[str, ...]:
        return ("teacher", "student") if self.teacher or self.run_teachers else ("student",)

    @property
    def external(self) -> tuple[str, ...]:
        return ("teacher",) if self.run_teachers else ()

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return (("teacher", "student"),) if "teacher" in self.networks else ()

    @property
    def rounds(self) -> int:
        return self.student_phase[0] if self.options.schedule == "interleaved_epochs" else 1

    @property
    def image_size(self) -> int:
        return self.student.image_size

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        epochs, optimizer = self.student_phase
        student = Update(_trained_leaves("student", "distill"), optimizer, self.student_loss)
        student_phase = Phase("student", epochs, (student,), order=1)
        if self.teacher is None:
            return (student_phase,)
        teacher_epochs, optimizer = self.teacher_phase
        if self.options.schedule == "interleaved":
            teacher = Update(_trained_leaves("teacher"), optimizer, self.teacher_loss_sharing_outputs)
            return (Phase("both", epochs, (teacher, student)),)
        teacher = Update(_trained_leaves("teacher"), optimizer, self.teacher_loss)
        return (Phase("teacher", teacher_epochs, (teacher,), order=0), student_phase)

    def init(self, key: jax.Array) -> Variables:
        keys = jax.random.split(key, 3)
        query_dim = self.student.backbone.dim
        variables = {"student": self.student.init(keys[1], query_dim), "distill": self.scheme.init(keys[2])}
        if self.teacher is not None:
            if self.options.query == "own":
                query_dim = self.teacher.backbone.dim
            variables["teacher"] = self.teacher.init(keys[0], query_dim)
        if self.run_teachers:
            variables["teachers"] = {str(i): teacher.init() for i, teacher in enumerate(self.run_teachers)}
        return variables

    def load_pretrained(self, variables: Variables) -> Variables:
        loaded = dict(variables)
        for name, network in self._trained_networks.items():
            backbone = weights.load(network.weights, variables[name]["backbone"], f"{name}.weights")
            loaded[name] = {**variables[name], "backbone": backbone}
        if self.run_teachers:
            loaded["teachers"] = {str(i): teacher.load_pretrained() for i, teacher in enumerate(self.run_teachers)}
        return loaded

    def is_frozen(self, path: Path) -> bool:
        return path[0] == "teachers" or path[1:2] == ("backbone",)

    def start_task(self, variables: Variables, context: Context) -> Variables:
        # A key for each name: the student's new rows are the same with any teacher and without one.
        keys = {name: jax.random.fold_in(context.key, i) for i, name in enumerate(("teacher", "student", "distill"))}
        new = dict(variables)
        for name, network in self._trained_networks.items():
            start_task = partial(network.prompts.start_task, context=context, key=keys[name])
            new[name] = network.map_prompt_variables(variables[name], start_task)
        new["distill"] = self.scheme.start_task(variables["distill"], context, keys["distill"])
        return new

    def end_task(self, variables: Variables, context: Context) -> Variables:
        new = dict(variables)
        for name, network in self._trained_networks.items():
            end_task = partial(network.prompts.end_task, context=context)
            new[name] = network.map_prompt_variables(variables[name], end_task)
        return new

    def teacher_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns cross-entropy over the current classes + pool loss."""
        total, metrics, _ = self._teacher_loss_and_outputs(variables, batch, context)
        return total, Outcome(metrics)

    def teacher_loss_sharing_outputs(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns `teacher_loss`, and passes the outputs to the student's update."""
        total, metrics, out = self._teacher_loss_and_outputs(variables, batch, context)
        metrics = {f"teacher_{name}": value for name, value in metrics.items()}
        return total, Outcome(metrics, batch={"teacher": jax.lax.stop_gradient(out)})

    def _teacher_loss_and_outputs(self, variables, batch, context):
        query = self._teacher_query(variables, batch["images"])
        out = self.teacher(variables["teacher"], batch["images"], query, context, train=True)
        label_loss = cross_entropy(out["logits"], batch["labels"], context.current(self.info.num_classes))
        pool_loss = self.options.aux_loss_scale * out["prompts"].loss
        total = label_loss + pool_loss
        return total, {"loss": total, "cross_entropy": label_loss, "pool": pool_loss}, out

    def student_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns `label_weight` cross-entropy + distillation + pool loss.

        One pass of the student's backbone computes the query of student and teacher.
        """
        images, labels = batch["images"], batch["labels"]
        query = self.student.query(variables["student"], images)
        if "teacher" in batch:
            teacher_out = batch["teacher"]
        else:
            teacher_out = jax.lax.stop_gradient(self._teacher_outputs(variables, images, query, context))
        inputs = self.scheme.student_inputs(variables["distill"], teacher_out, len(query), context, True)
        out = self.student(variables["student"], images, query, context, train=True, inputs=inputs)
        label_loss = cross_entropy(out["logits"], labels, context.current(self.info.num_classes))
        distillation, metrics = self.scheme.loss(variables["distill"], out, teacher_out, labels, context)
        pool_loss = self.options.aux_loss_scale * out["prompts"].loss
        total = self.scheme.label_weight * label_loss + distillation + pool_loss
        return total, Outcome({"loss": total, "cross_entropy": label_loss, "pool": pool_loss, **metrics})

    def queries(self, frozen: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Returns network -> query float32 `[batch, dim]` of its backbone without prompts."""
        names = ("student", "teacher") if self.options.query == "own" and self.teacher else ("student",)
        return {name: self._trained_networks[name].query(frozen[name], images) for name in names}

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        teacher_out, _, out = self._forward_eval(variables, images, context)
        logits = {"teacher": teacher_out["logits"]} if teacher_out else {}
        counts = {"teacher": teacher_out["prompts"].selected} if self.teacher is not None else {}
        logits["student"], counts["student"] = self.scheme.predict(variables["distill"], out), out["prompts"].selected
        return logits, counts

    def features(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, dict]:
        """Returns the features of teacher and student with their prompts."""
        teacher_out, inputs, out = self._forward_eval(variables, images, context)
        class_index = 0 if inputs.first_tokens is None else inputs.first_tokens.shape[1]
        teacher = {"teacher": named_features(teacher_out)} if teacher_out else {}
        return {**teacher, "student": named_features(out, class_index)}

    def probes(self) -> dict[str, Probe]:
        """Returns predictions with a part switched off, or with other head weights."""
        probes = {"prompts_off": Probe(self._predict_without_prompts)}
        if self.scheme.changes_prediction:
            probes["distillation_off"] = Probe(self._predict_without_scheme)
        if self.scheme.second_head is not None:
            usual = float(self.scheme.second_weight)
            values = tuple(sorted({usual, *(step / 10 for step in range(11))}))
            probes["second_head_weight"] = Probe(partial(self._predict_with_weights, values), values, usual, "student")
        return probes

    def _predict_without_prompts(self, variables, images, context):
        """Applies each head to the class token of its backbone without prompts."""
        del context
        networks = self._trained_networks.items()
        return {name: network.logits_without_prompts(variables[name], images) for name, network in networks}

    def _predict_without_scheme(self, variables, images, context):
        """Applies the student with its own prompts and its first head."""
        query = self._eval_query("student", variables, images, context)
        return {"student": self.student(variables["student"], images, query, context, train=False)["logits"]}

    def _predict_with_weights(self, values, variables, images, context):
        """Returns the student's logits for each of `values` as the second head's weight."""
        _, _, out = self._forward_eval(variables, images, context)
        logits = self.scheme.predict_with_weights(variables["distill"], out, values)
        return {str(value): z for value, z in zip(values, logits, strict=True)}

    def _forward_eval(self, variables, images, context) -> tuple[Outputs, StudentInputs, Outputs]:
        """Returns the teacher's outputs or {}, the scheme's inputs, the student's outputs."""
        query, teacher_out = self._eval_query("student", variables, images, context), {}
        if self.run_teachers:
            teacher_out = self._teacher_outputs(variables, images, query, context)
        elif self.teacher is not None:
            teacher_query = query
            if self.options.query == "own":
                teacher_query = self._eval_query("teacher", variables, images, context)
            teacher_out = self.teacher(variables["teacher"], images, teacher_query, context, train=False)
        inputs = self.scheme.student_inputs(variables["distill"], teacher_out, len(images), context, False)
        out = self.student(variables["student"], images, query, context, train=False, inputs=inputs)
        return teacher_out, inputs, out

    def _eval_query(self, network, variables, images, context):
        """Returns the query of a network, from the cache if it is there."""
        cached = context.queries.get(network)
        return self._trained_networks[network].query(variables[network], images) if cached is None else cached

    def _teacher_query(self, variables, images):
        """Returns the query of the teacher's pool, float32 `[batch, dim]`."""
        if self.options.query == "own":
            return self.teacher.query(variables["teacher"], images)
        return self.student.query(variables["student"], images)

    def teacher_outputs(
        self,
        network: str,
        variables: Variables,
        images: jax.Array,
        context: Context,
        use_batch_statistics: bool = False,
    ) -> Outputs:
        query = self.student.query(variables["student"], images)
        teacher_out = self._teacher_outputs(variables, images, query, context)
        if network == "teacher":
            return teacher_out
        inputs = self.scheme.student_inputs(variables["distill"], teacher_out, len(images), context, False)
        student = self.student.map_prompt_variables(variables["student"], self.student.prompts.teacher_variables)
        out = self.student(student, images, query, context, train=False, inputs=inputs)
        return {**out, "logits": self.scheme.predict(variables["distill"], out)}

    def _teacher_outputs(self, variables, images, query, context) -> Outputs:
        """Returns the outputs from which the student learns; {} without a teacher."""
        if self.run_teachers:
            teachers = enumerate(self.run_teachers)
            outputs = [t.outputs(variables["teachers"][str(i)], images, context) for i, t in teachers]
            return finished_run.average_outputs(outputs)
        if self.teacher is None:
            return {}
        if self.options.query == "own":
            query = self.teacher.query(variables["teacher"], images)
        teacher = self.teacher.map_prompt_variables(variables["teacher"], self.teacher.prompts.teacher_variables)
        return self.teacher(teacher, images, query, context, train=False)

    @property
    def _trained_networks(self) -> dict[str, PromptedNetwork]:
        student = {"student": self.student}
        return student if self.teacher is None else {"teacher": self.teacher, **student}


def build(config: ConfigDict, info: StreamInfo) -> CDL:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together.
    """
    options, epochs = config.cdl, config.train.epochs
    networks = cdl_networks.build(config, info)
    teacher_epochs = options.teacher_epochs or epochs
    student_optim = ConfigDict({**config.optim, "schedule": options.student_rate or config.optim.schedule})
    method = CDL(
        teacher=networks.teacher,
        run_teachers=networks.run_teachers,
        student=networks.student,
        scheme=networks.scheme,
        options=options,
        info=info,
        teacher_phase=(teacher_epochs, optim.build(config.optim, teacher_epochs)),
        student_phase=(epochs, optim.build(student_optim, epochs)),
    )
    if "." in config.distill.name:  # a user's file
        user_scheme.check_loss(method, plugins.load_plugin("distill", config.distill.name))
    return method


def _trained_leaves(*names: str) -> Callable[[Path], bool]:
    """Returns a function that selects the trained leaves of the named parts."""
    return lambda path: path[0] in names and path[1:2] not in (("backbone",), ("state",))
