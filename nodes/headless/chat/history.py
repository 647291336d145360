"""A conversation on disk: a folder with `conversation.json` and the pictures that it names.

The file is replaced as a whole after every turn, when the turn's pictures are on disk: whatever ends the program, at most
the running turn is lost. Pictures are numbered and never replaced; those of turns that were taken back stay.
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
    """One turn as it is saved.

    Attributes:
        pictures: file names in the folder of the conversation.
        made: of an assistant's turn, what it was made with (seed, probability, ...), for people to read.
    """

    role: str
    text: str
    pictures: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)


class History:
    """One conversation, held by one process at a time.

    Attributes:
        folder: of this conversation; one named by the time is made with the first turn.
        model: the names with which the model was opened.
        turns: what was said so far, each user's turn with its reply.
    """

    def __init__(self, root: Path, name: str | None, model: dict[str, str]) -> None:
        """Begin a conversation named by the present time, or go on with the one of a name, which may be new.

        Args:
            root: the folder of all conversations.
            model: for a conversation that begins; a saved one brings its own.

        Raises:
            UniWorldError: it is damaged, held by another process, or cannot be written to.
        """
        self.root, self.model = root, model
        self.turns: tuple[SavedTurn, ...] = ()
        self._held: BinaryIO | None = None
        self._named_by_time = name is None
        if name is None:
            self.folder = root / time.strftime("%Y-%m-%d_%H-%M-%S")
            return
        self.folder = root / check_relative(name, "name of the conversation")
        if self.folder.parent != root:
            raise UniWorldError(f"The name of the conversation {name!r} has a slash. Use a plain name such as 'cats'.")
        self._make()
        try:
            remove_stale_parts(self.folder)
            if (self.folder / FILE).exists():
                self.model, self.turns = _read(self.folder / FILE)
        except BaseException:
            self.close()
            raise

    def add(self, user: SavedTurn, reply: SavedTurn, pictures: dict[str, Image.Image]) -> None:
        """Save one message and its reply with their pictures; on return they are on disk.

        Args:
            pictures: {file name that a turn holds: picture}, from `new_names`.

        Raises:
            OSError: the folder cannot be written to; the conversation is as it was.
        """
        if self._held is None:
            self._make()
        longer = (*self.turns, user, reply)
        try:
            for name, picture in pictures.items():
                with atomic_file(self.folder / name) as file:
                    picture.save(file, format="PNG")
            self._save(longer)
        except BaseException:
            with contextlib.suppress(UniWorldError):  # interrupted when all was on disk already
                self.turns = _read(self.folder / FILE)[1]
            if self.turns != longer:
                for name in pictures:
                    (self.folder / name).unlink(missing_ok=True)
            raise

    def undo(self) -> list[SavedTurn]:
        """Take back the last message and its reply; gives both, or nothing where nothing was said."""
        gone = list(self.turns[-2:])
        if gone:
            self._save(self.turns[:-2])
        return gone

    def new_names(self, stems: Sequence[str]) -> list[str]:
        """A file name for each new picture, numbered on from all that were ever there."""
        present = self.folder.iterdir() if self.folder.is_dir() else ()
        numbers = [int(match[1]) for entry in present if (match := _NUMBER.match(entry.name))]
        first = max(numbers, default=0) + 1
        return [f"{number:03}_{_plain(stem)}.png" for number, stem in enumerate(stems, first)]

    def picture(self, name: str) -> Path:
        return self.folder / name

    def copy(self, target: Path) -> None:
        """Copy what was said and its pictures into a new folder. Raises UniWorldError if it is there already."""
        if not self.turns:
            raise UniWorldError("Nothing was said yet: there is nothing to save.")
        if target.exists():
            raise UniWorldError(f"'{target}' is there already: choose another name.")
        with atomic_folder(target) as folder:
            for name in (FILE, *(name for turn in self.turns for name in turn.pictures)):
                shutil.copyfile(self.folder / name, folder / name)

    def close(self) -> None:
        """Let other processes have it. A folder in which nothing was saved is removed."""
        if self._held is None:
            return
        if not (self.folder / FILE).exists():
            with contextlib.suppress(OSError):  # on Windows, an open file cannot be removed
                (self.folder / _LOCK).unlink()
        self._held.close()
        self._held = None
        with contextlib.suppress(OSError):  # something is in it
            self.folder.rmdir()
            self.root.rmdir()

    def _save(self, turns: Sequence[SavedTurn]) -> None:
        saved = _to_bytes(self.model, turns)
        with atomic_file(self.folder / FILE) as file:
            file.write(saved)
        self.turns = tuple(turns)

    def _make(self) -> None:
        """Make the folder, unless it is there, and hold it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if self._named_by_time:
                self.folder = _new_folder(self.folder)
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
            busy = f"Another process has the conversation '{self.folder}' open: end it, or begin another conversation."
            self._held = acquire_lock(self.folder / _LOCK, busy)
        except OSError as error:
            raise UniWorldError(f"The conversation '{self.folder}' cannot be written to: {error.strerror}.") from error


def latest(root: Path) -> str:
    """The name of the conversation that was last added to. Raises UniWorldError if there is none."""
    names = saved_names(root)
    if not names:
        raise UniWorldError(f"There is no conversation in '{root}' to resume: start `uniworld chat` without --resume.")
    return names[0]


def saved_names(root: Path) -> list[str]:
    """Names of the saved conversations, the latest first."""
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
            raise UniWorldError(f"the picture {missing[0]} is not there")
        model = {str(key): str(value) for key, value in saved["model"].items()}
        _to_bytes(model, turns)  # what opens can be saved again
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        verb = "it lacks " if isinstance(error, KeyError) else "it " if isinstance(error, BadJson) else ""
        reason = f"{verb}{error}"
        raise UniWorldError(f"The conversation '{file}' cannot be resumed: {reason}. Begin another one.") from error
    return model, turns


def _new_folder(wanted: Path) -> Path:
    """Make a folder that no other conversation has: of this name, with a number behind it if need be."""
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
