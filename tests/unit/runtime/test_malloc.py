"""The settings of malloc, and the cases in which they are not changed."""

import ctypes
import os
from types import SimpleNamespace

import pytest

from cdl_jax.runtime import malloc


@pytest.fixture
def calls_of_mallopt(monkeypatch):
    """The calls of mallopt, in an environment without settings of malloc."""
    calls = []
    library = SimpleNamespace(mallopt=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(malloc.sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith(("GLIBC_", "MALLOC_"))]:
        monkeypatch.delenv(name)
    return calls


def test_freed_memory_is_retained(calls_of_mallopt):
    malloc.retain_freed_memory()
    assert calls_of_mallopt == [(-4, 0), (-1, 2**31 - 1), (-8, 1)]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_the_environment_overrides_the_settings(calls_of_mallopt, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    malloc.retain_freed_memory()
    assert calls_of_mallopt == []


def test_other_systems_and_other_libraries_are_not_changed(calls_of_mallopt, monkeypatch):
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    malloc.retain_freed_memory()
    assert calls_of_mallopt == []

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(malloc.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", absent)
    malloc.retain_freed_memory()
    assert calls_of_mallopt == []
