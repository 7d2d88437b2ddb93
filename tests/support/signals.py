"""A stop request at a moment that a test chooses."""

import signal

from cdl_jax.runtime.signals import SignalHandler


class After(SignalHandler):
    """A signal handler whose `stop_requested` reports SIGTERM at its `count`-th call."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def stop_requested(self):
        self.left -= 1
        return None if self.left else signal.SIGTERM
