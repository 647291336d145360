"""ImgEdit-Bench: from the judge's replies to scores, and from scores to the table.

Source: PKU-YuanGroup/ImgEdit 547185d, Benchmark/Basic/step1_get_avgscore.py and step2_typescore.py,
Benchmark/UGE/get_average_score.py. The mean over items is that of ByteDance-Seed/Bagel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .outcome import LARGEST, Mode, Table, Unscored, mean, split

# Edit types of the items. UniWorld-V1's copy uses the older name of `adjust`, for which its judge has no prompt.
TYPES = ("add", "adjust", "extract", "replace", "remove", "background", "style", "compose", "action")
OLD_TYPES = {"alter": "adjust"}

# The judge is asked for a score from 1 to 5 for each of three criteria.
CRITERIA, LOWEST, HIGHEST = 3, 1, 5
_STRICT_SCORE = re.compile(r"([0-9]+) ?(?:/ ?5)? ?[.*]* ?")
_REASONING = "brief reasoning"


def read_basic(reply: object, mode: Mode = "strict") -> float | Unscored:
    """Return an item's score, the mean of its criteria rounded to two digits, or why there is none.

    Args:
        reply: the judge's text. Anything else, such as a recorded error, is unscored.
        mode: `published` averages all lines of the form "name: digits", of any number and size; `strict` requires exactly
            one score from 1 to 5 for each of the three criteria, in any Markdown.
    """
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    scores = _published_scores(reply) if mode == "published" else _strict_scores(reply)
    if isinstance(scores, Unscored):
        return scores
    if max(scores) > LARGEST:
        return Unscored("a score is too large")
    return round(mean(scores), 2)


def read_uge(reply: object, mode: Mode = "strict") -> float | Unscored:
    """Return the score of an item of the UGE suite (1 to 5), or why there is none.

    Args:
        mode: `published` parses like `read_basic`, which does not match the two formats in the suite's own README;
            `strict` uses the last "Score: d".
    """
    if mode == "published":
        return read_basic(reply, "published")
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    found = re.findall(r"score\s*(?:\*+\s*)?:\s*(?:\*+\s*)?([0-9]+(?:\.[0-9]+)?)", reply, re.IGNORECASE)
    if not found:
        return Unscored("no line gives a score")
    return _in_range(found[-1])


def table(scores: Mapping[str, float | Unscored], types: Mapping[str, str]) -> Table:
    """Compute means by edit type, rounded to two digits as published, and both definitions of the overall score.

    Args:
        scores: score of each item.
        types: edit type of each item. Items without a type count only in "mean_of_items", as published.

    Returns:
        The table. Its overall "mean_of_types" is the leaderboard's score, "mean_of_items" is Bagel's.
    """
    scored, unscored = split(scores)
    by_type: dict[str, list[float]] = {}
    for name, score in scored.items():
        if name in types:
            by_type.setdefault(OLD_TYPES.get(types[name], types[name]), []).append(score)
    groups = {kind: round(mean(values), 2) for kind, values in by_type.items()}
    overall = {}
    if scored:
        overall = {"mean_of_types": mean(groups.values()), "mean_of_items": round(mean(scored.values()), 2)}
    return Table(groups, {kind: len(values) for kind, values in by_type.items()}, overall, unscored)


def table_uge(scores: Mapping[str, float | Unscored]) -> Table:
    """Compute the mean of all items, rounded to two digits as published."""
    scored, unscored = split(scores)
    overall = {"mean_of_items": round(mean(scored.values()), 2)} if scored else {}
    return Table({}, {"all": len(scored)}, overall, unscored)


def _published_scores(reply: str) -> list[int] | Unscored:
    found = []
    for line in reply.splitlines():
        _, *rest = line.strip().split(": ")
        if len(rest) != 1 or not rest[0].isdigit():
            continue
        try:
            found.append(int(rest[0]))
        except ValueError:  # str.isdigit accepts characters such as "²", which crash the published script
            return Unscored(f"'{rest[0]}' is not a number")
    return found or Unscored("no line gives a score")


def _strict_scores(reply: str) -> list[float] | Unscored:
    found: dict[str, str] = {}
    for line in reply.splitlines():
        # With single spaces: a regular expression would need minutes for a long run of them.
        before, _, after = " ".join(line.split()).partition(":")
        name = before.lstrip("-* ").rstrip("* ").lower()
        match = _STRICT_SCORE.fullmatch(after.lstrip("* "))
        if match is None or not name or "*" in name or name == _REASONING:
            continue
        if name in found:
            return Unscored(f"'{name}' is scored twice")
        found[name] = match[1]
    if len(found) != CRITERIA:
        return Unscored(f"{len(found)} criteria are scored, expected {CRITERIA}")
    scores = [_in_range(text) for text in found.values()]
    wrong = next((score for score in scores if isinstance(score, Unscored)), None)
    return wrong or [score for score in scores if not isinstance(score, Unscored)]


def _in_range(text: str) -> float | Unscored:
    score = float(text)
    return score if LOWEST <= score <= HIGHEST else Unscored(f"the score {text} is outside {LOWEST} to {HIGHEST}")
