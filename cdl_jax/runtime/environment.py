"""Describes errors that the machine causes: memory, disks, limits of the system.

Standard library only: the command line needs it before jax is loaded.
"""

import errno

# What happens to a file: disk full, quota, file too large, read-only, broken, file server gone.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_LIMITS = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
}
_DEVICE_MEMORY = ("RESOURCE_EXHAUSTED", "CUDA_ERROR_OUT_OF_MEMORY", "OUT_OF_MEMORY:")
_SMALLER = (
    "lower --config.train.batch_size (--config.optim.accumulate adds gradients up) in another --workdir, or only "
    "--config.eval.batch_size, with which the same --workdir goes on; describe shows the memory of a step"
)


def explain_error(error: BaseException) -> str | None:
    """Returns one line with cause and remedy for an error of the machine, None for any other error.

    Args:
      error: the error; the errors that caused it are looked at too.
    """
    while error is not None:
        if line := _explain_one_error(error):
            return line
        error = error.__cause__
    return None


def _explain_one_error(error):
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"out of host memory{_shown(text)}: {_SMALLER}; fewer --config.workers take less"
    if isinstance(error, RuntimeError | ValueError):
        if any(mark in text for mark in _DEVICE_MEMORY):
            return f"out of device memory{_shown(text)}: {_SMALLER}; docs/maintainers/reliability.md has more ways"
        if "can't start new thread" in text:
            return f"the system starts no more threads: {_LIMITS[errno.EAGAIN]}"
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return (
                f"{error.filename or 'a file'} cannot be written: {error.strerror}; the same command goes on from the "
                "last checkpoint once that is mended"
            )
        if error.errno in _LIMITS:
            return f"{error.filename or 'a process'}: {error.strerror}; {_LIMITS[error.errno]}"
    return None


def _shown(text):
    return f" ({text[:200]})" if text else ""
