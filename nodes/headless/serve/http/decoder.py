"""Program of a `DecoderProcess`: runs one function of `images.py` on its standard input and writes the result."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

# More than the largest accepted picture needs, but little enough that a malicious one does not make the machine swap.
_MEMORY = 4 * 2**30
_ROOT = Path(__file__).resolve().parents[4]


def main() -> None:
    head = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = head["modules"]
    _limit_memory()
    # Parent packages are replaced by empty modules: their code is not needed, and importing it would take seconds.
    for name, folder in (
        ("uniworld", _ROOT),
        ("uniworld.nodes", _ROOT / "nodes"),
        ("uniworld.nodes.headless", _ROOT / "nodes" / "headless"),
        ("uniworld.nodes.headless.serve", _ROOT / "nodes" / "headless" / "serve"),
        ("uniworld.nodes.headless.serve.http", _ROOT / "nodes" / "headless" / "serve" / "http"),
        ("uniworld.uniworld_core", _ROOT / "uniworld_core"),
    ):
        package = sys.modules[name] = types.ModuleType(name)
        package.__path__ = [str(folder)]
    images = importlib.import_module("uniworld.nodes.headless.serve.http.images")
    errors = importlib.import_module("uniworld.uniworld_core.errors")
    limits = importlib.import_module("uniworld.uniworld_core.images.picture_files").LIMITS
    arguments = [_argument(one) for one in head["arguments"]]
    try:
        # The budget has no deadline: the parent kills this process on a timeout.
        data, kind = getattr(images, head["work"])(*arguments, images.Budget(limits, lambda: None))
        result = {"kind": kind}
    except errors.UniWorldError as error:
        data, result = b"", {"error": str(error)}
    except MemoryError:
        data, result = b"", {"error": "Decoding the picture needs too much memory. Scale it down."}
    sys.stdout.buffer.write(json.dumps(result).encode() + b"\n" + data)
    sys.stdout.buffer.flush()


def _argument(entry: dict[str, Any]) -> object:
    if "path" in entry:
        return Path(entry["path"])
    return entry["text"] if "text" in entry else io.BytesIO(sys.stdin.buffer.read(entry["bytes"]))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    with contextlib.suppress(ValueError, OSError):  # not supported on macOS
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    os.nice(5)  # the server and the model have priority


if __name__ == "__main__":
    main()
