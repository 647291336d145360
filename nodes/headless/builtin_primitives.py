"""Built-in nodes for single values, under ComfyUI's own class names and inputs."""

from __future__ import annotations

import json
import sys
from typing import Any


class _Primitive:
    """A node that gives the value of its one widget."""

    CATEGORY = "utils/primitive"
    FUNCTION = "execute"
    VALUE: tuple[str, dict[str, Any]]

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        kind, options = cls.VALUE
        return {"required": {"value": (kind, dict(options))}}

    def execute(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveInt(_Primitive):
    RETURN_TYPES = ("INT",)
    DESCRIPTION = "A whole number."
    VALUE = ("INT", {"min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": True})


class PrimitiveFloat(_Primitive):
    RETURN_TYPES = ("FLOAT",)
    DESCRIPTION = "A number."
    VALUE = ("FLOAT", {"min": -sys.maxsize, "max": sys.maxsize})


class PrimitiveString(_Primitive):
    RETURN_TYPES = ("STRING",)
    DESCRIPTION = "A line of text."
    VALUE = ("STRING", {"multiline": False})


class PrimitiveStringMultiline(_Primitive):
    RETURN_TYPES = ("STRING",)
    DESCRIPTION = "A text of several lines."
    VALUE = ("STRING", {"multiline": True})


class PrimitiveBoolean(_Primitive):
    RETURN_TYPES = ("BOOLEAN",)
    DESCRIPTION = "Yes or no."
    VALUE = ("BOOLEAN", {})


class PreviewAny:
    CATEGORY = "utils"
    DESCRIPTION = "Shows any value as text."
    RETURN_TYPES = ()
    FUNCTION = "main"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any = None) -> dict[str, Any]:
        return {"ui": {"text": (_as_text(source),)}}


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
