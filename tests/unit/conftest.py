import pytest


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Usual places that hold nothing."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CDL_DATA", raising=False)
    monkeypatch.chdir(tmp_path / "home")
