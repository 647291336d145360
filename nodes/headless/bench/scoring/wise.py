"""WISE: from replies to scores and the weighted table, for the first and the verified edition.

Source: PKU-YuanGroup/WISE eb51174, WISE_legacy/{gpt_eval,Calculate}.py, vllm_eval.py and calculate_verified.py.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .outcome import Mode, Table, Unscored, mean

CRITERIA = ("consistency", "realism", "aesthetic_quality")
# Weights of the criteria. Scores are 0 to 2, so the weighted sum is divided by 2.
_WEIGHTS = (0.7, 0.2, 0.1)
_HIGHEST = 2


@dataclass(frozen=True)
class Edition:
    """The categories of one edition.

    Attributes:
        ranges: first and last prompt id of each category.
        weights: weight of each category in the overall score.
    """

    ranges: dict[str, tuple[int, int]]
    weights: dict[str, float]

    def category(self, prompt_id: int) -> str | None:
        """Return the category of a prompt; None for an unknown id."""
        return next((name for name, (first, last) in self.ranges.items() if first <= prompt_id <= last), None)

    @property
    def prompts(self) -> range:
        """All prompt ids."""
        return range(1, max(last for _, last in self.ranges.values()) + 1)


LEGACY = Edition(
    {
        "CULTURE": (1, 400),
        "TIME": (401, 567),
        "SPACE": (568, 700),
        "BIOLOGY": (701, 800),
        "PHYSICS": (801, 900),
        "CHEMISTRY": (901, 1000),
    },
    {"CULTURE": 0.4, "TIME": 0.167, "SPACE": 0.133, "BIOLOGY": 0.1, "PHYSICS": 0.1, "CHEMISTRY": 0.1},
)
VERIFIED = Edition(
    {
        "CULTURE": (1, 400),
        "TIME": (401, 520),
        "SPACE": (521, 640),
        "BIOLOGY": (641, 760),
        "PHYSICS": (761, 880),
        "CHEMISTRY": (881, 1000),
    },
    {"CULTURE": 0.4, **dict.fromkeys(("TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY"), 0.12)},
)


def wiscore(consistency: float, realism: float, aesthetic_quality: float) -> float:
    """Return the WiScore of one picture (0 to 1) from its three scores (0 to 2)."""
    scores = (consistency, realism, aesthetic_quality)
    return _added(w * score for w, score in zip(_WEIGHTS, scores)) / _HIGHEST


def weighted(means: Mapping[str, float], edition: Edition) -> float:
    """Return the overall score from the means of all categories."""
    return _added(weight * means[name] for name, weight in edition.weights.items())


def _added(terms: Iterable[float]) -> float:
    """Add from left to right, as in the published expressions. From Python 3.12 on, `sum` rounds in another way."""
    return functools.reduce(operator.add, terms)


def read_legacy(reply: object, mode: Mode = "strict") -> float | Unscored:
    """Return the WiScore (0 to 1) of one picture from the first edition's judge, or why there is none.

    Args:
        mode: `published` uses the last digit after each criterion's name, else the first three lines that are a digit from
            0 to 2, so that 1.5 and 10 are read as 1, and 7 is accepted; `strict` requires each criterion once, as 0, 1
            or 2.
    """
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    scores = _criteria(reply, mode)
    missing = [name for name in CRITERIA if name not in scores]
    if missing:
        return Unscored(f"no score for {', '.join(missing)}")
    wrong = [f"{name} {found}" for name, found in scores.items() if len(found) > 1 or found[0] not in ("0", "1", "2")]
    if mode == "strict" and wrong:
        return Unscored(f"expected one score of 0, 1 or 2 each, and got {'; '.join(wrong)}")
    return wiscore(*(float(scores[name][-1]) for name in CRITERIA))


def _criteria(reply: str, mode: Mode) -> dict[str, list[str]]:
    """Return the scores of each criterion, in order."""
    digits = r"(\d)" if mode == "published" else r"(-?[0-9]+(?:\.[0-9]+)?)"
    # Optional parts hold the spaces behind them, so that a long run of spaces can match in one way only.
    colon = r"\s*(?::\s*)?" if mode == "published" else r"\s*(?:\*{1,2}\s*)?(?:[:：=]\s*)?(?:\*{1,2}\s*)?"
    scores: dict[str, list[str]] = {}
    for name, score in re.findall(
        rf"(consistency|realism|aesthetic quality)\*{{0,2}}{colon}{digits}", reply, re.IGNORECASE
    ):
        scores.setdefault(name.lower().replace(" ", "_"), []).append(score)
    bare = _bare_lines(reply, "012", mode)
    enough = len(bare) >= len(CRITERIA) if mode == "published" else len(bare) == len(CRITERIA)
    return {name: [score] for name, score in zip(CRITERIA, bare)} if not scores and enough else scores


def _bare_lines(reply: str, digits: str, mode: Mode) -> list[str]:
    """Return the lines that consist of one of the digits. In published replies, only a line feed ends a line."""
    lines = reply.split("\n") if mode == "published" else reply.splitlines()
    return [line.strip() for line in lines if line.strip() in tuple(digits)]


def without_thinking(reply: str) -> str:
    """Remove a thinking model's thoughts from its reply, as the verified edition's script does before it reads the reply."""
    return re.sub(r"</think>\s*", "", _without_thoughts(reply)).strip()


def _without_thoughts(reply: str) -> str:
    kept, end_mark = [], "</think>"
    while (start := reply.find("<think>")) >= 0 and (end := reply.find(end_mark, start)) >= 0:
        kept.append(reply[:start])
        reply = reply[end + len(end_mark) :].lstrip()
    return "".join([*kept, reply])


def read_verified(reply: object, mode: Mode = "strict") -> float | Unscored:
    """Return the score (0 or 1) of one picture from the verified edition's judge, or why there is none.

    Args:
        mode: `published` uses the first 0 or 1 after "score", so that 0.5 is read as 0, or a reply with one line that is 0
            or 1; `strict` requires all scores in the reply to be the same integer, 0 or 1.
    """
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    if mode == "published":
        match = re.search(r"score\*{0,2}\s*(?::\s*)?([01])\b", reply, re.IGNORECASE)
        found = [match[1]] if match else []
    else:
        reply = _without_thoughts(reply)
        found = re.findall(r"\bscore\W{0,4}[:：=]\W{0,4}(-?[0-9]+(?:\.[0-9]+)?)", reply, re.IGNORECASE)
    if not found:
        bare = _bare_lines(reply, "01", mode)
        found = bare if len(bare) == 1 else []
    if not found:
        return Unscored("no line gives a score")
    if len(set(found)) > 1 or found[0] not in ("0", "1"):
        return Unscored(f"expected one score of 0 or 1, and got {', '.join(found)}")
    return float(found[0])


def table(scores: Sequence[tuple[int, float | Unscored]], edition: Edition) -> Table:
    """Compute means by category, and the weighted sum "overall" if all categories have scores and no prompt is missing.

    Args:
        scores: prompt ids with their scores. As published, an unscored prompt counts as present but is in no mean, and a
            duplicate counts twice.
    """
    by_category: dict[str, list[float]] = {}
    unscored: dict[str, str] = {}
    for key, score in scores:
        category = edition.category(key)
        if isinstance(score, Unscored):
            unscored[str(key)] = score.reason
        elif category is not None:
            by_category.setdefault(category, []).append(score)
    groups = {name: mean(values) for name, values in by_category.items()}
    overall = {}
    if set(groups) == set(edition.ranges) and {key for key, _ in scores} >= set(edition.prompts):
        overall = {"overall": weighted(groups, edition)}
    return Table(groups, {name: len(values) for name, values in by_category.items()}, overall, unscored)
