"""A run that is told to end, at a moment that a test chooses."""

import signal

from cdl_jax.runtime.signals import SignalHandler


class After(SignalHandler):
    """Asks the run to end when it is asked for the `count`-th time."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def stop_requested(self):
        self.left -= 1
        return None if self.left else signal.SIGTERM
