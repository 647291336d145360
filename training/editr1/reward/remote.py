"""Rewards of another process: `uniworld reward serve`, or a server with OpenAI's API that returns log-probabilities."""

from __future__ import annotations

import asyncio
import base64
import warnings
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from ....uniworld_core.errors import UniWorldError, shown
from .protocol import RewardFailure, RewardItem, Score
from .question import Ask, Question, QuestionTemplate
from .requests import NoAnswer, NoSuchPath, RequestFailed, RetryPolicy, RewardServer
from .score_tokens import DIGITS, check_answers, score_of_logprobs
from .wire import HEALTH_PATH, MAX_ITEMS, SCORE_PATH, decode_scores, encode_items, png

if TYPE_CHECKING:
    import aiohttp

_MODELS_PATH = "/v1/models"


class RemoteReward:
    """A reward that `uniworld reward serve` computes.

    Args:
        url: address of the server, such as http://127.0.0.1:8190.
        token: the server's token, or None.
        batch: items in one request, at most 64.
        parallel: number of simultaneous requests.

    Attributes:
        name: as in `Reward`.

    Raises:
        UniWorldError: the URL or a number is invalid, or aiohttp is not installed.
    """

    name = "remote"

    def __init__(
        self,
        url: str,
        token: str | None = None,
        policy: RetryPolicy | None = None,
        batch: int = 8,
        parallel: int = 4,
    ) -> None:
        if not 1 <= batch <= MAX_ITEMS:
            raise UniWorldError(f"The batch of the remote reward is {batch}; it must be from 1 to {MAX_ITEMS}.")
        self._server, self._batch = RewardServer(url, token, policy or RetryPolicy(), parallel), batch

    def check(self) -> None:
        """Check that the server answers and accepts the token. Raises UniWorldError if not."""
        try:
            found = self._server.run(lambda session: self._server.ask(session, HEALTH_PATH, None))
        except RequestFailed as error:
            raise UniWorldError(
                f"{self._server.url} does not answer ({error}): start `uniworld reward serve`."
            ) from error
        if not isinstance(found, dict) or "reward" not in found:
            raise UniWorldError(f"{self._server.url} is not a reward server: it answers {shown(found)}.")

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """As `Reward.score`. The items of a request without a usable answer fail."""
        parts = [items[start : start + self._batch] for start in range(0, len(items), self._batch)]
        scores = self._server.run(lambda session: _all([self._of(session, part) for part in parts]))
        return [score for part in scores for score in part]

    def close(self) -> None:
        """Do nothing: connections end with each call of `score`."""

    async def _of(self, session: aiohttp.ClientSession, items: Sequence[RewardItem]) -> list[Score]:
        try:
            answer = await self._server.ask(session, SCORE_PATH, encode_items(items))
        except RequestFailed as error:
            return [RewardFailure(str(error))] * len(items)
        try:
            return decode_scores(answer, len(items))
        except UniWorldError as error:
            return [RewardFailure(str(error))] * len(items)


class OpenAIReward:
    """The logit reward of a model behind OpenAI's API, such as vLLM's server.

    The score is the expectation over the answers among the likeliest first tokens.

    Args:
        url: address of the server up to `/v1`, without it.
        model: name of the model on the server.
        token: the key of the API, or None.
        ask: makes the question about an item.
        answers: possible answers from the worst to the best, each a single token.
        top: number of tokens to ask for; vLLM and OpenAI allow 20.
        parallel: number of simultaneous requests, of one item each.

    Attributes:
        name: as in `Reward`.

    Raises:
        UniWorldError: the URL, the answers or a number is invalid, or aiohttp is not installed.
    """

    name = "openai"

    def __init__(
        self,
        url: str,
        model: str,
        token: str | None = None,
        ask: Ask | None = None,
        answers: Sequence[str] = DIGITS,
        policy: RetryPolicy | None = None,
        top: int = 20,
        parallel: int = 8,
    ) -> None:
        if top < len(answers):
            raise UniWorldError(
                f"The server is asked for {top} tokens, and there are {len(answers)} answers: ask for more."
            )
        self._server = RewardServer(url, token, policy or RetryPolicy(), parallel)
        self._model, self._ask, self._top = model, ask or QuestionTemplate(), top
        self._answers = check_answers(answers)

    def check(self) -> None:
        """Check that the server answers and accepts the token, and warn if it does not list the model.

        A server without a list of models is usable. Raises UniWorldError if it does not answer.
        """
        try:
            found = self._server.run(lambda session: self._server.ask(session, _MODELS_PATH, None))
        except NoAnswer as error:
            raise UniWorldError(
                f"{self._server.url} does not answer ({error}): start the server, or correct reward.url."
            ) from error
        except (RequestFailed, NoSuchPath):
            return
        listed = found.get("data") if isinstance(found, dict) else None
        rows = listed if isinstance(listed, list) else []
        names = [one["id"] for one in rows if isinstance(one, dict) and isinstance(one.get("id"), str)]
        if names and self._model not in names:
            warnings.warn(
                f"{self._server.url} does not list the model {shown(self._model)}, but {shown(', '.join(names), 200)}. If it "
                "has no such model, all requests fail: correct reward.model.",
                stacklevel=2,
            )

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """As `Reward.score`."""
        return self._server.run(lambda session: _all([self._of(session, item) for item in items]))

    def close(self) -> None:
        """Do nothing: connections end with each call of `score`."""

    async def _of(self, session: aiohttp.ClientSession, item: RewardItem) -> Score:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": _content(self._ask(item))}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": self._top,
        }
        try:
            found = first_logprobs(await self._server.ask(session, "/v1/chat/completions", body))
        except RequestFailed as error:
            return RewardFailure(str(error))
        try:
            return score_of_logprobs(found, self._answers)
        except UniWorldError as error:
            return RewardFailure(str(error))


def first_logprobs(answer: object) -> dict[str, float]:
    """Return {token: log-probability} of the likeliest first tokens in a chat completion.

    Raises:
        RequestFailed: the answer has none.
    """
    try:
        token = answer["choices"][0]["logprobs"]["content"][0]  # type: ignore[index]
        found = {str(one["token"]): float(one["logprob"]) for one in reversed(token["top_logprobs"])}
    except (TypeError, KeyError, IndexError, ValueError, OverflowError) as error:
        raise RequestFailed(
            f"the answer has no log-probabilities ({shown(answer, 120)}): the server must support `top_logprobs`"
        ) from error
    if not found:
        raise RequestFailed("the list of log-probabilities is empty")
    return found


def _content(question: Question) -> list[dict[str, Any]]:
    pictures = [f"data:image/png;base64,{base64.b64encode(png(picture)).decode()}" for picture in question.pictures]
    return [
        *({"type": "image_url", "image_url": {"url": url}} for url in pictures),
        {"type": "text", "text": question.text},
    ]


async def _all(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run coroutines together. The first exception cancels the others, and is raised when they have ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
