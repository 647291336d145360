"""The judge's step of a run: who judges, what is asked about each result, and the progress."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ....streams import progress_bar, say
from ....uniworld_core.errors import RunFailed, UniWorldError
from .items import BenchItem, Suite
from .judging.ask import Ask
from .judging.client import Judge
from .judging.cost import Spending, estimate
from .judging.replies import JudgeReply, Replies
from .judging.run import DETECTOR, LOCAL, MAX_REPEATS, JudgeLimits, JudgeProgress, Judging, answered
from .judging.vqa import VQA
from .plan import BenchPlan
from .run_folder import Digests, Made, RunFolder, read_json_file
from .scoring.outcome import MODES, Mode, Unscored


@dataclass(frozen=True)
class JudgeSettings:
    """Settings on which the replies depend.

    Attributes:
        temperature: replaces the published one; None keeps it.
        omitted: names of parameters that the server rejected, so that replies came without them.
    """

    model: str
    server: str
    temperature: float | None
    scoring: Mode
    omitted: tuple[str, ...] = ()

    @property
    def attempts(self) -> int:
        """Number of times that a question is asked at most, until its reply can be read."""
        return 1 if self.server in (DETECTOR, LOCAL) else MAX_REPEATS + 1


def read_judge(run: RunFolder) -> JudgeSettings | None:
    """Return the judge of a run; None if nothing has been judged."""
    if not run.judge.is_file():
        return None
    content = read_json_file(run.judge, "")
    try:
        settings = JudgeSettings(**content)
        settings = replace(settings, omitted=tuple(settings.omitted))
        texts = (settings.model, settings.server, *settings.omitted)
        has_texts = all(isinstance(one, str) for one in texts) and settings.scoring in MODES
        if not has_texts or type(settings.temperature) not in (int, float, type(None)):
            raise TypeError("an entry has another type")
        return settings
    except TypeError as error:
        raise UniWorldError(
            f"'{run.judge}' is damaged. Remove it and judge again; recorded replies are kept."
        ) from error


def _earlier_settings(run: RunFolder, settings: JudgeSettings, replies: Replies) -> JudgeSettings | None:
    """Return the settings of the recorded replies; None if there are none.

    Raises:
        UniWorldError: the run was judged by another judge.
    """
    old = read_judge(run) if replies.all() else None
    if old is not None:
        for what, one, other in (
            ("with --judge-model", old.model, settings.model),
            ("with --temperature", old.temperature, settings.temperature),
        ):
            if one != other:
                was, now = ("without --temperature" if value is None else f"{what} {value}" for value in (one, other))
                raise UniWorldError(
                    f"'{run.folder}' was judged {was}, not {now}. Choose another --out, with --pictures "
                    f"'{run.pictures}' for the same pictures."
                )
    return old


def _record(run: RunFolder, settings: JudgeSettings) -> None:
    try:
        run.write_json(run.judge, asdict(settings))
    except UniWorldError as error:
        raise RunFailed(str(error)) from error


@dataclass(frozen=True)
class JudgedResult:
    """One result of a run as a `Subject` of the judge."""

    suite: Suite
    plan_item: BenchItem
    sample: int
    path: Path
    prompts: Mapping[str, str]
    settings: JudgeSettings

    @property
    def item(self) -> str:
        return self.plan_item.id

    @property
    def attempts(self) -> int:
        """See `Subject.attempts`."""
        return self.settings.attempts

    def asks(self, answered: Mapping[str, str]) -> list[Ask]:
        """See `Subject.asks`."""
        asks = self.suite.asks(self.plan_item, self.path, self.prompts, answered)
        if self.settings.temperature is None:
            return asks
        return [replace(ask, temperature=self.settings.temperature) for ask in asks]

    def check(self, kind: str, reply: str) -> Unscored | None:
        """See `Subject.check`."""
        return self.suite.check_for(self.plan_item, kind, reply, self.settings.scoring)


def results_to_judge(plan: BenchPlan, made: Made, settings: JudgeSettings) -> list[JudgedResult]:
    """Return the results that have a picture, in the plan's order."""
    suite = plan.suite.vqa if settings.server == VQA and plan.suite.vqa is not None else plan.suite
    return [
        JudgedResult(suite, item, sample, made.pictures[item.id, sample], plan.prompts, settings)
        for item, sample in plan.results
        if (item.id, sample) in made.pictures
    ]


@dataclass(frozen=True)
class JudgeOutcome:
    """What a judge's step did. `failed` has the reasons of results without a reply."""

    asked: int
    failed: dict[str, str]
    cost: float | None


def judge_run(
    run: RunFolder,
    plan: BenchPlan,
    made: Made,
    open_judge: Callable[[], Judge],
    settings: JudgeSettings,
    limits: JudgeLimits,
    digest: Digests,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> JudgeOutcome:
    """Ask the judge about every result without a recorded reply.

    Args:
        open_judge: connects to the judge; called only if there is something to ask.
        on_progress: receives the counts after each reply; None shows a progress bar.

    Raises:
        RunFailed: the judge cannot be used, the budget is spent, or the user stopped the run.
    """
    with Replies(run.replies) as replies:
        earlier = _earlier_settings(run, settings, replies)
        omitted = () if earlier is None else earlier.omitted
        subjects = results_to_judge(plan, made, settings)
        asks = [ask for one in _sample(subjects) for ask in one.asks({})]
        first: list[Any] = [one for one in subjects if not is_settled(one, replies.get, digest)]
        if subjects and (not first or (earlier is None and len(first) < len(subjects))):
            # Such as for another mode of scoring, or after the file was removed. The server was not asked.
            server = settings.server if earlier is None else earlier.server
            _record(run, replace(settings, server=server, omitted=omitted))
        if not first:
            cost = None if limits.price is None else Spending(limits.price, replies.all()).total
            return JudgeOutcome(0, {}, cost)
        if plan.suite.by_detector or settings.server == VQA:
            say(f"{len(first)} pictures to examine; {len(subjects) - len(first)} of {len(subjects)} are done already.")
        else:
            _announce(first, len(subjects), asks, limits)
        judge = open_judge()
        said = _say_notes(judge, 0)  # such as that the key is not encrypted, before it is sent
        judge.omitted.extend(omitted)
        bar = _JudgeBar(len(subjects), len(subjects) - len(first), on_progress)

        def record() -> None:
            # Not earlier: a wrong option must not fix the judge of a run without replies.
            _record(run, replace(settings, omitted=tuple(judge.omitted)))

        judging = Judging(judge, replies, limits, digest, bar.update, record)
        try:
            asyncio.run(judging.run(first))
        finally:
            bar.close()
            _say_notes(judge, said)
        return JudgeOutcome(judging.progress.asked, judging.progress.failed, judging.cost)


def _say_notes(judge: Judge, said: int) -> int:
    """Print the judge's notes except for the first ones, which have been printed, and return the number of all."""
    for note in judge.notes[said:]:
        say(f"note: {note}")
    return len(judge.notes)


def _sample(subjects: Sequence[JudgedResult], count: int = 20) -> list[JudgedResult]:
    return random.Random(0).sample(list(subjects), min(count, len(subjects)))


def is_settled(subject: JudgedResult, find: Callable[[str], JudgeReply | None], digest: Digests) -> bool:
    """Whether nothing is left to ask about a result: its replies can be read, or one was unreadable too often."""
    known: dict[str, str] = {}
    while asks := [ask for ask in subject.asks(known) if ask.kind not in known]:
        states = [answered(ask, subject.settings.model, find, digest, subject.check, subject.attempts) for ask in asks]
        if any(state.next_attempt is not None for state in states):
            return False
        if any(state.reason is not None for state in states):
            return True
        known.update({ask.kind: str(state.reply and state.reply.text) for ask, state in zip(asks, states)})
    return True


def _announce(first: Sequence[Any], total: int, asks: Sequence[Ask], limits: JudgeLimits) -> None:
    per_result = len(asks) / min(20, total)
    tokens_in, tokens_out = estimate(asks)
    calls = round(len(first) * per_result)
    text = f"{calls} requests to the judge, of about {tokens_in:.0f} tokens each"
    if limits.price is not None:
        text += f"; estimated cost: {calls * limits.price.of(tokens_in, tokens_out):.2f}"
    say(f"{text}. {total - len(first)} of {total} pictures are judged already.")


class _JudgeBar:
    """A progress bar with the cost, or one event per update."""

    def __init__(self, total: int, done: int, on_progress: Callable[[dict[str, Any]], None] | None) -> None:
        self._total, self._done, self._on_progress = total, done, on_progress
        self._start, self._bar = time.monotonic(), None
        if on_progress is None:
            self._bar = progress_bar(total=total, initial=done, unit="picture", file=sys.stderr, dynamic_ncols=True)

    def update(self, progress: JudgeProgress, cost: float | None) -> None:
        done = self._done + progress.finished
        if self._bar is not None:
            parts = [f"{progress.asked} replies"]
            parts += [f"{len(progress.failed)} failed"] if progress.failed else []
            parts += [f"cost {cost:.2f}"] if cost is not None else []
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._on_progress is not None:
            seconds = time.monotonic() - self._start
            left = seconds / progress.finished * (self._total - done) if progress.finished else None
            content = {"done": done, "total": self._total, "asked": progress.asked, "failed": len(progress.failed)}
            self._on_progress({**content, "cost": cost, "seconds_left": left and round(left, 1)})

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
