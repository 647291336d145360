"""Outputs of the published scripts on synthetic replies.

`UNIWORLD_GOLDEN_BENCH=FOLDER` runs the tests on those of another folder.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(os.environ.get("UNIWORLD_GOLDEN_BENCH") or Path(__file__).resolve().parents[3] / "data" / "bench")


@cache
def read(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def golden() -> Any:
    return read
