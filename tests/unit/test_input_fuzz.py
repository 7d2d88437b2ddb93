"""Damaged and hostile files are accepted or refused in one line; nothing in them runs, and memory has a bound.

More of them: python -m benchmarks.run fuzz
"""

import logging
import pickle

import pytest

from benchmarks import fuzz_attacks, fuzz_checkpoints, fuzz_inputs
from benchmarks.cases import fuzz
from cdl_jax.errors import UserError

SLOW = ("lists nested a million deep", "marks without end", "dicts without end", "sets without end")


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def outcomes(inputs, folder):
    """{(kind, name): what} of inputs that are read as `benchmarks.cases.fuzz` does, none of them a finding."""
    folder.mkdir()
    found = {(kind, name): told for kind, name, told in fuzz.tried(inputs, folder)}
    assert not {key: told for key, told in found.items() if told["what"] == "finding"}
    assert max(told["bytes"] for told in found.values()) < fuzz.MEMORY
    return {key: told["what"] for key, told in found.items()}


def test_the_sound_files_are_accepted_and_damaged_ones_are_no_findings(tmp_path):
    # Not checkpoints: where jax runs already, a process that is forked off may wait for a lock that nobody frees.
    found = outcomes(fuzz.damaged(300, seed=7, groups=tuple(fuzz_inputs.kinds())), tmp_path / "root")
    sound = {kind: what for (kind, name), what in found.items() if name == "sound"}
    assert set(sound.values()) == {"accepted"}
    assert len(found) == 300 + len(sound)
    assert sum(what == "refused" for what in found.values()) > 150


def test_no_code_runs_and_nothing_is_written_elsewhere(tmp_path):
    canary = tmp_path / "root" / "canary"
    attacks = list(fuzz_attacks._code(canary))
    pickles = [("CIFAR pickle", name, content) for name, content in attacks]
    pickles += [("pth", name, fuzz_inputs.pth(content)) for name, content in attacks]
    tars = [("ImageNet-R, unpacked", name, content) for name, content in fuzz_attacks._tars()]
    found = outcomes([*pickles, *tars], tmp_path / "root")
    assert len(found) == 2 * len(attacks) + len(tars)
    assert all(what == "refused" for (kind, _), what in found.items() if "R, unpacked" not in kind)
    assert not canary.exists()
    pickle.loads(attacks[0][1])  # the attacks are real ones
    assert canary.exists()


def test_small_files_that_ask_for_much_are_refused(tmp_path):
    greedy = [("CIFAR pickle", name, content) for name, content in fuzz_attacks._greedy_pickles() if name not in SLOW]
    safetensors = [("safetensors", name, content) for name, content in fuzz_attacks._safetensors()]
    bombs = [
        ("CIFAR archive", name, content)
        for name, content in fuzz_attacks._bombs()
        if "cifar" in name or " of type x" in name
    ]
    found = outcomes([*greedy, *safetensors, *bombs], tmp_path / "root")
    assert len(found) == len(greedy) + len(safetensors) + len(bombs)
    assert {what for (kind, _), what in found.items() if kind == "CIFAR archive"} == {"refused"}


def test_damaged_checkpoints_are_replaced_by_older_ones_or_refused(tmp_path):
    metadata = "_CHECKPOINT_METADATA", "record/metadata", "state/_METADATA"
    plain = ("", "[]", "null", "NaN", "lists nested a million deep", "b'1e400' for every number")
    crafted = [
        (kind, name, content)
        for kind, name, content in fuzz_checkpoints.crafted()
        if name in plain and "latest" in kind and kind.endswith(metadata)
    ]
    damaged = list(fuzz.damaged(12, seed=7, groups=[fuzz_checkpoints.GROUP]))
    known, found = fuzz_checkpoints.kinds(), {}
    for kind, name, content in [*crafted, *damaged]:
        found[kind, name] = fuzz.outcome(known[kind], content, tmp_path)
    assert len(found) == 3 * len(plain) + 13
    assert not {key: told for key, told in found.items() if told[0] == "finding"}
    # The frozen weights have no older ones, and `--mode eval` of the last task takes none.
    accepted = {kind for (kind, _), (what, _) in found.items() if what == "accepted"}
    assert {kind for kind, *_ in crafted} <= accepted


@pytest.mark.parametrize("what", ["raises", "writes", "memory"])
def test_a_finding_is_found(tmp_path, what):
    def read(folder):
        if what == "raises":
            raise KeyError("x")
        if what == "writes":
            (folder.parent / "escaped").touch()
        if what == "memory":
            try:
                raise MemoryError
            except MemoryError:
                raise UserError("damaged") from None

    assert fuzz.outcome(fuzz_inputs.Kind("file", b"", read), b"", tmp_path)[0] == "finding"
    assert not list(tmp_path.iterdir())


def test_a_message_is_one_line_whatever_a_file_calls_its_parts():
    assert str(UserError("a\nb\r\nc")) == "a b c"
