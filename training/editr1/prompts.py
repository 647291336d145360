"""The prompts of a run: the published JSON lines, or our annotations. The world of shapes adds its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ...uniworld_core.errors import UniWorldError, shown
from ...uniworld_core.files import read_limited
from ...uniworld_core.json_text import BadJson, loads
from ...uniworld_core.prompts.text import check_prompt
from ..data.annotations import BOM
from ..data.published import BadData, PublishedSamples
from ..data.samples import FilePicture
from ..objective.batch import BadSample
from .pictures import square_crop

_LISTED = 20
_MAX_BYTES = 2**30  # all prompts are kept in memory
_EXAMPLE = '{"prompt": "...", "image": "images/1.png", "requirement": "..."}'


@dataclass(frozen=True)
class EditPrompt:
    """One prompt with its pictures.

    Attributes:
        key: name in messages.
        prompt: the instruction.
        references: the reference pictures as the policy and the reward see them, in order.
        requirement: what the judge must check in addition; "" for nothing.
        task: the exact answer, if the data has one.
        preserve: the policy is held at the reference on its pictures (`PreserveSettings`).
    """

    key: str
    prompt: str
    references: tuple[Image.Image, ...]
    requirement: str = ""
    task: object = None
    preserve: bool = False


class Prompts(Protocol):
    """Prompts by index."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the prompts and their order; it does not depend on the pictures."""

    @property
    def count(self) -> int | None:
        """Number of prompts; None if they never end."""

    @property
    def preserves(self) -> bool:
        """Whether some prompts are marked to be preserved."""

    def is_preserved(self, index: int) -> bool:
        """Whether this prompt is."""

    def read(self, index: int) -> EditPrompt:
        """Return one prompt. Raises BadSample if it or a picture of it is invalid."""


class MetadataPrompts:
    """The published format: a file of JSON lines with prompt, image and requirement, and one picture each.

    Lines with `"preserve": true`, which is ours, are preserved. Pictures are cropped to a square and resized, as published.

    Args:
        file: the file, such as `train_metadata.jsonl`. Pictures are relative to its folder.
        side: side of the square in pixels.

    Raises:
        BadData: the file cannot be read or has no prompt, or lines are invalid; they are listed.
    """

    def __init__(self, file: Path, side: int) -> None:
        self.file, self._side = file, side
        data, lines = _read_lines(file)
        self._rows, problems = _rows(lines)
        if problems:
            rest = [f"... and {len(problems) - _LISTED} more lines."] if len(problems) > _LISTED else []
            raise BadData(file, problems[:_LISTED] + rest)
        if not self._rows:
            raise BadData(file, [f"The file is empty; its lines must be {_EXAMPLE}."])
        self.fingerprint = hashlib.sha256(data).hexdigest()[:32]
        self.preserves = any(map(self.is_preserved, range(self.count)))

    @property
    def count(self) -> int:
        return len(self._rows)

    def is_preserved(self, index: int) -> bool:
        return self._rows[index][1].get("preserve", False)

    def read(self, index: int) -> EditPrompt:
        number, row = self._rows[index]
        key = f"{self.file.name}#{number}"
        try:
            picture = FilePicture(self.file.parent / row["image"], f"`image` in {key}").open()
        except UniWorldError as error:
            raise BadSample(key, str(error)) from error
        pictures = (square_crop(picture, self._side),)
        requirement = row.get("requirement", "")
        return EditPrompt(key, row["prompt"], pictures, requirement, preserve=self.is_preserved(index))


class ListedPrompts:
    """The prompts of our annotations, with all their references. Their targets are not opened.

    Args:
        file: the list of annotations; see `PublishedSamples`.

    Raises:
        BadData: the list is invalid.
    """

    preserves = False

    def __init__(self, file: Path) -> None:
        self._samples = PublishedSamples(file)
        self.fingerprint = self._samples.fingerprint

    @property
    def count(self) -> int:
        return len(self._samples)

    def is_preserved(self, index: int) -> bool:
        return False

    def read(self, index: int) -> EditPrompt:
        sample = self._samples[index]
        try:
            pictures = tuple(picture.open() for picture in sample.references)
        except UniWorldError as error:
            raise BadSample(sample.key, str(error)) from error
        return EditPrompt(sample.key, sample.prompt, pictures)


@dataclass(frozen=True)
class PromptsReport:
    """The result of `check_prompts`: a sentence for each problem, and the numbers of prompts and of good ones."""

    problems: tuple[str, ...]
    prompts: int
    good: int

    def to_json(self) -> dict[str, object]:
        """Return the report as JSON values."""
        return {"problems": list(self.problems), "summary": {"prompts": self.prompts, "good": self.good}}

    def to_text(self) -> str:
        """Return the report as text, without a trailing line break."""
        lines = [*self.problems, ""] if self.problems else []
        return "\n".join([*lines, f"{self.good} of {self.prompts} prompts are good."])


def check_prompts(file: Path, progress: Callable[[int], None] | None = None) -> PromptsReport:
    """Check every line and every picture of a file in the published format.

    Args:
        progress: called with the number of prompts checked so far.
    """
    try:
        _, lines = _read_lines(file)
    except BadData as error:
        return PromptsReport(tuple(error.problems), 0, 0)
    rows, problems = _rows(lines)
    total, good = len(rows) + len(problems), 0
    for done, (number, row) in enumerate(rows, 1):
        try:
            FilePicture(file.parent / row["image"], "`image`").open()
            good += 1
        except UniWorldError as error:
            problems.append(f"line {number}: {error}")
        if progress is not None:
            progress(done)
    if not total:
        problems.append(f"The file is empty; its lines must be {_EXAMPLE}.")
    return PromptsReport(tuple(f"{file.name}, {problem}" for problem in problems), total, good)


def _read_lines(file: Path) -> tuple[bytes, list[str]]:
    try:
        data = read_limited(file, _MAX_BYTES)
        if data is None:
            raise BadData(file, [f"The file is larger than {_MAX_BYTES // 2**20} MiB. Use fewer prompts."])
        return data, data.removeprefix(BOM).decode("utf-8").split("\n")
    except OSError as error:
        raise BadData(file, [f"The file cannot be read: {error.strerror}. Check its path."]) from error
    except UnicodeDecodeError as error:
        raise BadData(file, [f"The file is not UTF-8 text (byte {error.start}): save it as UTF-8."]) from error


def _rows(lines: Sequence[str]) -> tuple[list[tuple[int, Mapping[str, Any]]], list[str]]:
    """Return the valid lines with their numbers, and a sentence about each invalid one. Blank lines are ignored."""
    rows: list[tuple[int, Mapping[str, Any]]] = []
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((number, _row(line)))
        except UniWorldError as error:
            problems.append(f"line {number}: {error}")
    return rows, problems


def _row(line: str) -> Mapping[str, Any]:
    try:
        row = loads(line)
    except BadJson as error:
        raise UniWorldError(f"it {error}.") from error
    if not isinstance(row, dict):
        raise UniWorldError(f"it is not an object; a line must be {_EXAMPLE}.")
    for name in ("prompt", "image"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise UniWorldError(f"its {name} is {shown(row.get(name))}; it must be a text that is not empty.")
    check_prompt(row["prompt"])
    if not isinstance(row.get("requirement", ""), str):
        raise UniWorldError(f"its requirement is {shown(row['requirement'])}; it must be a text.")
    if not isinstance(row.get("preserve", False), bool):
        raise UniWorldError(f"its preserve is {shown(row['preserve'])}; it must be true or false.")
    return row
