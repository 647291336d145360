"""GEdit-Bench: from VIEScore's replies to scores, and from scores to the table.

Source: stepfun-ai/Step1X-Edit 570eba6, GEdit-Bench/viescore/{utils,__init__}.py and calculate_statistics.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .outcome import LARGEST, Mode, Unscored, mean

GROUPS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
_DELIMITER = "||V^=^V||"
_HIGHEST = 10
# Each of the two prompts asks for two scores: success and overediting; naturalness and artifacts.
_SCORES = 2


@dataclass(frozen=True)
class Scores:
    """Semantic consistency, perceptual quality and the overall score of one edit, 0 to 10."""

    consistency: float
    quality: float

    @property
    def overall(self) -> float:
        return math.sqrt(self.consistency * self.quality)


@dataclass(frozen=True)
class ScoredEdit:
    """One scored edit.

    Attributes:
        language: "en" or "cn", as in the data.
        intersection: whether the item is in the set that all published models completed.
    """

    group: str
    language: str
    intersection: bool
    scores: Scores


def read(reply: object, mode: Mode = "strict") -> float | Unscored:
    """Return the smallest of a reply's scores, or why there is none.

    Args:
        mode: `published` accepts any number of scores of any size, if the published script does; `strict` requires two
            from 0 to 10. Replies for which that script guesses, retries forever or fails are unscored in both modes.
    """
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    scores = find_scores(reply)
    if scores is None:
        return Unscored("the reply contains no scores")
    if not scores or not all(isinstance(score, (int, float)) and not isinstance(score, bool) for score in scores):
        return Unscored(f"the scores are {str(scores)[:80]}, expected numbers")
    if not all(abs(score) <= LARGEST for score in scores):  # nor NaN
        return Unscored(f"the scores are {str(scores)[:80]}, expected numbers")
    lowest = min(scores)
    if lowest < 0:
        return Unscored(f"the score {lowest} is below 0")
    if mode == "strict" and (len(scores) != _SCORES or max(scores) > _HIGHEST):
        return Unscored(f"the scores are {scores}, expected two from 0 to {_HIGHEST}")
    return float(lowest)


def find_scores(reply: str) -> list[Any] | None:
    """Return the scores of a reply, of whatever type; None where the published script finds none.

    Parsed is the text between two delimiters, else between the outermost braces, else a reply that consists of a pair of
    integers in brackets or of one integer from 0 to 10.
    """
    if reply.count(_DELIMITER) == 2:
        return _of_object(reply.split(_DELIMITER)[1])
    first, last = reply.find("{"), reply.rfind("}")
    if first >= 0 and last >= 0:
        return _of_object(reply[first : last + 1])
    pair = reply[reply.find("[") : reply.rfind("]") + 1]
    if "[" in reply and re.fullmatch(r"\[\d+, ?\d+\]", pair):
        return list(_parsed(pair))
    return _bare_number(reply)


def _bare_number(reply: str) -> list[Any] | None:
    try:
        number = int(reply)
    except ValueError:
        return None
    return [number] if 0 <= number <= _HIGHEST else None


def _of_object(text: str) -> list[Any] | None:
    text = text.strip().replace("\n", "")
    found = _parsed(text)
    if not isinstance(found, dict) or "score" not in found:
        found = _of_bare_words(text)
    if found is None or "score" not in found:
        return None
    return found["score"] if isinstance(found["score"], list) else [found["score"]]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_bare_words(text: str) -> dict[str, Any] | None:
    """Parse an object without quotes, which the published script repairs: `{score: 7, reasoning: fine}`."""
    pairs = re.fullmatch(r"\{(.*)\}", text)
    found: dict[str, Any] = {}
    for pair in pairs[1].split(",") if pairs else [""]:
        match = re.fullmatch(r"\s*(\w+):\s*([^\"'\[\]{}:]*?)\s*", pair)
        if match is None:
            return None
        is_number = re.fullmatch(r"-?\d+(\.\d+)?", match[2])
        found[match[1]] = [float(match[2]) if "." in match[2] else int(match[2])] if is_number else match[2]
    return found


def means(rows: Sequence[ScoredEdit], language: str, intersection: bool = False) -> dict[str, dict[str, float]]:
    """Return {"SC", "PQ", "O": {group: mean, "average": unweighted mean of the groups}} for one language.

    Args:
        intersection: use only the rows that all published models completed. A group without such rows is omitted, and
            "average" with it, where the published script returns NaN.
    """
    kept = [row for row in rows if row.language == language and (row.intersection or not intersection)]
    groups = list(dict.fromkeys(row.group for row in rows))
    found: dict[str, dict[str, float]] = {"SC": {}, "PQ": {}, "O": {}}
    for group in groups:
        scores = [row.scores for row in kept if row.group == group]
        if scores:
            found["SC"][group] = mean(one.consistency for one in scores)
            found["PQ"][group] = mean(one.quality for one in scores)
            found["O"][group] = mean(one.overall for one in scores)
    if groups and len(found["SC"]) == len(groups):
        for values in found.values():
            values["average"] = mean(list(values.values()))
    return found
