"""How one prompt of the queue runs: it is validated again and executed, and the run times of its nodes are measured."""

from __future__ import annotations

import time
import traceback
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
from ...run.executor import Executor
from ...run.report import never_failing
from .messages import RunMessages
from .store import ERROR, INTERRUPTED, SUCCESS, PromptResult, QueuedPrompt

STOPPED = "The server was stopped while this prompt ran. Queue it again to run it."
_FRESH_SECONDS = 1.0  # for which the validation of a prompt that was just queued is valid


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


@dataclass(frozen=True)
class RunEnd:
    """How a run ended: its result, and a sentence about it for log and terminal."""

    sentence: str
    result: PromptResult


class PromptRunner:
    """Runs prompts one after another, on the thread of the worker.

    Args:
        on_event: called with each executor event, in addition to the messages of the run. It does not raise.
        kept_results: as in `Executor`.
    """

    def __init__(
        self,
        registry: Registry,
        host: PlainHost,
        on_event: Callable[[Run, str, dict[str, object]], None],
        kept_results: int = 0,
    ) -> None:
        self._registry, self._host, self._on_event = registry, host, on_event
        self._coroutines = CoroutineRunner()
        self._executor = Executor(registry, host, kept_results, self._coroutines.run)
        self._validated: tuple[str, Validation, float] | None = None

    def remember(self, prompt_id: str, checked: Validation) -> None:
        """Keep the validation of a prompt that is being queued, in case it runs at once."""
        self._validated = prompt_id, checked, time.monotonic()

    def run(self, run: Run) -> RunEnd:
        """Validate and run a prompt. Any exception becomes an error of the run."""
        try:
            return self._execute(run)
        except BaseException as error:  # even SystemExit, which a node may raise: the thread must survive
            sentence = f"The server failed to run it: {describe_error(error)}."
            if is_bug(error):
                say("".join(traceback.format_exception(error)).rstrip())
                sentence = f"{sentence} {bug_note('in the terminal of the server')}"
            data = _error_data(run, sentence, type(error).__name__)
            never_failing(run.messages.event)("execution_error", data)
            return RunEnd(sentence, PromptResult(ERROR, {}, run.messages.kept, data))

    def forget(self) -> None:
        """Release all cached results."""
        self._executor.forget()

    def close(self) -> None:
        self._coroutines.close()

    def _execute(self, run: Run) -> RunEnd:
        def on_event(name: str, data: dict[str, object]) -> None:
            # The executor clears the interrupt flag at its start; a request to stop may have come before that.
            if name == "execution_start" and run.stop is not None:
                self._host.interrupted.set()
            if name == "execution_interrupted" and run.stop == STOPPED:
                data = {**data, "message": STOPPED}
            run.record_time(name, data)
            never_failing(run.messages.event)(name, data)
            self._on_event(run, name, data)

        accepted = run.accepted
        checked = self._fresh_validation(accepted.id)
        if checked is None:
            # Validated again, because files may have been removed since it was queued, even before a restart.
            checked = validate_prompt(accepted.prompt, self._registry, accepted.outputs)
        if checked.error is not None or not checked.outputs:
            return self._invalid(run, checked.problems, on_event)
        result = self._executor.run(
            checked.prompt,
            checked.outputs,
            original=accepted.prompt,
            prompt_id=accepted.id,
            extra_pnginfo=_pnginfo(accepted.extra),
            on_event=on_event,
        )
        state = {"success": SUCCESS, "interrupted": INTERRUPTED}.get(result.status, ERROR)
        sentence = run.stop if state == INTERRUPTED and run.stop is not None else result.sentence
        return RunEnd(sentence, PromptResult(state, result.ui, run.messages.kept, result.error))

    def _fresh_validation(self, prompt_id: str) -> Validation | None:
        latest, self._validated = self._validated, None
        if latest is None or latest[0] != prompt_id or time.monotonic() - latest[2] > _FRESH_SECONDS:
            return None
        return latest[1]

    def _invalid(self, run: Run, problems: list[Problem], on_event: Callable[[str, dict[str, object]], None]) -> RunEnd:
        sentence = problems[0].sentence if problems else "The prompt has no output nodes any more."
        data = _error_data(run, sentence, "ValueError", problems[0] if problems else None)
        start = {"prompt_id": run.accepted.id, "timestamp": data["timestamp"]}
        on_event("execution_start", start)
        on_event("execution_error", data)
        return RunEnd(sentence, PromptResult(ERROR, {}, run.messages.kept, data))


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
