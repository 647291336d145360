"""The judge's HTTP client: it follows no redirect, and reads no response of unlimited size into memory."""

from __future__ import annotations

import importlib
import os
import ssl
from collections.abc import AsyncIterator
from typing import Any

from .....uniworld_core.errors import UniWorldError, brief

# A chat completion is far smaller.
MAX_BODY = 16 * 2**20


class BadBody(Exception):
    """A response is too large or is compressed."""


def http_client(local: bool) -> Any:
    """Return a client for the `openai` package. Reading a response can raise `BadBody`.

    Args:
        local: whether the server is on this machine, which a proxy cannot reach.

    Raises:
        UniWorldError: the environment names a proxy or a certificate that cannot be used.
    """
    from openai import DefaultAsyncHttpxClient

    # The pictures are sent to the address that the user chose, and to no other.
    options: dict[str, Any] = {"follow_redirects": False, "event_hooks": {"response": [_limit]}}
    try:
        if local:  # without the environment's proxy, but with its certificates, which a local HTTPS server needs most
            certificates = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or None)
            options |= {"trust_env": False, "verify": certificates}
        return DefaultAsyncHttpxClient(**options)
    except (ImportError, OSError, ValueError) as error:  # no package for SOCKS, no such certificate, an invalid address
        raise UniWorldError(
            f"The proxy or the certificates that the environment sets cannot be used ({brief(error).rstrip('.')}). Check "
            "HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE."
        ) from error


async def _limit(response: Any) -> None:
    # A small compressed body could become a huge one, so requests do not accept any.
    if response.headers.get("content-encoding", "identity") != "identity":
        raise BadBody("is compressed, which the request did not accept")
    # The package depends on httpx, or on httpx2 in later versions.
    base = importlib.import_module(type(response).__module__.partition(".")[0]).AsyncByteStream
    response.stream = type("LimitedBody", (_LimitedBody, base), {})(response.stream)


class _LimitedBody:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for data in self._inner:
            size += len(data)
            if size > MAX_BODY:
                raise BadBody(f"is larger than {MAX_BODY // 2**20} MiB")
            yield data

    async def aclose(self) -> None:
        await self._inner.aclose()
