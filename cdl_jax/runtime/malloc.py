"""Steps on a CPU get the working memory of the step before instead of new memory from the system."""

import ctypes
import os
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def retain_freed_memory() -> None:
    """Has glibc keep what is freed, unless the environment tells it otherwise; to be called before jax starts.

    XLA asks for its working memory at each call of a program. Large pieces go back to the system when they are freed,
    and the next call's must be filled with zeros, page by page: up to a fifth of the time of a ViT's step, see
    docs/maintainers/benchmarks.md. The process holds its peak of memory then.
    """
    told = [name for name in os.environ if name == "GLIBC_TUNABLES" or name.startswith("MALLOC_")]
    if sys.platform != "linux" or told:
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
        mallopt(parameter, value)
