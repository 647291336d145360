"""Built-in nodes for single values, under ComfyUI's own class names and inputs."""

from __future__ import annotations

import json
import sys
from typing import ClassVar

from ...declare import Input, Inputs, Node, Output


class _Primitive(Node):
    """A node that outputs the value of its only widget."""

    CATEGORY = "utils/primitive"
    VALUE: ClassVar[Input]

    @classmethod
    def inputs(cls) -> Inputs:
        return (cls.VALUE,)

    def execute(self, value: object) -> tuple[object]:
        return (value,)


class PrimitiveInt(_Primitive):
    ID = "PrimitiveInt"
    DISPLAY_NAME = "Int"
    DESCRIPTION = "A whole number."
    OUTPUTS = (Output("INT", "INT"),)
    VALUE = Input("value", "INT", options={"min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": True})


class PrimitiveFloat(_Primitive):
    ID = "PrimitiveFloat"
    DISPLAY_NAME = "Float"
    DESCRIPTION = "A number."
    OUTPUTS = (Output("FLOAT", "FLOAT"),)
    VALUE = Input("value", "FLOAT", options={"min": -sys.maxsize, "max": sys.maxsize})


class PrimitiveString(_Primitive):
    ID = "PrimitiveString"
    DISPLAY_NAME = "String"
    DESCRIPTION = "A line of text."
    OUTPUTS = (Output("STRING", "STRING"),)
    VALUE = Input("value", "STRING", options={"multiline": False})


class PrimitiveStringMultiline(_Primitive):
    ID = "PrimitiveStringMultiline"
    DISPLAY_NAME = "String (Multiline)"
    DESCRIPTION = "A text of any number of lines."
    OUTPUTS = (Output("STRING", "STRING"),)
    VALUE = Input("value", "STRING", options={"multiline": True})


class PrimitiveBoolean(_Primitive):
    ID = "PrimitiveBoolean"
    DISPLAY_NAME = "Boolean"
    DESCRIPTION = "True or false."
    OUTPUTS = (Output("BOOLEAN", "BOOLEAN"),)
    VALUE = Input("value", "BOOLEAN", options={})


class PreviewAny(Node):
    ID = "PreviewAny"
    DISPLAY_NAME = "Preview Any"
    CATEGORY = "utils"
    DESCRIPTION = "Shows any value as text."
    OUTPUT_NODE = True

    @classmethod
    def inputs(cls) -> Inputs:
        return (Input("source", "*", options={}),)

    def execute(self, source: object = None) -> dict[str, object]:
        return {"ui": {"text": (_as_text(source),)}}


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
