"""The server of `uniworld reward serve`: scores items that arrive as JSON, one request at a time.

Routes: POST /v1/score, and GET /v1/health with the name of the reward.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hmac
from collections.abc import Callable
from typing import TYPE_CHECKING

from ....uniworld_core.errors import RunFailed, UniWorldError, brief
from ....uniworld_core.json_text import dumps
from .protocol import Reward, Score, checked_scores
from .wire import HEALTH_PATH, MAX_BODY, SCORE_PATH, decode_items, encode_scores

if TYPE_CHECKING:
    from aiohttp import web

_MAX_WAITING = 16  # requests that wait for the reward; more are rejected for the moment
_RETRY_AFTER = "2"  # seconds


def reward_app(reward: Reward, token: str | None, report: Callable[[str], None]) -> web.Application:
    """Return the application.

    Args:
        reward: computes the scores, in one thread.
        token: what requests must send as `Authorization: Bearer`; None to accept all.
        report: called with a sentence for each failed request.
    """
    from aiohttp import web

    worker = concurrent.futures.ThreadPoolExecutor(1)
    waiting = 0

    @web.middleware
    async def guarded(request: web.Request, handler: Callable[..., object]) -> web.StreamResponse:
        sent = request.headers.get("Authorization", "")
        # Bytes of a header that are not UTF-8 arrive as surrogates.
        if token is not None and not hmac.compare_digest(
            sent.encode(errors="surrogatepass"), f"Bearer {token}".encode()
        ):
            return _error(401, "The token is missing or wrong: send it as `Authorization: Bearer TOKEN`.")
        try:
            return await handler(request)  # type: ignore[misc, no-any-return]
        except web.HTTPException as error:
            return _error(error.status, error.reason)

    async def health(_: web.Request) -> web.Response:
        return _json(200, {"reward": reward.name, "waiting": waiting})

    async def score(request: web.Request) -> web.Response:
        nonlocal waiting
        # A page in a browser cannot send this type to another origin without being allowed to.
        if request.content_type != "application/json":
            return _error(415, "The body must be application/json.")
        if waiting >= _MAX_WAITING:
            return _error(503, f"{waiting} requests are waiting: try again later.", {"Retry-After": _RETRY_AFTER})
        waiting += 1
        try:
            body = await request.read()
            scores = await asyncio.get_running_loop().run_in_executor(worker, _scored, reward, body)
        except RunFailed as error:
            report(f"A request failed: {error}")
            return _error(500, str(error))
        except UniWorldError as error:
            return _error(400, str(error))
        finally:
            waiting -= 1
        return _json(200, encode_scores(scores))

    async def stop(_: web.Application) -> None:
        worker.shutdown(wait=False, cancel_futures=True)

    app = web.Application(middlewares=[guarded], client_max_size=MAX_BODY)
    app.router.add_get(HEALTH_PATH, health)
    app.router.add_post(SCORE_PATH, score)
    app.on_cleanup.append(stop)
    return app


def _scored(reward: Reward, body: bytes) -> list[Score]:
    """Score the items of a body. Raises UniWorldError if the request is invalid, RunFailed if the reward fails."""
    items = decode_items(body)
    try:
        return checked_scores(reward, items)
    except Exception as error:  # a reward of any kind; the server must survive it
        raise RunFailed(f"The reward {reward.name} failed ({type(error).__name__}: {brief(error)}).") from error


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> web.Response:
    from aiohttp import web

    return web.Response(status=status, text=dumps(value), content_type="application/json", headers=headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return _json(status, {"error": message}, headers)
