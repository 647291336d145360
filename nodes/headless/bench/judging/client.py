"""The judge behind a server with OpenAI's API, through the `openai` package (extra `bench`).

The package's own retries are off: the loop in `run.py` must know about every failure, because none may become a score.
"""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import time
from types import NoneType
from typing import Any, Protocol
from urllib.parse import urlsplit

from .....uniworld_core.errors import RunFailed, UniWorldError
from .ask import Ask
from .http import BadBody, http_client
from .replies import JudgeReply
from .server_errors import (
    MAX_MESSAGE,
    NO_QUOTA,
    TEMPLATE,
    codes_of,
    is_refusal,
    message_of,
    rejected_parameter,
    retry_after,
    shown_address,
)

KEY_VARIABLE = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"
# Ends of a reply that is not complete because the server failed.
_BROKEN_OFF = ("error", "abort")
_MAX_TOKENS = 10**9


class JudgeBusy(Exception):
    """The judge limits the rate of requests, or is overloaded. `wait` is the number of seconds that it asks for, or None."""

    def __init__(self, wait: float | None) -> None:
        super().__init__("the rate limit is reached")
        self.wait = wait


class JudgeDown(Exception):
    """A failure that may pass: a lost connection, a timeout, or an error of the server."""


class JudgeRejected(Exception):
    """The server rejects this request; the same request would fail again."""


class JudgeDenied(JudgeRejected):
    """The server forbids a request (status 403): this one, such as a firewall, or all, such as in an unsupported region."""


class Judge(Protocol):
    """A judge model.

    Attributes:
        model: name of the model, part of the hash of each request.
        identity: what the result says about the judge.
        notes: sentences for the user, such as which parameters the server rejected.
        omitted: names of parameters that the questions have but the server rejects, so that they are not sent. Those of an
            earlier run can be added.
    """

    model: str
    identity: dict[str, Any]
    notes: list[str]
    omitted: list[str]

    async def reply(self, ask: Ask, about: JudgeReply) -> JudgeReply:
        """Ask a question.

        Args:
            about: the reply without its content.

        Raises:
            JudgeBusy, JudgeDown, JudgeRejected, JudgeDenied: there is no reply.
            RunFailed: no request can succeed, such as with an invalid key.
        """

    async def close(self) -> None: ...


class OpenAIJudge:
    """A model behind a server with OpenAI's API.

    Args:
        url: base address of the API, such as "http://127.0.0.1:8000/v1"; "openai" for OpenAI's own.
        timeout: seconds to wait for a reply.

    Raises:
        UniWorldError: as `check_server`.
    """

    def __init__(self, url: str, model: str, timeout: float) -> None:
        check_server(url)
        from openai import AsyncOpenAI

        address = _checked(url)
        self._key = _key_for(address)
        self.model, self.notes = model, []
        self.identity = {"model": model, "server": _host(address)}
        if urlsplit(address).scheme == "http" and not _is_local(address):
            self.notes.append(f"The key and the pictures are sent to {_host(address)} without encryption.")
        self._timeout = timeout
        self._client = AsyncOpenAI(
            base_url=address,
            api_key=self._key,
            max_retries=0,
            timeout=timeout,
            http_client=http_client(_is_local(address)),
        )
        self._is_limit_renamed = False
        self.omitted: list[str] = []

    async def close(self) -> None:
        await self._client.close()

    async def reply(self, ask: Ask, about: JudgeReply) -> JudgeReply:
        """See `Judge.reply`."""
        import openai

        # Encoding pictures takes long; the event loop meanwhile records the replies to other requests.
        messages = await asyncio.to_thread(ask.messages)
        while True:
            template = None if ask.thinking is None else {"enable_thinking": ask.thinking}
            values = {"temperature": ask.temperature, self._limit_name: ask.max_tokens, TEMPLATE: template}
            options = {name: value for name, value in values.items() if value is not None and name not in self.omitted}
            try:
                # The client's own timeout is for each packet, so that a server which sends slowly could take forever.
                sent = self._client.chat.completions.create(  # type: ignore[call-overload]
                    model=self.model,
                    messages=messages,
                    extra_headers={"Idempotency-Key": about.key, "Accept-Encoding": "identity"},
                    extra_body={name: options[name] for name in (TEMPLATE,) if name in options},
                    **{name: value for name, value in options.items() if name != TEMPLATE},
                )
                completion = await asyncio.wait_for(sent, self._timeout)
            except openai.APIStatusError as error:
                if is_refusal(error):
                    return _with(about, None, refused="the server's content filter rejected the request")
                if error.status_code not in (400, 422) or not self._omit(error, options):
                    raise self._failure(error) from error
            except (openai.APITimeoutError, asyncio.TimeoutError) as error:
                raise JudgeDown("the judge did not reply in time") from error
            except (openai.APIConnectionError, BadBody) as error:
                # Versions of the package differ in which errors they wrap.
                reason = error.__cause__ or error
                if isinstance(reason, BadBody):
                    raise JudgeDown(f"the judge's response {reason}") from error
                raise JudgeDown(
                    f"the connection to {self.identity['server']} failed ({type(reason).__name__})"
                ) from error
            except (openai.OpenAIError, ValueError, RecursionError) as error:  # not JSON, or not a chat completion
                raise JudgeDown(f"the judge's response is invalid ({type(error).__name__})") from error
            else:
                return _read(completion, about)

    @property
    def _limit_name(self) -> str:
        # Newer models of OpenAI only know the second name.
        other = "max_completion_tokens"
        return other if self._is_limit_renamed or other in self.omitted else "max_tokens"

    def _omit(self, error: Any, options: dict[str, Any]) -> bool:
        """Omit the parameter that the server rejects from now on. Returns False if it rejects something else."""
        named = rejected_parameter(error)
        if named not in options:
            return False
        if named in self.omitted or (named == "max_tokens" and self._is_limit_renamed):
            return True  # by the response to another request meanwhile
        if named == "max_tokens":
            self._is_limit_renamed = True
            self.notes.append("The judge rejects the parameter max_tokens; max_completion_tokens is sent instead.")
        else:
            self.omitted.append(named)
            self.notes.append(f"The judge rejects the parameter {named}; it is omitted.")
        return True

    def _failure(self, error: Any) -> Exception:
        status, codes = error.status_code, codes_of(error)
        if status == 402 or codes & NO_QUOTA:
            return RunFailed(
                "The judge's quota is exhausted. Add credit, then run the same command again; recorded replies are kept."
            )
        if status == 401 or "invalid_api_key" in codes:
            return RunFailed(f"The judge rejects the key (status {status}). Set {KEY_VARIABLE} to a valid key.")
        if status == 403:
            return JudgeDenied(self._sentence(error, "denies access"))
        if 300 <= status < 400:
            return RunFailed(
                f"The judge's server redirects to '{shown_address(error.response)}'. Check that address, and pass it as --judge."
            )
        if status in (404, 405):
            return RunFailed(
                f"The judge's server knows no model '{self.model}', or no chat completions at this address (status "
                f"{status}). Check --judge, which usually ends in /v1, and --judge-model."
            )
        wait = retry_after(error.response.headers)
        if status == 429 or (status == 503 and wait is not None):  # overloaded, and says for how long
            return JudgeBusy(wait)
        if status >= 500 or status in (408, 409):
            return JudgeDown(f"the judge's server reports an error (status {status})")
        return JudgeRejected(self._sentence(error))

    def _sentence(self, error: Any, what: str = "rejects the request") -> str:
        message = message_of(error).replace(self._key, "***")[:MAX_MESSAGE].rstrip(".")
        return f"the judge {what} (status {error.status_code}{': ' + message if message else ''})"


def check_server(url: str, with_key: bool = True) -> None:
    """Check an address of a judge, and what requests to it need.

    Args:
        with_key: whether requests will be sent.

    Raises:
        UniWorldError: the address is invalid, the key is missing or invalid, or the package openai is not installed.
    """
    address = _checked(url)
    if with_key:
        if importlib.util.find_spec("openai") is None:
            raise UniWorldError("A judge needs the package openai. Install it with: pip install 'uniworld[bench]'")
        _key_for(address)


def _read(completion: Any, about: JudgeReply) -> JudgeReply:
    # The package builds its objects from any JSON, unchecked.
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    content, refusal = (getattr(message, name, None) for name in ("content", "refusal"))
    if not hasattr(message, "content") or not all(isinstance(one, (str, NoneType)) for one in (content, refusal)):
        raise JudgeDown("the judge's response is not a chat completion")
    finish = getattr(choice, "finish_reason", None)
    if finish in _BROKEN_OFF:
        raise JudgeDown("the judge's server broke off the reply")
    refused = refusal or ("the server's content filter removed the reply" if finish == "content_filter" else None)
    usage = getattr(completion, "usage", None)
    return _with(
        about,
        None if refused else content or "",
        refused=refused,
        model=str(getattr(completion, "model", None) or ""),
        fingerprint=str(getattr(completion, "system_fingerprint", None) or ""),
        tokens_in=_count(getattr(usage, "prompt_tokens", None)),
        tokens_out=_count(getattr(usage, "completion_tokens", None)),
        finish=str(finish or ""),
    )


def _count(value: object) -> int:
    """Return a number of tokens; 0 if the server reports none that is possible."""
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else 0


def _with(about: JudgeReply, text: str | None, **values: Any) -> JudgeReply:
    from dataclasses import replace

    return replace(about, text=text, time=round(time.time(), 3), **values)


def _checked(url: str) -> str:
    address = OPENAI_URL if url == "openai" else url.strip().rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid:
        raise UniWorldError(
            f"--judge '{url}' is not an address. Write for example http://127.0.0.1:8000/v1, or openai."
        )
    if parts.username or parts.password or parts.query:
        raise UniWorldError(
            "--judge must not contain a key, a password or a query (?...). Set the key in the environment variable "
            f"{KEY_VARIABLE}."
        )
    return address


def _host(address: str) -> str:
    return urlsplit(address).netloc


def _is_local(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key_for(address: str) -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and not _is_local(address):
        raise UniWorldError(f"The judge {_host(address)} needs a key. Set the environment variable {KEY_VARIABLE}.")
    if any(not "!" <= letter <= "~" for letter in key):  # it becomes a header of HTTP
        raise UniWorldError(
            f"The key in the environment variable {KEY_VARIABLE} contains spaces, line breaks or letters other than ASCII. "
            "Copy it again."
        )
    return key or "none"
