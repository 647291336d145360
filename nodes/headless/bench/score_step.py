"""Scores of a run: a pure function of the plan, the pictures and the recorded replies, without a network."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from .items import BenchItem, BenchScores, PublishedResult, Suite, Values, hash_prompts
from .judge_step import JudgedResult, JudgeSettings, is_settled, results_to_judge
from .judging.identity import is_published_detector
from .judging.replies import JudgeReply
from .judging.run import answered
from .plan import BenchPlan
from .run_folder import HEADER, VERSION, Digests, Made
from .scoring.outcome import Mode, Unscored
from .statistics import intervals

State = Literal["scored", "unscored", "open", "missing"]


@dataclass(frozen=True)
class ScoredResult:
    """One result of a run.

    Attributes:
        state: "missing" has no picture, "open" is not judged, "unscored" has no readable reply.
        reason: why there are no values.
        replies: the judge's replies by kind of question.
    """

    item: BenchItem
    sample: int
    state: State
    values: Values | None = None
    reason: str = ""
    replies: dict[str, str] | None = None


def score_results(
    plan: BenchPlan,
    made: Made,
    settings: JudgeSettings | None,
    replies: Mapping[str, JudgeReply],
    mode: Mode,
    digest: Digests,
) -> list[ScoredResult]:
    """Return the scores of all results, in the plan's order."""
    judged: dict[tuple[str, int], JudgedResult] = {}
    if settings is not None:
        judged = {(one.item, one.sample): one for one in results_to_judge(plan, made, settings)}
    scored = []
    for item, sample in plan.results:
        place = (item.id, sample)
        if place in made.missing:
            scored.append(ScoredResult(item, sample, "missing", reason=made.missing[place]))
        elif plan.suite.exact:
            scored.append(_measured(plan.suite, item, sample, made.pictures[place]))
        elif place not in judged:
            scored.append(ScoredResult(item, sample, "open", reason="it is not judged"))
        else:
            scored.append(_score(judged[place].suite, item, judged[place], replies, mode, digest))
    return scored


def _measured(suite: Suite, item: BenchItem, sample: int, picture: Path) -> ScoredResult:
    values = suite.measure(item, picture)
    if isinstance(values, Unscored):
        return ScoredResult(item, sample, "unscored", reason=values.reason)
    return ScoredResult(item, sample, "scored", values)


def _score(
    suite: Suite, item: BenchItem, subject: JudgedResult, replies: Mapping[str, JudgeReply], mode: Mode, digest: Digests
) -> ScoredResult:
    answers: dict[str, str] = {}
    texts: dict[str, str] = {}
    while asks := [ask for ask in subject.asks(answers) if ask.kind not in answers]:
        for ask in asks:
            state = answered(
                ask,
                subject.settings.model,
                replies.get,
                digest,
                lambda kind, text: suite.check_for(item, kind, text, mode),
                subject.attempts,
            )
            if state.reply is not None:
                texts[ask.kind] = state.reply.text if state.reply.text is not None else f"({state.reason})"
            if state.reply is None or state.reason is not None:
                # A reply may be readable in the mode in which the results were judged, but not in this one.
                settled = is_settled(subject, replies.get, digest)
                reason = state.reason or (
                    "it was not asked, after an unreadable reply" if settled else "it is not judged"
                )
                reason = f"{ask.kind}: {reason}" if len(asks) > 1 else reason
                return ScoredResult(
                    item, subject.sample, "unscored" if settled else "open", reason=reason, replies=texts
                )
            answers[ask.kind] = str(state.reply.text)
    values = suite.score(item, answers, mode)
    if isinstance(values, Unscored):
        return ScoredResult(item, subject.sample, "unscored", reason=values.reason, replies=texts)
    return ScoredResult(item, subject.sample, "scored", values, replies=texts)


@dataclass(frozen=True)
class ScoredTable:
    """The table of one mode.

    Attributes:
        counts: number of results by state.
        scores: means; "overall" is empty if results are missing.
        intervals: 95% confidence intervals by "group/column" and "overall/name".
        lacking: groups of which no result is scored.
        undefined: why the scored results do not define some overall scores; "" if they do.
        outside: results with a value outside of the benchmark's scale, which the published script counts.
    """

    mode: Mode
    counts: dict[str, int]
    group_counts: dict[str, int]
    scores: BenchScores
    intervals: dict[str, tuple[float, float]]
    lacking: list[str]
    undefined: str
    outside: list[str]

    @property
    def complete(self) -> bool:
        """Whether every result has been made and judged, and every group has a score."""
        return not self.counts["missing"] and not self.counts["open"] and not self.lacking


def make_table(suite: Suite, scored: list[ScoredResult], mode: Mode, partial: bool) -> ScoredTable:
    """Compute the table. Without `partial`, there is no overall score while results are missing or a group has no score."""
    entries = [(one.item, one.values) for one in scored if one.values is not None]
    counts = {state: sum(one.state == state for one in scored) for state in get_args(State)}
    scores = suite.aggregate(entries) if entries else BenchScores({}, {})
    found = intervals(suite, entries)
    planned = suite.rows(list({one.item.id: one.item for one in scored}.values()))
    lacking = [group for group in planned if group not in scores.groups]
    if not partial and (counts["missing"] or counts["open"] or lacking):
        scores = BenchScores(scores.groups, {}, scores.counts)
        found = {name: one for name, one in found.items() if not name.startswith("overall/")}
    group_counts = {
        group: scores.counts.get(group, sum(item.group == group for item, _ in entries)) for group in scores.groups
    }
    undefined = suite.undefined(entries) if entries and not lacking else ""
    return ScoredTable(mode, counts, group_counts, scores, found, lacking, undefined, _outside(suite, scored))


def _outside(suite: Suite, scored: list[ScoredResult]) -> list[str]:
    if suite.scale is None:
        return []
    low, high = suite.scale
    return [
        f"{one.item.result_id(one.sample)} ({value:g})"
        for one in scored
        for value in [next((v for v in (one.values or {}).values() if not low <= v <= high), None)]
        if value is not None
    ]


def comparable(plan: BenchPlan, settings: JudgeSettings | None, table: ScoredTable) -> list[PublishedResult]:
    """Return the published results with the same judge, items, judge prompts and settings."""
    if settings is None or plan.settings["limit"] is not None or settings.temperature is not None or not table.complete:
        return []
    if table.mode != "published" or settings.omitted or hash_prompts(plan.prompts) not in plan.suite.known_prompts:
        return []
    return [
        one for one in plan.suite.published if one.edition == plan.edition and _same_judge(settings.model, one.judge)
    ]


def _same_judge(model: str, published: str) -> bool:
    """Whether a name is the published model's, possibly with a date: "gpt-4.1-2025-04-14", but not "gpt-4.1-mini"."""
    model = model.rpartition("/")[2]  # such as "Qwen/Qwen3.5-35B-A3B"
    rest = model.removeprefix(published)
    return model.startswith(published) and (not rest or rest.replace("-", "").isdigit())


def result_json(
    plan: BenchPlan,
    settings: JudgeSettings | None,
    replies: Sequence[JudgeReply],
    tables: list[ScoredTable],
    scored: dict[Mode, list[ScoredResult]],
    workflow_hash: str | None,
) -> dict[str, Any]:
    """Return the content of result.json; the first table is that of the chosen mode."""
    judge: dict[str, Any] | None = None if settings is None else {
        "model": settings.model,
        "server": settings.server,
        "temperature": None if "temperature" in settings.omitted else settings.temperature,
        "omitted": list(settings.omitted),
        "models": sorted({reply.model for reply in replies if reply.model}),
        "fingerprints": sorted({reply.fingerprint for reply in replies if reply.fingerprint}),
        "replies": len(replies),
        "cut_replies": cut_replies(replies),
        "tokens_in": sum(reply.tokens_in for reply in replies),
        "tokens_out": sum(reply.tokens_out for reply in replies),
        "first": min((reply.time for reply in replies), default=None),
        "last": max((reply.time for reply in replies), default=None),
    }  # fmt: skip
    if judge is not None and settings is not None and plan.suite.by_detector:
        judge["published_weights"] = is_published_detector(settings.model)
    return {
        **about_run(plan, workflow_hash),
        "judge": judge,
        "scoring": tables[0].mode,
        "tables": {table.mode: _table_json(table) for table in tables},
        "comparable": [
            {"model": one.model, "scores": one.scores, "source": one.source}
            for one in comparable(plan, settings, tables[0])
        ],
        "results": _results_json(tables, scored),
        "versions": versions(),
    }


def cut_replies(replies: Iterable[JudgeReply]) -> int:
    """Return the number of replies that ended at the maximum length."""
    return sum(reply.finish == "length" for reply in replies)


def about_run(plan: BenchPlan, workflow_hash: str | None) -> dict[str, Any]:
    """Return the part of result.json about what the run measures."""
    return {
        HEADER: VERSION,
        "benchmark": plan.benchmark,
        "edition": plan.edition,
        "items": {"count": len(plan.items), "total": plan.total, "hash": plan.items_hash, "files": plan.files},
        "settings": plan.settings,
        "workflow": workflow_hash,
    }


def _table_json(table: ScoredTable) -> dict[str, Any]:
    return {
        "counts": table.counts,
        "group_counts": table.group_counts,
        "groups": table.scores.groups,
        "overall": table.scores.overall,
        "intervals": {name: list(one) for name, one in table.intervals.items()},
        "complete": table.complete,
        "lacking": table.lacking,
        "outside_scale": len(table.outside),
    }


def _results_json(tables: list[ScoredTable], scored: dict[Mode, list[ScoredResult]]) -> list[dict[str, Any]]:
    modes = [table.mode for table in tables]
    made = []
    for ones in zip(*(scored[mode] for mode in modes)):
        item = ones[0].item
        one_json: dict[str, Any] = {"id": item.id, "sample": ones[0].sample, "group": item.group, "prompt": item.prompt}
        for mode, one in zip(modes, ones):
            one_json[mode] = {"state": one.state, "values": one.values, "reason": one.reason}
        made.append(one_json)
    return made


def versions() -> dict[str, str]:
    """Return the versions of the programs on which a result depends."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    for name in ("uniworld", "torch", "transformers", "pillow", "openai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
