"""The score in the logits of a judge's first token: the expectation over the tokens of the possible answers.

Published: reward_server/reward_server.py of UniWorld-V2, which reads the tokens "0" to "5" of Qwen2.5-VL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ....uniworld_core.errors import UniWorldError, shown

# The possible answers from the worst to the best.
DIGITS = ("0", "1", "2", "3", "4", "5")


def check_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the answers of a judge. Raises UniWorldError unless they are two or more different words."""
    if len(answers) < 2 or len(set(answers)) != len(answers) or not all(isinstance(a, str) and a for a in answers):
        raise UniWorldError(
            f"The answers are {shown(list(answers))}; they must be two or more different words, from the worst to the best."
        )
    return tuple(answers)


def expected_score(
    logits_NV: torch.Tensor, token_ids: Sequence[int], dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Return the scores (N,), float64, from 0 for certainty of the first answer to 1 for certainty of the last.

    Args:
        logits_NV: logits of the first token of the answers.
        token_ids: ids of the possible answers, from the worst to the best. All other tokens are ignored.
        dtype: dtype of the arithmetic. The published server computes in that of the logits; in bfloat16, its scores are
            off by up to 0.003.
    """
    shares = logits_NV[:, list(token_ids)].to(dtype).softmax(dim=-1)
    levels = torch.arange(len(token_ids), dtype=dtype, device=shares.device)
    return (shares * levels).sum(dim=-1).double() / (len(token_ids) - 1)


def answer_probability(logits_V: torch.Tensor, token_ids: Sequence[int], right: int) -> float:
    """Return the probability of one answer among the possible ones, 0 to 1.

    Args:
        logits_V: logits of the first token of the answer.
        token_ids: ids of the possible answers. All other tokens are ignored.
        right: index of the answer in `token_ids`.
    """
    return float(logits_V[list(token_ids)].double().softmax(dim=-1)[right])


def score_of_logprobs(logprobs: Mapping[str, float], answers: Sequence[str], tolerance: float = 0.01) -> float:
    """Return the score from a list of the most likely tokens, as servers report it.

    Args:
        logprobs: {token: log-probability}.
        answers: the possible answers, from the worst to the best.
        tolerance: bound of the share of answers that are not in the list, each of which is at most as likely as its least
            likely token.

    Raises:
        UniWorldError: no answer is in the list, a value is invalid, or the missing answers could be more likely than that.
    """
    if not all(isinstance(value, (int, float)) and value <= 1e-6 for value in logprobs.values()):
        raise UniWorldError("a log-probability is above 0 or not a number")
    known = {answer: math.exp(logprobs[answer]) for answer in answers if answer in logprobs}
    total = sum(known.values())
    if total == 0:
        raise UniWorldError(f"none of the answers {', '.join(answers)} is among the {len(logprobs)} likeliest tokens")
    missing = (len(answers) - len(known)) * math.exp(min(logprobs.values()))
    if missing > tolerance * total:
        raise UniWorldError(
            f"the answers {', '.join(a for a in answers if a not in known)} are not among the {len(logprobs)} likeliest "
            f"tokens, and may have {missing / (missing + total):.0%} of the probability: ask for more tokens"
        )
    return sum(known.get(answer, 0.0) * i for i, answer in enumerate(answers)) / (total * (len(answers) - 1))
