"""Compiled programs are kept between runs, so that the second run of an experiment starts in seconds."""

import logging
import os

import jax

from cdl_jax.runtime import paths


def enable_cache(folder: str) -> None:
    """Keeps what takes over a second to compile in `folder`, by jax's own cache, whose key has program and machine.

    An empty name keeps nothing. The environment's `JAX_COMPILATION_CACHE_DIR` goes before it. A folder that cannot be
    written, or lies in a home that does not exist, is done without, and a log line names it.
    """
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if folder.startswith("~/") and paths.home_folder() is None:
        _warn(folder, "this user has no home folder, set HOME")
        return
    path = paths.resolve(folder, "config.compilation_cache")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _warn(path, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))


def _warn(path, why):
    logging.getLogger("cdl_jax").warning("config.compilation_cache=%s: %s; nothing is kept", path, why)
