"""A saved conversation: a folder with `conversation.json` and its pictures.

The file is replaced atomically after every turn, once the turn's pictures are written, so that a crash loses at most the
current turn. Pictures are numbered and never overwritten; those of undone turns stay.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import acquire_lock, atomic_file, atomic_folder, remove_stale_parts
from ....uniworld_core.json_text import BadJson, loads
from ....uniworld_core.prompts.text import check_text
from ..storage.folders import check_relative

FILE, VERSION = "conversation.json", 1
USER, ASSISTANT = "user", "assistant"
_LOCK = ".lock"
_NUMBER = re.compile(r"(\d{3,9})_")


@dataclass(frozen=True)
class SavedTurn:
    """One turn in the file.

    Attributes:
        pictures: file names in the conversation's folder.
        made: settings of an assistant's turn (seed, probability, ...); for information only, never read back.
    """

    role: str
    text: str
    pictures: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)


class History:
    """One conversation, locked by one process at a time.

    Attributes:
        folder: the conversation's folder. One that is named by the time is created with the first turn.
        model: names of checkpoint, FLUX and SigLIP folders.
        turns: the turns so far, alternating between user and assistant.
    """

    def __init__(self, root: Path, name: str | None, model: dict[str, str]) -> None:
        """Open the conversation of this name, or create it. None creates one that is named by the current time.

        Args:
            root: the folder of all conversations.
            model: for a new conversation; a saved one has its own.

        Raises:
            UniWorldError: the conversation is damaged, in use by another process, or cannot be written to.
        """
        self.root, self.model = root, model
        self.turns: tuple[SavedTurn, ...] = ()
        self._lock: BinaryIO | None = None
        self._named_by_time = name is None
        if name is None:
            self.folder = root / time.strftime("%Y-%m-%d_%H-%M-%S")
            return
        self.folder = root / check_relative(name, "name of the conversation")
        if self.folder.parent != root:
            raise UniWorldError(f"The name of the conversation {name!r} has a slash. Use a plain name such as 'cats'.")
        self._create_folder()
        try:
            remove_stale_parts(self.folder)
            if (self.folder / FILE).exists():
                self.model, self.turns = _read(self.folder / FILE)
        except BaseException:
            self.close()
            raise

    def add(self, user: SavedTurn, reply: SavedTurn, pictures: dict[str, Image.Image]) -> None:
        """Save a message and its reply with their pictures. They are on disk when this returns.

        Args:
            pictures: {file name: picture} of the turns' pictures, with names from `new_names`.

        Raises:
            OSError: the folder cannot be written to. The conversation is unchanged.
        """
        if self._lock is None:
            self._create_folder()
        longer = (*self.turns, user, reply)
        try:
            for name, picture in pictures.items():
                with atomic_file(self.folder / name) as file:
                    picture.save(file, format="PNG")
            self._save(longer)
        except BaseException:
            with contextlib.suppress(UniWorldError):  # Ctrl-C may have arrived after everything was written
                self.turns = _read(self.folder / FILE)[1]
            if self.turns != longer:
                for name in pictures:
                    (self.folder / name).unlink(missing_ok=True)
            raise

    def undo(self) -> list[SavedTurn]:
        """Remove the last message and its reply, and return both; an empty list if there are no messages."""
        removed = list(self.turns[-2:])
        if removed:
            self._save(self.turns[:-2])
        return removed

    def new_names(self, stems: Sequence[str]) -> list[str]:
        """Return a file name for each new picture, numbered after all existing ones."""
        present = self.folder.iterdir() if self.folder.is_dir() else ()
        numbers = [int(match[1]) for entry in present if (match := _NUMBER.match(entry.name))]
        first = max(numbers, default=0) + 1
        return [f"{number:03}_{_plain(stem)}.png" for number, stem in enumerate(stems, first)]

    def picture(self, name: str) -> Path:
        return self.folder / name

    def copy(self, target: Path) -> None:
        """Copy the conversation with its pictures to a new folder. Raises UniWorldError if that exists."""
        if not self.turns:
            raise UniWorldError("There are no messages to save yet.")
        if target.exists():
            raise UniWorldError(f"'{target}' already exists. Choose another name.")
        with atomic_folder(target) as folder:
            for name in (FILE, *(name for turn in self.turns for name in turn.pictures)):
                shutil.copyfile(self.folder / name, folder / name)

    def close(self) -> None:
        """Release the lock. A folder in which nothing was saved is removed."""
        if self._lock is None:
            return
        if not (self.folder / FILE).exists():
            with contextlib.suppress(OSError):  # on Windows, an open file cannot be removed
                (self.folder / _LOCK).unlink()
        self._lock.close()
        self._lock = None
        with contextlib.suppress(OSError):  # the folder is not empty
            self.folder.rmdir()
            self.root.rmdir()

    def _save(self, turns: Sequence[SavedTurn]) -> None:
        saved = _to_bytes(self.model, turns)
        with atomic_file(self.folder / FILE) as file:
            file.write(saved)
        self.turns = tuple(turns)

    def _create_folder(self) -> None:
        """Create the folder if it does not exist, and lock it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self._named_by_time:
                self.folder = _new_folder(self.folder)
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
            busy = f"Another process uses the conversation '{self.folder}'. End it, or start another conversation."
            self._lock = acquire_lock(self.folder / _LOCK, busy)
        except OSError as error:
            raise UniWorldError(f"The conversation '{self.folder}' cannot be written to: {error.strerror}.") from error


def latest(root: Path) -> str:
    """Return the name of the conversation that was changed last. Raises UniWorldError if there is none."""
    names = saved_names(root)
    if not names:
        raise UniWorldError(f"'{root}' contains no conversation to resume. Start `uniworld chat` without --resume.")
    return names[0]


def saved_names(root: Path) -> list[str]:
    """Return the names of the saved conversations, latest first."""
    files = [(file.stat().st_mtime_ns, file.parent.name) for file in root.glob(f"*/{FILE}")]
    return [name for _, name in sorted(files, reverse=True)]


def _to_bytes(model: dict[str, str], turns: Sequence[SavedTurn]) -> bytes:
    saved = {"uniworld_chat": VERSION, "model": model, "turns": [asdict(turn) for turn in turns]}
    return json.dumps(saved, ensure_ascii=False, indent=1).encode()


def _read(file: Path) -> tuple[dict[str, str], tuple[SavedTurn, ...]]:
    try:
        saved = loads(file.read_bytes(), allow_nan=True)
        if saved["uniworld_chat"] != VERSION:
            raise UniWorldError(f"its version is {saved['uniworld_chat']!r}, not {VERSION}")
        turns = tuple(
            SavedTurn(turn["role"], turn["text"], tuple(turn["pictures"]), dict(turn["made"]))
            for turn in saved["turns"]
        )
        for turn, role in zip(turns, (USER, ASSISTANT) * len(turns)):
            names = [check_relative(name, "picture name") for name in turn.pictures]
            if turn.role != role or not isinstance(turn.text, str) or any("/" in name for name in names):
                raise UniWorldError(f"a turn is {str(turn)[:80]!r}")
            check_text(turn.text, "text of a turn")
        if len(turns) % 2:
            raise UniWorldError("the last message has no reply")
        missing = [name for turn in turns for name in turn.pictures if not (file.parent / name).is_file()]
        if missing:
            raise UniWorldError(f"the picture {missing[0]} is missing")
        model = {str(key): str(value) for key, value in saved["model"].items()}
        _to_bytes(model, turns)  # check that the conversation can be saved again
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        verb = "it lacks " if isinstance(error, KeyError) else "it " if isinstance(error, BadJson) else ""
        reason = f"{verb}{error}"
        raise UniWorldError(f"The conversation '{file}' cannot be resumed: {reason}. Start another one.") from error
    return model, turns


def _new_folder(wanted: Path) -> Path:
    """Create a folder of this name, with a number appended if it exists."""
    number = 1
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def _plain(stem: str) -> str:
    return re.sub(r"[^\w.-]", "_", re.sub(r"^\d{3}_", "", stem)).strip("._")[:60] or "picture"
