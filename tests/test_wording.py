"""Wording: phrases that read as translated, or that say less than the field's own term, do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# (what is not written, what is written instead)
PHRASES = (
    (
        r"\b(is|are|was|were|be|being|been) told\b(?! apart)|\btold (of|what|that|how|to|at|in|by|when|so|on)\b",
        "reported, passed, shown",
    ),
    (r"\btells? (what|of|that|how|which|whether|a|the|nothing)\b", "report, show, say"),
    (r"\banew\b", "again, from scratch"),
    (r"\bmend(s|ed|ing)?\b", "fix, repair"),
    (r"(?<!place )(?<!point )\bof (no )?use\b", "valid, usable, invalid"),
    (r"\b(goes|go|going|gone|went) on (with|to|from|where|another|until|as|at|while|after|in)\b", "continue, resume"),
    (r"\bone and the same\b", "the same"),
    (r"\bin (work|motion)\b", "running"),
    (r"\bhangs? on\b", "depends on"),
    (r"\b(lies|lie|lay) (in|at|on|there|beside|below|under|outside|inside|within)\b", "is in, are stored in"),
    (
        r"(?<!there )\b(is|are|was|were) no (?!longer|more\b|way\b|such\b|need\b|reason\b|room\b|point\b|file\b|other\b)[a-z]+",
        "is not a ...",
    ),
    (r"\bheld against\b|\bholds? \w+ against\b", "checked against, compared with"),
    (r"\btakes? others\b|\bwhose it is\b|\btook (their|its) place\b", "name the thing"),
)


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the sentences in a file: comments and strings of Python, every line of the others."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type].startswith("FSTRING"):
                for number, line in enumerate(token.string.splitlines()):
                    yield token.start[0] + number, line
    else:
        yield from enumerate(text.splitlines(), 1)


def files() -> list[str]:
    """Return the paths of the project's own text files, relative to the root."""
    rooms = [ROOT / name for name in ("uniworld_core", "nodes", "training", "tests", "docs", "workflows")]
    found = [*ROOT.iterdir(), *(file for room in rooms for file in room.rglob("*"))]
    names = [file.relative_to(ROOT).as_posix() for file in found if file.suffix in (".py", ".md", ".js", ".toml")]
    return sorted(set(names) - {"tests/test_wording.py"})


def test_no_listed_phrase_comes_back() -> None:
    listed = [(re.compile(pattern, re.IGNORECASE), better) for pattern, better in PHRASES]
    found = [
        f"{name}:{line}: {match[0]!r} (write: {better}) in: {text.strip()[:100]}"
        for name in files()
        for line, text in texts_of(ROOT / name)
        for pattern, better in listed
        for match in pattern.finditer(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "sentence",
    [
        "The worker is told what to do.",
        "It begins anew.",
        "a text that is no JSON",
        "the samples are of no use",
        "Mend it.",
    ],
)
def test_the_search_finds_a_listed_phrase(sentence: str) -> None:
    assert any(re.search(pattern, sentence, flags=re.IGNORECASE) for pattern, _ in PHRASES)
