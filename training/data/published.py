"""Read the published data format, a list of `image_root,annotations.json,need_weight` lines, as samples.

Published: README, "Data preparation", and univa/dataset/qwen2vl_dataset.py.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...uniworld_core.errors import UniWorldError
from ...uniworld_core.files import read_limited
from ..objective.batch import BadSample
from .annotations import BOM, PAINT_MARK, Annotation, is_painting, read_annotation, scan
from .samples import FilePicture, Sample

_MAX_LIST = 64 * 2**20
_COLUMNS = "image_root,annotations.json,need_weight"

# A sample in memory: its line in the list, its number in that file, and its byte range.
_ROW = np.dtype([("line", "<i4"), ("number", "<i4"), ("start", "<i8"), ("end", "<i8")])


class BadData(UniWorldError):
    """A list of data is invalid; `problems` has a sentence for each problem."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        super().__init__("\n  ".join([f"The data of '{path}' cannot be read:", *problems]), problems)
        self.path = path

    def __reduce__(self) -> tuple[type[BadData], tuple[Path, list[str]]]:
        return BadData, (self.path, self.problems)


@dataclass(frozen=True)
class Line:
    """One line of a list: a file of annotations and the folder of its pictures.

    Attributes:
        number: line number, counted from 1.
        root_as_written, name: the two paths as written in the list.
        root, file: the resolved paths.
        weighted: `need_weight`.
    """

    number: int
    root_as_written: str
    name: str
    root: Path
    file: Path
    weighted: bool


def read_list(path: Path) -> tuple[list[Line], list[str]]:
    """Return the lines of a list, and a sentence about each invalid one.

    Relative paths are resolved from the list's folder first, then from the working directory as in the published trainer.
    Blank lines and lines that start with # are ignored. An image root may contain commas.

    Raises:
        BadData: the list cannot be read, or has no lines.
    """
    try:
        data = read_limited(path, _MAX_LIST)
        if data is None:
            raise BadData(path, [f"The list is larger than {_MAX_LIST // 2**20} MiB. Check its path."])
        text = data.removeprefix(BOM).decode("utf-8")
    except OSError as error:
        raise BadData(path, [f"The list cannot be read: {error.strerror}. Check its path."]) from error
    except UnicodeDecodeError as error:
        raise BadData(path, [f"The list is not UTF-8 text (byte {error.start}): save it as UTF-8."]) from error
    if text.lstrip()[:1] in ("[", "{"):
        raise BadData(
            path, [f"This is a JSON file of annotations, not a list of such files; its lines must be `{_COLUMNS}`."]
        )
    lines: list[Line] = []
    problems: list[str] = []
    for number, written in enumerate(text.split("\n"), 1):
        if not written.strip() or written.lstrip().startswith("#"):
            continue
        try:
            lines.append(_read_line(path, number, written.strip()))
        except UniWorldError as error:
            problems.append(f"{path.name}, line {number}: {error}")
        except OSError as error:  # a name that is too long, or a folder without permission
            problems.append(f"{path.name}, line {number}: its paths cannot be accessed ({error.strerror}). Check them.")
    if not lines and not problems:
        raise BadData(path, [f"The list is empty; its lines must be `{_COLUMNS}`."])
    return lines, problems


def _read_line(path: Path, number: int, written: str) -> Line:
    columns = [column.strip() for column in written.rsplit(",", 2)]
    if len(columns) != 3:
        raise UniWorldError(f"it has {len(columns)} of 3 columns; a line must be `{_COLUMNS}`.")
    root_as_written, name, weighted = columns
    root, file = _resolve(path, root_as_written), _resolve(path, name)
    places = f"'{path.parent}' or the working directory"
    problems = []
    if not root.is_dir():
        problems.append(f"the image root '{root_as_written}' is not a folder in {places}.")
    if not file.is_file():
        problems.append(f"the annotations '{name}' are not a file in {places}.")
    if weighted.lower() not in ("true", "false"):
        problems.append(f"the third column, need_weight, is '{weighted}'; it must be true or false.")
    if problems:
        raise UniWorldError(" ".join(problems))
    return Line(number, root_as_written, name, root, file, weighted.lower() == "true")


def _resolve(list_file: Path, written: str) -> Path:
    next_to_list = list_file.parent / written
    return next_to_list if next_to_list.exists() else Path(written)


class PublishedSamples:
    """The paintings of a list. Memory holds only the position of each annotation: 24 bytes per sample.

    Attributes:
        understanding: number of annotations that are questions with answers in words, which are not samples.
    """

    def __init__(self, list_file: str | Path) -> None:
        """Scan all files of annotations once.

        Raises:
            BadData: there are invalid lines or files, all of which are listed, or there is no painting.
        """
        self.list_file = Path(list_file)
        self.lines, problems = read_list(self.list_file)
        self._files = name_files(self.lines)
        self.understanding = 0
        digest = hashlib.sha256()
        found: list[np.ndarray] = []
        for index, line in enumerate(self.lines):
            try:
                found.append(self._scan(index, line, digest))
            except (UniWorldError, OSError) as error:
                problems.append(f"{self.list_file.name}, line {line.number}: {error}")
        if problems:
            raise BadData(self.list_file, problems)
        self._rows = np.concatenate(found)
        if not len(self._rows):
            raise BadData(self.list_file, [f"None of the annotations is a painting: none has a {PAINT_MARK} answer."])
        self.fingerprint = digest.hexdigest()[:32]

    def _scan(self, index: int, line: Line, digest: hashlib._Hash) -> np.ndarray:
        data = line.file.read_bytes()
        digest.update(f"{line.root_as_written}\0{line.weighted}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        rows = []
        for placed in scan(data, line.name):
            if is_painting(placed.value):
                rows.append((index, placed.number, placed.start, placed.end))
            else:
                self.understanding += 1
        return np.array(rows, dtype=_ROW)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, index: int) -> str:
        """Return the name of a sample in messages."""
        return f"{self._files[int(self._rows[index]['line'])]}#{int(self._rows[index]['number'])}"

    def __getitem__(self, index: int) -> Sample:
        """Return one sample. Raises BadSample if its annotation is invalid."""
        row = self._rows[index]
        line = self.lines[int(row["line"])]
        try:
            with line.file.open("rb") as file:
                file.seek(int(row["start"]))
                annotation = read_annotation(json.loads(file.read(int(row["end"]) - int(row["start"]))))
        except (ValueError, OSError) as error:
            raise BadSample(self.key(index), str(error)) from error
        return sample_of(self.key(index), annotation, line)

    def sizes(self, index: int) -> tuple[int, int]:
        """Return height and width of a target in pixels. Raises UniWorldError if it cannot be read."""
        return self[index].target.size()


def name_files(lines: list[Line]) -> list[str]:
    """Return each line's name in sample keys: the path as written, with the line number if the path is not unique."""
    counts = Counter(line.name for line in lines)
    return [line.name if counts[line.name] == 1 else f"{line.name} (line {line.number})" for line in lines]


def sample_of(key: str, annotation: Annotation, line: Line) -> Sample:
    """Return the sample that an annotation of a line describes."""
    *references, target = (FilePicture(line.root / image) for image in annotation.images)
    return Sample(key, annotation.prompt, tuple(references), target, line.weighted)
