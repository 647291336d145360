"""Events of a run, named as in ComfyUI, and the data of its errors."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ....command_line import bug_note, describe_error, is_bug
from ..problems import node_label
from .expansion import DynamicPrompt

if TYPE_CHECKING:
    from PIL import Image

BUG_NOTE = bug_note("that `uniworld run --debug` prints")

# Called with the name and the data of an event: those of ComfyUI's WebSocket, and four more. "preview" has a Pillow image
# under "image". "warning" has a sentence for the user under "message". As several nodes may run at once, "node_finished"
# and "node_paused" say when one stops; a paused node waits for others, and then runs again or is finished.
EventHook = Callable[[str, dict[str, object]], None]


@dataclass
class RunEvents:
    """Emits the events of one run, and collects what they report.

    Attributes:
        results: the nodes that have a result, by id.
        is_own: whether a node class belongs to this package; only its unexpected errors are reported as our bugs.
        executed: ids of the nodes that ran to completion.
        ui: ui data by node id.
        warnings: warnings of the nodes, in this run or when their cached results were computed, without duplicates.
    """

    graph: DynamicPrompt
    prompt_id: str
    hook: EventHook
    results: Mapping[str, object]
    is_own: Callable[[str], bool]
    executed: list[str] = field(default_factory=list)
    ui: dict[str, dict[str, list[object]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def emit(self, name: str, **data: object) -> None:
        self.hook(name, {**data, "prompt_id": self.prompt_id, "timestamp": int(time.time() * 1000)})

    def executing(self, node_id: str) -> None:
        self.emit(
            "executing",
            node=node_id,
            display_node=self.graph.get_display_node_id(node_id),
            parent_node=self.graph.get_parent_node_id(node_id),
            real_node=self.graph.get_real_node_id(node_id),
        )

    def progress(self, node_id: str, value: int, total: int, preview: Image.Image | None) -> None:
        self.emit("progress", value=value, max=total, node=node_id)
        if preview is not None:
            self.emit("preview", node=node_id, image=preview)

    def warning(self, display_node: str, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
            self.emit("warning", node=display_node, message=text)

    def show(self, node_id: str, ui: dict[str, list[object]], display_node: str) -> None:
        if ui:
            self.ui[node_id] = ui
            self.emit("executed", node=node_id, display_node=display_node, output=ui)

    def finished(self, node_id: str) -> None:
        self.executed.append(node_id)
        self.emit("node_finished", node=node_id)

    def attribution(self, node_id: str) -> dict[str, Any]:
        """Return the workflow node that an error or interrupt is attributed to, and the nodes that ran before it."""
        node_id = self.graph.get_real_node_id(node_id)
        class_type = self.graph.get_node(node_id)["class_type"] if node_id else ""
        return {"node_id": node_id, "node_type": class_type, "executed": list(self.executed)}

    def error(self, node_id: str, error: BaseException, inputs: dict[str, list[object]]) -> dict[str, object]:
        """Emit the error event for an exception that a node raised, and return its data."""
        kind = type(error)
        # ComfyUI's form of exception_type: the module is omitted for built-in exceptions.
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        text = f"{describe_error(error)}. {BUG_NOTE}" if self._is_bug(node_id, error) else str(error)
        return self.failure(node_id, text, name, inputs, traceback.format_tb(error.__traceback__))

    def failure(
        self, node_id: str, message: str, kind: str, inputs: dict[str, list[object]], trace: list[str]
    ) -> dict[str, object]:
        """Emit an error event and return its data.

        Args:
            inputs: the lists of values that the node received.
        """
        data = {
            **self.attribution(node_id),
            "exception_message": message,
            "exception_type": kind,
            "traceback": trace,
            "current_inputs": {name: [_plain(item) for item in items] for name, items in inputs.items()},
            "current_outputs": list(self.results),
        }
        self.emit("execution_error", **data)
        return data

    def sentence(self, node_id: str, error: BaseException) -> str:
        """Return one sentence for the user: the node and the reason."""
        node = self.attribution(node_id)
        if self._is_bug(node_id, error):
            reason = f"{describe_error(error)}. {BUG_NOTE}"
        else:
            reason = error_sentence(type(error).__name__, str(error), isinstance(error, ValueError))
        return f"{node_label(node['node_id'], node['node_type'])} failed: {reason}"

    def _is_bug(self, node_id: str, error: BaseException) -> bool:
        return (
            is_bug(error) and self.graph.has_node(node_id) and self.is_own(self.graph.get_node(node_id)["class_type"])
        )


_MAX_SENTENCE = 1000


def error_sentence(kind: str, text: str, is_value_error: bool) -> str:
    """Return the message of an exception on one line. The full text and the traceback are in the error's data.

    Args:
        kind: the name of the exception's class.
    """
    text = text.strip()
    if is_value_error and text:  # written for the user, by this package or another pack
        line = " ".join(text.split())
    else:
        # The type matters as much as the text here. Later lines may be dumps of tensors.
        line = ": ".join(part for part in (kind, *text.splitlines()[:1]) if part)
    return line if len(line) <= _MAX_SENTENCE else line[: _MAX_SENTENCE - 3] + "..."


def _plain(value: object) -> object:
    """Summarize a value for an error report: numbers and short texts as they are, tensors by shape, others by type."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:197] + "..."
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype}"
    return type(value).__name__
