"""The worker thread, which runs the queued prompts one after another."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....host import PlainHost
from ...check.validate import Validation
from ...registry.registry import Registry
from ...run.report import never_failing
from .messages import MessageSink, RunMessages
from .prompt_runner import STOPPED, PromptRunner, Run
from .store import PromptResult, QueuedPrompt, Store

STOPPED_CALL = "The server is stopping."
_GRACE_SECONDS = 20.0  # for a running node to stop when the server stops
_RETRY_SECONDS = 1.0  # between two attempts to write to a disk that is full


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
        self.store, self.host, self.sink = store, host, sink
        self.run: Run | None = None
        self._runner = PromptRunner(registry, host, never_failing(on_event), kept_results)
        self._on_end = never_failing(on_end)
        self._on_storage_error = never_failing(on_storage_error)
        self._wake = threading.Condition()
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
        self._runner.remember(prompt_id, checked)

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
            self._runner.close()

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
        end = self._runner.run(run)
        if self._abandoned:  # `stop` timed out, and the server has closed the store
            return
        with self._wake:
            self.run = None
        seconds = time.perf_counter() - start
        if not self._store_result(run.accepted.id, end.result):
            return
        self._on_end(run, end.result.state, end.sentence, seconds)
        never_failing(self._send_end)(run)
        if "OutOfMemory" in str((end.result.error or {}).get("exception_type")):
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

    def _free_memory(self) -> None:
        with self._wake:
            self._free_wanted = False
        self._runner.forget()
        self.kept.clear()
        self.host.memory.offload_all()
        gc.collect()
