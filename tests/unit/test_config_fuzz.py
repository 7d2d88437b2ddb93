"""Any value of any key of the shipped configs is taken, or refused in one line that names it, before any work.

More of them: CDL_FUZZ=1000 python -m pytest tests/unit/test_config_fuzz.py
"""

import functools
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdl_jax import config as configs
from cdl_jax import main
from cdl_jax.data.sources import glyph_file, glyph_mini
from cdl_jax.errors import UserError

FILES = Path(__file__).parents[2] / "configs"
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


def answer(file: str, changes: dict[str, str]) -> str:
    """What is said of these overrides before anything is read, placed or compiled; "" where they are taken."""
    argv = ["cdl_jax", f"--config={FILES / file}", "--workdir=unused"]
    start = time.process_time()
    try:
        config = main._parse(argv + [f"--config.{key}={value}" for key, value in changes.items()]).config
        configs.check(config)
        main._program(config)
    except UserError as error:
        return str(error)
    finally:
        assert time.process_time() - start < 5
    return ""


@functools.cache
def keys(file: str) -> list[str]:
    return sorted(configs.flatten(main._parse(["cdl_jax", f"--config={FILES / file}", "--workdir=unused"]).config))


@pytest.fixture(autouse=True)
def data_is_read_once(monkeypatch):
    load = lambda options: dataset(options["part"]) if options["part"] in glyph_mini._PARTS else LOAD(options)  # noqa: E731
    monkeypatch.setattr(glyph_mini, "load", load)
    monkeypatch.setattr(glyph_file, "load", lambda options: dataset("pretraining"))  # in place of a file of the user's


@pytest.mark.parametrize("file", SHIPPED)
@settings(
    max_examples=int(os.environ.get("CDL_FUZZ", 40)),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(draw=st.data())
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(file, draw):
    value = st.sampled_from(VALUES) | st.integers(-5, 40).map(str) | st.floats().map(str)
    chosen = draw.draw(st.dictionaries(st.sampled_from(keys(file)), value, min_size=1, max_size=2))
    told = answer(file, chosen)
    if told:
        words = " ".join(told.split())
        assert len(words) < 1500
        named = any(key.split(".")[-1].rstrip("s") in words or key.split(".")[0] in words for key in chosen)
        # A name of a module is told as such, and of a part that became too small its batch is.
        assert named or "no module" in words or "training images of task" in words, (chosen, words)
