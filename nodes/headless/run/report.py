"""Reports of a run: progress bars and sentences for people, or one line of JSON per event."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TextIO

from ....streams import progress_bar, say
from ....uniworld_core.json_text import dumps
from ..check.validate import Validation
from ..problems import node_title
from ..storage import folders
from .executor import RunResult

P = ParamSpec("P")


def never_failing(function: Callable[P, object]) -> Callable[P, None]:
    """Wrap a function so that its exceptions are printed, not raised: reporting must never stop a run."""

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception:
            with contextlib.suppress(Exception):
                traceback.print_exc()

    return wrapper


def files_of(ui: dict[str, list[Any]]) -> list[dict[str, str]]:
    """Return the entries of what a node shows that name files: pictures, and with some packs video and sound."""
    lists = (value for value in ui.values() if isinstance(value, (list, tuple)))
    entries = (entry for entries in lists for entry in entries if isinstance(entry, dict))
    kinds = ("output", "temp", "input")
    named = (entry for entry in entries if entry.get("type") in kinds and isinstance(entry.get("filename"), str))
    return [entry for entry in named if isinstance(entry.get("subfolder", ""), str)]


def _paths(ui: dict[str, list[Any]], saved: bool) -> list[str]:
    """Return the paths of the files that a node saved, or of its previews."""
    here = folders.current()
    return [
        str(here.of_kind(entry["type"]) / entry.get("subfolder", "") / entry["filename"])
        for entry in files_of(ui)
        if (entry["type"] == "output") == saved
    ]


class RunReport:
    """Show progress bars on standard error; print paths of pictures and texts of nodes to standard output."""

    def __init__(self, out: TextIO, prompt: dict[str, Any]) -> None:
        self._out, self._prompt = out, prompt
        self._bars: dict[str, Any] = {}
        self._display_nodes: dict[str, str] = {}  # for nodes that were added during the run

    def __enter__(self) -> RunReport:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_all(done=False)

    def event(self, name: str, data: dict[str, Any]) -> None:
        if name == "executing":
            self._open(data["node"], data["display_node"])
        elif name == "progress" and data["node"] in self._bars:
            bar = self._bars[data["node"]]
            bar.total = data["max"]
            bar.update(data["value"] - bar.n)
        elif name == "warning":
            self._warn(f"warning: {self._label(data['node'])}: {data['message']}")
        elif name == "executed":
            self._display_nodes[data["node"]] = data["display_node"]
        elif name in ("node_finished", "node_paused"):
            self._close(data["node"], done=name == "node_finished")
        elif name in ("execution_error", "execution_interrupted", "execution_success"):
            self._close_all(done=name == "execution_success")

    def _open(self, node_id: str, display_node: str) -> None:
        desc = f"{self._label(display_node)} ({node_id})"
        self._bars[node_id] = progress_bar(total=1, desc=desc, file=sys.stderr, dynamic_ncols=True)

    def _warn(self, text: str) -> None:
        if self._bars:
            next(iter(self._bars.values())).write(text, file=sys.stderr)  # above the bars
        else:
            say(text)

    def _label(self, node_id: str) -> str:
        node = self._prompt.get(node_id)  # a server may show results of nodes that it added itself
        return node_id if node is None else node_title(node) or str(node["class_type"])

    def _close(self, node_id: str, done: bool) -> None:
        bar = self._bars.pop(node_id, None)
        if bar is not None:
            if done and bar.total is not None:
                bar.update(bar.total - bar.n)
            bar.close()

    def _close_all(self, done: bool) -> None:
        for node_id in list(self._bars):
            self._close(node_id, done)

    def note(self, text: str) -> None:
        say(f"note: {text}")

    def invalid(self, checked: Validation) -> None:
        say("\n  ".join(["The workflow cannot run:", *checked.sentences]))

    def result(self, result: RunResult) -> None:
        for node_id, ui in result.ui.items():
            label = self._label(self._display_nodes.get(node_id, node_id))
            for text in ui.get("text", ()):
                print(f"{label}: {text}", file=self._out)
            for path in _paths(ui, saved=True):
                print(path, file=self._out)
            for path in _paths(ui, saved=False):
                print(f"{label} (preview): {path}", file=self._out)


# Exactly one of these events ends the output of --json.
LAST_EVENTS = frozenset({"result", "valid", "invalid", "error"})


class JsonRunReport:
    """Print one JSON object per line, `{"event": ..., ...}`: ComfyUI's events, and finally one of `LAST_EVENTS`.

    Attributes:
        finished: whether the final event has been printed.
    """

    def __init__(self, out: TextIO, debug: bool = False) -> None:
        self._out, self._debug = out, debug
        self.finished = False

    def __enter__(self) -> JsonRunReport:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def line(self, name: str, **data: object) -> None:
        self.finished = self.finished or name in LAST_EVENTS
        print(dumps({"event": name, **data}), file=self._out, flush=True)

    def event(self, name: str, data: dict[str, object]) -> None:
        if name in ("preview", "node_finished", "node_paused"):
            return  # not events of ComfyUI; "progress" already has the numbers of a preview
        if "traceback" in data and not self._debug:
            data = {**data, "traceback": []}
        if name == "warning":
            say(f"warning: {data['message']}")
        self.line(name, **data)

    def note(self, text: str) -> None:
        say(f"note: {text}")
        self.line("note", message=text)

    def invalid(self, checked: Validation, problems: list[str] | None = None) -> None:
        sentences = problems or checked.sentences
        errors = {"error": checked.error, "node_errors": checked.node_errors}
        self.line("invalid", message=" ".join(sentences), problems=sentences, **errors)

    def result(self, result: RunResult) -> None:
        shown = list(result.ui.values())
        self.line(
            "result",
            status=result.status,
            message=result.sentence,
            images=[path for ui in shown for path in _paths(ui, saved=True)],
            previews=[path for ui in shown for path in _paths(ui, saved=False)],
            texts=[text for ui in shown for text in ui.get("text", ())],
            warnings=result.warnings,
            outputs=result.ui,
        )
