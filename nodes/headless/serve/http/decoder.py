"""The program of a `DecoderProcess`: runs one function of `images.py` on what it reads, writes the result, and ends."""

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

# More than the largest picture that is decoded needs, and less than what makes a machine swap.
_MEMORY = 4 * 2**30
_ROOT = Path(__file__).resolve().parents[4]


def main() -> None:
    head = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = head["modules"]
    _limit_memory()
    # The packages above are not run, as this needs nothing of theirs and they take their time.
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
        # Whoever started this process ends it when it takes too long.
        data, kind = getattr(images, head["work"])(*arguments, images.Budget(limits, lambda: None))
        told = {"kind": kind}
    except errors.UniWorldError as error:
        data, told = b"", {"error": str(error)}
    except MemoryError:
        data, told = b"", {"error": "The picture takes too much memory to decode. Scale it down."}
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n" + data)
    sys.stdout.buffer.flush()


def _argument(told: dict[str, Any]) -> object:
    if "path" in told:
        return Path(told["path"])
    return told["text"] if "text" in told else io.BytesIO(sys.stdin.buffer.read(told["bytes"]))


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MEMORY if hard == resource.RLIM_INFINITY else min(_MEMORY, hard)
    with contextlib.suppress(ValueError, OSError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    os.nice(5)  # the server and the model come first


if __name__ == "__main__":
    main()
