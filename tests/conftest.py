"""Lets the tests import the checkout as `uniworld`, whatever its folder is called and whether or not it is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def import_checkout() -> None:
    """Register the repository root as the package `uniworld`, unless that is what would be imported anyway."""
    spec = importlib.util.find_spec("uniworld")
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() == ROOT / "__init__.py":
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "uniworld"]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        "uniworld", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["uniworld"] = module
    spec.loader.exec_module(module)


import_checkout()
