"""Server addresses from `--server`, and the access token."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from ....streams import say
from ....uniworld_core.errors import UniWorldError, shown
from ..serve.config import is_loopback

TOKEN_VARIABLE = "UNIWORLD_TOKEN"
DEFAULT_PORT = 8188
SERVER_HELP = (
    f"run on this ComfyUI or `uniworld serve`, such as http://127.0.0.1:{DEFAULT_PORT}; its token is read from the "
    f"environment variable {TOKEN_VARIABLE}"
)


@dataclass(frozen=True)
class ServerAddress:
    """The address of a server.

    Attributes:
        url: normalized URL: scheme, host, port and path, without a trailing slash.
        encrypted: whether the connection uses TLS.
        loopback: whether the server is on this machine.
    """

    url: str
    encrypted: bool
    loopback: bool


def read_address(text: str) -> ServerAddress:
    """Parse the value of `--server`. The default scheme is http.

    Raises:
        UniWorldError: the text is not a server address.
    """
    advice = f"Write it as http://HOST:PORT, such as http://127.0.0.1:{DEFAULT_PORT}."
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UniWorldError(f"--server {shown(text)} is not an address: {error}. {advice}") from error
    if parts.scheme not in ("http", "https"):
        raise UniWorldError(f"--server {shown(text)} has the scheme {shown(parts.scheme)}. {advice}")
    if not host or any(letter.isspace() or not letter.isprintable() for letter in text):
        raise UniWorldError(f"--server {shown(text)} names no host. {advice}")
    if parts.username is not None or parts.query or parts.fragment:
        # Not repeated: it may contain the token, and the message may end up in a log.
        raise UniWorldError(
            f"--server must not contain a user name, a query or a fragment. Set {TOKEN_VARIABLE} for a token. {advice}"
        )
    named = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    place = named if port in (None, default) else f"{named}:{port}"
    return ServerAddress(
        f"{parts.scheme}://{place}{parts.path.rstrip('/')}", parts.scheme == "https", is_loopback(host)
    )


def read_addresses(texts: Iterable[str]) -> list[ServerAddress]:
    """Parse several values of `--server`. Duplicates are dropped."""
    return list({address.url: address for address in map(read_address, texts)}.values())


def read_token() -> str | None:
    """Return the token of the environment variable `UNIWORLD_TOKEN`, None if it is unset or empty.

    Raises:
        UniWorldError: the token cannot be sent in a request header.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UniWorldError(
            f"{TOKEN_VARIABLE} contains spaces or characters other than ASCII. Set it to the token only."
        )
    return token or None


def warn_of_exposed_token(addresses: Iterable[ServerAddress], token: str | None) -> None:
    """Print a warning for each remote server that would receive the token unencrypted."""
    for address in addresses:
        if token is not None and not address.encrypted and not address.loopback:
            say(
                f"warning: the token of {TOKEN_VARIABLE} is sent unencrypted to {address.url}. "
                "Use https, or a network you trust."
            )
