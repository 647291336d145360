"""Import the package of this checkout in a script, as tests/conftest.py does for tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def import_checkout() -> None:
    """Make the checkout importable as `uniworld`, installed or not."""
    spec = importlib.util.spec_from_file_location(
        "uniworld", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["uniworld"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["uniworld"])
