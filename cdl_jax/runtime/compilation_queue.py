"""Compiles programs in threads.

Meanwhile the main thread traces other programs, loads data or trains.
"""

from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor

import jax


class CompilationQueue:
    """Compiles lowered programs in the order in which they were added.

    The caller continues meanwhile, because XLA compiles without Python's global lock. A call of a jitted function uses
    a program that was lowered from the same function for the same shapes and shardings, if it is compiled by then. So
    the caller waits for it first.
    """

    def __init__(self, threads: int):
        """Starts no thread yet.

        Args:
          threads: number of programs that are compiled at once.
        """
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._programs: dict[Hashable, Future] = {}

    def add(self, name: Hashable, program: jax.stages.Lowered) -> None:
        """Adds a program, which is compiled as soon as a thread is free."""
        self._pool = self._pool or ThreadPoolExecutor(self.threads, "compilation")
        self._programs[name] = self._pool.submit(program.compile)

    def take(self, name: Hashable) -> jax.stages.Compiled | None:
        """Removes a program from the queue once it is compiled.

        Returns:
          The compiled program. None: no program in the queue has this name.

        Raises:
          jax.errors.JaxRuntimeError: XLA cannot compile the program.
        """
        program = self._programs.pop(name, None)
        return program and program.result()

    def cancel(self) -> None:
        """Removes all programs.

        Threads finish the programs that they are compiling, without effect.
        """
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool, self._programs = None, {}
