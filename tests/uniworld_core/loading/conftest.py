"""Makes `quantized_forms.py` importable for the tests beside it, which pytest's importlib mode does not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("quantized_forms", Path(__file__).parent / "quantized_forms.py")
assert _spec is not None
assert _spec.loader is not None
sys.modules["quantized_forms"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["quantized_forms"])
