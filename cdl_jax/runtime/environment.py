"""Explanations of errors that the machine causes.

Such errors are of memory, disks and limits of the system. This file imports the standard library only, because the
command line needs it before jax is loaded.
"""

import errno

# Errors of a file: disk full, quota, file too large, read-only, I/O error, file server lost.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
_LIMITS = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (sysctl fs.file-max)",
    errno.EAGAIN: "raise the limit of processes (ulimit -u)",
}
_DEVICE_MEMORY = ("RESOURCE_EXHAUSTED", "CUDA_ERROR_OUT_OF_MEMORY", "OUT_OF_MEMORY:")
_REDUCE_MEMORY = (
    "lower --config.train.batch_size (--config.optim.accumulate sums gradients) in another --workdir, or only "
    "--config.eval.batch_size, which the same --workdir accepts; --mode=describe shows the memory of a step"
)


def explain_error(error: BaseException) -> str | None:
    """Returns one line with cause and remedy of an error of the machine.

    None: any other error.

    Args:
      error: the error. If it is not explained, its cause is, and so on.

    >>> explain_error(OSError(28, "No space left on device", "a.txt"))
    'a.txt cannot be written: No space left on device; correct this, then rerun the same command to resume'
    """
    while error is not None:
        if line := _explain_one_error(error):
            return line
        error = error.__cause__
    return None


def _explain_one_error(error):
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return (
            f"out of host memory{_in_parentheses(text)}: {_REDUCE_MEMORY}; a lower --config.data.num_workers needs less"
        )
    if isinstance(error, RuntimeError | ValueError):
        if any(mark in text for mark in _DEVICE_MEMORY):
            remedy = f"{_REDUCE_MEMORY}; docs/maintainers/reliability.md lists more remedies"
            return f"out of device memory{_in_parentheses(text)}: {remedy}"
        if "can't start new thread" in text:
            return f"the system starts no more threads: {_LIMITS[errno.EAGAIN]}"
    if isinstance(error, OSError):
        if error.errno in _WRITE_ERRORS:
            return (
                f"{error.filename or 'a file'} cannot be written: {error.strerror}; correct this, then rerun the same "
                "command to resume"
            )
        if error.errno in _LIMITS:
            return f"{error.filename or 'a process'}: {error.strerror}; {_LIMITS[error.errno]}"
    return None


def _in_parentheses(text):
    return f" ({text[:200]})" if text else ""
