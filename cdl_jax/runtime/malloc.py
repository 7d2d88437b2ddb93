"""Settings of glibc's malloc.

With these settings, steps on a CPU reuse the memory of the previous step.
"""

import ctypes
import os
import sys

# From malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def retain_freed_memory() -> None:
    """Sets glibc to retain freed memory, unless the environment configures malloc.

    The function must be called before jax starts. XLA allocates its working memory at each call of a program. By
    default glibc returns large blocks to the system when they are freed, and the system fills the blocks of the next
    call with zeros, page by page. This takes up to a fifth of the time of a ViT's step, see
    docs/maintainers/benchmarks.md. With retained memory the process holds its peak of memory.
    """
    configured = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if sys.platform != "linux" or configured:
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
        mallopt(parameter, value)
