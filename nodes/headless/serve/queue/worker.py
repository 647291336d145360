"""The worker thread, which runs the queued prompts one after another."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .....command_line import bug_note, describe_error, is_bug
from .....streams import say
from ....host import PlainHost
from ...check.validate import Validation, validate_prompt
from ...problems import Problem
from ...registry.calls import CoroutineRunner
from ...registry.registry import Registry
from ...run.executor import Executor, RunResult
from ...run.report import never_failing
from .messages import MessageSink, RunMessages
from .store import ERROR, INTERRUPTED, SUCCESS, PromptResult, QueuedPrompt, Store

STOPPED_CALL = "The server is stopping."
STOPPED = "The server was stopped while this prompt ran. Queue it again to run it."
_GRACE_SECONDS = 20.0  # for a running node to stop when the server stops
_FRESH_SECONDS = 1.0  # for which the validation of a prompt that was just queued is valid
_RETRY_SECONDS = 1.0  # between two attempts to write to a disk that is full


@dataclass
class Run:
    """The run in progress.

    Attributes:
        seconds: run time of each node so far.
        stop: why the run is to be interrupted, as a sentence; None while it is not.
    """

    accepted: QueuedPrompt
    messages: RunMessages
    seconds: dict[str, float] = field(default_factory=dict)
    stop: str | None = None
    _since: dict[str, tuple[str, float]] = field(default_factory=dict)

    def record_time(self, name: str, data: dict[str, Any]) -> None:
        """Measure run times. The time of nodes created by expansion counts towards the node that created them."""
        now = time.perf_counter()
        if name == "executing":
            self._since[data["node"]] = data["real_node"], now
        elif name in ("node_finished", "node_paused") and data["node"] in self._since:
            self._add(data["node"], now)
        elif name in ("execution_success", "execution_error", "execution_interrupted"):
            for node in list(self._since):
                self._add(node, now)

    def _add(self, node: str, now: float) -> None:
        real_node, since = self._since.pop(node)
        self.seconds[real_node] = self.seconds.get(real_node, 0.0) + now - since

    def class_of(self, node: str) -> str:
        return str(self.accepted.prompt[node]["class_type"])


@dataclass
class QueuedCall:
    """Work other than a prompt, which waits for its turn like one.

    Attributes:
        work: runs on the worker's thread; it handles its own errors.
        refuse: called with a sentence instead, if the server stops before its turn.
        cancelled: nobody waits for it any more.
    """

    work: Callable[[], None]
    refuse: Callable[[str], None]
    cancelled: bool = False


class QueueWorker:
    """Runs the prompts of a store, and calls between them.

    Args:
        on_event: called with each executor event, in addition to `sink`; used by the terminal.
        on_end: called after each run with its state, a message and its seconds; used by log and metrics.
        on_storage_error: called with a message when the queue cannot be read or written, once per failure.
        kept_results: as in `Executor`.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        host: PlainHost,
        sink: MessageSink,
        on_event: Callable[[Run, str, dict[str, object]], None],
        on_end: Callable[[Run, str, str, float], None],
        on_storage_error: Callable[[str], None],
        kept_results: int = 0,
    ) -> None:
        self.store, self.registry, self.host, self.sink = store, registry, host, sink
        self.run: Run | None = None
        self._coroutines = CoroutineRunner()
        self._executor = Executor(registry, host, kept_results, self._coroutines.run)
        self._on_event, self._on_end = never_failing(on_event), never_failing(on_end)
        self._on_storage_error = never_failing(on_storage_error)
        self._wake = threading.Condition()
        self._validated: tuple[str, Validation, float] | None = None
        self._stopping = self._free_wanted = self._abandoned = self._claim_failed = False
        self._calls: deque[QueuedCall] = deque()
        self._call: QueuedCall | None = None
        self._after_call = False
        # Objects that calls keep between them, such as a model; dropped when memory is freed.
        self.kept: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._work, name="uniworld-worker", daemon=True)

    # --- called from other threads -----------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def remember(self, prompt_id: str, checked: Validation) -> None:
        """Keep the validation of a prompt that is being queued, in case it runs at once."""
        self._validated = prompt_id, checked, time.monotonic()

    def wake(self) -> None:
        with self._wake:
            self._wake.notify()

    def submit(self, call: QueuedCall) -> None:
        """Run a call when the worker is free. Calls and prompts that wait at the same time alternate."""
        with self._wake:
            if self._stopping:
                call.refuse(STOPPED_CALL)
                return
            self._calls.append(call)
            self._wake.notify()

    @property
    def waiting_calls(self) -> int:
        return len(self._calls)

    def cancel(self, call: QueuedCall) -> None:
        """Remove a call, or interrupt it within a step if it is running."""
        with self._wake:
            call.cancelled = True
            if call in self._calls:
                self._calls.remove(call)
            elif self._call is call:
                self.host.interrupted.set()

    def free(self) -> None:
        """Release all models and cached results once the run in progress has finished."""
        with self._wake:
            self._free_wanted = True
            self._wake.notify()

    def interrupt(self, prompt_id: str | None = None, why: str = "The run was interrupted.") -> bool:
        """Interrupt the run in progress at its next step, if it is that of `prompt_id`, or if that is None."""
        with self._wake:
            if self._call is not None and prompt_id is None:
                self.host.interrupted.set()
                return True
            if self.run is None or prompt_id not in (None, self.run.accepted.id):
                return False
            self.run.stop = why
            self.host.interrupted.set()
            return True

    def stop(self) -> bool:
        """Stop the thread, and mark the run in progress as interrupted. Returns False if its node did not stop in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.interrupt(why=STOPPED)
        self._thread.join(_GRACE_SECONDS)
        if self._thread.is_alive():
            self._abandoned = True
            with contextlib.suppress(sqlite3.Error):  # if this fails, the next start marks it
                self.store.mark_interrupted(STOPPED)
            return False
        return True

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._run_all()
        finally:
            with self._wake:
                waiting, self._calls = list(self._calls), deque()
            for call in waiting:
                never_failing(call.refuse)(STOPPED_CALL)
            self._coroutines.close()

    def _run_all(self) -> None:
        while True:
            accepted = call = None
            with self._wake:
                if self._stopping:
                    return
                if not self._free_wanted:
                    accepted = self._claim_next() if self._after_call or not self._calls else None
                    if accepted is None and self._calls:
                        call = self._call = self._calls.popleft()
                        # Only a cancellation from now on is meant for this call.
                        self.host.interrupted.clear()
                    self._after_call = call is not None
                    if accepted is None and call is None:
                        self._wake.wait(_RETRY_SECONDS if self._claim_failed else None)
                        continue
                    if accepted is not None:
                        self.run = Run(accepted, RunMessages(accepted.id, accepted.client, self.sink))
            if call is not None:
                self._run_call(call)
            elif accepted is None:
                never_failing(self._free_memory)()
            else:
                self.send_status()
                self._run_one(self.run)  # type: ignore[arg-type]

    def _run_call(self, call: QueuedCall) -> None:
        never_failing(call.work)()
        with self._wake:
            self._call = None

    def _claim_next(self) -> QueuedPrompt | None:
        try:
            accepted = self.store.claim_next()
        except (sqlite3.Error, ValueError) as error:  # ValueError: a row with invalid JSON
            if not self._claim_failed:
                self._on_storage_error(f"The next prompt cannot be read: {error}. Retrying every second.")
            self._claim_failed = True
            return None
        self._claim_failed = False
        return accepted

    def send_status(self) -> None:
        status = {"exec_info": {"queue_remaining": self.store.remaining}}
        never_failing(self.sink.send)("status", {"status": status})

    def _run_one(self, run: Run) -> None:
        start = time.perf_counter()
        try:
            state, sentence, result = self._execute(run)
        except BaseException as error:  # even SystemExit, which a node may raise: the thread must survive
            sentence = f"The server failed to run it: {describe_error(error)}."
            if is_bug(error):
                say("".join(traceback.format_exception(error)).rstrip())
                sentence = f"{sentence} {bug_note('in the terminal of the server')}"
            data = _error_data(run, sentence, type(error).__name__)
            never_failing(run.messages.event)("execution_error", data)
            state, result = ERROR, PromptResult(ERROR, {}, run.messages.kept, data)
        if self._abandoned:  # `stop` timed out, and the server has closed the store
            return
        with self._wake:
            self.run = None
        seconds = time.perf_counter() - start
        if not self._store_result(run.accepted.id, result):
            return
        self._on_end(run, state, sentence, seconds)
        never_failing(self._send_end)(run)
        if result.error is not None and "OutOfMemory" in str(result.error.get("exception_type")):
            self.host.memory.offload_all()

    def _send_end(self, run: Run) -> None:
        run.messages.send_end()
        self.send_status()
        if run.accepted.client is not None:
            done = {"node": None, "prompt_id": run.accepted.id}
            self.sink.send("executing", done, run.accepted.client)

    def _store_result(self, prompt_id: str, result: PromptResult) -> bool:
        """Store the result of a prompt, retrying until it succeeds.

        Clients are notified only afterwards: otherwise they would look up the prompt in the history and not find it.

        Returns:
            False if the server stops first; its next start then marks the prompt as interrupted.
        """
        reported = False
        while True:
            # Read before the attempt, so that there is one more attempt after a request to stop.
            last = self._stopping
            try:
                self.store.finish(prompt_id, result)
                return True
            except sqlite3.Error as error:  # such as a full disk
                if not reported:
                    self._on_storage_error(
                        f"The result of prompt {prompt_id} cannot be stored: {error}. Retrying every second."
                    )
                reported = True
            if last:
                return False
            with self._wake:
                if not self._stopping:
                    self._wake.wait(_RETRY_SECONDS)

    def _execute(self, run: Run) -> tuple[str, str, PromptResult]:
        """Validate and run a prompt. Returns its state, a message and its result."""

        def on_event(name: str, data: dict[str, object]) -> None:
            # The executor clears the interrupt flag at its start; a request to stop may have come before that.
            if name == "execution_start" and run.stop is not None:
                self.host.interrupted.set()
            if name == "execution_interrupted" and run.stop == STOPPED:
                data = {**data, "message": STOPPED}
            run.record_time(name, data)
            never_failing(run.messages.event)(name, data)
            self._on_event(run, name, data)

        accepted = run.accepted
        checked = self._fresh_validation(accepted.id)
        if checked is None:
            # Validated again, because files may have been removed since it was queued, even before a restart.
            checked = validate_prompt(accepted.prompt, self.registry, accepted.outputs)
        if checked.error is not None or not checked.outputs:
            return self._invalid(run, checked.problems, on_event)
        result: RunResult = self._executor.run(
            checked.prompt,
            checked.outputs,
            original=accepted.prompt,
            prompt_id=accepted.id,
            extra_pnginfo=_pnginfo(accepted.extra),
            on_event=on_event,
        )
        state = {"success": SUCCESS, "interrupted": INTERRUPTED}.get(result.status, ERROR)
        sentence = run.stop if state == INTERRUPTED and run.stop is not None else result.sentence
        return state, sentence, PromptResult(state, result.ui, run.messages.kept, result.error)

    def _fresh_validation(self, prompt_id: str) -> Validation | None:
        latest, self._validated = self._validated, None
        if latest is None or latest[0] != prompt_id or time.monotonic() - latest[2] > _FRESH_SECONDS:
            return None
        return latest[1]

    def _invalid(
        self, run: Run, problems: list[Problem], on_event: Callable[[str, dict[str, object]], None]
    ) -> tuple[str, str, PromptResult]:
        sentence = problems[0].sentence if problems else "The prompt has no output nodes any more."
        data = _error_data(run, sentence, "ValueError", problems[0] if problems else None)
        start = {"prompt_id": run.accepted.id, "timestamp": data["timestamp"]}
        on_event("execution_start", start)
        on_event("execution_error", data)
        return ERROR, sentence, PromptResult(ERROR, {}, run.messages.kept, data)

    def _free_memory(self) -> None:
        with self._wake:
            self._free_wanted = False
        self._executor.forget()
        self.kept.clear()
        self.host.memory.offload_all()
        gc.collect()


def _pnginfo(extra: dict[str, object]) -> dict[str, object] | None:
    found = extra.get("extra_pnginfo")
    return found if isinstance(found, dict) else None


def _error_data(run: Run, message: str, kind: str, problem: Problem | None = None) -> dict[str, object]:
    return {
        "prompt_id": run.accepted.id,
        "node_id": problem.node_id if problem else "",
        "node_type": problem.class_type if problem else "",
        "executed": [],
        "exception_message": message,
        "exception_type": kind,
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
        "timestamp": int(time.time() * 1000),
    }
