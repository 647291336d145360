"""UniSandbox: from the judge's two replies, a description and a verdict, to correct or wrong.

Source: PKU-YuanGroup/UniSandBox c5f0af8 and 2bc73eb, eval/eval_{math,mapping,knowledge}.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from .outcome import Mode, Table, Unscored, mean, split

Test = Literal["math", "mapping", "knowledge"]
# The first judge's reply if there is nothing to describe. The item is then wrong, without asking the second judge.
_NOTHING = {"math": re.compile("error", re.IGNORECASE), "mapping": re.compile("error", re.IGNORECASE)}
_REJECTED = "Reject"


def description(reply: object, test: Test) -> str | bool | Unscored:
    """Return the text for the second judge, False if the item is already wrong, or why the first judge must be asked again.

    A mapping test uses the text after the first "Object:", a knowledge test the first line, a math test everything.
    """
    if not isinstance(reply, str) or not reply.strip():
        return Unscored("there is no reply")
    text = reply.strip()
    if test == "knowledge":
        text = text.splitlines()[0].strip()
        return False if text == _REJECTED else text
    if test == "mapping":
        found = re.search(r"Object:\s*(.+)", text)
        text = found[1].strip() if found else text
    return False if _NOTHING[test].fullmatch(text) else text


def verdict(reply: object, mode: Mode = "strict") -> bool | Unscored:
    """Return whether the second judge says yes, or why there is no verdict.

    Args:
        mode: `published` uses the first "Score: YES" or "Score: NO", even as a prefix of another word; `strict` requires
            exactly one verdict as a complete word, in any brackets or Markdown.
    """
    if not isinstance(reply, str):
        return Unscored("there is no reply")
    if mode == "published":
        found = re.search(r"Score:\s*(YES|NO)", reply, re.IGNORECASE)
        return Unscored("no line gives a score") if found is None else found[1].upper() == "YES"
    pairs = re.findall(r"score(?=(\W+)([a-z]+(?: [a-z]+)?))", reply, re.IGNORECASE)
    words = [word for between, word in pairs if ":" in between]
    verdicts = {word.split()[0].upper() for word in words}
    if verdicts not in ({"YES"}, {"NO"}):
        return Unscored(f"expected one score of YES or NO, and got {', '.join(sorted(verdicts)) or 'none'}")
    return verdicts == {"YES"}


def table(verdicts: Mapping[str, bool | Unscored], groups: Mapping[str, str]) -> Table:
    """Compute accuracy by group and over all items.

    Args:
        verdicts: verdict of each item. For a mapping item, `both` of its two; for a missing picture False, as published.
        groups: the file that each item belongs to.
    """
    scored, unscored = split(verdicts)
    by_group: dict[str, list[float]] = {}
    for name, right in scored.items():
        by_group.setdefault(groups[name], []).append(float(right))
    overall = {"accuracy": mean(float(right) for right in scored.values())} if scored else {}
    means = {name: mean(values) for name, values in by_group.items()}
    return Table(means, {name: len(values) for name, values in by_group.items()}, overall, unscored)


def both(first: bool | Unscored | None, second: bool | Unscored | None) -> bool | Unscored:
    """Combine the verdicts of a mapping item's two pictures: both must be correct. None is a missing picture, so wrong."""
    if first is False or second is False or first is None or second is None:
        return False
    return next((one for one in (first, second) if isinstance(one, Unscored)), True)
