"""The server's log: a line per finished prompt and progress bars in the terminal, and the lines in the editor's log."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Hashable
from typing import Any

from .....streams import say
from ...problems import node_title
from ...run.report import RunReport
from .clients import Clients
from .prompt_runner import Run

_KEPT_LINES = 300
_THROTTLE_SECONDS = 60.0  # between two lines of the same kind, for kinds that clients can provoke
_SIZE = {"cols": 120, "rows": 40}


class Terminal:
    """The server's log. Thread-safe."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._lines: deque[dict[str, str]] = deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()
        self._said: dict[Hashable, tuple[float, int]] = {}
        self._bars: RunReport | None = None

    def say(self, text: str) -> None:
        """Print a line to standard error, and add it to the editor's log."""
        text = _printable(text)
        entry = {"t": time.strftime("%Y-%m-%dT%H:%M:%S"), "m": text + "\n"}
        with self._lock:
            self._lines.append(entry)
        say(text)
        for reader in list(self._clients.log_readers):
            self._clients.send("logs", {"entries": [entry], "size": _SIZE}, reader)

    def say_throttled(self, kind: Hashable, text: str) -> bool:
        """Print a line, at most once a minute for each kind. The next line of a kind counts those that were skipped.

        Returns:
            Whether the line was printed.
        """
        now = time.monotonic()
        with self._lock:
            if kind not in self._said and len(self._said) >= _KEPT_LINES:
                self._said.pop(next(iter(self._said)))
            last, skipped = self._said.get(kind, (-_THROTTLE_SECONDS, 0))
            if now - last < _THROTTLE_SECONDS:
                self._said[kind] = last, skipped + 1
                return False
            self._said[kind] = now, 0
        self.say(f"{text} ({skipped} similar messages were skipped.)" if skipped else text)
        return True

    def lines(self) -> dict[str, Any]:
        """Return the latest lines in the form of ComfyUI's `/internal/logs/raw`."""
        with self._lock:
            return {"entries": list(self._lines), "size": _SIZE}

    def text(self) -> str:
        return "".join(f"{line['t']} - {line['m']}" for line in self.lines()["entries"])

    def event(self, run: Run, name: str, data: dict[str, object]) -> None:
        """Update the progress bars of the run, and log warnings of its nodes."""
        if name == "warning":
            self.say(f"Prompt {run.accepted.id}: warning: {data['message']}")
            return
        if name == "execution_start" and sys.stderr is not None and sys.stderr.isatty():
            self._bars = RunReport(sys.stderr, {node: _display_node(one) for node, one in run.accepted.prompt.items()})
        if self._bars is not None:
            self._bars.event(name, data)

    def end_run(self, run: Run, state: str, sentence: str, seconds: float) -> None:
        """Log one line about a finished prompt."""
        if self._bars is not None:
            self._bars.__exit__()
            self._bars = None
        word = {"success": "done", "error": "failed", "interrupted": "interrupted"}[state]
        cached: list[str] = next((data["nodes"] for name, data in run.messages.kept if name == "execution_cached"), [])
        reused = f", {len(cached)} of its nodes from the cache" if cached else ""
        self.say(f"Prompt {run.accepted.id}: {word} in {seconds:.2f} s{reused}. {_times(run)}{sentence}".rstrip())


def _printable(text: str) -> str:
    # Titles and error messages come from others and must not send control sequences to the terminal.
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _display_node(node: dict[str, Any]) -> dict[str, object]:
    label = _printable(node_title(node) or node["class_type"])[:60]
    return {"class_type": label, "_meta": {"title": label}}


def _times(run: Run) -> str:
    """Return the time of each node, slowest first."""
    prompt = run.accepted.prompt
    slowest = sorted(run.seconds.items(), key=lambda item: -item[1])
    named = [f"{node_title(prompt[node]) or prompt[node]['class_type']} {seconds:.2f} s" for node, seconds in slowest]
    return ", ".join(named[:30]) + ". " if named else ""
