"""Options and phases of methods that train one network with labels.

The options are about replay and the classes of the softmax.
"""

from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.base import Phase, Replay, Update
from cdl_jax.options import Option

OPTIONS = {
    "replay": Option(0, "capacity of the replay memory, in images of earlier tasks; 0: no replay"),
    "replay_batch": Option(0, "replayed images in each batch; 0: as many as images of the task"),
    "replay_balance": Option(
        "experience",
        "whether tasks (experience) or classes share the capacity equally",
        choices=("experience", "class"),
    ),
}
CLASSES = ("current", "seen", "all")


def check(section: str, options: ConfigDict) -> None:
    """Checks that the softmax spans the classes of the memory.

    Args:
      section: name of the section, for messages.
      options: a section with `replay` and `classes`.

    Raises:
      UserError: it does not.
    """
    if options.replay and options.classes == "current":
        raise UserError(
            f"{section}.classes='current' excludes the classes of replayed images: set 'seen' or 'all', or replay=0"
        )


def phases(
    name: str,
    epochs: int,
    updates: tuple[Update, ...],
    options: ConfigDict,
    batch_size: int,
    *,
    order: int = 0,
    num_public: int = 0,
) -> tuple[Phase, ...]:
    """Returns one phase; with replay, one for the first task and one for later tasks.

    Args:
      name: of the phase; that of later tasks ends in `_replay`.
      epochs: passes over the data of a task.
      updates: of each step.
      options: a section with the keys of `OPTIONS`.
      batch_size: number of the task's own images in a batch.
      order: see `Phase`, default 0.
      num_public: see `Phase`, default 0.
    """
    if not options.replay:
        return (Phase(name, epochs, updates, order, num_public=num_public),)
    memory = Replay(options.replay, options.replay_batch or batch_size, options.replay_balance)
    first = Phase(name, epochs, updates, order, tasks="first", num_public=num_public)
    return first, Phase(f"{name}_replay", epochs, updates, order, tasks="later", replay=memory, num_public=num_public)
