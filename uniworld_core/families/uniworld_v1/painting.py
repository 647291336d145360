"""UniWorld-V1's name and default sampling settings (published: serve/cli.py)."""

from __future__ import annotations

NAME = "UniWorld-V1"

STEPS = 28
# FLUX's embedded guidance.
GUIDANCE = 3.5
