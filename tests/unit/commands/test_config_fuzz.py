"""Any value of any key of the shipped configs is accepted or refused.

A refusal is one line that names the key, before training.

More values: CDL_FUZZ=1000 python -m pytest tests/unit/commands/test_config_fuzz.py
"""

import functools
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdl_jax import config as configs
from cdl_jax import main, plugins
from cdl_jax.data.sources import glyph_file, glyph_mini
from cdl_jax.errors import UserError
from cdl_jax.run.start import build_experiment

FILES = Path(__file__).parents[3] / "configs"
SHIPPED = (
    "quickstart.py",
    "quickstart.py:learner=coda,distill=prompt_mapping",
    "quickstart.py:learner=dualprompt,distill=kd_token",
    "okddip_glyph.py",
    "okddip_glyph.py:method=kd",
    "okddip_glyph.py:method=dml,tasks=5",
    "dkt_glyph.py",
    "vkd_glyph.py",
    "pretrain_glyph.py",
)
VALUES = (
    *("0", "-1", "1", "2", "3", "7", "0.5", "-0.5", "1.5", "1e30", "nan", "inf", "-inf"),
    *(str(2**31), str(2**63), str(2**70)),
    *("", " ", "x", "none", "None", "true", "l2p", "a,b", "../..", "\x00", "1\n2", "()", "(1,)", "(1,2,3)", "(-1,2)"),
    *("(0.5,0.5)", "('a',)", "(1,'a')", "((1,2),3)", "[1]", "{}", "(nan,)", "(0,)", "(99999999999999999999,)", "1,2"),
)  # fmt: skip


LOAD = glyph_mini.load


@functools.cache
def dataset(part):
    return LOAD({"part": part})


def message_about(file: str, changes: dict[str, str]) -> str:
    """Returns the message about these overrides; "" if they are accepted.

    Nothing is compiled before.
    """
    argv = ["cdl_jax", f"--config={FILES / file}", "--workdir=unused"]
    start = time.process_time()
    try:
        config = main.parse(argv + [f"--config.{key}={value}" for key, value in changes.items()]).config
        configs.check(config)
        build_experiment(config)
    except UserError as error:
        return str(error)
    finally:
        assert time.process_time() - start < 5
    return ""


@functools.cache
def keys(file: str) -> list[str]:
    return sorted(configs.flatten(main.parse(["cdl_jax", f"--config={FILES / file}", "--workdir=unused"]).config))


@pytest.fixture(autouse=True)
def data_is_read_once(monkeypatch):
    load = lambda options: dataset(options["part"]) if options["part"] in glyph_mini._PARTS else LOAD(options)  # noqa: E731
    monkeypatch.setattr(glyph_mini, "load", load)
    monkeypatch.setattr(glyph_file, "load", lambda options: dataset("pretraining"))  # instead of a file of the user


@pytest.mark.parametrize("file", SHIPPED)
@settings(
    max_examples=int(os.environ.get("CDL_FUZZ", 40)),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(draw=st.data())
def test_any_value_of_any_key_is_accepted_or_refused_in_one_line(file, draw):
    value = st.sampled_from(VALUES) | st.integers(-5, 40).map(str) | st.floats().map(str)
    chosen = draw.draw(st.dictionaries(st.sampled_from(keys(file)), value, min_size=1, max_size=2))
    message = message_about(file, chosen)
    if message:
        words = " ".join(message.split())
        assert len(words) < 1500
        named = any(key.split(".")[-1].rstrip("s") in words or key.split(".")[0] in words for key in chosen)
        # The message about a module names the module. The message about too few images names the batch.
        assert named or "no module" in words or "training images of task" in words, (chosen, words)


FOLDERS = {
    "method": "methods",
    "learner.name": "models.learners",
    "distill.name": "distill",
    "data.name": "data.sources",
}


@pytest.mark.parametrize("file", ["quickstart.py", "okddip_glyph.py:method=supervised", "dkt_glyph.py", "vkd_glyph.py"])
def test_any_plug_in_is_accepted_or_refused_in_one_line(file):
    chosen, refused = [key for key in keys(file) if key in FOLDERS or key.endswith(".family")], 0
    for key in chosen:
        for name in plugins.list_plugins(FOLDERS.get(key, "models")):
            message = message_about(file, {key: name})
            assert "\n" not in message
            if message and key != "data.name":  # the data of a source may be missing
                assert f"config.{key}={name!r}" in message or key == "method" or "network." in message, message
                refused += 1
    assert refused >= len(plugins.list_plugins("methods")) - 1


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "quickstart.py",
            ("learner.name", "coda"),
            "config.learner.layers is missing, an option of config.learner.name",
        ),
        ("quickstart.py", ("distill.name", "none"), "unknown key config.distill.alpha of config.distill.name='none'"),
        (
            "quickstart.py",
            ("student.family", "resnet"),
            "config.student.family='resnet' does not fit config.method='cdl'",
        ),
        ("quickstart.py", ("method", "dkt"), "config.dkt.classes is missing, an option of config.method='dkt'"),
        ("dkt_glyph.py", ("learner.name", "l2p"), "does not fit config.method='dkt' with config.learner.name='l2p'"),
        ("dkt_glyph.py", ("method", "cdl"), "no module 'cnn' in models.learners"),
        ("okddip_glyph.py:method=cdl", ("seed", "1"), "method 'cdl' has no choice 'network': "),
    ],
)
def test_the_message_names_a_plug_in_that_does_not_fit(file, change, message):
    assert message in message_about(file, dict([change]))


def test_another_data_source_has_its_own_options():
    flags = ["--config.data.name=tfds", "--config.data.dataset=cifar10", "--config.data.num_tasks=2"]
    data = main.parse(["cdl_jax", f"--config={FILES / 'quickstart.py'}", "--workdir=unused", *flags]).config.data
    assert (data.name, data.dataset, data.train_split, data.num_tasks) == ("tfds", "cifar10", "train", 2)
    assert "part" not in data
