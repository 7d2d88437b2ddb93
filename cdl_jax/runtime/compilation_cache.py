"""Cache of compiled programs.

With the cache the second run of an experiment starts in seconds.
"""

import logging
import os

import jax

from cdl_jax.runtime import paths


def enable_cache(folder: str) -> None:
    """Enables the compilation cache of jax, for programs of any size.

    The key of an entry contains the program and the machine. The environment variable JAX_COMPILATION_CACHE_DIR
    overrides `folder`. A folder that cannot be written, or whose home folder is missing, is not used, and a log line
    names it.

    Args:
      folder: folder of the cache. Empty: no cache.
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
    # By default programs that take less than a second are compiled again, those of a start for over a second together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _warn(path, reason):
    logging.getLogger("cdl_jax").warning("config.compilation_cache=%s: %s; nothing is cached", path, reason)
