"""UniWorld-V1's default sampling settings (published: serve/cli.py)."""

from __future__ import annotations

STEPS = 28
# FLUX's embedded guidance.
GUIDANCE = 3.5
