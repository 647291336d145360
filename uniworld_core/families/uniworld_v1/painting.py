"""How UniWorld-V1 paints where nobody says otherwise (published: serve/cli.py)."""

from __future__ import annotations

STEPS = 28
# FLUX's embedded guidance.
GUIDANCE = 3.5
