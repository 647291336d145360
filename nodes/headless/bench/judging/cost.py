"""Tokens and cost of a judge's requests, estimated before the first one and counted from the server's usage afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .....uniworld_core.errors import UniWorldError, shown
from .ask import Ask
from .replies import JudgeReply

# OpenAI's rule for pictures in high detail: fit into 2048x2048, shorten the short side to 768, then 170 tokens for each
# tile of 512x512 and 85 for the picture.
_FIT, _SHORT, _TILE, _PER_TILE, _BASE = 2048, 768, 512, 170, 85
_LETTERS_PER_TOKEN = 4
_MAX_PRICE = 1e9
# Expected length of a reply: three scores and a sentence.
REPLY_TOKENS = 150


@dataclass(frozen=True)
class Price:
    """Price of a million tokens of input and of output, in any currency."""

    input: float
    output: float

    def of(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


def parse_price(text: str) -> Price:
    """Parse `IN,OUT`. Raises UniWorldError if it is invalid."""
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) != 2 or not all(0 <= value <= _MAX_PRICE for value in values):
        raise UniWorldError(
            f"--price {shown(text)} is invalid. Write the prices of a million tokens of input and output, such as 2,8."
        )
    return Price(*values)


def picture_tokens(width: int, height: int) -> int:
    """Return the tokens of a picture by OpenAI's rule; other servers count otherwise."""
    scale = min(1.0, _FIT / max(width, height))
    width_fit, height_fit = width * scale, height * scale
    scale = min(1.0, _SHORT / min(width_fit, height_fit))
    tiles = math.ceil(width_fit * scale / _TILE) * math.ceil(height_fit * scale / _TILE)
    return _BASE + _PER_TILE * tiles


def estimate(asks: Sequence[Ask]) -> tuple[float, float]:
    """Return the mean tokens of input and output of some questions."""
    if not asks:
        return 0.0, 0.0
    tokens = [
        (len(ask.text) + len(ask.system)) / _LETTERS_PER_TOKEN
        + sum(picture_tokens(*picture.pixels()) for picture in ask.pictures)
        for ask in asks
    ]
    return sum(tokens) / len(tokens), float(REPLY_TOKENS)


class Spending:
    """Running totals of what the recorded replies cost, so that a run of many replies need not sum them again.

    Attributes:
        most: upper limit of the cost; None for no limit.
        total: cost of the replies of which the server reports tokens.
        highest: cost of the most expensive one.
        unknown: number of other replies.
    """

    def __init__(self, price: Price, replies: Iterable[JudgeReply], most: float | None = None) -> None:
        self._price, self.most = price, most
        self.total, self.highest, self.unknown = 0.0, 0.0, 0
        for reply in replies:
            self.add(reply)

    def add(self, reply: JudgeReply) -> None:
        """Count a reply."""
        cost = self._price.of(reply.tokens_in, reply.tokens_out)
        self.total += cost
        self.highest = max(self.highest, cost)
        self.unknown += not cost

    def guess(self, ask: Ask) -> float:
        """Return the estimated cost of a reply."""
        return self._price.of(*estimate([ask]))

    def allows(self, guess: float, running: int) -> bool:
        """Whether the limit holds after the replies to the requests under way and to another one.

        Args:
            guess: estimated cost of a reply; that of the replies of which the server reports no tokens.
            running: number of requests under way.
        """
        if self.most is None:
            return True
        if running and not self.highest and not self.unknown:
            return False  # before the first reply, the estimate may be far too low
        # A reply can be longer than the average one; twice the most expensive so far is a safe bound.
        expected = max(guess, 2 * self.highest) * (running + 1)
        return self.total + self.unknown * guess + expected <= self.most
