"""The tables of a run as text."""

from __future__ import annotations

from collections.abc import Sequence

from .items import PublishedResult
from .plan import BenchPlan
from .score_step import ScoredTable
from .statistics import Difference


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
    columns = list(dict.fromkeys(column for row in table.scores.groups.values() for column in row))
    heads = ["", "n"]
    for column in columns:
        heads += [column, "95%", *(f"{column} {other.mode}" for other in others)]
    rows = []
    for group, row in table.scores.groups.items():
        cells = [group, str(table.group_counts.get(group, 0))]
        for column in columns:
            cells += [_number(row.get(column)), _interval(table, f"{group}/{column}")]
            cells += [_number(other.scores.groups.get(group, {}).get(column)) for other in others]
        rows.append(cells)
    text = "\n".join(head)
    if rows:
        text += "\n\n" + aligned([heads, *rows])
    if table.scores.overall:
        overall = [
            [
                name,
                _number(value),
                _interval(table, f"overall/{name}"),
                *(_number(other.scores.overall.get(name)) for other in others),
            ]
            for name, value in table.scores.overall.items()
        ]
        text += "\n\n" + aligned(
            [["overall", table.mode if others else "", "95%", *(other.mode for other in others)], *overall]
        )
        if not table.complete:
            text += "\nThe overall scores are partial: results are missing."
    elif not table.complete:
        text += "\n\nThere is no overall score, because results are missing. Add --partial to compute it without them."
    return text + _beside_text(table, beside)


def title_line(plan: BenchPlan) -> str:
    """Return the first line of a table: the benchmark and its items."""
    subset = f"{len(plan.items)} of {plan.total} items, chosen at random"
    chosen = subset if len(plan.items) < plan.total else f"all {plan.total} items"
    size = plan.suite.sizes.get(plan.settings["split"], plan.total)
    if size != plan.total:
        chosen += f"; the benchmark has {size:,}"
    split = f", {plan.settings['split']}" if plan.settings["split"] else ""
    return f"{plan.suite.title}: {chosen}; items: {plan.edition}{split}"


def _counts(table: ScoredTable) -> str:
    return ", ".join(f"{count} {state}" for state, count in table.counts.items())


def _beside_text(table: ScoredTable, beside: Sequence[PublishedResult]) -> str:
    if not beside:
        return ""
    names = list(dict.fromkeys(name for one in beside for name in one.scores))
    rows = [[one.model, *(_number(one.scores.get(name)) for name in names), one.source] for one in beside]
    return "\n\nPublished results with the same judge, items and settings:\n" + aligned([["", *names, "source"], *rows])


def difference_text(found: dict[str, Difference], count: int, first: str, second: str) -> str:
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
    return "\n".join(lines) + "\n\n" + aligned([["", "A - B", "95%", ""], *rows])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(table: ScoredTable, name: str) -> str:
    found = table.intervals.get(name)
    return "" if found is None else f"{found[0]:.2f} to {found[1]:.2f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns; the first is aligned left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    )
