"""Ask the judge all open questions of a run: in parallel, with waits at rate limits, and within a budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .....signals import at_signals
from .....streams import say
from .....uniworld_core.errors import RunFailed, UniWorldError
from ..scoring.outcome import Unscored
from .ask import Ask
from .client import KEY_VARIABLE, Judge, JudgeBusy, JudgeDenied, JudgeDown, JudgeRejected
from .cost import Price, Spending
from .replies import JudgeReply, Replies

# An unreadable reply is asked for again at most this many times.
MAX_REPEATS = 2
# Judges in this process, as the settings of a run name them. Asked again, they would give the same reply.
DETECTOR, LOCAL = "detector", "local:"
_MAX_WAIT = 60.0
# The shortest wait at a rate limit, whatever the server asks for.
_MIN_WAIT = 0.05


class Subject(Protocol):
    """One result to judge. `item` and `sample` name it.

    Attributes:
        attempts: number of times that a question is asked at most, until its reply can be read.
    """

    item: str
    sample: int

    @property
    def attempts(self) -> int: ...

    def asks(self, answered: Mapping[str, str]) -> list[Ask]:
        """Return the questions that can be asked, given the answers to earlier ones."""

    def check(self, kind: str, reply: str) -> Unscored | None:
        """Return why a reply cannot be read; None if it can."""


@dataclass(frozen=True)
class JudgeLimits:
    """Limits of a run.

    Attributes:
        parallel: number of requests at a time.
        tries: number of times that a request is sent before it counts as failed; rate limits do not count.
        wait: seconds before the second try; doubled for each further one.
        patience: seconds at rate limits without a single reply after which the run stops.
        price: price of tokens, if known.
        max_cost: upper limit of the cost, in the currency of `price`; needs one.
        max_failures: failures in a row after which the judge is considered out of order.
    """

    parallel: int = 4
    tries: int = 5
    wait: float = 2.0
    patience: float = 1800.0
    price: Price | None = None
    max_cost: float | None = None
    max_failures: int = 10


@dataclass
class JudgeProgress:
    """What happened so far. `failed` has the reason by result."""

    asked: int = 0
    reused: int = 0
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """The state of one question in the recorded replies.

    Attributes:
        reply: the first readable reply, else the last; None if there is none.
        reason: why it cannot be read; None if it can.
        next_attempt: number of the attempt to ask now; None if the question is settled.
    """

    reply: JudgeReply | None
    reason: str | None
    next_attempt: int | None


def answered(
    ask: Ask,
    model: str,
    find: Callable[[str], JudgeReply | None],
    digest: Callable[[Path], str],
    check: Callable[[str, str], Unscored | None],
    attempts: int,
) -> Answered:
    """Find the reply to a question among the recorded ones, trying its attempts in order."""
    reply, reason = None, None
    for attempt in range(attempts):
        found = find(ask.key(model, attempt, digest))
        if found is None:
            return Answered(reply, reason, attempt)
        reply = found
        if found.text is None:
            return Answered(found, f"the judge refused: {found.refused}", None)
        unread = check(ask.kind, found.text)
        if unread is None:
            return Answered(found, None, None)
        reason = unread.reason
    return Answered(reply, reason, None)


class Judging:
    """Judges results.

    Args:
        digest: returns the hash of a file.
        update: called after every reply and every finished result.
        on_settings: called before the first reply is recorded, and before the first one for which the judge omitted a
            parameter.
    """

    def __init__(
        self,
        judge: Judge,
        replies: Replies,
        limits: JudgeLimits,
        digest: Callable[[Path], str],
        update: Callable[[JudgeProgress, float | None], None],
        on_settings: Callable[[], None],
    ) -> None:
        self._judge, self._replies, self._limits, self._digest = judge, replies, limits, digest
        self._update, self._on_settings = update, on_settings
        self._omitted = 0
        self._resume_at = 0.0
        self._last_reply = time.monotonic()
        self._failures = 0
        self._running = 0
        self._spending = None if limits.price is None else Spending(limits.price, replies.all(), limits.max_cost)
        # Requests under way by key: results with the same picture, source and question share a reply.
        self._under_way: dict[str, asyncio.Event] = {}
        self._stopping = False
        self._error: BaseException | None = None
        self.progress = JudgeProgress()

    @property
    def cost(self) -> float | None:
        """The cost of all recorded replies; None without a price."""
        return None if self._spending is None else self._spending.total

    async def run(self, subjects: list[Subject]) -> None:
        """Judge all results.

        Ctrl-C, SIGTERM and errors finish the requests under way, whose replies are paid for. A second signal stops at once.

        Raises:
            RunFailed: the judge cannot be used, the budget is spent, or the user stopped the run.
        """
        waiting = iter(subjects)
        with at_signals(self._interrupt):
            workers = [
                asyncio.create_task(self._work(waiting)) for _ in range(min(self._limits.parallel, len(subjects)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                await self._judge.close()
        if self._error is not None:
            raise self._error

    def _interrupt(self) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stop(RunFailed("Interrupted. Run the same command again to continue; recorded replies are kept."))
        say("Finishing the requests under way. Press Ctrl-C again to stop at once.")

    def _stop(self, error: BaseException) -> None:
        self._stopping, self._error = True, self._error or error

    async def _work(self, waiting: Iterator[Subject]) -> None:
        for subject in waiting:
            if self._stopping:
                return
            try:
                await self._judge_one(subject)
            except RunFailed as error:
                self._stop(error)
                return
            except JudgeDenied as error:
                if not self._replies.all():  # nothing shows that any request is allowed
                    self._stop(
                        RunFailed(
                            f"No reply is recorded, and {error}. Check the key in {KEY_VARIABLE} and its permissions, and "
                            "whether the server allows your region."
                        )
                    )
                    return
                self._count_failure(subject, str(error))
            except (JudgeDown, JudgeRejected) as error:
                self._count_failure(subject, str(error))
            except UniWorldError as error:  # such as a picture that cannot be read: not the judge's failure
                self._fail(subject, str(error))
            except Exception as error:  # raised again when the other workers have recorded their replies
                self._stop(error)
                return
            self.progress.finished += 1
            self._update(self.progress, self.cost)

    def _fail(self, subject: Subject, reason: str) -> None:
        self.progress.failed[f"{subject.item}/{subject.sample}"] = reason

    def _count_failure(self, subject: Subject, reason: str) -> None:
        self._fail(subject, reason)
        self._failures += 1
        if self._failures >= self._limits.max_failures:
            self._stop(
                RunFailed(
                    f"The judge failed {self._failures} times in a row, last: {reason}. Run the same command again when "
                    "it works; recorded replies are kept."
                )
            )

    async def _judge_one(self, subject: Subject) -> None:
        answers: dict[str, str] = {}
        while True:
            asks = [ask for ask in subject.asks(answers) if ask.kind not in answers]
            if not asks:
                return
            texts = {ask.kind: await self._settle(subject, ask) for ask in asks}
            answers.update({kind: text for kind, text in texts.items() if text is not None})
            if None in texts.values():
                return  # unscored whatever the answers to later questions would be

    async def _settle(self, subject: Subject, ask: Ask) -> str | None:
        """Ask until there is a readable reply, and return it; None if there is none."""
        first = True
        while True:
            state = answered(ask, self._judge.model, self._replies.get, self._digest, subject.check, subject.attempts)
            if state.next_attempt is None:
                self.progress.reused += first
                return state.reply.text if state.reply is not None and state.reason is None else None
            if self._stopping:
                return None
            key = ask.key(self._judge.model, state.next_attempt, self._digest)
            if key in self._under_way:
                await self._under_way[key].wait()
                continue
            if await self._waited_for_budget(ask):
                continue
            first = False
            self._under_way[key] = done = asyncio.Event()
            try:
                await self._ask(ask, JudgeReply(key, subject.item, subject.sample, ask.kind, state.next_attempt, None))
            finally:
                del self._under_way[key]
                done.set()

    async def _ask(self, ask: Ask, about: JudgeReply) -> None:
        """Send a request and record its reply."""
        self._running += 1
        try:
            reply = await self._send(ask, about)
        finally:
            self._running -= 1
        if not self.progress.asked or len(self._judge.omitted) > self._omitted:
            self._omitted = len(self._judge.omitted)
            self._on_settings()
        self._replies.add(reply)
        if self._spending is not None:
            self._spending.add(reply)
        self._failures, self._last_reply = 0, time.monotonic()
        self.progress.asked += 1
        self._update(self.progress, self.cost)

    async def _send(self, ask: Ask, about: JudgeReply) -> JudgeReply:
        """Send a request until there is a reply, or until it failed too often."""
        wait, tries = self._limits.wait, 0
        while True:
            await self._wait_for_rate_limit()
            try:
                return await self._judge.reply(ask, about)
            except JudgeBusy as busy:
                seconds = min(wait, _MAX_WAIT) if busy.wait is None else max(busy.wait, _MIN_WAIT)
                # A server may ask for a wait that is longer than the user's patience.
                if max(time.monotonic() - self._last_reply, seconds - _MIN_WAIT) > self._limits.patience:
                    raise RunFailed(
                        f"The judge limits the rate, and no reply came within --patience {self._limits.patience:g} seconds; "
                        f"the next request may be sent in {seconds:.0f} seconds. Run the same command again later; "
                        "recorded replies are kept."
                    ) from busy
                self._resume_at = max(self._resume_at, time.monotonic() + seconds)
                wait *= 2
            except JudgeDown:
                tries += 1
                if tries >= self._limits.tries or self._stopping:
                    raise
                await self._sleep(min(wait, _MAX_WAIT))
                wait *= 2

    async def _wait_for_rate_limit(self) -> None:
        while (left := self._resume_at - time.monotonic()) > 0:
            await self._sleep(min(left, _MAX_WAIT))

    async def _sleep(self, seconds: float) -> None:
        """Sleep. Raises the reason if the run is stopped meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stopping:
                raise self._error or RunFailed("The run was stopped.")
            await asyncio.sleep(min(left, 0.2))

    async def _waited_for_budget(self, ask: Ask) -> bool:
        """Wait while the requests under way could use up the budget, and return whether that was so.

        Raises:
            RunFailed: the budget does not suffice for the request alone.
        """
        spending, waited = self._spending, False
        if spending is None or spending.most is None:
            return False
        guess = spending.guess(ask)
        while not self._stopping and not spending.allows(guess, self._running):
            if not self._running:
                raise RunFailed(
                    f"The replies have cost {spending.total + spending.unknown * guess:.4f}, and another one could exceed "
                    f"--max-cost {spending.most:g}. Raise it and run the same command again."
                )
            await asyncio.sleep(0.02)
            waited = True
        return waited
