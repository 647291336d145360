"""UniSandbox: the two replies of its judge, a description and a verdict, to right or wrong.

Source: PKU-YuanGroup/UniSandBox c5f0af8 and 2bc73eb, eval/eval_{math,mapping,knowledge}.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from .outcome import Mode, Table, Unscored, mean, split

Test = Literal["math", "mapping", "knowledge"]
# With this word the first judge says that there is nothing to describe; the item is then wrong without a second question.
_NOTHING = {"math": re.compile("error", re.IGNORECASE), "mapping": re.compile("error", re.IGNORECASE)}
_REJECTED = "Reject"


def description(reply: object, test: Test) -> str | bool | Unscored:
    """What the second judge is shown, False where the item is wrong already, or why the first judge is to be asked again.

    A mapping test shows what stands behind the first "Object:", a knowledge test the first line, a math test all.
    """
    if not isinstance(reply, str) or not reply.strip():
        return Unscored("there is no reply")
    text = reply.strip()
    if test == "knowledge":
        text = text.splitlines()[0].strip()
        return False if text == _REJECTED else text
    if test == "mapping":
        found = re.search(r"Object:(.*)", text, re.IGNORECASE)
        text = found[1].strip() if found else text
    return False if _NOTHING[test].fullmatch(text) else text


def verdict(reply: object, mode: Mode = "strict") -> bool | Unscored:
    """Whether the second judge says yes, or why that cannot be told.

    Args:
        mode: `published` takes the first "Score: YES" or "Score: NO", even as the beginning of another word; `strict` wants
            one verdict as a whole word, in any brackets or Markdown, and no other beside it.
    """
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    if mode == "published":
        found = re.search(r"Score:\s*(YES|NO)", reply, re.IGNORECASE)
        return Unscored("no line gives a score") if found is None else found[1].upper() == "YES"
    words = re.findall(r"score\W*:\W*([a-z]+(?: [a-z]+)?)", reply, re.IGNORECASE)
    verdicts = {word.split()[0].upper() for word in words}
    if verdicts not in ({"YES"}, {"NO"}):
        return Unscored(f"expected one score of YES or NO, and got {', '.join(sorted(verdicts)) or 'none'}")
    return verdicts == {"YES"}


def table(verdicts: Mapping[str, bool | Unscored], groups: Mapping[str, str]) -> Table:
    """Accuracy by group and over all items.

    Args:
        verdicts: of each item. A mapping item's is `both` of its two; a missing picture's is False, as published.
        groups: the file that each item is of.
    """
    scored, unscored = split(verdicts)
    by_group: dict[str, list[float]] = {}
    for name, right in scored.items():
        by_group.setdefault(groups[name], []).append(float(right))
    overall = {"accuracy": mean(float(right) for right in scored.values())} if scored else {}
    means = {name: mean(values) for name, values in by_group.items()}
    return Table(means, {name: len(values) for name, values in by_group.items()}, overall, unscored)


def both(first: bool | Unscored | None, second: bool | Unscored | None) -> bool | Unscored:
    """A mapping item is right when both of its pictures are; None stands for a missing picture, which is wrong."""
    if first is False or second is False or first is None or second is None:
        return False
    return next((one for one in (first, second) if isinstance(one, Unscored)), True)
