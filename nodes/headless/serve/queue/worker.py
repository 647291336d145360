"""The one thread that runs prompts, one after the other, through the one executor."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .....command_line import bug_note, describe_error, is_bug
from .....streams import say
from ....host import PlainHost
from ...check.validate import validate_prompt
from ...problems import Problem
from ...registry.registry import Registry
from ...run.executor import Executor, RunResult
from ...run.report import never_failing
from .messages import Outlet, RunMessages
from .store import ERROR, INTERRUPTED, SUCCESS, Accepted, Ended, Store

STOPPED = "The server was stopped while this prompt ran. Queue it again to run it."
_GRACE = 20.0  # seconds that a running node has to stop in, when the server stops
_AGAIN = 1.0  # seconds after which what the disk refused is tried again


@dataclass
class Run:
    """The run in progress, and the seconds that each of its nodes took."""

    accepted: Accepted
    messages: RunMessages
    seconds: dict[str, float] = field(default_factory=dict)
    stop: str | None = None  # why it is to stop, as a sentence
    _since: dict[str, tuple[str, float]] = field(default_factory=dict)

    def clock(self, name: str, data: dict[str, Any]) -> None:
        """Note when nodes begin and stop; what the nodes took that a node added counts as that node's time."""
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


class QueueWorker:
    """Runs what the store holds.

    Args:
        on_event: told of each executor event of the run, besides the sockets; for the terminal.
        on_end: told of each run with its state, the sentence for people and the seconds it took; for log and metrics.
        on_trouble: told a sentence when the queue cannot be written; once for each trouble.
        kept_results: as of `Executor`.
    """

    def __init__(
        self,
        store: Store,
        registry: Registry,
        host: PlainHost,
        outlet: Outlet,
        on_event: Callable[[Run, str, dict[str, object]], None],
        on_end: Callable[[Run, str, str, float], None],
        on_trouble: Callable[[str], None],
        kept_results: int = 0,
    ) -> None:
        self.store, self.registry, self.host, self.outlet = store, registry, host, outlet
        self.run: Run | None = None
        self._executor = Executor(registry, host, kept_results)
        self._on_event, self._on_end = never_failing(on_event), never_failing(on_end)
        self._on_trouble = never_failing(on_trouble)
        self._wake = threading.Condition()
        self._stopping = self._free_wanted = self._abandoned = self._take_failed = False
        self._thread = threading.Thread(target=self._work, name="uniworld-worker", daemon=True)

    # --- called from other threads -----------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        with self._wake:
            self._wake.notify()

    def free(self) -> None:
        """Let go of all models and results, when the run in progress has ended."""
        with self._wake:
            self._free_wanted = True
            self._wake.notify()

    def interrupt(self, prompt_id: str | None = None, why: str = "The run was interrupted.") -> bool:
        """Stop the run in progress within a step, if it is this prompt's; any for None."""
        with self._wake:
            if self.run is None or prompt_id not in (None, self.run.accepted.id):
                return False
            self.run.stop = why
            self.host.interrupted.set()
            return True

    def stop(self) -> bool:
        """End the thread; the run in progress is marked as interrupted. False if its node did not stop in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self.interrupt(why=STOPPED)
        self._thread.join(_GRACE)
        if self._thread.is_alive():
            self._abandoned = True
            with contextlib.suppress(sqlite3.Error):  # the next start marks it
                self.store.mark_died(STOPPED)
            return False
        return True

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            accepted = None
            with self._wake:
                if self._stopping:
                    return
                if not self._free_wanted:
                    accepted = self._take()
                    if accepted is None:
                        self._wake.wait(_AGAIN if self._take_failed else None)
                        continue
                    self.run = Run(accepted, RunMessages(accepted.id, accepted.client, self.outlet))
            if accepted is None:
                never_failing(self._free_now)()
            else:
                self.tell_status()
                self._run_one(self.run)  # type: ignore[arg-type]

    def _take(self) -> Accepted | None:
        try:
            accepted = self.store.take()
        except (sqlite3.Error, ValueError) as error:  # the latter for a row that somebody else wrote
            if not self._take_failed:
                self._on_trouble(f"The next prompt could not be taken: {error}. It is tried again each second.")
            self._take_failed = True
            return None
        self._take_failed = False
        return accepted

    def tell_status(self) -> None:
        status = {"exec_info": {"queue_remaining": self.store.remaining}}
        never_failing(self.outlet.send)("status", {"status": status})

    def _run_one(self, run: Run) -> None:
        began = time.perf_counter()
        try:
            state, sentence, ended = self._executed(run)
        except BaseException as error:  # a node may even raise SystemExit; the thread must go on
            sentence = f"The server failed to run it: {describe_error(error)}."
            if is_bug(error):
                say("".join(traceback.format_exception(error)).rstrip())
                sentence = f"{sentence} {bug_note('in the terminal of the server')}"
            data = _error_data(run, sentence, type(error).__name__)
            never_failing(run.messages.event)("execution_error", data)
            state, ended = ERROR, Ended(ERROR, {}, run.messages.kept, data)
        if self._abandoned:  # the server has gone on without us, and closed the store
            return
        with self._wake:
            self.run = None
        seconds = time.perf_counter() - began
        if not self._keep(run.accepted.id, ended):
            return
        self._on_end(run, state, sentence, seconds)
        never_failing(self._tell_end)(run)
        if ended.error is not None and "OutOfMemory" in str(ended.error.get("exception_type")):
            self.host.memory.offload_all()

    def _tell_end(self, run: Run) -> None:
        run.messages.tell_end()
        self.tell_status()
        if run.accepted.client is not None:
            done = {"node": None, "prompt_id": run.accepted.id}
            self.outlet.send("executing", done, run.accepted.client)

    def _keep(self, prompt_id: str, ended: Ended) -> bool:
        """Keep how a prompt ended, tried until it is; False if the server stops first, and its next start marks it.

        Nobody is told of an end that is not kept: whoever then asks the history for it would find nothing.
        """
        told = False
        while True:
            # Read before the try, so that the last one comes after the wish to stop, when the disk may have room again.
            last = self._stopping
            try:
                self.store.finish(prompt_id, ended)
                return True
            except sqlite3.Error as error:  # a full disk, say
                if not told:
                    self._on_trouble(
                        f"How prompt {prompt_id} ended could not be kept: {error}. It is tried again each second."
                    )
                told = True
            if last:
                return False
            with self._wake:
                if not self._stopping:
                    self._wake.wait(_AGAIN)

    def _executed(self, run: Run) -> tuple[str, str, Ended]:
        def on_event(name: str, data: dict[str, object]) -> None:
            # The executor starts with a clean flag, and the wish to stop may have come before that.
            if name == "execution_start" and run.stop is not None:
                self.host.interrupted.set()
            if name == "execution_interrupted" and run.stop == STOPPED:
                data = {**data, "message": STOPPED}
            run.clock(name, data)
            never_failing(run.messages.event)(name, data)
            self._on_event(run, name, data)

        accepted = run.accepted
        # Checked again: files may have gone since it was queued, perhaps with another start of the server.
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
        return state, sentence, Ended(state, result.ui, run.messages.kept, result.error)

    def _invalid(
        self, run: Run, problems: list[Problem], on_event: Callable[[str, dict[str, object]], None]
    ) -> tuple[str, str, Ended]:
        sentence = problems[0].sentence if problems else "Its output nodes are gone."
        data = _error_data(run, sentence, "ValueError", problems[0] if problems else None)
        start = {"prompt_id": run.accepted.id, "timestamp": data["timestamp"]}
        on_event("execution_start", start)
        on_event("execution_error", data)
        return ERROR, sentence, Ended(ERROR, {}, run.messages.kept, data)

    def _free_now(self) -> None:
        with self._wake:
            self._free_wanted = False
        self._executor.forget()
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
