"""The forward passes of the method `cdl`: student, teachers, distillation scheme."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from cdl_jax.distill.base import Outputs, Scheme
from cdl_jax.losses import Context
from cdl_jax.methods.base import Variables
from cdl_jax.methods.shared import finished_run
from cdl_jax.models.modules.prompted import PromptedNetwork


@dataclass(frozen=True)
class TeacherStudent:
    """The networks of the method `cdl` and their scheme.

    Variables are those of the method.

    Attributes:
      teacher: trained in this run; None if the scheme needs no teacher, or teachers of finished runs are used.
      run_teachers: teachers of finished runs, whose outputs are averaged.
      student: trained in this run.
      scheme: the distillation scheme.
      own_query: whether the teacher's backbone computes the query of its learner. False: the student's backbone does.
    """

    teacher: PromptedNetwork | None
    run_teachers: tuple[finished_run.RunTeacher, ...]
    student: PromptedNetwork
    scheme: Scheme
    own_query: bool = False

    @property
    def trained(self) -> dict[str, PromptedNetwork]:
        """Returns the networks that this run trains, by name."""
        student = {"student": self.student}
        return student if self.teacher is None else {"teacher": self.teacher, **student}

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the networks that are evaluated."""
        return ("teacher", "student") if self.teacher or self.run_teachers else ("student",)

    def query_source(self, name: str) -> str:
        """Returns the network whose backbone computes the query of a network's learner.

        Args:
          name: of the learner's network.

        Returns:
          The name of the network.
        """
        return name if self.own_query else "student"

    def query(self, name: str, variables: Variables, images: jax.Array, context: Context) -> jax.Array:
        """Returns the query of a network's learner, float32 `[batch, dim]`.

        The query comes from the cache if the cache has it.
        """
        source = self.query_source(name)
        cached = context.queries.get(source)
        return self.trained[source].query(variables[source], images) if cached is None else cached

    def teacher_outputs(
        self, variables: Variables, images: jax.Array, student_query: jax.Array, context: Context
    ) -> Outputs:
        """Returns the outputs from which the student learns; {} without a teacher."""
        if self.run_teachers:
            teachers = enumerate(self.run_teachers)
            outputs = [t.outputs(variables["teachers"][str(i)], images, context) for i, t in teachers]
            return finished_run.average_outputs(outputs)
        if self.teacher is None:
            return {}
        query = self.query("teacher", variables, images, context) if self.own_query else student_query
        teacher = self.teacher.map_learner_variables(variables["teacher"], self.teacher.learner.teacher_variables)
        return self.teacher(teacher, images, query, context, train=False)

    def outputs_as_teacher(self, name: str, variables: Variables, images: jax.Array, context: Context) -> Outputs:
        """Returns the outputs of "teacher" or "student" as the teacher of another run."""
        query = self.query("student", variables, images, context)
        teacher_out = self.teacher_outputs(variables, images, query, context)
        if name == "teacher":
            return teacher_out
        inputs = self.scheme.student_inputs(variables["distill"], teacher_out, len(images), context, False)
        student = self.student.map_learner_variables(variables["student"], self.student.learner.teacher_variables)
        out = self.student(student, images, query, context, train=False, inputs=inputs)
        return {**out, "logits": self.scheme.predict(variables["distill"], out)}

    def evaluate(self, variables: Variables, images: jax.Array, context: Context) -> tuple[Outputs, Outputs]:
        """Returns the outputs of the teacher, {} without one, and of the student."""
        query, teacher_out, inputs = self._evaluate_teacher(variables, images, context)
        out = self.student(variables["student"], images, query, context, train=False, inputs=inputs)
        return teacher_out, out

    def accumulate(
        self, name: str, variables: Variables, batch: Mapping[str, jax.Array], context: Context
    ) -> Variables:
        """Returns the statistics of a network's `FittedHead` with those of a batch.

        The statistics are partial variables. The head reads the features that it reads in evaluation.
        """
        images, inputs = batch["images"], None
        if name == "student":
            query, _, inputs = self._evaluate_teacher(variables, images, context)
        else:
            query = self.query(name, variables, images, context)
        network = self.trained[name]
        return {name: network.accumulate(variables[name], images, batch["labels"], query, context, inputs)}

    def updated_state(self, name: str, variables: Variables, outputs: Outputs, context: Context) -> Variables:
        """Returns the state of a network's learner after a training step.

        Returns:
          Partial variables; {} without a change.
        """
        state = self.trained[name].updated_state(variables[name], outputs, context)
        return {name: state} if state else {}

    def _evaluate_teacher(self, variables, images, context):
        """Evaluates the teacher, if there is one.

        Returns:
          The student's query, the teacher's outputs or {}, and the scheme's inputs.
        """
        query, teacher_out = self.query("student", variables, images, context), {}
        if self.run_teachers:
            teacher_out = self.teacher_outputs(variables, images, query, context)
        elif self.teacher is not None:
            teacher_query = self.query("teacher", variables, images, context) if self.own_query else query
            teacher_out = self.teacher(variables["teacher"], images, teacher_query, context, train=False)
        inputs = self.scheme.student_inputs(variables["distill"], teacher_out, len(images), context, False)
        return query, teacher_out, inputs
