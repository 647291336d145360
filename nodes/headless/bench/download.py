"""Read a benchmark's files from the user's download. Python files are parsed for constants, never executed."""

from __future__ import annotations

import ast
import glob
import hashlib
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ....uniworld_core.errors import UniWorldError, brief, shown
from ....uniworld_core.files import read_limited, sha256_file
from ....uniworld_core.json_text import BadJson, loads
from .damaged import pointer_problem, unreadable

MAX_BYTES = 512 * 2**20
# The package `datasets` writes cache-*.arrow beside a data set, with rows of it.
_CACHE = "cache-"


class Download:
    """The folders of one download.

    Args:
        folders: searched with all their subfolders.
        name: name of the benchmark, for messages.
        where: where to get its files, the end of the messages about missing ones.
    """

    def __init__(self, folders: Sequence[Path], name: str, where: str) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UniWorldError(
                    f"--data '{folder}' is not a folder. Pass the folder with the files of {name}. {where}"
                )
        self.folders, self._name, self._where = folders, name, where
        self._digests: dict[Path, str] = {}

    @property
    def files(self) -> dict[str, str]:
        """The files that were read, by name, with their SHA-256. Files of the same name have their folder's name, too."""
        counts = Counter(path.name for path in self._digests)
        return {
            path.name if counts[path.name] == 1 else f"{path.parent.name}/{path.name}": digest
            for path, digest in self._digests.items()
        }

    def record(self, path: Path, digest: str) -> None:
        """Record a file as read."""
        self._digests[path] = digest

    def missing(self, what: str) -> UniWorldError:
        """Return the error to raise for a missing file."""
        listed = ", ".join(f"'{folder}'" for folder in self.folders)
        return UniWorldError(f"{self._name} needs {what}, which is not in {listed}. {self._where}")

    def all(self, *patterns: str) -> list[Path]:
        """Return all files that match a pattern such as "*.parquet" or "Basic/prompts.json", sorted."""
        found = {path for folder in self.folders for pattern in patterns for path in folder.rglob(pattern)}
        return sorted(path for path in found if path.is_file())

    def one(self, *names: str, accept: Callable[[Path], bool] = lambda _: True) -> Path:
        """Return the file with one of some names.

        Args:
            accept: whether a file of that name is the one.

        Raises:
            UniWorldError: there is none, or there are several with different content.
        """
        found = [path for path in self.all(*names) if accept(path)]
        if not found:
            raise self.missing(f"the file '{names[0]}'" + (f" (or '{names[1]}')" if len(names) > 1 else ""))
        if len({sha256_file(path) for path in found}) > 1:
            raise self._several(f"'{names[0]}'", found)
        return found[0]

    def shards(self, *patterns: str) -> list[Path]:
        """Return the files of a data set that match a pattern, which may be shards: "train-00000-of-00007.parquet".

        Copies of a file, hidden files, and the files in which the package `datasets` caches results, are left out.

        Raises:
            UniWorldError: a shard is missing, or there are several data sets.
        """
        found: dict[str, Path] = {}
        for path in self.all(*patterns):
            if path.name.startswith((".", _CACHE)):
                continue
            other = found.setdefault(path.name, path)
            if other is not path and sha256_file(other) != sha256_file(path):
                raise self._several(f"'{path.name}'", [other, path])
        sets: dict[tuple[str, ...], Path] = {}
        for name, path in found.items():
            parts = re.fullmatch(r"(.*-)(\d{5})-of-(\d{5})(\..*)", name)
            if parts is None:
                sets.setdefault((), path)
                continue
            start, _, count, end = parts.groups()
            sets.setdefault((start, count, end), path)
            for number in range(int(count)):
                if (shard := f"{start}{number:05d}-of-{count}{end}") not in found:
                    raise self.missing(f"the file '{shard}'")
        if len(sets) > 1:
            raise self._several("the data set", list(sets.values()))
        return [found[name] for name in sorted(found)]

    def _several(self, what: str, paths: Sequence[Path]) -> UniWorldError:
        listed = ", ".join(f"'{path}'" for path in paths)
        return UniWorldError(f"There are several versions of {what}: {listed}. Pass the folder of one as --data.")

    def optional(self, *names: str) -> Path | None:
        """Return the first file with one of some names, if there is one."""
        return next(iter(self.all(*names)), None)

    def text(self, path: Path) -> str:
        """Return the text of a file. Raises UniWorldError if it is not UTF-8 text."""
        try:
            problem = pointer_problem(path)
            if problem is not None:
                raise UniWorldError(f"'{path}' {problem}")
            data = read_limited(path, MAX_BYTES)
            if data is None:
                raise UniWorldError(f"'{path}' is larger than {MAX_BYTES // 2**20} MiB. Download it again.")
            text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()  # with universal newlines
            self.record(path, hashlib.sha256(data).hexdigest())
        except UnicodeDecodeError as error:
            raise UniWorldError(f"'{path}' is not UTF-8 text. Download it again.") from error
        except OSError as error:
            raise UniWorldError(f"'{path}' cannot be read: {error.strerror}. Check the path.") from error
        return text

    def json(self, path: Path) -> Any:
        """Return the content of a JSON file."""
        try:
            return loads(self.text(path))
        except BadJson as error:
            raise UniWorldError(f"'{path}' {error}. Download it again.") from error

    def json_lines(self, path: Path) -> list[Any]:
        """Return the content of a JSON Lines file."""
        made = []
        for number, line in enumerate(self.text(path).split("\n"), 1):
            if line.strip():
                try:
                    made.append(loads(line))
                except BadJson as error:
                    raise UniWorldError(f"Line {number} of '{path}' {error}. Download it again.") from error
        return made

    def _tree(self, path: Path) -> ast.Module:
        try:
            return ast.parse(self.text(path))
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise UniWorldError(f"'{path}' is not Python code: {brief(error)}. Download it again.") from error

    def constants(self, path: Path, names: Iterable[str]) -> dict[str, str]:
        """Return string constants of a Python file, which is parsed but not executed."""
        found: dict[str, str] = {}
        wanted = set(names)
        for node in self._tree(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Name) and target.id in wanted:
                    value = node.value if isinstance(node, ast.Assign) else None
                    if isinstance(value, ast.Constant) and isinstance(value.value, str) and is_unicode(value.value):
                        found[target.id] = value.value
        lacking = wanted - set(found)
        if lacking:
            raise UniWorldError(f"'{path}' defines no text '{min(lacking)}'. {self._where}")
        return found

    def texts_of(self, path: Path, function: str, fields: Sequence[str]) -> list[str]:
        """Return the values of "text" in the dictionaries of a function, in order.

        In f-strings, `{anything["Field"]}` becomes `<Field>` for the given fields. Other expressions are an error: nothing
        of the file is executed.
        """
        body = next(
            (one for one in self._tree(path).body if isinstance(one, ast.FunctionDef) and one.name == function), None
        )
        if body is None:
            raise UniWorldError(f"'{path}' has no function '{function}'. {self._where}")
        made: list[tuple[tuple[int, int], str]] = []
        for node in ast.walk(body):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values):
                    is_text = isinstance(key, ast.Constant) and key.value == "text"
                    if is_text and isinstance(value, (ast.Constant, ast.JoinedStr)):
                        made.append(((value.lineno, value.col_offset), self._template(path, value, fields)))
        return [text for _, text in sorted(made)]

    def _template(self, path: Path, node: ast.Constant | ast.JoinedStr, fields: Sequence[str]) -> str:
        if isinstance(node, ast.Constant):
            if not isinstance(node.value, str):
                raise UniWorldError(f"'{path}' has a \"text\" that is none in line {node.lineno}. {self._where}")
            return node.value
        parts = []
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else None
            key = (
                inner.slice.value
                if isinstance(inner, ast.Subscript) and isinstance(inner.slice, ast.Constant)
                else None
            )
            if isinstance(part, ast.Constant):
                parts.append(str(part.value))
            elif isinstance(key, str) and key in fields:
                parts.append(f"<{key}>")
            else:
                raise UniWorldError(f"'{path}' has an unknown expression in line {node.lineno}. {self._where}")
        return "".join(parts)


def parquet_rows(download: Download, columns: Sequence[str], instead: str) -> tuple[list[Mapping[str, Any]], Path]:
    """Return the rows of the parquet files of a download, and the path of the first.

    Args:
        instead: the file that is missing if there is no parquet file.

    Raises:
        UniWorldError: there is none, it lacks a column, or pyarrow is not installed.
    """
    paths = download.shards("*.parquet")
    if not paths:
        raise download.missing(instead)
    if importlib.util.find_spec("pyarrow") is None:
        raise UniWorldError("Parquet files need the package pyarrow. Install it with: pip install 'uniworld[bench]'")
    import pyarrow
    from pyarrow import parquet

    rows: list[Mapping[str, Any]] = []
    for path in paths:
        try:
            lacking = [name for name in columns if name not in parquet.read_schema(path).names]
            if lacking:
                raise UniWorldError(f"'{path}' has no column '{lacking[0]}'. Pass another download as --data.")
            rows += parquet.read_table(path, columns=list(columns)).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(path, error) from error
        download.record(path, sha256_file(path))
    return rows, paths[0]


def filled(template: str, fields: Mapping[str, str]) -> str:
    """Replace `<Field>` in a template in one pass, so that a value which contains such a word stays as it is."""
    made: list[str] = []
    rest = template
    while True:
        places = [(rest.find(f"<{name}>"), name) for name in fields if f"<{name}>" in rest]
        if not places:
            return "".join([*made, rest])
        start, name = min(places)
        made += [rest[:start], fields[name]]
        rest = rest[start + len(name) + 2 :]


def root_of(download: Download, names: Sequence[str], near: Path) -> Path | None:
    """Return the folder to which the names of pictures are relative: the one in which most of some names exist.

    Args:
        near: a folder to try first.
    """
    sample = [name for name in names if is_relative(name)][:50]
    candidates = [near, *download.folders]
    for name in sample[:5]:
        parts = PurePosixPath(name).parts
        for folder in download.folders:
            found = (path.parts for path in folder.rglob(glob.escape(parts[-1])))
            candidates += [Path(*one[: -len(parts)]) for one in found if one[-len(parts) :] == parts]
    counts = [(sum((root / name).is_file() for name in sample), -place) for place, root in enumerate(candidates)]
    best = max(counts, default=(0, 0))
    return candidates[-best[1]] if best[0] else None


def is_relative(name: str) -> bool:
    """Whether a name stays inside its folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and ":" not in name and "\0" not in name and is_unicode(name)


def is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON and Python can escape halves of a character."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def text_of(record: Mapping[str, Any], key: str, where: str) -> str:
    """Return a non-empty text of a record. Raises UniWorldError if there is none."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        raise UniWorldError(f"{where}: '{key}' is {shown(value)}, expected a text. Download the benchmark again.")
    return value
