"""A signal ends a run at once with nothing to save, otherwise after the save."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cdl_jax.runtime import sharding
from cdl_jax.runtime.signals import SIGNALS, RunInterrupted, handle_signals

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SIGNAL_AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["SIGNAL_AT"]:
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
"""


# Sends itself a signal in a finalizer, where an exception of a handler is lost, as in a callback of C++.
IN_A_FINALIZER = """
import os, signal, sys
from cdl_jax.runtime.signals import handle_signals
assert not {"jax", "numpy"} & set(sys.modules)
class Dying:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with handle_signals():
    print("begun")
    Dying()
    signal.pause()
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_process_with_nothing_to_save_in_one_line(number):
    done = subprocess.run([sys.executable, "-c", IN_A_FINALIZER, str(int(number))], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout) == (128 + number, "begun\n")
    assert done.stderr == f"cdl_jax: {number.name}: ended with nothing to save; rerun the same command to start again\n"


@pytest.mark.parametrize("module", ["jax", "orbax.checkpoint", "cdl_jax.run.loop"])
def test_a_signal_during_an_import_ends_the_command_in_one_line(tmp_path, module):
    (tmp_path / "sitecustomize.py").write_text(SIGNAL_AT_IMPORT)
    command = [sys.executable, "-m", "cdl_jax.main", "--config", "configs/quickstart.py", "--workdir", tmp_path / "run"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(command, cwd=ROOT, env={**ENVIRONMENT, "PYTHONPATH": path, "SIGNAL_AT": module},
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 143 and not (tmp_path / "run").exists()
    assert done.stderr == "cdl_jax: SIGTERM: ended with nothing to save; rerun the same command to start again\n"


def test_handlers_are_set_only_inside_the_block():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with handle_signals() as handler:
        handled = [number for number in SIGNALS if before[number] != signal.SIG_IGN]
        assert {signal.getsignal(number) for number in handled} == {handler.on_signal}
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_is_returned_by_stop_requested(number):
    with handle_signals() as handler:
        handler.defer_stop(sharding.make_mesh(1))
        assert handler.stop_requested() is None
        os.kill(os.getpid(), number)
        assert handler.stop_requested() == number
        assert handler.stop_requested() == number  # until the run has ended
    assert str(RunInterrupted(number, 7)).startswith(f"{number.name}: saved after step 7; ")


def test_several_processes_agree_on_a_signal_two_calls_later():
    with handle_signals(alone=False) as handler:
        os.kill(os.getpid(), signal.SIGTERM)  # no process ends alone
        handler.defer_stop(sharding.make_mesh(1))
        assert [handler.stop_requested() for _ in range(4)] == [None, None, signal.SIGTERM, signal.SIGTERM]


def test_no_handler_is_set_outside_the_main_thread():
    handlers, errors = {number: signal.getsignal(number) for number in SIGNALS}, []

    def run():
        try:
            with handle_signals() as handler:
                assert handler.stop_requested() is None
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == [] and {number: signal.getsignal(number) for number in SIGNALS} == handlers


def test_an_ignored_hup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_test_can_send_sigint_where_the_parent_ignores_it():
    command = f"{sys.executable} -c 'import signal; print(signal.getsignal(signal.SIGINT).__name__)'"
    if "CDL_IGNORED_INT" in os.environ:
        assert subprocess.run(command, shell=True, capture_output=True, text=True).stdout == "default_int_handler\n"
        return
    name = f"{__file__}::test_a_test_can_send_sigint_where_the_parent_ignores_it"
    nested = ["bash", "-c", "trap '' INT; \"$@\"", "bash", sys.executable, "-m", "pytest", "-q", name]
    env = {**os.environ, "CDL_IGNORED_INT": "1"}
    done = subprocess.run(nested, cwd=Path(__file__).parents[3], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_process_ends_with_its_code_while_a_thread_works():
    program = (
        "import threading, time; from cdl_jax.runtime import signals; "
        "threading.Thread(target=time.sleep, args=(600,)).start(); print('a line'); signals.end_process(143)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert (done.returncode, done.stdout) == (143, "a line\n")
