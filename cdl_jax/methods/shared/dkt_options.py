"""Checks of DKT's options."""

from typing import Any

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import rehearsal


def check(options: Any, num_tasks: int) -> None:
    """Refuses options that do not fit together.

    Args:
      options: the config section `dkt`.
      num_tasks: of the stream.

    Raises:
      UserError: names the options.
    """
    rehearsal.check("dkt", options)
    count = options.num_learners
    if options.random_peers >= count and options.random_peers:
        raise UserError(f"dkt.random_peers={options.random_peers}: each of {count} learners has {count - 1} others")
    _check_presence(options, num_tasks)
    if options.public_batch > options.public:
        raise UserError(f"dkt.public_batch={options.public_batch} is more than the {options.public} public images")
    if options.teacher_runs and options.exchange_mode != "state":
        raise UserError(
            f"dkt.exchange_mode={options.exchange_mode!r} has no meaning with dkt.teacher_runs: leave it at 'state'"
        )


def _check_presence(options, num_tasks):
    """Refuses `joins` and `leaves` that do not fit the stream or the learners.

    The check refuses other numbers of tasks than learners, tasks outside the stream, learners that learn no task, and
    tasks that no learner learns.
    """
    count = options.num_learners
    for key, lowest, highest in (("joins", 0, num_tasks - 1), ("leaves", 1, num_tasks)):
        tasks = tuple(options[key])
        if tasks and len(tasks) != count:
            raise UserError(f"dkt.{key}={tasks}: give {count} tasks, one for each learner")
        if not all(lowest <= task <= highest for task in tasks):
            raise UserError(
                f"dkt.{key}={tasks} must be integers from {lowest} to {highest}, as there are {num_tasks} tasks"
            )
    first = tuple(options.joins) or (0,) * count
    end = tuple(options.leaves) or (num_tasks,) * count
    for learner, (joined, left) in enumerate(zip(first, end, strict=True)):
        if left <= joined:
            raise UserError(
                f"dkt.joins={first} and dkt.leaves={end}: learner {learner} leaves before it has learned a task; "
                "let it join earlier or leave later"
            )
    for task in range(num_tasks):
        if not any(joined <= task < left for joined, left in zip(first, end, strict=True)):
            raise UserError(
                f"dkt.joins={first} and dkt.leaves={end}: no learner is there in task {task}, so nothing is learned in "
                "it; let one join earlier or leave later"
            )
