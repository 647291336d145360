"""The score in a judge's logits is the published one."""

from __future__ import annotations

from typing import Any

import torch
from uniworld.training.editr1.reward.score_tokens import DIGITS, expected_score


def test_score_golden(editr1_golden: Any) -> None:
    ((_, settings, tensors),) = editr1_golden.cases("score")
    tokens = settings["token_ids"]
    assert len(tokens) == len(DIGITS)
    torch.testing.assert_close(expected_score(tensors["logits"], tokens), tensors["scores"], rtol=1e-6, atol=1e-6)
    halves = expected_score(tensors["logits"].bfloat16(), tokens, torch.bfloat16)
    torch.testing.assert_close(halves, tensors["scores_bf16"], rtol=1e-6, atol=1e-6)
