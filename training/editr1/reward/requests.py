"""Requests to a reward server: within a time limit, with bounded retries, and never more than a bounded answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.util
import ipaddress
import threading
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ....uniworld_core.errors import UniWorldError, brief, shown
from ....uniworld_core.json_text import BadJson, loads

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

TOKEN_VARIABLE = "UNIWORLD_REWARD_TOKEN"
_MAX_ANSWER = 2**22  # bytes
_MAX_WAIT = 30.0  # seconds between two attempts
_CLOSING = 5.0  # seconds for cancelled requests to end
# Statuses that pass: too many requests, and failures of the server or of a proxy before it.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class RequestFailed(Exception):
    """A request has no usable answer. Its items fail; others may succeed."""


class NoAnswer(RequestFailed):
    """All attempts of a request failed for reasons that may pass, such as a server that is not running."""


class NoSuchPath(UniWorldError):
    """The server does not know the path of a request."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a request is attempted.

    Attributes:
        timeout: seconds for one attempt, from connecting to the end of the answer.
        attempts: number of attempts.
        wait: seconds before the second attempt; doubled for each further one.
    """

    timeout: float = 120.0
    attempts: int = 4
    wait: float = 0.5

    def __post_init__(self) -> None:
        if self.timeout <= 0 or self.attempts < 1 or self.wait < 0:
            raise UniWorldError(
                f"The timeout of reward requests is {self.timeout} s with {self.attempts} attempts {self.wait} s apart; "
                "the timeout must be above 0, and there must be at least one attempt."
            )


class RewardServer:
    """The address of a server, and how to make requests to it.

    Args:
        url: address without the path of a request.
        token: sent as `Authorization: Bearer`; None for none.
        parallel: number of simultaneous requests.

    Raises:
        UniWorldError: the URL is invalid, or aiohttp is not installed.
    """

    def __init__(self, url: str, token: str | None, policy: RetryPolicy, parallel: int) -> None:
        if importlib.util.find_spec("aiohttp") is None:
            raise UniWorldError(
                "Remote rewards need the package aiohttp. Install it with: pip install 'uniworld[train]'"
            )
        if parallel < 1:
            raise UniWorldError(f"The number of parallel reward requests is {parallel}; it must be at least 1.")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise UniWorldError(
                f"{TOKEN_VARIABLE} has a line break or another character that no header can have: set it again."
            )
        self.url, self._policy, self._parallel = _checked_url(url), policy, parallel
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        if token is not None and self.url.startswith("http:") and not _is_local(self.url):
            warnings.warn(f"The token for {self.url} is sent without encryption: use https.", stacklevel=3)

    def run(self, work: Callable[[aiohttp.ClientSession], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function with a session, in an event loop of its own."""

        async def main() -> T:
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=self._policy.timeout)
            connector = aiohttp.TCPConnector(limit=self._parallel)
            # Not the proxies of the environment: a server on this machine must not be asked for through one.
            async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers) as session:
                return await work(session)

        # In a thread, so that it also works where a loop is already running, such as in a notebook.
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="rewards", daemon=True)
        thread.start()
        future = asyncio.run_coroutine_threadsafe(main(), loop)
        try:
            return future.result()
        finally:  # an interrupt must not wait for requests that hang
            future.cancel()
            with suppress(concurrent.futures.TimeoutError):
                asyncio.run_coroutine_threadsafe(_ended(), loop).result(_CLOSING)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSING)
            if not thread.is_alive():
                loop.close()

    async def ask(self, session: aiohttp.ClientSession, path: str, body: object | None) -> Any:
        """Return the JSON of an answer. POST with a body, GET without.

        Raises:
            NoAnswer: there is no answer after all attempts.
            RequestFailed: the server rejects this request, or its answer is not JSON.
            NoSuchPath: the server does not know the path.
            UniWorldError: the server rejects the token.
        """
        wait, reason = self._policy.wait, ""
        for attempt in range(self._policy.attempts):
            if attempt:
                await asyncio.sleep(min(wait, _MAX_WAIT))
                wait *= 2
            try:
                status, data, asked = await self._once(session, path, body)
            except _Transient as error:
                reason = str(error)
                continue
            if status == 200:
                return _parsed(data)
            reason = f"HTTP {status}: {shown(data.decode('utf-8', 'replace'), 200)}"
            if status in (401, 403):
                raise UniWorldError(f"{self.url} rejects the token: set {TOKEN_VARIABLE} to the server's.")
            if status in (404, 405) or 300 <= status < 400:
                raise NoSuchPath(f"{self.url}{path} is not there ({reason}): check the address of the reward server.")
            if status not in _PASSING:
                raise RequestFailed(reason)
            wait = max(wait, asked)
        raise NoAnswer(f"no answer after {self._policy.attempts} attempts, the last one: {reason}")

    async def _once(self, session: aiohttp.ClientSession, path: str, body: object | None) -> tuple[int, bytes, float]:
        """Return status, body and the seconds of Retry-After of one attempt."""
        import aiohttp

        try:
            # Redirects are not followed, because the token would go along.
            request = session.request(
                "GET" if body is None else "POST", self.url + path, json=body, allow_redirects=False
            )
            async with request as response:
                data = bytearray()
                async for chunk in response.content.iter_chunked(2**16):
                    data += chunk
                    if len(data) > _MAX_ANSWER:
                        raise RequestFailed(f"the answer has more than {_MAX_ANSWER} bytes")
                asked = response.headers.get("Retry-After", "0")
                return response.status, bytes(data), float(asked) if asked.isdecimal() else 0.0
        except asyncio.TimeoutError as error:
            raise _Transient(f"no answer within {self._policy.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Transient(f"{type(error).__name__}: {brief(error)}") from error


async def _ended() -> None:
    """Wait until all other tasks of the running loop have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


class _Transient(Exception):
    """An attempt failed for a reason that may pass."""


def _parsed(data: bytes) -> Any:
    try:
        return loads(data)
    except BadJson as error:
        raise RequestFailed(f"the answer {error}") from error


def _checked_url(url: str) -> str:
    advice = "write it as http://HOST:PORT."
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UniWorldError(f"The reward server {shown(url)} is not an address ({error}): {advice}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UniWorldError(f"The reward server {shown(url)} is not an address: {advice}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UniWorldError(
            f"The address of the reward server has a user name, a query or a fragment: leave it out, and set {TOKEN_VARIABLE} "
            "for a token."
        )
    return url.rstrip("/")


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
