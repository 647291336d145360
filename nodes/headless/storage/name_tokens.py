"""Tokens in file names, such as `%width%` and `%date:yyyy-MM-dd%`, and characters that a name may not contain."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

_TOKEN = re.compile(r"%([^%]+)%")
_UNSAFE = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
# Those of the editor: "yyy" and a single "y" are not date parts.
_DATE_PARTS = re.compile(r"dd?|MM?|hh?|mm?|ss?|yyy?y?")


def expand_tokens(
    prefix: str,
    lookup: Callable[[str], str | None],
    values: dict[str, str],
    clean: Callable[[str], str] | None = None,
) -> str:
    """Replace the tokens `%width%`, `%year%`, `%date:yyyy-MM-dd%` and `%Node.widget%`; unknown ones are kept.

    Args:
        lookup: returns the text for a token such as `Sampler.seed`, or None if the token is unknown.
        values: text of further tokens.
        clean: makes a replacement safe for a name; by default, `without_separators`.
    """
    clean = clean or without_separators
    now = datetime.now()
    known = {**values, "year": str(now.year)}
    known |= {name: f"{getattr(now, name):02}" for name in ("month", "day", "hour", "minute", "second")}

    def fill(match: re.Match[str]) -> str:
        token = match[1]
        if token.startswith("date:"):
            return format_date(clean(token[5:]), now)
        text = known.get(token)
        if text is None:
            text = lookup(token)
        return match[0] if text is None else clean(text)

    return _TOKEN.sub(fill, prefix)


def format_date(form: str, now: datetime) -> str:
    """Replace date parts such as `yyyy`, `MM` and `h` in a text, as the editor does in `%date:...%`."""
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def fill(match: re.Match[str]) -> str:
        word = match[0]
        if word[0] == "y":
            return {2: f"{now.year % 100:02}", 4: str(now.year)}.get(len(word), word)
        return str(parts[word[0]]).zfill(len(word))

    return _DATE_PARTS.sub(fill, form)


def without_separators(text: str) -> str:
    """Replace separators and control characters, so that the value of a widget cannot add folders to a name."""
    return _UNSAFE.sub("_", text)


def plain(text: str) -> str:
    """Reduce a text to characters that are valid anywhere in a name."""
    # The underscore at the end keeps a name such as "con" from being a Windows device.
    return re.sub(r"[^\w-]", "_", text)[:40] + "_"


def placeholder(token: str) -> str | None:
    """Return a text to use instead of another widget's value, for a token that may refer to one."""
    return "x" if "." in token else None
