"""The tables of a run as text."""

from __future__ import annotations

from collections.abc import Sequence

from ..items import SAME_RESULT, PublishedResult
from ..plan import BenchPlan
from ..score_step import ScoredTable
from ..statistics import Difference

_LARGE = 1e6


def table_text(
    plan: BenchPlan, judge: str | None, tables: Sequence[ScoredTable], beside: Sequence[PublishedResult]
) -> str:
    """Return the table of the chosen mode, with the values of the other mode beside it.

    Args:
        tables: the chosen mode's first.
    """
    table, others = tables[0], tables[1:]
    head = [
        title_line(plan),
        f"judge: {judge or 'none'}" + (f"; scoring: {table.mode}" if others else ""),
        _counts(table),
        *(f"{other.mode}: {_counts(other)}" for other in others if other.counts != table.counts),
    ]
    text = "\n".join(head)
    if table.scores.groups or table.lacking:
        text += "\n\n" + _groups_text(table, others)
    if table.scores.overall:
        text += "\n\n" + _overall_text(table, others)
    notes = [*_overall_notes(table), *(note for one in tables for note in _outside_notes(one))]
    if notes:
        text += ("\n" if table.scores.overall else "\n\n") + "\n".join(notes)
    return text + _beside_text(table, beside)


def _groups_text(table: ScoredTable, others: Sequence[ScoredTable]) -> str:
    """Return the rows of the groups; those of other modes with the number of their results, if it differs."""
    columns = list(
        dict.fromkeys(column for one in (table, *others) for row in one.scores.groups.values() for column in row)
    )
    counted = [other for other in others if other.group_counts != table.group_counts]
    heads = ["", "n", *(f"n {other.mode}" for other in counted)]
    for column in columns:
        heads += [column, "95%", *(f"{column} {other.mode}" for other in others)]
    rows = []
    for group in (*table.scores.groups, *table.lacking):
        cells = [group, *(str(one.group_counts.get(group, 0)) for one in (table, *counted))]
        for column in columns:
            cells += [_number(table.scores.groups.get(group, {}).get(column)), _interval(table, f"{group}/{column}")]
            cells += [_number(other.scores.groups.get(group, {}).get(column)) for other in others]
        rows.append(cells)
    return aligned([heads, *rows])


def _overall_text(table: ScoredTable, others: Sequence[ScoredTable]) -> str:
    rows = [
        [
            name,
            _number(value),
            _interval(table, f"overall/{name}"),
            *(_number(other.scores.overall.get(name)) for other in others),
        ]
        for name, value in table.scores.overall.items()
    ]
    return aligned([["overall", table.mode if others else "", "95%", *(other.mode for other in others)], *rows])


def _overall_notes(table: ScoredTable) -> list[str]:
    """Return why overall scores are partial, or absent."""
    if table.complete:
        return [table.undefined] if table.undefined else []
    missing = ["results are missing"] if table.counts["missing"] or table.counts["open"] else []
    missing += [f"no result of {', '.join(table.lacking)} has a score"] if table.lacking else []
    why = ", and ".join(missing)
    if table.scores.overall:
        return [f"The overall scores are partial: {why}."]
    if not table.counts["scored"] or table.undefined:
        return [f"There is no overall score, because {why}.", *([table.undefined] if table.undefined else [])]
    return [f"There is no overall score, because {why}. Add --partial to compute it without them."]


def _outside_notes(table: ScoredTable) -> list[str]:
    if not table.outside:
        return []
    return [
        f"Warning: {len(table.outside)} {table.mode} values are outside of the benchmark's scale, such as that of item "
        f"{table.outside[0]}. The judge gave them, and the published script counts them."
    ]


def title_line(plan: BenchPlan) -> str:
    """Return the first line of a table: the benchmark and its items."""
    subset = f"{len(plan.items)} of {plan.total} items, chosen at random"
    chosen = subset if len(plan.items) < plan.total else f"all {plan.total} items"
    size = plan.suite.sizes.get(plan.settings["split"], plan.total)
    if size != plan.total:
        chosen += f"; the benchmark has {size:,}"
    shared = sum(SAME_RESULT in item.extra for item in plan.items)
    if shared:
        chosen += f"; {shared} with the same key as a later one, whose picture is judged for both, as published"
    split = f", {plan.settings['split']}" if plan.settings["split"] else ""
    return f"{plan.suite.title}: {chosen}; items: {plan.edition}{split}"


def _counts(table: ScoredTable) -> str:
    return ", ".join(f"{count} {state}" for state, count in table.counts.items())


def _beside_text(table: ScoredTable, beside: Sequence[PublishedResult]) -> str:
    if not beside:
        return ""
    names = list(dict.fromkeys(name for one in beside for name in one.scores))
    rows = [[one.model, *(_number(one.scores.get(name)) for name in names), one.source] for one in beside]
    unscored = table.counts["unscored"]
    left = f" (ours leave out {unscored} unscored results)" if unscored else ""
    title = f"Published results with the same judge, items, judge prompts and settings{left}:"
    return f"\n\n{title}\n" + aligned([["", *names, "source"], *rows])


def difference_text(found: dict[str, Difference], count: int, lacking: Sequence[str], first: str, second: str) -> str:
    """Return the table of the differences between two runs."""
    rows = []
    for name, one in found.items():
        low, high = one.interval or (0.0, 0.0)
        between = "" if one.interval is None else f"{low:+.3f} to {high:+.3f}"
        rows.append([name, f"{one.value:+.3f}", between, "" if low <= 0 <= high else "*"])
    lines = [
        f"A: {first}",
        f"B: {second}",
        f"{count} results are scored in both; A minus B, * where the interval excludes 0.",
    ]
    if lacking:
        lines.append(f"There are no overall differences, because no result of {', '.join(lacking)} is scored in both.")
    return "\n".join(lines) + "\n\n" + aligned([["", "A - B", "95%", ""], *rows])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < _LARGE else f"{value:.3e}"


def _interval(table: ScoredTable, name: str) -> str:
    found = table.intervals.get(name)
    return "" if found is None else " to ".join(f"{one:.2f}" if abs(one) < _LARGE else f"{one:.2e}" for one in found)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns; the first is aligned left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    )
