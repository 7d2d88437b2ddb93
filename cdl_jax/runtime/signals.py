"""Handlers for the signals that end a run: TERM, INT, HUP and USR1.

The processes of a run agree on the moment of the end. jax and NumPy are imported inside functions, so that handlers are
set before these imports, which take seconds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from jax.sharding import Mesh

# `stop_requested` reads the all-reduce that began SIGNAL_LAG calls earlier, so it never waits for a device.
SIGNAL_LAG = 2

# A closed terminal sends HUP. SLURM sends USR1 before the time limit of a job.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class RunInterrupted(BaseException):
    """A signal has ended the run, and its state has been saved.

    Attributes:
      number: the signal.
    """

    def __init__(self, number: signal.Signals, step: int):
        super().__init__(f"{number.name}: saved after step {step}; rerun the same command to resume")
        self.number = number


class SignalHandler:
    """Receives the signals that stop a run.

    The handlers of all processes of the run agree on the moment to stop. Until `defer_stop` is called there is nothing
    to save, and a signal ends a run of one process at once.
    """

    def __init__(self, alone: bool = True):
        """Creates a handler that has received no signal.

        Args:
          alone: whether this is the only process of the run.
        """
        self._alone, self._deferred, self._signal = alone, not alone, None
        self._all_reduce_max, self._pending = None, deque()

    def defer_stop(self, mesh: Mesh) -> None:
        """Defers the end of the process until the caller has saved its state.

        From now on the caller calls `stop_requested` and ends the run itself.

        Args:
          mesh: a mesh with devices of all processes.
        """
        self._deferred = True
        if not self._alone:
            import jax
            import jax.numpy as jnp
            import numpy as np
            from jax.sharding import Mesh, NamedSharding, PartitionSpec

            flat_mesh = Mesh(mesh.devices.flatten(), ("all",))
            local_devices = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
            sharded = NamedSharding(flat_mesh, PartitionSpec("all"))
            compute_max = jax.jit(jnp.max, out_shardings=NamedSharding(flat_mesh, PartitionSpec()))

            def all_reduce_max(number):
                values = np.full(local_devices, number, np.int32)
                return compute_max(jax.make_array_from_process_local_data(sharded, values))

            self._all_reduce_max = all_reduce_max

    def stop_requested(self) -> signal.Signals | None:
        """Returns the signal that ends the run, None if there is none.

        With several processes all of them must call this method equally often. Each call then returns the same value in
        all processes.
        """
        if self._alone:
            return self._signal
        # Not the preemption service of jax: Orbax calls it too, with task numbers and from a thread of its own, and the
        # service agrees on a number that must not occur twice.
        self._pending.append(self._all_reduce_max(self._signal or 0))
        number = int(self._pending.popleft()) if len(self._pending) > SIGNAL_LAG else 0
        return signal.Signals(number) if number else None

    def on_signal(self, number: int, frame: FrameType | None = None) -> None:
        """Records a signal, or ends the process if nothing is to be saved.

        Python calls this method as a signal handler.
        """
        del frame
        self._signal = signal.Signals(number)
        if not self._deferred:
            _exit_now(self._signal)


def _exit_now(number: signal.Signals) -> None:
    """Prints one line and ends this process with exit code 128 + `number`.

    An exception would be lost in a callback or a finalizer, where Python may run a handler. The orderly exit of the
    interpreter crashes while a thread of XLA compiles.
    """
    line = f"cdl_jax: {number.name}: ended with nothing to save; rerun the same command to start again\n"
    with suppress(OSError):
        os.write(2, line.encode())
    end_process(128 + number)


def end_process(code: int) -> NoReturn:
    """Ends this process with an exit code.

    The process skips the orderly exit of the interpreter.
    """
    with suppress(Exception):  # a signal may have come during a write
        sys.stdout.flush()
    os._exit(code)


@contextmanager
def handle_signals(alone: bool = True) -> Iterator[SignalHandler]:
    """Yields a `SignalHandler` that handles `SIGNALS` inside the block.

    Only the main thread can set handlers. In another thread the handler receives no signal. A HUP that the parent
    process ignores, as `nohup` does, stays ignored.

    Args:
      alone: whether this is the only process of the run.
    """
    handler, previous = SignalHandler(alone), {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handler.on_signal)
    try:
        yield handler
    finally:
        for number, function in previous.items():
            signal.signal(number, function)
