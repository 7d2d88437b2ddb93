"""Compiled programs are kept between runs, so that the second run of an experiment starts in seconds."""

import logging
import os

import jax

from cdl_jax import paths


def keep(folder: str) -> None:
    """Keeps what takes over a second to compile in `folder`, by jax's own cache, whose key has program and machine.

    An empty name keeps nothing. The environment's `JAX_COMPILATION_CACHE_DIR` goes before it; a folder that cannot be
    written is done without, and a log line says so.
    """
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = paths.resolve(folder, "config.compilation_cache")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger("cdl_jax").warning("config.compilation_cache=%s: %s; nothing is kept", path, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
