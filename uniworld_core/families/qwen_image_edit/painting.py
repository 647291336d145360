"""Qwen-Image-Edit's default sampling settings."""

from __future__ import annotations

# Scale of the true guidance, and the prompt that it leads away from (published: the model cards' `true_cfg_scale` and
# `negative_prompt`).
GUIDANCE = 4.0
NEGATIVE = " "
