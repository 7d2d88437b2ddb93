"""Starts or resumes the training of a config in a working directory.

The command line and the interface for Python use this module.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax.data import stream
from cdl_jax.run import loop, workdir
from cdl_jax.run.loggers import background
from cdl_jax.runtime.signals import SignalHandler
from cdl_jax.training import compatibility, dtypes
from cdl_jax.training.experiment import Experiment


def train(
    config: ConfigDict,
    folder: Path,
    signals: SignalHandler | None = None,
    prepare: Callable[[Experiment], None] | None = None,
) -> list[dict]:
    """Trains the remaining tasks under the lock of the working directory.

    Args:
      config: a resolved config.
      folder: the working directory.
      signals: source of stop requests; None: the run cannot be interrupted.
      prepare: called under the lock with the experiment, before the run is restored or begun.

    Returns:
      The results of each seed, see `results.collect`.

    Raises:
      UserError: another process uses the folder, it has a run of another config, or the data does not fit.
      RunInterrupted: a stop was requested; everything is saved.
    """
    background.check(config.log.to)
    with workdir.locked(folder) if jax.process_index() == 0 else nullcontext():
        workdir.check_config(folder, config.to_dict())
        workdir.check_seeds(folder, config.seeds)
        if prepare is None:
            workdir.check_branch(folder)
        experiment = build_experiment(config, folder)
        if configs.read(folder) is None:
            compatibility.check_new_run(experiment.config, experiment.method, experiment.info, experiment.stream)
        if jax.process_index() == 0:
            print(dtypes.describe(experiment.config), flush=True)
        if prepare is not None:
            prepare(experiment)
        return loop.train(experiment, folder, signals)


def build_experiment(config: ConfigDict, folder: Path | None = None) -> Experiment:
    """Returns the experiment of a config with its data.

    Args:
      config: a resolved config.
      folder: the run's folder, to compare the data with; None: no run.

    Raises:
      UserError: the data is missing, damaged, or differs from that of the run.
    """
    data = stream.load(config.data, configs.seeds_of(config)[0])
    if folder is not None:
        workdir.check_data(folder, data)
        config = workdir.with_stored_dtypes(folder, config)
    return Experiment.build(config, data)
