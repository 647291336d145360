"""What the terminal shows: a line per ended prompt, a bar while nodes run, and the same lines for the editor's log."""

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
from .worker import Run

_KEPT_LINES = 300
_PAUSE = 60.0  # seconds between lines of a kind that clients can cause
_SIZE = {"cols": 120, "rows": 40}


class Terminal:
    """The server's log. May be called from any thread."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._lines: deque[dict[str, str]] = deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()
        self._said: dict[Hashable, tuple[float, int]] = {}
        self._bars: RunReport | None = None

    def say(self, text: str) -> None:
        """Print a line to standard error, and keep it for the editor."""
        text = _plain(text)
        entry = {"t": time.strftime("%Y-%m-%dT%H:%M:%S"), "m": text + "\n"}
        with self._lock:
            self._lines.append(entry)
        say(text)
        for reader in list(self._clients.log_readers):
            self._clients.send("logs", {"entries": [entry], "size": _SIZE}, reader)

    def rarely(self, kind: Hashable, text: str) -> bool:
        """Say a line, unless one of its kind was said within a minute; those that were not are counted in the next one.

        Returns:
            Whether it was said.
        """
        now = time.monotonic()
        with self._lock:
            if kind not in self._said and len(self._said) >= _KEPT_LINES:
                self._said.pop(next(iter(self._said)))
            last, unsaid = self._said.get(kind, (-_PAUSE, 0))
            if now - last < _PAUSE:
                self._said[kind] = last, unsaid + 1
                return False
            self._said[kind] = now, 0
        self.say(f"{text} ({unsaid} more of these since the last line.)" if unsaid else text)
        return True

    def lines(self) -> dict[str, Any]:
        """The kept lines in the form of ComfyUI's `/internal/logs/raw`."""
        with self._lock:
            return {"entries": list(self._lines), "size": _SIZE}

    def text(self) -> str:
        return "".join(f"{line['t']} - {line['m']}" for line in self.lines()["entries"])

    def event(self, run: Run, name: str, data: dict[str, object]) -> None:
        """Move the bars of the run in progress, and log what its nodes warn of."""
        if name == "warning":
            self.say(f"Prompt {run.accepted.id}: warning: {data['message']}")
            return
        if sys.stderr is None or not sys.stderr.isatty():
            return
        if name == "execution_start":
            self._bars = RunReport(sys.stderr, {node: _labelled(one) for node, one in run.accepted.prompt.items()})
        if self._bars is not None:
            self._bars.event(name, data)

    def ended(self, run: Run, state: str, sentence: str, seconds: float) -> None:
        """One line for a prompt that ended."""
        if self._bars is not None:
            self._bars.__exit__()
            self._bars = None
        word = {"success": "done", "error": "failed", "interrupted": "interrupted"}[state]
        cached: list[str] = next((data["nodes"] for name, data in run.messages.kept if name == "execution_cached"), [])
        reused = f", {len(cached)} of its nodes from the cache" if cached else ""
        self.say(f"Prompt {run.accepted.id}: {word} in {seconds:.2f} s{reused}. {_times(run)}{sentence}".rstrip())


def _plain(text: str) -> str:
    # Titles and errors are other people's texts: they must not steer the terminal.
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _labelled(node: dict[str, Any]) -> dict[str, object]:
    label = _plain(node_title(node) or node["class_type"])[:60]
    return {"class_type": label, "_meta": {"title": label}}


def _times(run: Run) -> str:
    """The time of each node, the slowest first."""
    prompt = run.accepted.prompt
    slowest = sorted(run.seconds.items(), key=lambda item: -item[1])
    named = [f"{node_title(prompt[node]) or prompt[node]['class_type']} {seconds:.2f} s" for node, seconds in slowest]
    return ", ".join(named[:30]) + ". " if named else ""
