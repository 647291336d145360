"""A VQA model as the judge: answers made elsewhere, or a program in an environment of its own. Both use JSON Lines."""

from __future__ import annotations

import asyncio
import json
import shlex
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .....uniworld_core.errors import RunFailed, UniWorldError, brief, shown
from .....uniworld_core.files import read_limited
from .....uniworld_core.json_text import BadJson, loads
from .ask import Ask
from .client import JudgeDown, JudgeRejected
from .replies import JudgeReply

# The server's name in the settings of a run.
VQA = "vqa"
_MAX_BYTES, _MAX_LINE = 512 * 2**20, 2**20
_CLOSE_SECONDS = 10.0

# What an answer belongs to: an item, a crop of its picture (0 for the whole picture), and a question.
_Place = tuple[str, int, str]


def question_text(question: str, crop: int = 0, choices: tuple[str, ...] = ()) -> str:
    """Return the text of a question to a VQA model: JSON with what the model and the file of answers need."""
    content: dict[str, Any] = {"question": question}
    content |= {"crop": crop} if crop else {}
    content |= {"choices": list(choices)} if choices else {}
    return json.dumps(content)


def question_line(item: str, ask: Ask) -> str:
    """Return a line of the file of questions: JSON, to which "answer" must be added."""
    picture = ask.pictures[0]
    box = {} if picture.box is None else {"box": list(picture.box)}
    return json.dumps({"item": item, **json.loads(ask.text), "picture": str(picture.path), **box})


class RecordedVQA:
    """A judge that replies with answers from a file.

    Args:
        path: JSON Lines with `item`, `question`, `answer`, and `crop` (from 1) if the picture is a grid.
        recorded: replies of earlier runs, which must be the same.

    Raises:
        UniWorldError: the file is damaged, or has other answers than those recorded.
    """

    def __init__(self, path: Path, model: str, recorded: Mapping[str, JudgeReply]) -> None:
        self.model = model
        self.notes: list[str] = []
        self.omitted: list[str] = []
        self.identity = {"model": model, "server": VQA}
        self._path, self._answers = path, _read(path)
        kinds = {(item, kind_of(crop, question)): answer for (item, crop, question), answer in self._answers.items()}
        for reply in recorded.values():
            if kinds.get((reply.item, reply.kind), reply.text) != reply.text:
                raise UniWorldError(
                    f"'{path}' has another answer for item {reply.item} than the run has recorded. Choose another --out."
                )

    async def close(self) -> None:
        """Nothing is open."""

    async def reply(self, ask: Ask, about: JudgeReply) -> JudgeReply:
        """See `Judge.reply`."""
        question = json.loads(ask.text)
        answer = self._answers.get((about.item, question.get("crop", 0), question["question"]))
        if answer is None:
            raise JudgeRejected(f"'{self._path}' has no answer to '{about.kind}'")
        return replace(about, text=answer, model=self.model, finish="stop", time=round(time.time(), 3))


def kind_of(crop: int, question: str) -> str:
    """Return the kind of a question."""
    return f"crop {crop}: {question}" if crop else question


def _read(path: Path) -> dict[_Place, str]:
    try:
        data = read_limited(path, _MAX_BYTES)
        if data is None:
            raise UniWorldError(
                f"--vqa '{path}' is larger than {_MAX_BYTES // 2**20} MiB. Pass the answers of one run."
            )
        lines = data.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise UniWorldError(f"--vqa '{path}' cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise UniWorldError(f"--vqa '{path}' is not UTF-8 text. Write it again.") from error
    found: dict[_Place, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = loads(line)
        except BadJson as error:
            raise UniWorldError(f"Line {number} of '{path}' {error}. Correct it.") from error
        place = _place(record)
        answer = record.get("answer") if isinstance(record, dict) else None
        if place is None or not isinstance(answer, str):
            raise UniWorldError(
                f"Line {number} of '{path}' must have the texts item, question and answer; it is {shown(record)}."
            )
        if found.setdefault(place, answer) != answer:
            raise UniWorldError(f"Line {number} of '{path}' gives a second answer to the same question. Remove one.")
    return found


def _place(record: Any) -> _Place | None:
    if not isinstance(record, dict):
        return None
    item, crop, question = record.get("item"), record.get("crop", 0), record.get("question")
    valid = isinstance(item, str) and isinstance(question, str) and isinstance(crop, int) and not isinstance(crop, bool)
    return (str(item), int(crop), str(question)) if valid else None


class ProgramVQA:
    """A judge that asks a program, which is started once and answers line by line.

    A request is a line of JSON on its standard input: `picture` (path of a file), `question`, and `choices` if there are any.
    The reply is a line with `answer`, or with `error`. Other lines, such as messages of a library, are ignored.

    Args:
        command: the program with its arguments, as in a shell; no shell is used.
        timeout: seconds to wait for a reply.
    """

    def __init__(self, command: str, model: str, timeout: float) -> None:
        self.model = model
        self.notes: list[str] = []
        self.omitted: list[str] = []
        self.identity = {"model": model, "server": VQA}
        self._words, self._timeout = program_words(command), timeout
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._crops = tempfile.TemporaryDirectory(prefix="uniworld-vqa-")

    async def close(self) -> None:
        """Close the program's input, and kill it if it does not end."""
        await self._end(_CLOSE_SECONDS)
        self._crops.cleanup()

    async def reply(self, ask: Ask, about: JudgeReply) -> JudgeReply:
        """See `Judge.reply`."""
        question = json.loads(ask.text)
        question.pop("crop", None)
        async with self._lock:
            request = {"picture": str(self._picture(ask)), **question}
            try:
                answer = await asyncio.wait_for(self._answer(json.dumps(request)), self._timeout)
            except UniWorldError:  # a ValueError too
                raise
            except (asyncio.TimeoutError, OSError, asyncio.LimitOverrunError, ValueError) as error:
                await self._end(0.0)  # a late reply must not count for the next question
                reason = (
                    "did not reply in time" if isinstance(error, asyncio.TimeoutError) else f"failed ({brief(error)})"
                )
                raise JudgeDown(f"the program of --vqa-command {reason}") from error
        return replace(about, text=answer, model=self.model, finish="stop", time=round(time.time(), 3))

    async def _answer(self, line: str) -> str:
        process = await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()
        while data := await process.stdout.readline():
            try:
                record = loads(data)
            except BadJson:
                continue
            if isinstance(record, dict) and "error" in record:
                raise JudgeRejected(f"the program of --vqa-command reports: {shown(record['error'])}")
            if isinstance(record, dict) and "answer" in record:
                if not isinstance(record["answer"], str):
                    raise JudgeRejected(f"the answer is {shown(record['answer'])}, expected a text")
                return record["answer"]
        code = await process.wait()
        self._process = None
        raise JudgeDown(f"the program of --vqa-command ended with code {code}")

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            pipe = asyncio.subprocess.PIPE
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._words, stdin=pipe, stdout=pipe, limit=_MAX_LINE
                )
            except OSError as error:
                raise RunFailed(f"--vqa-command '{self._words[0]}' cannot be started: {error.strerror}.") from error
        return self._process

    async def _end(self, seconds: float) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()

    def _picture(self, ask: Ask) -> Path:
        picture = ask.pictures[0]
        if picture.box is None:
            return picture.path.resolve()
        path = Path(self._crops.name) / "crop.png"
        try:
            with Image.open(picture.path) as whole:
                whole.crop(picture.box).save(path)
        except (OSError, SyntaxError) as error:
            raise UniWorldError(f"The picture '{picture.path}' cannot be read: {brief(error)}. Replace it.") from error
        return path


def program_words(command: str) -> list[str]:
    """Split a command into words. Raises UniWorldError if that is impossible."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UniWorldError(f"--vqa-command '{command}' is invalid: {error}. Check its quotes.") from error
    if not words:
        raise UniWorldError("--vqa-command is empty. Write a program with its arguments.")
    return words
