"""Handles the signals that end a run, on which the processes of a run agree: TERM, INT, HUP and USR1.

jax and NumPy are imported where they are needed, so that handlers are set before the seconds that these imports take.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.sharding import Mesh

# A look at what all processes have heard is one at what they had so many looks ago: devices are never waited for.
_LAG = 2

# HUP comes when a terminal closes, USR1 from SLURM ahead of a job's time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class RunInterrupted(BaseException):
    """The process was asked to end by the signal `number`; after `step` steps its state was saved."""

    def __init__(self, number: signal.Signals, step: int):
        super().__init__(f"{number.name}: saved after step {step}; the same command goes on from there")
        self.number = number


class SignalHandler:
    """What this process has heard, and what all of them have.

    Until `defer_stop` is called there is nothing to save, and a signal ends the only process of a run at once.
    """

    def __init__(self, alone: bool = True):
        self._alone, self._patient, self._heard = alone, not alone, None
        self._agreed, self._looks = None, deque()

    def defer_stop(self, mesh: Mesh) -> None:
        """From now on the caller asks, and ends the run when it has saved its state; `mesh` has all its processes."""
        self._patient = True
        if not self._alone:
            import jax
            import jax.numpy as jnp
            import numpy as np
            from jax.sharding import Mesh, NamedSharding, PartitionSpec

            everyone = Mesh(mesh.devices.flatten(), ("all",))
            own = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
            spread, whole = (NamedSharding(everyone, PartitionSpec(*axes)) for axes in (("all",), ()))
            highest = jax.jit(jnp.max, out_shardings=whole)

            def agreed(number):
                return highest(jax.make_array_from_process_local_data(spread, np.full(own, number, np.int32)))

            self._agreed = agreed

    def stop_requested(self) -> signal.Signals | None:
        """The signal by which the run is asked to end, if any; the same in all processes, if all ask equally often."""
        if self._alone:
            return self._heard
        # Not jax's own preemption service: Orbax asks it too, by numbers of tasks and from a thread of its own, and the
        # service agrees on a number that must not come twice.
        self._looks.append(self._agreed(self._heard or 0))
        number = int(self._looks.popleft()) if len(self._looks) > _LAG else 0
        return signal.Signals(number) if number else None

    def on_signal(self, number: int, frame=None) -> None:
        """The handler of a signal."""
        del frame
        self._heard = signal.Signals(number)
        if not self._patient:
            _exit_now(self._heard)


def _exit_now(number: signal.Signals) -> None:
    """Ends this process with one line and exit code 128 + `number`.

    An exception would be lost in a callback or a finalizer, where a handler may run, and the interpreter's orderly end
    crashes while a thread of XLA compiles.
    """
    with suppress(Exception):  # the signal may have come in the middle of a write
        sys.stdout.flush()
    line = f"cdl_jax: {number.name}: ended with nothing to save; the same command goes on\n"
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(128 + number)


@contextmanager
def handle_signals(alone: bool = True):
    """Yields a `SignalHandler` that handles `SIGNALS` inside the block.

    Only the main thread can set handlers: in another thread the handler receives no signal. A HUP that the parent
    process ignores, as `nohup` does, stays ignored.
    """
    handler, before = SignalHandler(alone), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler.on_signal)
    try:
        yield handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
