"""cdl_jax: continual distillation in JAX and Flax.

`load` opens a run and `train` trains a config. jax is imported when one of them is called.
"""

TYPE_CHECKING = False  # true for type checkers; `typing` is not imported for it
if TYPE_CHECKING:
    import os

    from ml_collections import ConfigDict

    from cdl_jax.run.api import Run

__all__ = ["load", "train"]
__version__ = "0.1.0"


def load(folder: "str | os.PathLike", seed: "int | None" = None) -> "Run":
    """Opens a run of any method, finished or not; see `cdl_jax.run.api.load`."""
    from cdl_jax.run import api

    return api.load(folder, seed)


def train(config: "ConfigDict | str", workdir: "str | os.PathLike") -> "Run":
    """Trains a config in a working directory, or resumes its run.

    See `cdl_jax.run.api.train`.
    """
    from cdl_jax.run import api

    return api.train(config, workdir)
