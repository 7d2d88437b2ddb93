"""A signal ends a run at once while it has nothing to save, and afterwards when it asks."""

import os
import signal

import pytest

from cdl_jax import sharding
from cdl_jax.interruption import Interrupted, listening


def test_before_there_is_anything_to_save_a_signal_ends_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, listening():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert caught.value.number == signal.SIGTERM
    assert str(caught.value) == "SIGTERM: ended before training began; the same command goes on from there"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_afterwards_it_is_heard_where_the_run_asks(number):
    with listening() as listener:
        listener.save_first(sharding.make_mesh(1))
        assert listener.asked() is None
        os.kill(os.getpid(), number)
        assert listener.asked() == number
        assert listener.asked() == number  # for as long as the run has not ended
    assert str(Interrupted(number, 7)).startswith(f"{number.name}: saved after step 7; ")


def test_several_processes_learn_of_it_together_two_looks_later():
    with listening(alone=False) as listener:
        os.kill(os.getpid(), signal.SIGTERM)  # nobody ends alone
        listener.save_first(sharding.make_mesh(1))
        assert [listener.asked() for _ in range(4)] == [None, None, signal.SIGTERM, signal.SIGTERM]
