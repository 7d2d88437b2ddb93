"""What a method that learns whole tasks from labels has in common with others: a memory, and what its loss spans."""

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Phase, Replay

OPTIONS = {
    "replay": 0,  # pictures of earlier tasks that are remembered; 0: none
    "replay_batch": 0,  # of them in each batch; 0: as many as of the task
    "replay_balance": "experience",  # what the memory is shared out among, tasks; or "class"
}
CLASSES = ("current", "seen", "all")


def check(section: str, options) -> None:
    """Refuses values that make no sense, and a loss that does not span what the memory brings.

    options: a section with the keys of `OPTIONS`, but for `replay_balance` where a network chooses the memory.

    Raises:
      UserError: names the option and what it may be.
    """
    for key, known in {"classes": CLASSES, "replay_balance": ("experience", "class")}.items():
        if options.get(key, known[0]) not in known:
            raise UserError(f"{section}.{key}={options[key]!r}: {plugins.did_you_mean(options[key], known)}")
    for key in ("replay", "replay_batch"):
        if options[key] < 0:
            raise UserError(f"{section}.{key}={options[key]} must not be negative")
    if options.replay and options.classes == "current":
        raise UserError(f"{section}.classes='current' leaves out what is remembered: say 'seen' or 'all', or replay=0")


def phases(name: str, epochs: int, updates, options, batch_size: int, *, order=0, num_public=0) -> tuple[Phase, ...]:
    """One phase for all tasks; with a memory two, the first task's and the later ones'.

    Args:
      options: a section with the keys of `OPTIONS`. batch_size: of a task's own pictures.
    """
    if not options.replay:
        return (Phase(name, epochs, updates, order, num_public=num_public),)
    memory = Replay(options.replay, options.replay_batch or batch_size, options.replay_balance)
    first = Phase(name, epochs, updates, order, tasks="first", num_public=num_public)
    return first, Phase(f"{name}_replay", epochs, updates, order, tasks="later", replay=memory, num_public=num_public)
