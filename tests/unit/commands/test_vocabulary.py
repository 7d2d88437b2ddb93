"""Words with a better twin (CONTRIBUTING.md, "Glossary") may not spread.

A concept has one word. Identifiers, docstrings, comments, messages and pages are split into words. `ALLOWED` has the
uses that are left, by folder and word. Its numbers may only shrink: lower them when a use is gone.
"""

import ast
import functools
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SUFFIXES = (".py", ".sh", ".sbatch", ".md", ".toml", ".txt", ".yml")

# Pattern of a word -> what to write instead.
BANNED = {
    "told|tells?|telling": "return, output, send; 'log', 'report' or 'name' for messages",
    "asks?|asked|asking": "query, request, need",
    "hears?|heard|hearing": "receive",
    "says|said|saying": "state, return, output",
    "pictures?": "image",
    "learnt|unlearnt|spelt": "learned, trained",
    "whole": "replicated, complete, all",
    "apart": "separate, distance, difference, except for",
    "renewed|judged|noted": "updated, decided, recorded",
    "colours?|coloured": "color",
    "greys?|licences?|behaviours?|favours?": "American spelling",
    "(normal|standard|optim|initial|regular)is(e|es|ed|ing|ation|ations|er|ers)": "American spelling: -ize",
}
PHRASES = {
    "but for": "except for",
    "so many": "the number, or the name of the number",
    "in place of": "instead of",
    "comes? to": "a verb for what happens",
    "rows to compare with": "baselines",
    "(the )?authors' programs?": "the authors' code",
    "orders? of classes": "class order",
}
WHAT = "a docstring that starts with What, How, Which or Where"

ALLOWED = {
    "benchmarks": {"normalised": 1, "the authors' program": 1, "the authors' programs": 1, "whole": 19},
    "cdl_jax/data": {"licence": 1, "tell": 1, "whole": 6},
    "cdl_jax/models": {"the authors' program": 2},
    "cdl_jax/runtime": {"whole": 1},
    "docs": {"whole": 2},
    "tests/end_to_end": {"whole": 4},
    "tests/parity": {"normalised": 2, "the authors' programs": 1, "whole": 2},
    "tests/unit": {"whole": 5},
}


def folders():
    """Returns name -> files.

    Names are the rooms of the package and the tests, the other top folders, and "." for the pages of the root.
    """
    found = {".": sorted(ROOT.glob("*.md"))}
    for top in ("benchmarks", "cdl_jax", "configs", "docs", "launch", "tests"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__):
                rooms = top in ("cdl_jax", "tests") and len(path.relative_to(ROOT).parts) > 2
                found.setdefault(f"{top}/{path.relative_to(ROOT).parts[1]}" if rooms else top, []).append(path)
    return found


def uses(path):
    """Returns banned word or phrase -> number of its uses in a file."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CONTRIBUTING.md":  # its glossary lists the banned words
        text = re.sub(r"^## Glossary\n.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)
    counts = Counter()
    words = Counter(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text.replace("\\n", " ")))
    for pattern in BANNED:
        matches = re.compile(pattern)
        counts.update({word: count for word, count in words.items() if matches.fullmatch(word)})
    prose = " ".join(re.sub(r"^[ #>*]+", "", line) for line in text.lower().splitlines())
    for pattern in PHRASES:
        counts.update(
            re.sub(r"\s+", " ", match[0]) for match in re.finditer(rf"\b{pattern}\b", re.sub(r"\s+", " ", prose))
        )
    starts = ("What ", "How ", "Which ", "Where ")
    counts.update(WHAT for text in docstrings(path) if text.startswith(starts))
    return counts


@functools.cache
def docstrings(path):
    """Returns the docstrings of a file; none of a file that is no Python."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.suffix == ".py" else ()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]


FOLDERS = folders()


@pytest.mark.parametrize("folder", FOLDERS)
def test_banned_words_do_not_spread(folder):
    by_file = {path.relative_to(ROOT): uses(path) for path in FOLDERS[folder]}
    total = sum(by_file.values(), Counter())
    allowed = ALLOWED.get(folder, {})
    grown = {word: count for word, count in total.items() if count > allowed.get(word, 0)}
    places = {word: [str(path) for path, counts in by_file.items() if counts[word]] for word in grown}
    assert grown == {}, f"write another word (see BANNED and PHRASES): {places}"
    assert dict(total) == allowed, f"lower the numbers of {folder} in ALLOWED"


@pytest.mark.parametrize("folder", FOLDERS)
def test_first_lines_of_docstrings_have_at_most_80_characters(folder):
    first_lines = [(path.name, text.partition("\n")[0]) for path in FOLDERS[folder] for text in docstrings(path)]
    assert [(name, line) for name, line in first_lines if len(line) > 80] == []


def test_the_allow_list_names_existing_folders():
    assert sorted(set(ALLOWED) - set(FOLDERS)) == []


def test_words_are_found_in_identifiers_comments_and_phrases(tmp_path):
    file = tmp_path / "example.py"
    file.write_text(
        'def _told(wholeImage):\n    """What it does\n    in place of it."""\n    # asks\n', encoding="utf-8"
    )
    assert uses(file) == {"told": 1, "whole": 1, "asks": 1, "in place of": 1, WHAT: 1}
