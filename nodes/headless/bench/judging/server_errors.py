"""Errors of a server with OpenAI's API, in the forms of different servers. Arguments are exceptions of the `openai` package."""

from __future__ import annotations

import email.utils
import math
import time
from typing import Any

# Parameters of the chat template, for vLLM and similar servers.
TEMPLATE = "chat_template_kwargs"
# Parameters that some servers or models reject. They are omitted after the first rejection.
_OPTIONAL = ("temperature", "max_tokens", "max_completion_tokens", TEMPLATE)
# Values of `codes_of`.
REFUSALS = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"}
NO_QUOTA = {"insufficient_quota", "billing_not_active", "billing_hard_limit_reached"}
MAX_MESSAGE = 200
# What OpenRouter says, as "metadata" of an error, about a request that its moderation has flagged.
_FLAGGED = {"reasons", "flagged_input"}


def _body(error: Any) -> dict[str, Any]:
    """Return the error's fields; some servers put them into a list."""
    body = error.body
    if isinstance(body, list) and len(body) == 1 and isinstance(body[0], dict):
        body = body[0].get("error", body[0])
    return body if isinstance(body, dict) else {}


def codes_of(error: Any) -> set[str]:
    """Return the error's code and its type. Servers differ in which of them names the failure."""
    body = _body(error)
    return {str(body.get(name)) for name in ("code", "type") if body.get(name)}


def is_refusal(error: Any) -> bool:
    """Whether the server's content filter rejects a request, with the status 400, 403 or 422."""
    about = _body(error).get("metadata")
    flagged = isinstance(about, dict) and bool(_FLAGGED & about.keys())
    return error.status_code in (400, 403, 422) and (flagged or bool(codes_of(error) & REFUSALS))


def rejected_parameter(error: Any) -> str | None:
    """Return the name of the parameter that a server rejects, from any of the forms in which servers say so."""
    body = _body(error)
    if body.get("param"):
        return str(body["param"])
    details = body.get("detail")  # FastAPI's
    places = [str(one.get("loc")) for one in details if isinstance(one, dict)] if isinstance(details, list) else []
    said = [str(body.get("message")), *places]
    return next((name for text in said for name in _OPTIONAL if name in text), None)


def message_of(error: Any) -> str:
    """Return the server's message in one line."""
    return " ".join(str(_body(error).get("message") or "").split())


def retry_after(headers: Any) -> float | None:
    """Return the seconds to wait by the response's headers; None if they do not say."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None


def shown_address(response: Any) -> str:
    return "".join(one for one in str(response.headers.get("location")) if one.isprintable())[:MAX_MESSAGE]
