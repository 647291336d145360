"""The events of a run on a server in the form of a local run: from the socket, and finally from the history."""

from __future__ import annotations

import builtins
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ...host import WARNING
from ..problems import node_label
from ..run.events import BUG_NOTE, error_sentence
from ..run.executor import EventHook, RunResult
from .client import printable

ENDS = ("execution_success", "execution_error", "execution_interrupted")
INTERRUPTED_SENTENCE = "The run was interrupted."
_STARTS = ("execution_start", "execution_cached")


@dataclass(frozen=True)
class PromptHistory:
    """The history entry of a finished prompt.

    Attributes:
        outputs: the UI outputs by node id.
        messages: names and data of the recorded events, in order.
        display_nodes: for nodes that were added during the run, the node of the workflow that displays their outputs.
    """

    outputs: dict[str, dict[str, Any]]
    messages: list[tuple[str, dict[str, Any]]]
    succeeded: bool
    display_nodes: dict[str, str] = field(default_factory=dict)


def read_history(entry: object) -> PromptHistory | None:
    """Parse an entry of `/history`; None if it is not one."""
    if not isinstance(entry, dict):
        return None
    status = _dict(entry.get("status"))
    messages = [
        (message[0], message[1])
        for message in _list(status.get("messages"))
        if isinstance(message, list)
        and len(message) == 2
        and isinstance(message[0], str)
        and isinstance(message[1], dict)
    ]
    meta = _dict(entry.get("meta"))
    display = {node: about.get("display_node") for node, about in meta.items() if isinstance(about, dict)}
    return PromptHistory(
        outputs={node: _lists(ui) for node, ui in _dict(entry.get("outputs")).items() if isinstance(ui, dict)},
        messages=messages,
        # Old versions of ComfyUI record no status.
        succeeded=status.get("status_str", "success") == "success",
        display_nodes={node: shown for node, shown in display.items() if isinstance(shown, str)},
    )


def _lists(ui: dict[str, Any]) -> dict[str, Any]:
    """Return a node's UI output as ComfyUI defines it: a list for each key."""
    return {key: value if isinstance(value, list) else [value] for key, value in ui.items()}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


@dataclass
class RemoteEvents:
    """Converts the messages of one run to events, without duplicates.

    Attributes:
        outputs: the UI outputs so far, by node id.
        ending: name and data of the final message, if it has arrived.
    """

    prompt_id: str
    prompt: Mapping[str, Any]
    hook: EventHook
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    ending: tuple[str, dict[str, Any]] | None = None
    _seen: set[str] = field(default_factory=set)
    _running: dict[str, None] = field(default_factory=dict)
    _reports_states: bool = False

    def message(self, kind: str, data: dict[str, Any]) -> bool:
        """Process a message of the socket; return whether it reports the end of the run."""
        if data.get("prompt_id", self.prompt_id) != self.prompt_id:
            return False
        if kind in ENDS:
            if self.ending is not None:
                self._emit(*self.ending)  # the error of a blocked node, which does not end the run
            self.ending = kind, data
            return True
        if kind in _STARTS:
            self._once(kind, data)
        elif kind == "executing":
            if data.get("node") is None:
                return True
            self._start(data)
        elif kind == "progress":
            self._progress(data)
        elif kind == "progress_state":
            self._states(_dict(data.get("nodes")))
        elif kind == "executed":
            self._executed(data.get("node"), data.get("display_node"), data.get("output"))
        elif kind == WARNING:
            self._warning(data)
        return False

    def finish(self, history: PromptHistory) -> RunResult:
        """Emit the remaining events from the history, and return the result."""
        for name, data in history.messages:
            if name in _STARTS:
                self._once(name, data)
        for node, ui in history.outputs.items():
            self._executed(node, history.display_nodes.get(node, node), ui)
        ended = next((message for message in reversed(history.messages) if message[0] in ENDS), self.ending)
        if ended is None:
            ended = ("execution_success" if history.succeeded else "execution_error"), {}
        name, data = ended
        # As in a local run, a node that failed or was interrupted does not finish.
        for node in list(self._running) if name == "execution_success" else ():
            self._finish(node)
        return self.end(name, data, history.outputs)

    def end(self, name: str, data: dict[str, Any], outputs: dict[str, dict[str, Any]] | None = None) -> RunResult:
        """Emit the final event, and return the result."""
        outputs = self.outputs if outputs is None else outputs
        if name == "execution_success":
            self._emit(name, data)
            return RunResult("success", outputs, warnings=self.warnings)
        about = {"node_id": "", "node_type": "", "executed": []}
        if name == "execution_interrupted":
            self._emit(name, {**about, **data})
            message = data.get("message")
            said = message if isinstance(message, str) and message else INTERRUPTED_SENTENCE
            return RunResult("interrupted", outputs, None, said, self.warnings)
        unknown = {"exception_message": "The server gives no reason.", "exception_type": "", "traceback": []}
        data = {**about, **unknown, "current_inputs": {}, "current_outputs": [], **data}
        if not isinstance(data["current_inputs"], dict):
            data["current_inputs"] = {}
        data["traceback"] = [str(line) for line in _list(data["traceback"])]
        self._emit(name, data)
        return RunResult("error", outputs, data, failure_sentence(data), self.warnings)

    def _emit(self, name: str, data: Mapping[str, Any]) -> None:
        stamp = data.get("timestamp")
        stamp = stamp if isinstance(stamp, int) else int(time.time() * 1000)
        self.hook(name, {**data, "prompt_id": self.prompt_id, "timestamp": stamp})

    def _once(self, name: str, data: Mapping[str, Any]) -> None:
        if name not in self._seen:
            self._seen.add(name)
            self._emit(name, data)

    def _shown_at(self, node: str, display_node: object) -> str | None:
        """Return the node of the workflow that displays a node; None if there is none."""
        candidates = (display_node, node, node.partition(".")[0])
        return next((one for one in candidates if isinstance(one, str) and one in self.prompt), None)

    def _start(self, data: dict[str, Any]) -> None:
        node = data["node"]
        shown_at = self._shown_at(node, data.get("display_node")) if isinstance(node, str) else None
        if shown_at is None or node in self._running:
            return
        if not self._reports_states:  # an old version of ComfyUI, which runs one node at a time
            for before in list(self._running):
                self._finish(before)
        self._running[node] = None
        added = shown_at != node
        self._emit(
            "executing",
            {"node": node, "display_node": shown_at, "parent_node": shown_at if added else None, "real_node": shown_at},
        )

    def _progress(self, data: dict[str, Any]) -> None:
        node, value, total = data.get("node"), data.get("value"), data.get("max")
        if isinstance(node, str) and isinstance(value, (int, float)) and isinstance(total, (int, float)):
            self._emit("progress", {"value": value, "max": total, "node": node})

    def _states(self, states: Mapping[str, Any]) -> None:
        self._reports_states = True
        for node, state in states.items():
            if isinstance(state, dict) and state.get("state") == "finished" and node in self._running:
                self._finish(node)

    def _finish(self, node: str) -> None:
        del self._running[node]
        self._emit("node_finished", {"node": node})

    def _executed(self, node: Any, display_node: object, ui: Any) -> None:
        shown_at = self._shown_at(node, display_node) if isinstance(node, str) else None
        if shown_at is not None and isinstance(ui, dict) and node not in self.outputs:
            ui = _lists(ui)
            self.outputs[node] = ui
            self._emit("executed", {"node": node, "display_node": shown_at, "output": ui})

    def _warning(self, data: dict[str, Any]) -> None:
        node, text = data.get("node"), data.get("message")
        shown_at = self._shown_at(node, None) if isinstance(node, str) else None
        if shown_at is not None and isinstance(text, str) and text not in self.warnings:
            self.warnings.append(text)
            self._emit("warning", {"node": shown_at, "message": text})


def failure_sentence(data: Mapping[str, Any]) -> str:
    """Return the message of a local run for the data of an execution_error."""
    text, kind = str(data.get("exception_message") or ""), str(data.get("exception_type") or "")
    # The message of a bug already contains the exception class.
    is_bug = text.endswith(BUG_NOTE)
    said = text if is_bug else error_sentence(kind.rpartition(".")[2], text, _is_value_error(kind))
    said = printable(said)
    node = str(data.get("node_id") or "")
    return f"{node_label(node, str(data.get('node_type') or ''))} failed: {said}" if node else said


def _is_value_error(kind: str) -> bool:
    """Return whether the full name of an exception class is known to be a ValueError."""
    known = getattr(builtins, kind, None)
    if isinstance(known, type):
        return issubclass(known, ValueError)
    pending, names = [UniWorldError], set()
    while pending:
        one = pending.pop()
        names.add(one.__name__)
        pending += one.__subclasses__()
    module, _, name = kind.rpartition(".")
    # In ComfyUI, the package is named after its folder.
    return name in names and ("uniworld" in module.lower() or "headless" in module)
