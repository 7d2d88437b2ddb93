"""Continual distillation learning: a prompt-based teacher, then a prompt-based student, on each task of a stream.

CDL (arXiv 2407.13911, versions 2 to 4). For each task the teacher's prompts and head are trained with labels; then the
teacher stands still and the student's prompts and heads are trained with labels and the teacher's outputs. Backbones
are frozen; the query of both prompt pools is the class token of the student's own backbone without prompts. Version 1
trains both at once: in each batch the teacher first, then the student with the teacher's outputs from before that.
Teachers may also come from other runs, in whatever way they were trained; then the student alone learns here.

Variables: `{"teacher": network, "student": network, "distill": the scheme's}`, or `"teachers": {"0": ...}` in place of
the first where they come from other runs; a network is `{"backbone", "prompts",
"head", "state"}`. The backbone is frozen for the whole run. `state` holds what prompts and head keep without training
it, so it changes between tasks only, and checkpoints have it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, cross_entropy
from cdl_jax.methods.base import CachesQueries, Method, Outcome, Phase, Probe, StreamInfo, Update
from cdl_jax.methods.shared import finished_run, user_scheme
from cdl_jax.models import vit, weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.modules.prompted import PromptedNetwork

OPTIONS = {
    "query": "student",  # whose backbone asks the teacher's pool: "student" (the published programs) or "own"
    "aux_loss_scale": 1.0,  # of the pools' losses; 2 reproduces the published two-device runs, which sum over devices
    "teacher_epochs": 0,  # 0: train.epochs
    # "teacher_first": the teacher learns the whole task, then the student. "interleaved_epochs": they take turns, an
    # epoch of the student after each of its teacher's. "interleaved": both on each batch, and the student gets the
    # teacher's training-mode outputs from before the teacher's step on that batch (version 1).
    "schedule": "teacher_first",
    "student_rate": "",  # schedule of the student's learning rate; "": optim.schedule
    "teachers": (),  # working directories of other runs; with several, the student learns from the mean of their logits
    "teacher_network": "",  # which network of those runs; "": "teacher" where a run trained one, else its last
    # "same_task": those runs' networks after the task that the student is learning; "last": after their whole stream.
    "teacher_checkpoint": "same_task",
}


def defaults(learner="l2p", distill="kd", teacher="vit_b16", student="vit_s16") -> dict:
    """The config sections of this method, for the named learner, scheme and sizes of the two ViTs."""
    scheme = plugins.load_plugin("distill", distill)
    sections = {
        "cdl": OPTIONS,
        "learner": {"name": learner, **plugins.load_plugin("models.prompts", learner).OPTIONS},
        "distill": {"name": distill, **scheme.OPTIONS},
        "teacher": families.network_options(teacher, (vit,)),
        "student": families.network_options(student, (vit,)),
    }
    for section, preset in getattr(scheme, "PRESET", {}).items():
        known = sections[section]
        sections[section] = {**known, **{key: value for key, value in preset.items() if key in known}}
    return sections


@dataclass(frozen=True)
class CDL(Method, CachesQueries):
    """See `methods.base.Method`. `teacher` is None where the scheme needs none, or `teachers` of other runs teach."""

    teacher: PromptedNetwork | None
    teachers: tuple[finished_run.RunTeacher, ...]
    student: PromptedNetwork
    scheme: Scheme
    options: Any
    info: StreamInfo
    teacher_phase: tuple[int, optim.Optimizer]
    student_phase: tuple[int, optim.Optimizer]

    @property
    def networks(self):
        return ("teacher", "student") if self.teacher or self.teachers else ("student",)

    @property
    def external(self):
        return ("teacher",) if self.teachers else ()

    @property
    def pairs(self):
        return (("teacher", "student"),) if "teacher" in self.networks else ()

    @property
    def _learning(self):
        return {name: getattr(self, name) for name in self.networks if name not in self.external}

    @property
    def rounds(self):
        return self.student_phase[0] if self.options.schedule == "interleaved_epochs" else 1

    @property
    def image_size(self):
        return self.student.image_size

    @property
    def phases(self):
        epochs, optimizer = self.student_phase
        student = Update(partial(_trained, ("student", "distill")), optimizer, self.student_loss)
        alone = Phase("student", epochs, (student,), order=1)
        if self.teacher is None:
            return (alone,)
        teacher_epochs, optimizer = self.teacher_phase
        if self.options.schedule == "interleaved":
            teacher = Update(partial(_trained, ("teacher",)), optimizer, self.teacher_loss_handed_on)
            return (Phase("both", epochs, (teacher, student)),)
        teacher = Update(partial(_trained, ("teacher",)), optimizer, self.teacher_loss)
        return (Phase("teacher", teacher_epochs, (teacher,), order=0), alone)

    def init(self, key):
        keys = jax.random.split(key, 3)
        dim = self.student.backbone.dim
        variables = {"student": self.student.init(keys[1], dim), "distill": self.scheme.init(keys[2])}
        if self.teacher is not None:
            own = self.options.query == "own"
            variables["teacher"] = self.teacher.init(keys[0], self.teacher.backbone.dim if own else dim)
        if self.teachers:
            variables["teachers"] = {str(i): teacher.init() for i, teacher in enumerate(self.teachers)}
        return variables

    def load_pretrained(self, variables):
        loaded = dict(variables)
        for name, network in self._learning.items():
            backbone = weights.load(network.weights, variables[name]["backbone"], f"{name}.weights")
            loaded[name] = {**variables[name], "backbone": backbone}
        if self.teachers:
            loaded["teachers"] = {str(i): teacher.load() for i, teacher in enumerate(self.teachers)}
        return loaded

    def is_frozen(self, path):
        return path[0] == "teachers" or path[1:2] == ("backbone",)

    def start_task(self, variables, context):
        # By name, so that a student draws the same rows alone, with its own teacher and with those of other runs.
        keys = {name: jax.random.fold_in(context.key, i) for i, name in enumerate(("teacher", "student", "distill"))}
        new = dict(variables)
        for name, network in self._learning.items():
            change = partial(network.prompts.start_task, context=context, key=keys[name])
            new[name] = network.map_prompt_variables(variables[name], change)
        new["distill"] = self.scheme.start_task(variables["distill"], context, keys["distill"])
        return new

    def end_task(self, variables, context):
        new = dict(variables)
        for name, network in self._learning.items():
            new[name] = network.map_prompt_variables(
                variables[name], partial(network.prompts.end_task, context=context)
            )
        return new

    def teacher_loss(self, variables, batch, context):
        """Cross-entropy over the current classes plus the pool's loss."""
        total, terms, _ = self._teacher_terms(variables, batch, context)
        return total, Outcome(terms)

    def teacher_loss_handed_on(self, variables, batch, context):
        """The same; the outputs that it is made of, from before the update, go to the student's update."""
        total, terms, out = self._teacher_terms(variables, batch, context)
        metrics = {f"teacher_{name}": value for name, value in terms.items()}
        return total, Outcome(metrics, batch={"teacher": jax.lax.stop_gradient(out)})

    def _teacher_terms(self, variables, batch, context):
        asks = "student" if self.options.query == "student" else "teacher"
        query = self._query(asks, variables, batch)
        out = self.teacher(variables["teacher"], batch["images"], query, context, train=True)
        labels = cross_entropy(out["logits"], batch["labels"], context.current(self.info.num_classes))
        pool = self.options.aux_loss_scale * out["prompts"].loss
        total = labels + pool
        return total, {"loss": total, "cross_entropy": labels, "pool": pool}, out

    def student_loss(self, variables, batch, context):
        """`label_weight` cross-entropy + distillation + pool loss; one query pass serves student and teacher."""
        query = self._query("student", variables, batch)
        if "teacher" in batch:
            teacher = batch["teacher"]
        else:
            teacher = jax.lax.stop_gradient(self._told(variables, batch["images"], query, context))
        return self.student_terms(variables, batch, query, teacher, context)

    def student_terms(self, variables, batch, query, teacher, context):
        """The student's loss for given queries `[batch, dim]` and teacher outputs (empty without a teacher)."""
        inputs = self.scheme.student_inputs(variables["distill"], teacher, len(query), context, True)
        out = self.student(variables["student"], batch["images"], query, context, train=True, inputs=inputs)
        labels = cross_entropy(out["logits"], batch["labels"], context.current(self.info.num_classes))
        distilled, terms = self.scheme.loss(variables["distill"], out, teacher, batch["labels"], context)
        pool = self.options.aux_loss_scale * out["prompts"].loss
        total = self.scheme.label_weight * labels + distilled + pool
        return total, Outcome({"loss": total, "cross_entropy": labels, "pool": pool, **terms})

    def queries(self, frozen, images):
        """Network -> the query `[batch, dim]` that its plain backbone asks."""
        asking = ("student", "teacher") if self.options.query == "own" and self.teacher else ("student",)
        return {name: getattr(self, name).query(frozen[name], images) for name in asking}

    def predict(self, variables, images, context):
        teacher, _, out = self._tested(variables, images, context)
        logits = {"teacher": teacher["logits"]} if teacher else {}
        counts = {"teacher": teacher["prompts"].selected} if self.teacher is not None else {}
        logits["student"], counts["student"] = self.scheme.predict(variables["distill"], out), out["prompts"].selected
        return logits, counts

    def features(self, variables, images, context):
        """How teacher and student see pictures with their prompts, see `methods.base.Method`."""
        teacher, inputs, out = self._tested(variables, images, context)
        ahead = 0 if inputs is None or inputs.first_tokens is None else inputs.first_tokens.shape[1]
        seen = {"teacher": named_features(teacher)} if teacher else {}
        return {**seen, "student": named_features(out, ahead)}

    def probes(self):
        """Predictions without the learner's prompts, without the scheme's part, and with other shares of two heads."""
        probes = {"prompts_off": Probe(self._plain)}
        if self.scheme.changes_prediction:
            probes["distillation_off"] = Probe(self._label_head)
        if self.scheme.second_head is not None:
            usual = float(self.scheme.second_weight)
            values = tuple(sorted({usual, *(step / 10 for step in range(11))}))
            probes["second_head_weight"] = Probe(partial(self._mixed, values), values, usual, "student")
        return probes

    def _plain(self, variables, images, context):
        """Each head on the class token of its plain backbone: no prompts, and nothing of the scheme."""
        del context
        return {
            name: network.logits_without_prompts(variables[name], images) for name, network in self._learning.items()
        }

    def _label_head(self, variables, images, context):
        """The student with its own prompts and head alone."""
        query = self._asked("student", variables, images, context)
        return {"student": self.student(variables["student"], images, query, context, train=False)["logits"]}

    def _mixed(self, values, variables, images, context):
        """`predict` of the student with each of `values` as the weight of the scheme's second head."""
        _, _, out = self._tested(variables, images, context)
        mixed = self.scheme.predict_with_weights(variables["distill"], out, values)
        return {str(value): logits for value, logits in zip(values, mixed, strict=True)}

    def _tested(self, variables, images, context):
        """The teacher's outputs at test time, {} without one, what the scheme puts into the student, its outputs."""
        query, teacher = self._asked("student", variables, images, context), {}
        if self.teachers:
            teacher = self._told(variables, images, query, context)
        elif self.teacher is not None:
            own = self.options.query == "own"
            teacher_query = self._asked("teacher", variables, images, context) if own else query
            teacher = self.teacher(variables["teacher"], images, teacher_query, context, train=False)
        inputs = self.scheme.student_inputs(variables["distill"], teacher, len(images), context, False)
        out = self.student(variables["student"], images, query, context, train=False, inputs=inputs)
        return teacher, inputs, out

    def _asked(self, network, variables, images, context):
        """The query of a network's backbone at test time."""
        known = context.queries.get(network)
        return getattr(self, network).query(variables[network], images) if known is None else known

    def teacher_outputs(self, network, variables, images, context, use_batch_statistics=False):
        """What a network of this method tells as the teacher of another run (see `methods.base.Method`)."""
        query = self.student.query(variables["student"], images)
        teacher = self._told(variables, images, query, context)
        if network == "teacher":
            return teacher
        inputs = self.scheme.student_inputs(variables["distill"], teacher, len(images), context, False)
        taught = self.student.map_prompt_variables(variables["student"], self.student.prompts.teacher_variables)
        out = self.student(taught, images, query, context, train=False, inputs=inputs)
        return {**out, "logits": self.scheme.predict(variables["distill"], out)}

    def _told(self, variables, images, query, context, own_query=None):
        """What the teacher tells its student, for the student's query `[batch, dim]`; nothing where there is none.

        own_query: the teacher's own, where it is known.
        """
        if self.teachers:
            given = variables["teachers"]
            return finished_run.average_outputs(
                [t.outputs(given[str(i)], images, context) for i, t in enumerate(self.teachers)]
            )
        if self.teacher is None:
            return {}
        if self.options.query == "own":
            query = self.teacher.query(variables["teacher"], images) if own_query is None else own_query
        taught = self.teacher.map_prompt_variables(variables["teacher"], self.teacher.prompts.teacher_variables)
        return self.teacher(taught, images, query, context, train=False)

    def _query(self, network, variables, batch):
        """The query `[batch, dim]` of a network's backbone in training."""
        known = batch.get("constants", {}).get(network)
        return getattr(self, network).query(variables[network], batch["images"]) if known is None else known


def build(config, info: StreamInfo) -> CDL:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.cdl
    _check(config)
    pool = plugins.load_plugin("models.prompts", config.learner.name)

    def network(section, query_dim):
        family = plugins.load_plugin("models", section.family)
        prompts = pool.build(
            config.learner, dim=section.dim, key_dim=query_dim, depth=section.depth, num_tasks=info.num_tasks
        )
        head = prompts.head(info.num_classes)
        return PromptedNetwork(family.build(section), prompts, head, section.image_size, weights.from_section(section))

    def spec(section):
        tokens = 1 + (section.image_size // section.patch_size) ** 2
        sizes = {"num_classes": info.num_classes, "num_tasks": info.num_tasks, "task_sizes": info.task_sizes}
        return NetworkSpec(section.dim, section.depth, tokens, **sizes, head=student.head, learner=config.learner)

    given = tuple(
        finished_run.find_teacher(folder, options.teacher_network, options.teacher_checkpoint, info, config.augment)
        for folder in options.teachers
    )
    query_dim = config.student.dim
    student = network(config.student, query_dim)
    teacher_spec = spec(config.teacher)
    told = _told_shapes(given, config.student.image_size)
    if given:
        section = given[0].config.get(given[0].network, {})
        teacher_spec = spec(section) if "patch_size" in section else replace(teacher_spec, dim=0, depth=0, tokens=0)
        teacher_spec = replace(teacher_spec, outputs=told)
    scheme_module = plugins.load_plugin("distill", config.distill.name)
    scheme = scheme_module.build(config.distill, teacher_spec, spec(config.student))
    if "." in config.distill.name:
        user_scheme.check_fields(scheme, scheme_module)
    teacher = None
    if given:
        _check_given(given, told, scheme, config)
    elif scheme.needs:
        teacher = network(config.teacher, query_dim if options.query == "student" else config.teacher.dim)
    epochs = config.train.epochs
    teacher_epochs = options.teacher_epochs or epochs
    student_optim = ConfigDict({**config.optim, "schedule": options.student_rate or config.optim.schedule})
    method = CDL(
        teacher=teacher,
        teachers=given if scheme.needs else (),
        student=student,
        scheme=scheme,
        options=options,
        info=info,
        teacher_phase=(teacher_epochs, optim.build(config.optim, teacher_epochs)),
        student_phase=(epochs, optim.build(student_optim, epochs)),
    )
    if "." in config.distill.name:
        user_scheme.check_loss(method, scheme_module)
    return method


def _check(config):
    """Refuses options that are out of range or do not fit together."""
    options, epochs = config.cdl, config.train.epochs
    choices = {
        "query": ("student", "own"),
        "schedule": ("teacher_first", "interleaved_epochs", "interleaved"),
        "teacher_checkpoint": ("same_task", "last"),
    }
    for key, known in choices.items():
        if options[key] not in known:
            raise UserError(f"cdl.{key}={options[key]!r}: use {' or '.join(map(repr, known))}")
    if config.teacher.image_size != config.student.image_size and not options.teachers:
        raise UserError(
            f"teacher.image_size={config.teacher.image_size} and student.image_size={config.student.image_size} "
            "differ: both networks see the same pictures, set them equal"
        )
    if options.schedule == "interleaved" and options.teacher_epochs:
        raise UserError("cdl.teacher_epochs has no meaning with cdl.schedule='interleaved': leave it at 0")
    if options.schedule == "interleaved_epochs" and options.teacher_epochs % epochs:
        raise UserError(
            f"cdl.teacher_epochs={options.teacher_epochs} must be a multiple of train.epochs={epochs}: with "
            "cdl.schedule='interleaved_epochs' the teacher does its share of them before each epoch of the student"
        )
    if options.teachers and options.schedule != "teacher_first":
        raise UserError(
            f"cdl.schedule={options.schedule!r} has no meaning with cdl.teachers, which learn no more: leave it at "
            "'teacher_first'"
        )


def _told_shapes(given, size):
    """Shapes of what teachers of other runs tell of two pictures, by name; of plain arrays alone."""
    if not given:
        return {}

    def told(variables, images):
        return finished_run.average_outputs(
            [t.outputs(v, images, Context.dummy()) for t, v in zip(given, variables, strict=True)]
        )

    shapes = jax.eval_shape(lambda: told([t.init() for t in given], jnp.zeros((2, size, size, 3))))
    return {name: getattr(value, "shape", ()) for name, value in shapes.items()}


def _check_given(given, told, scheme, config):
    """Refuses teachers of other runs that do not tell what the scheme reads."""
    missing = [name for name in scheme.needs if name not in told]
    if missing:
        raise UserError(
            f"distill.name={config.distill.name!r} reads {missing[0]!r} of its teacher, which "
            f"{' and '.join(str(t.folder) for t in given)} do not give in one shape: choose a scheme that reads logits"
        )


def _trained(networks, path):
    return path[0] in networks and path[1:2] not in (("backbone",), ("state",))
