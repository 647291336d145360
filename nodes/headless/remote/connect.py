"""Connecting to the servers of `--server`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ....uniworld_core.errors import UniWorldError
from .address import read_addresses, read_token, warn_of_exposed_token

if TYPE_CHECKING:
    from .session import Servers


def connect(urls: Iterable[str]) -> Servers:
    """Return the servers with these URLs, to be connected to in a `with` block.

    Raises:
        UniWorldError: a URL or the token is invalid, or aiohttp is not installed.
    """
    addresses, token = read_addresses(urls), read_token()
    if importlib.util.find_spec("aiohttp") is None:
        raise UniWorldError("--server needs the package aiohttp. Install it with: pip install 'uniworld[serve]'")
    from .session import Servers

    warn_of_exposed_token(addresses, token)
    return Servers(addresses, token)
