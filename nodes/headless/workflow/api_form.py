"""Write the API form of a workflow, for other clients."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import write_atomic
from ....uniworld_core.json_text import dumps
from ..problems import node_label
from ..storage.folders import expand_path

_MAX_LINKS = 40  # Linux's limit for a chain of symbolic links


def is_stdout(target: str) -> bool:
    """Return whether a target is standard output: "-", or a path of the same file, such as /dev/stdout."""
    if target == "-":
        return True
    try:
        return os.path.samestat(expand_path(target).stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # the target does not exist, or standard output is not a file
        return False


def not_reported(sentences: Iterable[str], reported: Collection[str]) -> list[str]:
    """Return the sentences of `non_finite_inputs` about inputs that no reported sentence is about."""
    subjects = {sentence: sentence[: sentence.index("' ") + 2] for sentence in sentences}
    return [sentence for sentence, subject in subjects.items() if not any(one.startswith(subject) for one in reported)]


def non_finite_inputs(prompt: dict[str, Any]) -> list[str]:
    """Return a sentence for each input with NaN or infinity, which JSON cannot represent."""
    found = []
    for node_id, node in prompt.items():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        for name, value in inputs.items() if isinstance(inputs, dict) else ():
            number = next(_not_finite(value), None)
            if number is not None:
                label = node_label(node_id, str(node.get("class_type") or ""))
                written = {"nan": "NaN", "inf": "infinite", "-inf": "infinite"}[str(number)]
                found.append(
                    f"{label}: input '{name}' {'is' if value is number else 'contains a number that is'} {written}, which "
                    "JSON cannot represent. Set it to a finite number."
                )
    return found


def _not_finite(value: object) -> Iterator[float]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            yield item
        elif isinstance(item, (dict, list)):
            pending += item.values() if isinstance(item, dict) else item


def check_target(target: str, source: Path) -> None:
    """Check that the API form does not replace the workflow in editor form that it is made from.

    Args:
        target: as for `write_api_form`.
        source: the workflow's file.

    Raises:
        UniWorldError: both are the same file. Its layout, notes and subgraphs would be lost.
    """
    with contextlib.suppress(OSError):  # there is no such file yet
        if not is_stdout(target) and expand_path(target).samefile(source):
            raise UniWorldError(
                f"--api '{target}' would replace the workflow itself, and the API form has no layout, notes or subgraphs. "
                "Choose another file."
            )


def write_api_form(prompt: dict[str, object], target: str) -> None:
    """Write a workflow in API form.

    A regular file is written atomically, and symbolic links are followed. Pipes, terminals and other special files are
    written to directly.

    Args:
        target: a path; "-" for standard output.

    Raises:
        UniWorldError: the target cannot be written.
    """
    text = dumps(prompt, indent=2) + "\n"
    if is_stdout(target):
        sys.stdout.write(text)
        return
    path = expand_path(target)
    try:
        file = _regular_file(path)
        if file is None:
            path.write_text(text, encoding="utf-8")
        else:
            write_atomic(file, text.encode())
    except OSError as error:
        raise UniWorldError(
            f"The API form cannot be written to '{path}': {error.strerror}. Choose another --api."
        ) from error


def _regular_file(path: Path) -> Path | None:
    """Return the file that a path leads to, existing or not; None for a special file, which cannot be replaced."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return None
    for _ in range(_MAX_LINKS):
        if not path.is_symlink():
            break
        if path.parent.resolve().parts[1:2] == (
            "proc",
        ):  # /proc/PID/fd/N: replacing the file would not reach its reader
            return None
        path = path.parent / path.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return path
