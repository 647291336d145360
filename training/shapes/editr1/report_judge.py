"""The part of the report about rewards other than the oracle: does the editor improve, or only please its judge?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ....uniworld_core.errors import counted
from .gain import Gain, paired_gain
from .measure import TaskResult

Pairs = Mapping[str, tuple[Sequence[TaskResult], Sequence[TaskResult]]]
# With fewer wrong or right pictures of a kind, the area under the curve is not shown.
MIN_PICTURES = 5
# A judge with at least this area under the curve can judge a kind.
GOOD_AUC = 0.8


def judge_verdict(pairs: Pairs, name: str, trained: bool) -> str:
    """Return a paragraph that compares the judge's score with the oracle's verdict, on the tasks that have a score.

    Args:
        pairs: {kind: (results before, results after)}.
        name: name of the reward.
        trained: whether the run trains on it.
    """
    scored = {kind: both for kind, both in _scored(pairs, name).items() if both[0]}
    if not scored:
        return f"`{name}` has no score on these tasks."
    score, right, excess = _gain(scored, name), _gain(scored, ""), _excess(scored, name)
    changes = (
        f"On {', '.join(scored)} ({counted(score.count, 'task')}), the score of `{name}` went from {score.before:.1f} to "
        f"{score.after:.1f} %: {_points(score)} points. The fraction that the oracle accepts went from {right.before:.1f} to "
        f"{right.after:.1f} %: {_points(right)} points. The score's change is {_points(excess)} points above that of the oracle."
    )
    return f"{changes} {_verdict(score, right, excess)}" if trained else changes


def judged_kinds(start: Mapping[str, Sequence[TaskResult]], name: str) -> str:
    """Return a table of how well the judge judges each kind, by the pictures of the starting weights that have a score.

    Args:
        start: {kind: results of the starting weights}.
        name: name of the reward.
    """
    lines = ["| kind | tasks | the oracle rejects | AUC | can be judged |", "|---|---|---|---|---|"]
    few: dict[str, list[TaskResult]] = {}
    for kind, results in start.items():
        known = [one for one in results if one.scores.get(name) is not None]
        lines.append(_judged_row(kind, known, name))
        if known and auc(known, name) is None:
            few[kind] = known
    if len(few) > 1:  # which say more together
        lines.append(_judged_row(f"{', '.join(few)} together", [one for some in few.values() for one in some], name))
    return "\n".join(lines)


def _judged_row(title: str, known: Sequence[TaskResult], name: str) -> str:
    wrong, area = sum(not one.right for one in known), auc(known, name)
    if not known:
        verdict = "no: it gives no score"
    elif area is None:
        verdict = f"unknown: too few are {'wrong' if wrong < MIN_PICTURES else 'right'}"
    else:
        verdict = "yes" if area >= GOOD_AUC else "no"
    return f"| {title} | {len(known)} | {wrong} | {'' if area is None else f'{area:.3f}'} | {verdict} |"


def judge_table(pairs: Pairs, name: str) -> str:
    """Return a table by kind: the judge's scores, and how well they separate right from wrong pictures."""
    lines = [
        f"| kind | tasks | `{name}` before | after | difference | oracle accepts before | after | difference | AUC before | AUC "
        "after |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    scored = _scored(pairs, name)
    for kind, both in scored.items():
        if not both[0]:
            lines.append(f"| {kind} | no score | | | | | | | | |")
            continue
        lines.append(f"| {kind} | {_cells({kind: both}, name)} |")
    known = {kind: both for kind, both in scored.items() if both[0]}
    if len(known) > 1:
        lines.append(f"| all | {_cells(known, name)} |")
    return "\n".join(lines)


def auc(results: Sequence[TaskResult], name: str) -> float | None:
    """Return the probability that a right picture has a higher score than a wrong one, ties counting half.

    None if there are fewer than `MIN_PICTURES` of either.
    """
    right, wrong = (
        np.array([one.scores[name] for one in results if one.right is wanted and one.scores.get(name) is not None])
        for wanted in (True, False)
    )
    if min(len(right), len(wrong)) < MIN_PICTURES:
        return None
    higher, equal = right[:, None] > wrong[None], right[:, None] == wrong[None]
    return float(higher.mean() + equal.mean() / 2)


def _cells(pairs: Pairs, name: str) -> str:
    score, right = _gain(pairs, name), _gain(pairs, "")
    cells = [f"{one.before:.1f} % | {one.after:.1f} % | {_points(one)}" for one in (score, right)]
    areas = []
    for side in (0, 1):
        results = [one for both in pairs.values() for one in both[side]]
        area, wrong = auc(results, name), sum(not one.right for one in results)
        areas.append(f"{'' if area is None else f'{area:.3f} '}({wrong} wrong)")
    return " | ".join([str(score.count), *cells, *areas])


def _verdict(score: Gain, right: Gain, excess: Gain) -> str:
    if score.low <= 0:
        return "**The judge is not pleased more than before**: its score did not rise beyond the noise."
    if right.high < 0:
        return (
            "**The editor learned to please the judge, and became worse**: the judge's score rose, the oracle's fell."
        )
    if right.low <= 0 and excess.low > 0:
        return (
            "**The editor learned to please the judge**: the judge's score rose more than the oracle's, for which no gain is "
            "shown."
        )
    if right.low <= 0:
        return (
            "**The judge's score rose, and a gain by the oracle is not shown**: the noise is too large to say whether the "
            "editor only pleases its judge."
        )
    return "**The editor improved, and not only for its judge**: both rose beyond the noise."


def _scored(pairs: Pairs, name: str) -> dict[str, tuple[list[TaskResult], list[TaskResult]]]:
    """Keep the tasks with a score before and after."""
    found = {}
    for kind, (before, after) in pairs.items():
        kept = [
            (one, other)
            for one, other in zip(before, after)
            if one.scores.get(name) is not None and other.scores.get(name) is not None
        ]
        found[kind] = [one for one, _ in kept], [other for _, other in kept]
    return found


def _gain(pairs: Pairs, name: str) -> Gain:
    """Return the gain of a reward's score, or with "" of the oracle's acceptance."""
    before, after = (
        {kind: [_value(one, name) for one in both[side]] for kind, both in pairs.items()} for side in (0, 1)
    )
    return paired_gain(before, after)


def _excess(pairs: Pairs, name: str) -> Gain:
    """Return by how much more a reward's score rose than the oracle's acceptance."""
    before, after = (
        {kind: [_value(one, name) - _value(one, "") for one in both[side]] for kind, both in pairs.items()}
        for side in (0, 1)
    )
    return paired_gain(before, after)


def _value(result: TaskResult, name: str) -> float:
    value = result.scores[name] if name else float(result.right)
    assert value is not None
    return value


def _points(gain: Gain) -> str:
    return f"{gain.points:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"
