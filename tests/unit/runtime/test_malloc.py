"""The settings of malloc, and the cases in which they are not changed."""

import ctypes
import os
from types import SimpleNamespace

import pytest

from cdl_jax.runtime import malloc


@pytest.fixture
def told(monkeypatch):
    """The calls of mallopt; the environment says nothing of memory."""
    calls = []
    library = SimpleNamespace(mallopt=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(malloc.sys, "platform", "linux")
    for name in [name for name in os.environ if name.startswith(("GLIBC_", "MALLOC_"))]:
        monkeypatch.delenv(name)
    return calls


def test_freed_memory_is_retained(told):
    malloc.retain_freed_memory()
    assert told == [(-4, 0), (-1, 2**31 - 1), (-8, 1)]


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_the_environment_overrides_the_settings(told, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    malloc.retain_freed_memory()
    assert told == []


def test_other_systems_and_other_libraries_are_not_changed(told, monkeypatch):
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    malloc.retain_freed_memory()
    assert told == []

    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(malloc.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", absent)
    malloc.retain_freed_memory()
    assert told == []
