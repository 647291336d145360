"""What a run tells on the way: progress bars and sentences for people, or one line of JSON per event."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from . import folders
from .executor import RunResult
from .problems import node_title
from .validate import Validation


def _saved_path(entry: dict[str, Any]) -> Path:
    return folders.current().of_kind(entry["type"]) / entry["subfolder"] / entry["filename"]


class Report:
    """Progress bars on standard error; pictures' paths and nodes' texts on standard output."""

    def __init__(self, out: TextIO, prompt: dict[str, Any]) -> None:
        self._out, self._prompt = out, prompt
        self._bar: Any = None

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(done=False)

    def event(self, name: str, data: dict[str, Any]) -> None:
        if name == "executing":
            self._close()
            self._open(data["node"])
        elif name == "progress" and self._bar is not None:
            self._bar.total = data["max"]
            self._bar.update(data["value"] - self._bar.n)
        elif name == "executed":
            self._close()
        elif name in ("execution_error", "execution_interrupted"):
            self._close(done=False)
        elif name == "execution_success":
            self._close()

    def _open(self, node_id: str) -> None:
        from tqdm import tqdm

        node = self._prompt[node_id]
        label = node_title(node) or node["class_type"]
        self._bar = tqdm(total=1, desc=f"{label} ({node_id})", file=sys.stderr, dynamic_ncols=True)

    def _close(self, done: bool = True) -> None:
        if self._bar is not None:
            if done and self._bar.total is not None:
                self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()
            self._bar = None

    def invalid(self, checked: Validation) -> None:
        print("The workflow cannot run:", *checked.sentences, sep="\n  ", file=sys.stderr)

    def result(self, result: RunResult) -> None:
        for ui in result.ui.values():
            for text in ui.get("text", ()):
                print(text, file=self._out)
            for entry in ui.get("images", ()):
                print(_saved_path(entry), file=self._out)


class JsonReport:
    """One JSON object per line: `{"event": ..., ...}` with the data of ComfyUI's events, and at last "result"."""

    def __init__(self, out: TextIO, debug: bool = False) -> None:
        self._out, self._debug = out, debug

    def __enter__(self) -> JsonReport:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def line(self, name: str, **data: Any) -> None:
        line = {"event": name, **data}
        try:
            text = json.dumps(line, default=str, allow_nan=False)
        except ValueError:  # NaN and infinity are no JSON
            text = json.dumps(json.loads(json.dumps(line, default=str), parse_constant=str))
        print(text, file=self._out, flush=True)

    def event(self, name: str, data: dict[str, Any]) -> None:
        if name == "preview":
            return  # a picture; "progress" tells the same in numbers
        if "traceback" in data and not self._debug:
            data = {**data, "traceback": []}
        self.line(name, **data)

    def invalid(self, checked: Validation) -> None:
        self.line("invalid", error=checked.error, node_errors=checked.node_errors, problems=checked.sentences)

    def result(self, result: RunResult) -> None:
        images = [str(_saved_path(entry)) for ui in result.ui.values() for entry in ui.get("images", ())]
        texts = [text for ui in result.ui.values() for text in ui.get("text", ())]
        self.line(
            "result", status=result.status, message=result.sentence, images=images, texts=texts, outputs=result.ui
        )
