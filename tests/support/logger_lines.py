"""Lines of a small run, for the tests of loggers."""

from pathlib import Path

from cdl_jax.run.loggers import base

# As `RunLogger` passes them: training, the evaluation after a task with its row of the accuracy matrix, a second task.
LINES = [
    {"step": 2, "task": 0, "phase": "teacher", "epoch": 0, "loss": 1.5},
    {"step": 4, "task": 0, "phase": "student", "epoch": 0, "loss": 0.25},
    {"step": 4, "task": 0, "student/accuracy": 90.0, "student/accuracy/task_0": 90.0, "cost/seconds/student": 1.25},
    {"step": 6, "task": 1, "phase": "student", "epoch": 1, "loss": 0.125},
    {"step": 6, "task": 1, "student/accuracy": 70.0, "student/accuracy/task_0": 60.0, "student/forgetting_max": 30.0},
]
# Every number of LINES: name -> (step, value), in order.
POINTS = {
    "teacher/loss": [(2, 1.5)],
    "student/loss": [(4, 0.25), (6, 0.125)],
    "student/accuracy": [(4, 90.0), (6, 70.0)],
    "student/accuracy/task_0": [(4, 90.0), (6, 60.0)],
    "cost/seconds/student": [(4, 1.25)],
    "student/forgetting_max": [(6, 30.0)],
}
CONFIG = {"method": "cdl", "seed": 3, "optim": {"learning_rate": 0.5, "betas": (0.9, 0.99)}, "log": {"report": True}}


def run_info(folder: Path) -> base.RunInfo:
    """Returns the RunInfo of a run of one seed in `folder`."""
    return base.RunInfo(folder, folder, CONFIG)


def log_killed_and_resumed(module, folder: Path) -> None:
    """Logs LINES twice, in a killed process and in the process that resumes it.

    The first process is killed after four lines. Its last checkpoint has two of them.
    """
    log_killed(module, folder)
    log_resumed(module, folder)


def log_killed(module, folder: Path) -> None:
    """Logs four of LINES, without an end."""
    logger = module.open(run_info(folder), LINES[:1])
    for line in LINES[1:4]:
        logger.write(line)


def log_resumed(module, folder: Path) -> None:
    """Logs LINES in a folder whose checkpoint has two of them."""
    logger = module.open(run_info(folder), LINES[:2])
    for line in LINES[2:]:
        logger.write(line)
    logger.close(True)
