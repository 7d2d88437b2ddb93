"""The display of progress: a bar in a terminal and in a notebook, or log lines."""

import sys
from types import SimpleNamespace

import pytest

from cdl_jax.run import progress


def shell(**config):
    return SimpleNamespace(get_ipython=lambda: SimpleNamespace(config=config))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (None, False),
        (SimpleNamespace(get_ipython=lambda: None), False),  # IPython is imported, but does not run
        (shell(TerminalInteractiveShell={}), False),
        (shell(IPKernelApp={"connection_file": "kernel.json"}), True),
    ],
)
def test_only_the_kernel_of_a_notebook_is_one(module, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: False, write=lambda _: None, flush=lambda: None))
    assert progress.is_notebook() == expected
    with progress.show(5, 2, primary=True) as shown:
        shown.update(1)
        assert isinstance(shown, progress.Lines) != expected
        assert (shown.n if expected else shown.done) == 3
