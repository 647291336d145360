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
        mode: `published` accepts any number of scores of any size, as the published script does; `strict` requires two
            from 0 to 10. Replies for which that script guesses, retries forever or fails are unscored in both modes.
    """
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    scores = find_scores(reply)
    if scores is None:
        return Unscored("the reply contains no scores")
    unread = Unscored(f"the scores are {str(scores)[:80]}, expected numbers")
    if not scores or not all(isinstance(score, (int, float)) for score in scores):
        return unread
    lowest = min(scores)  # true and false are numbers for the published script, and it compares with infinity and NaN
    if not abs(lowest) <= LARGEST:
        return unread
    if mode == "strict":
        if any(isinstance(score, bool) for score in scores):
            return unread
        if len(scores) != _SCORES or not all(0 <= score <= _HIGHEST for score in scores):
            return Unscored(f"the scores are {str(scores)[:80]}, expected two from 0 to {_HIGHEST}")
    return float(lowest)


def combined(consistency: float, quality: float) -> Scores | Unscored:
    """Return the scores of one edit. If just one of them is below 0, there is no overall score, and the published script
    fails.
    """
    if consistency * quality < 0:
        return Unscored(f"the scores are {consistency:g} and {quality:g}, expected none below 0")
    return Scores(consistency, quality)


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
        return _parsed(
            pair
        )  # None for digits that JSON does not allow, such as "07", where the published script crashes
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
        found = _of_repaired(text)
    if found is None:
        return None
    return found["score"] if isinstance(found["score"], list) else [found["score"]]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_repaired(text: str) -> dict[str, Any] | None:
    """Parse an object whose words lack quotes, such as `{score: 7, reasoning: fine}`, with the published script's repair.

    That quotes every word before a colon. Then it rewrites what is between each quoted key and the next comma or brace: a
    number becomes a list, and everything but booleans and null is quoted. Lists, and texts with a comma, do not survive it.
    """
    text = re.sub(r"\b\w+(?=:)", r'"\g<0>"', text)
    pieces = []
    place = 0
    while (start := text.find('"', place)) >= 0 and (end := text.find('":', start + 1)) >= 0:
        closing = re.compile("[,}]").search(text, end + 2)
        if closing is None:
            break
        value = text[end + 2 : closing.start()].strip()
        if re.fullmatch(r"-?\d+(\.\d+)?", value):
            value = f"[{value}]"
        elif value.lower() not in ("true", "false", "null"):
            value = f'"{value}"'
        pieces.append(f"{text[place : end + 1]}: {value}{closing[0]}")
        place = closing.end()
    found = _parsed("".join(pieces) + text[place:])
    # Of a repaired object, the script does not put a single value into a list, and fails.
    return found if isinstance(found, dict) and isinstance(found.get("score"), list) else None


def means(
    rows: Sequence[ScoredEdit], language: str, intersection: bool = False, groups: Sequence[str] = GROUPS
) -> dict[str, dict[str, float]]:
    """Return {"SC", "PQ", "O": {group: mean, "average": unweighted mean of the groups}} for one language.

    Args:
        intersection: use only the rows that all published models completed.
        groups: the groups of the table. A group without rows is omitted, and "average" with it, where the published script
            returns NaN.
    """
    kept = [row for row in rows if row.language == language and (row.intersection or not intersection)]
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
