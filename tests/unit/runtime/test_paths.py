"""A user's paths are resolved alike; one line refuses a path that is not local."""

from pathlib import Path

import pytest

from cdl_jax import fetch, main, plugins
from cdl_jax.data.readers import locate
from cdl_jax.errors import MissingDataError, UserError
from cdl_jax.options import defaults
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.runtime import compilation_cache, paths


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("runs/a", "runs/a"),
        ("runs/a/", "runs/a"),
        ("./runs//a/", "runs/a"),
        ("/data/x.npz", "/data/x.npz"),
        ("~", "/home/me"),
        ("~/x", "/home/me/x"),
        ("~/x/", "/home/me/x"),
        (Path("~/x"), "/home/me/x"),
        ("file:///data/x", "/data/x"),
        ("FILE:///data/x/", "/data/x"),
        ("file://localhost/data/x", "/data/x"),
        ("file:///data/a%20b", "/data/a b"),
        ("file://~/x", "/home/me/x"),
        ("runs/sweep[lr=0.005]", "runs/sweep[lr=0.005]"),
        ("odd: name/über", "odd: name/über"),
        ("C:/x", "C:/x"),
    ],
)
def test_a_local_path_is_resolved_in_any_spelling(monkeypatch, text, path):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.resolve(text) == Path(path)


def test_the_home_folder_of_another_user_is_resolved():
    assert paths.resolve("~root/x") == Path("~root").expanduser() / "x"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gs://bucket/x", "is a remote path, and only local paths work: copy or mount it first"),
        (Path("gs://bucket/x"), "is a remote path"),
        ("s3://bucket/x", "is a remote path"),
        ("http://host/x", "is a remote path"),
        ("HTTPS://host/x", "is a remote path"),
        ("anything+else://host/x", "is a remote path"),
        ("file://host/x", "names another machine"),
        ("file://x", "names another machine"),
        ("", "is empty"),
        (" ", "is empty"),
        ("a\0b", "has a NUL character"),
        ("~nobody-has-this-name/x", "home folder is unknown"),
        ("~nobody-has-this-name/x", "because no user has the name 'nobody-has-this-name'"),
        ("runs/" + "n" * 256, "is longer than 255 bytes: choose a shorter one"),
        ("\u00fc" * 128, "is longer than 255 bytes"),
        ("name/" * 900, "is longer than 4095 bytes: choose a shorter one"),
        (7, "is not a path"),
        (None, "is not a path"),
    ],
)
def test_a_path_that_is_not_local_is_refused(text, problem):
    with pytest.raises(UserError) as error:
        paths.resolve(text, "data.path")
    assert str(error.value).startswith("data.path") and problem in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("home", ["", "relative/home"])
def test_the_home_folder_needs_a_full_path(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UserError, match="data.path='~/x': the variable HOME is not the full path of a folder"):
        paths.resolve("~/x", "data.path")
    assert paths.home_folder() is None
    assert paths.resolve("~root/x") == Path("~root").expanduser() / "x"


def test_the_longest_name_is_a_path():
    assert paths.resolve("n" * 255) == Path("n" * 255)
    assert paths.resolve("\udcff" * 255) == Path("\udcff" * 255)  # 255 bytes that are not UTF-8


REMOTE = "gs://bucket/x"


@pytest.mark.parametrize(
    "use",
    [
        lambda: compilation_cache.enable_cache(REMOTE),
        lambda: locate.find(REMOTE, ["x"], what="x", remedy="get it"),
        *(
            lambda source=source: plugins.load_plugin("data.sources", source).load(
                defaults(plugins.load_plugin("data.sources", source).OPTIONS, path=REMOTE)
            )
            for source in ("arrays", "folder", "glyph_file", "emoji_file", "cifar100", "imagenet_r")
        ),
    ],
)
def test_every_option_with_a_path_refuses_a_remote_path(monkeypatch, use):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    with pytest.raises(UserError, match="is a remote path"):
        use()


def test_every_flag_with_a_path_refuses_a_remote_path(capsys, monkeypatch):
    for command, argv in [
        (main.main, ["--config", "configs/quickstart.py", "--workdir", REMOTE, "--config.compilation_cache="]),
        (report_main, [REMOTE]),
        (fetch.main, ["cifar100", "--dir", REMOTE]),
    ]:
        assert command(argv) == 2
        assert "is a remote path" in capsys.readouterr().err
    monkeypatch.setenv("CDL_DATA", REMOTE)
    assert fetch.main(["cifar100"]) == 2
    assert "CDL_DATA='gs://bucket/x' is a remote path" in capsys.readouterr().err


def test_no_home_folder_is_needed(monkeypatch):
    monkeypatch.delenv("CDL_DATA", raising=False)

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert locate.search_paths() == (Path("data"),)


def test_an_error_about_missing_data_has_the_name_for_the_fetch_command(monkeypatch, tmp_path):
    monkeypatch.setenv("CDL_DATA", str(tmp_path))
    monkeypatch.setattr(locate, "search_paths", lambda: (tmp_path,))
    for name in ("cifar10", "cifar100", "imagenet_r"):
        source = plugins.load_plugin("data.sources", name)
        with pytest.raises(MissingDataError, match=f"python -m cdl_jax.fetch {name}") as error:
            source.load(defaults(source.OPTIONS, path=""))
        assert error.value.fetch_name == name and name in fetch.ARCHIVES
    with pytest.raises(UserError) as error:  # the command does not download to a path of the user
        source.load(defaults(source.OPTIONS, path=str(tmp_path / "absent")))
    assert not isinstance(error.value, MissingDataError)
