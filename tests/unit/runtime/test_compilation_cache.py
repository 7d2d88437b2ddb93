"""The folder of the compilation cache, and the cases without a cache."""

import jax
import pytest

from cdl_jax.runtime import compilation_cache


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_folder_is_created_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    compilation_cache.enable_cache("~/a/b")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_the_environment_overrides_the_config_and_an_empty_folder_disables_the_cache(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.enable_cache("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    compilation_cache.enable_cache(str(tmp_path / "programs"))
    assert jax.config.jax_compilation_cache_dir == before
    assert not (tmp_path / "programs").exists()


def test_a_folder_that_cannot_be_created_is_not_used(tmp_path, caplog):
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").write_text("")
    compilation_cache.enable_cache(str(tmp_path / "file" / "programs"))
    assert "nothing is cached" in caplog.text and jax.config.jax_compilation_cache_dir == before
