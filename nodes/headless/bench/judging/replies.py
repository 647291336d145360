"""The judge's replies on disk: an append-only JSON Lines file, from which scores can be computed again at no cost.

A reply is synced to disk before it counts. After a crash, at most the last line is incomplete; it is removed. Requests are
found by their hash, so a recorded reply is never asked for again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from .....uniworld_core.errors import RunFailed, UniWorldError
from .....uniworld_core.files import acquire_lock, append_atomic, lock_path, sync_folder
from .....uniworld_core.json_text import BadJson, loads


@dataclass(frozen=True)
class JudgeReply:
    """One reply.

    Attributes:
        key: hash of the request.
        item, sample, kind, attempt: what was asked.
        text: the reply; None if the judge refused.
        refused: why there is no text.
        model, fingerprint: as the server reports them.
        tokens_in, tokens_out: as the server reports them; 0 if it does not.
        finish: why the reply ended, such as "stop" or "length".
        time: seconds since 1970.
    """

    key: str
    item: str
    sample: int
    kind: str
    attempt: int
    text: str | None
    refused: str | None = None
    model: str = ""
    fingerprint: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = ""
    time: float = 0.0


_TYPES: dict[str, Any] = {
    **{one.name: str for one in fields(JudgeReply)},
    **dict.fromkeys(("sample", "attempt", "tokens_in", "tokens_out"), int),
    "text": (str, type(None)),
    "refused": (str, type(None)),
    "time": (int, float),
}


def read_replies(path: Path) -> list[JudgeReply]:
    """Return all recorded replies, in their order; none if the file does not exist.

    Raises:
        UniWorldError: the file cannot be read, or a line is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UniWorldError(f"The replies '{path}' cannot be read: {error.strerror}.") from error
    return _parsed(path, data)


def by_key(replies: Iterable[JudgeReply]) -> dict[str, JudgeReply]:
    """Return the first reply to each request, which is the one that counts."""
    found: dict[str, JudgeReply] = {}
    for reply in replies:
        found.setdefault(reply.key, reply)
    return found


def _parsed(path: Path, data: bytes) -> list[JudgeReply]:
    found: list[JudgeReply] = []
    complete, _, _tail = data.rpartition(b"\n")
    for number, line in enumerate(complete.split(b"\n") if complete else [], 1):
        try:
            record = loads(line)
        except BadJson:
            record = None
        if not isinstance(record, dict) or record.keys() != _TYPES.keys() or not _well_typed(record):
            raise UniWorldError(f"Line {number} of the replies '{path}' is damaged. Remove this line.")
        found.append(JudgeReply(**record))
    return found


def _well_typed(record: dict[str, Any]) -> bool:
    return all(isinstance(record[name], kind) for name, kind in _TYPES.items())


class Replies:
    """The replies of one run, locked by one process at a time.

    Raises:
        UniWorldError: another process is judging, or the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            busy = f"Another process is judging into '{path}'. Wait for it, or choose another --out."
            self._lock = acquire_lock(lock_path(path), busy)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise UniWorldError(f"The replies '{path}' cannot be opened: {error.strerror}.") from error
        try:
            data = path.read_bytes()
            self._replies = _parsed(path, data)
            self._by_key = by_key(self._replies)
            tail = len(data) - (data.rfind(b"\n") + 1)
            if tail:
                os.ftruncate(self._file, len(data) - tail)
            sync_folder(path.parent)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> Replies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        os.close(self._file)
        self._lock.close()

    def get(self, key: str) -> JudgeReply | None:
        """Return the first recorded reply to a request; None if there is none."""
        return self._by_key.get(key)

    def all(self) -> list[JudgeReply]:
        """Return all recorded replies, each of which has been paid for."""
        return list(self._replies)

    def add(self, reply: JudgeReply) -> None:
        """Append a reply and sync it to disk. Raises RunFailed if it cannot be written."""
        try:
            append_atomic(self._file, json.dumps(asdict(reply)).encode() + b"\n")
        except OSError as error:
            raise RunFailed(
                f"The replies '{self.path}' cannot be written: {error.strerror}. Fix that and run the command again; "
                "recorded replies are not asked for again."
            ) from error
        self._replies.append(reply)
        self._by_key.setdefault(reply.key, reply)
