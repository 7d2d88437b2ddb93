"""Commands end quietly after a closed pipe, and print any text in any locale."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdl_jax.runtime.console import one_line

ROOT = Path(__file__).parents[3]
COMMANDS = [
    ["cdl_jax.main", "--list"],
    ["cdl_jax.main", "--help"],
    ["cdl_jax.report", "paper", "cdl"],
    ["cdl_jax.fetch", "--list"],
]
SCRIPT = """
import sys
from cdl_jax.runtime.console import command
@command
def main():
    print("caf\\u00e9 \\u00b1 \\udcff \\u4e2d")
    print("\\u00b1 \\udcff", file=sys.stderr)
    return 3
sys.exit(main())
"""


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **changes}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_a_command_quietly(words, unbuffered):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", *words], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=environment(PYTHONUNBUFFERED=unbuffered),
    )  # fmt: skip
    os.close(write)
    assert (done.stderr, done.returncode) == ("", 141)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_full_disk_at_stdout_is_one_line(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment()
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("cdl_jax: a file cannot be written: No space left on device; ")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_runs_without_stdout(words):
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment())
    assert (done.stderr, done.returncode) == ("", 0)


def test_another_broken_pipe_is_raised():
    script = SCRIPT.replace("    return 3", "    raise BrokenPipeError('of a worker')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=ROOT, env=environment())
    assert done.returncode == 1 and b"of a worker" in done.stderr


@pytest.mark.parametrize(
    ("encoding", "out", "err"),
    [
        ("ascii", b"caf\\xe9 \\xb1 \\udcff \\u4e2d\n", b"\\xb1 \\udcff\n"),
        ("latin-1", b"caf\xe9 \xb1 \\udcff \\u4e2d\n", b"\xb1 \\udcff\n"),
        ("utf-8", "café ± \\udcff 中\n".encode(), "± \\udcff\n".encode()),
    ],
)
def test_text_that_the_locale_cannot_encode_is_escaped(encoding, out, err):
    # The effect of `LC_ALL=C` if Python neither coerces the locale nor enables UTF-8.
    changes = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, cwd=ROOT, env=environment(**changes))
    assert (done.stdout, done.stderr, done.returncode) == (out, err, 3)


def test_line_breaks_and_control_characters_are_escaped():
    assert one_line("a\nb\t\x1b[31m\udcff é ±") == "a\\nb\\t\\x1b[31m\\udcff é ±"
