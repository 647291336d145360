"""Writing a workflow's API form for other clients."""

from __future__ import annotations

import errno
import math
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ....uniworld_core.files import write_atomic
from ....uniworld_core.json_text import dumps
from ..problems import node_label
from ..storage.folders import expand_path

_MAX_LINKS = 40  # as many links in a row as Linux follows


def is_stdout(target: str) -> bool:
    """Whether a target is standard output: "-", or any path of what it is connected to, such as /dev/stdout."""
    if target == "-":
        return True
    try:
        return os.path.samestat(expand_path(target).stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # there is no such file, or what prints is no file
        return False


def not_in_json(prompt: dict[str, Any]) -> list[str]:
    """A sentence for each input whose value JSON does not have, so that no client could be given it."""
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
                    "JSON cannot represent, so no file was written. Set it to a finite number."
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


def write_api_form(prompt: dict[str, object], target: str) -> None:
    """Write a workflow in API form.

    A file appears whole or not at all; where the target is a link, that is the file that it leads to. What exists and
    is no file, such as a pipe or a terminal, is written into.

    Args:
        target: a path; "-" for standard output.

    Raises:
        UniWorldError: it cannot be written.
    """
    text = dumps(prompt, indent=2) + "\n"
    if is_stdout(target):
        sys.stdout.write(text)
        return
    path = expand_path(target)
    try:
        file = _replaceable(path)
        if file is None:
            path.write_text(text, encoding="utf-8")
        else:
            write_atomic(file, text.encode())
    except OSError as error:
        raise UniWorldError(f"The API form cannot be written to '{path}': {error.strerror}.") from error


def _replaceable(path: Path) -> Path | None:
    """The file that a path leads to, be it there or not; None for what has to be written into."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        return None
    for _ in range(_MAX_LINKS):
        if not path.is_symlink():
            break
        if path.parent.resolve().parts[1:2] == ("proc",):  # an open file of a process, which has it open further on
            return None
        path = path.parent / path.readlink()
    else:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return path
