"""Output of `uniworld chat`: replies on standard output and the rest on standard error, or JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ....streams import progress_bar
from ..run.report import JsonRunReport
from .history import USER, History, SavedTurn
from .session import Reply

if TYPE_CHECKING:
    from PIL import Image


class ChatText:
    """Output for people: answers and paths of painted pictures on `out`, everything else on standard error."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._label = out, ""
        self._bar: Any = None

    def ready(self, history: History, notes: list[str]) -> None:
        self.info("\n".join([*notes, *(["The conversation so far:", history_text(history)] if history.turns else [])]))

    def info(self, text: str) -> None:
        if text:
            print(text, file=sys.stderr, flush=True)

    def route(self, paint: bool, _probability: float | None) -> None:
        self.close()
        self._label = "painting" if paint else "answering"

    def progress(self, value: int, total: int, _preview: Image.Image | None) -> None:
        if self._bar is None:
            self._bar = progress_bar(
                total=total, desc=self._label, file=sys.stderr, dynamic_ncols=True, leave=False, disable=None
            )
        self._bar.update(value - self._bar.n)

    def warning(self, text: str) -> None:
        self.info(f"warning: {text}")

    def reply(self, reply: Reply) -> None:
        self.close()
        for line in (reply.text, *map(str, reply.pictures)) if reply.text else map(str, reply.pictures):
            print(line, file=self._out, flush=True)

    def problem(self, sentence: str) -> None:
        self.close()
        self.info(sentence)

    def end(self, status: str, folder: Path | None) -> None:
        self.close()
        if folder is not None:
            self.info(f"The conversation is saved: `uniworld chat {folder.name}` resumes it.")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class ChatJson:
    """Output for programs: `ready`; for each message `route`, `progress`, and `reply` or `failed`; finally `result`."""

    def __init__(self, report: JsonRunReport) -> None:
        self._line = report.line

    def ready(self, history: History, notes: list[str]) -> None:
        self._line("ready", folder=str(history.folder), turns=turns_data(history), notes=notes)

    def info(self, text: str) -> None:
        if text:
            self._line("info", message=text)

    def route(self, paint: bool, probability: float | None) -> None:
        self._line("route", paint=paint, probability=probability)

    def progress(self, value: int, total: int, _preview: Image.Image | None) -> None:
        self._line("progress", value=value, max=total)

    def warning(self, text: str) -> None:
        self._line("warning", message=text)

    def reply(self, reply: Reply) -> None:
        images = [str(path) for path in reply.pictures]
        self._line("reply", paint=reply.paint, probability=reply.probability, text=reply.text, images=images)

    def problem(self, sentence: str) -> None:
        self._line("failed", message=sentence)

    def end(self, status: str, folder: Path | None) -> None:
        self._line("result", status=status, folder=None if folder is None else str(folder))

    def close(self) -> None:
        pass


def turns_data(history: History) -> list[dict[str, object]]:
    """Return the turns as JSON data, with pictures as paths."""
    return [
        {"role": turn.role, "text": turn.text, "images": [str(history.picture(name)) for name in turn.pictures]}
        for turn in history.turns
    ]


def history_text(history: History) -> str:
    """Return the conversation so far as text, one or more lines per turn."""
    return "\n".join(_turn_text(history, turn) for turn in history.turns) or "There are no messages yet."


def _turn_text(history: History, turn: SavedTurn) -> str:
    mark = "you> " if turn.role == USER else "  "
    return "\n".join(mark + line for line in (*map(str, map(history.picture, turn.pictures)), turn.text) if line)
