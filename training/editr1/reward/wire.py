"""Items and scores as JSON, between `RemoteReward` and `uniworld reward serve`. Pictures are PNG in base64.

Nothing is ever unpickled. What arrives is checked, and pictures are decoded within limits.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ....uniworld_core.errors import UniWorldError, shown
from ....uniworld_core.images.picture_files import Limits, PictureFile
from ....uniworld_core.json_text import BadJson, loads
from .protocol import RewardFailure, RewardItem, Score

SCORE_PATH, HEALTH_PATH = "/v1/score", "/v1/health"
# What a server accepts in one request.
MAX_ITEMS, MAX_REFERENCES, MAX_BODY = 64, 16, 2**27
_MAX_TEXT = 20_000  # characters
_LIMITS = Limits(pixels=2**24, frames=1)


def png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG, in RGB."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()


def encode_items(items: Sequence[RewardItem]) -> dict[str, Any]:
    """Return the body of a request. An item's exact answer (`task`) stays here."""
    return {
        "items": [
            {
                "prompt": item.prompt,
                "requirement": item.requirement,
                "references": [_text(reference) for reference in item.references],
                "picture": _text(item.picture),
            }
            for item in items
        ]
    }


def decode_items(body: bytes) -> list[RewardItem]:
    """Check the body of a request.

    Raises:
        UniWorldError: it is not a request, an item is incomplete or exceeds the limits, or a picture is not PNG.
    """
    try:
        raw = loads(body)
    except BadJson as error:
        raise UniWorldError(f"The body {error}: send JSON.") from error
    found = raw.get("items") if isinstance(raw, dict) else None
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_ITEMS:
        raise UniWorldError(f"The body has no list `items` of 1 to {MAX_ITEMS} items.")
    return [_decode_item(item, f"Item {index}") for index, item in enumerate(found)]


def encode_scores(scores: Sequence[Score]) -> dict[str, Any]:
    """Return the body of an answer."""
    return {"scores": [{"error": score.reason} if isinstance(score, RewardFailure) else score for score in scores]}


def decode_scores(raw: object, count: int) -> list[Score]:
    """Read the body of an answer.

    Args:
        count: number of items in the request.

    Raises:
        UniWorldError: it has another form or number of scores, so none can be assigned to its item.
    """
    found = raw.get("scores") if isinstance(raw, dict) else None
    if not isinstance(found, list):
        raise UniWorldError("the answer has no list `scores`")
    if len(found) != count:
        raise UniWorldError(f"the answer has {len(found)} scores for {count} pictures")
    return [_decode_score(score) for score in found]


def _decode_score(raw: object) -> Score:
    if isinstance(raw, dict):
        return RewardFailure(f"the server reports: {shown(raw.get('error'), 300)}")
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not 0 <= raw <= 1:
        return RewardFailure(f"the score is {shown(raw)}, which is not a number from 0 to 1")
    return float(raw)


def _text(picture: Image.Image) -> str:
    return base64.b64encode(png(picture)).decode("ascii")


def _decode_item(raw: object, where: str) -> RewardItem:
    if not isinstance(raw, dict):
        raise UniWorldError(f"{where} is {shown(raw)}; it must be an object.")
    texts = {key: raw.get(key, "") for key in ("prompt", "requirement")}
    for key, text in texts.items():
        if not isinstance(text, str) or len(text) > _MAX_TEXT:
            raise UniWorldError(
                f"{where} has {key} {shown(text)}; it must be a text of at most {_MAX_TEXT} characters."
            )
    references = raw.get("references", [])
    if not isinstance(references, list) or len(references) > MAX_REFERENCES:
        raise UniWorldError(
            f"{where} has references {shown(references)}; it must be a list of at most {MAX_REFERENCES}."
        )
    decoded = tuple(_picture(one, f"{where}, reference {index}") for index, one in enumerate(references))
    return RewardItem(texts["prompt"], decoded, _picture(raw.get("picture"), f"{where}, picture"), texts["requirement"])


def _picture(raw: object, where: str) -> Image.Image:
    try:
        data = base64.b64decode(raw, validate=True) if isinstance(raw, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise UniWorldError(f"{where} is {shown(raw)}; it must be a PNG file in base64.")
    with PictureFile(io.BytesIO(data), where, _LIMITS, formats=("PNG",)) as file:
        return file.first().convert("RGB")
