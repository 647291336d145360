"""The widgets and sockets that the editor creates for a node: their order and their initial values.

Source: comfyui-frontend-package 1.58.1. The widget of an input may be followed by helper widgets. These are not inputs,
but they occupy positions in `widgets_values`: for example the control of a seed after a run, or an upload button.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize", "increment-wrap")
# INT inputs with these names get a control widget unless `control_after_generate` says otherwise.
SEED_NAMES = ("seed", "noise_seed")
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
_UPLOAD_OPTIONS = ("image_upload", "video_upload", "animated_image_upload")
_BOX = {"x": 0, "y": 0, "width": 512, "height": 512}


def _video_edit(options: Mapping[str, Any]) -> dict[str, object]:
    parts = {"trim": {"start_time": 0, "duration": 0}, "crop": {"x": 0, "y": 0, "width": 0, "height": 0}}
    return {key: part for key, part in parts.items() if key in options.get("features", parts)}


def _nested(options: Mapping[str, object], key: str) -> object:
    """Return an option that may also be in a nested `options`."""
    inner = options.get("options")
    return options.get(key, inner.get(key) if isinstance(inner, Mapping) else None)


# The editor's widget types, with the initial value of each if the node declares no default.
_INITIAL_VALUES: dict[str, Callable[[Mapping[str, object]], object]] = {
    "INT": lambda _: 0,
    "FLOAT": lambda _: 0,
    "BOOLEAN": lambda _: False,
    "STRING": lambda _: "",
    "MARKDOWN": lambda _: "",
    "COMBO": lambda _: None,
    "COLOR": lambda options: _nested(options, "default") or "#000000",
    "TEXTAREA": lambda options: _nested(options, "default") or "",
    "BOUNDING_BOX": lambda _: dict(_BOX),
    "BOUNDING_BOXES": lambda _: [],
    "CHART": lambda options: _nested(options, "data") or {},
    "GALLERIA": lambda options: _nested(options, "images") or [],
    "PAINTER": lambda _: None,
    "COMPOSITOR": lambda _: {},
    "CURVE": lambda _: {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "RANGE": lambda _: {"min": 0, "max": 1},
    "VIDEO_EDIT": _video_edit,
    "LIGHT_INFO_PREVIEW": lambda _: [],
    "COLORS": lambda _: [],
    "IMAGECOMPARE": lambda _: ["", ""],
    "RESOLUTION_PREVIEW": lambda _: None,
    "IMAGEUPLOAD": lambda _: "image",
    "AUDIOUPLOAD": lambda _: "",
    "AUDIO_UI": lambda _: "",
    "AUDIO_RECORD": lambda _: "",
    "WEBCAM": lambda _: "",
    "COMFY_BRANCH_INPUT_NAMES": lambda _: [],
    "COMFY_BRANCH_SELECTOR": lambda _: "",
    DYNAMIC_COMBO: lambda _: None,
}
EDITOR_WIDGETS = frozenset(_INITIAL_VALUES)
# The editor ignores `default` for these.
_WITHOUT_DEFAULT = frozenset({"MARKDOWN", "CHART", "GALLERIA", "IMAGECOMPARE", "RESOLUTION_PREVIEW", "IMAGEUPLOAD"})
_NOT_SAVED = frozenset({"IMAGECOMPARE", "RESOLUTION_PREVIEW", "AUDIO_UI"})
_NOT_SENT = frozenset({"RESOLUTION_PREVIEW", "AUDIO_UI", "IMAGEUPLOAD", "AUDIOUPLOAD"})


@dataclass(frozen=True)
class Widget:
    """A widget of a node.

    Attributes:
        kind: its type in the editor, "" for a helper.
        default: its initial value.
        helper: "control", "filter", "upload" or "part"; "" for the widget of an input.
        saved: whether its value occupies a position in `widgets_values`.
        sent: whether its value is part of the API form.
    """

    name: str
    kind: str
    default: object = None
    options: Mapping[str, object] = field(default_factory=dict)
    choices: tuple[object, ...] | None = None
    helper: str = ""
    saved: bool = True
    sent: bool = True

    def coerce(self, value: object) -> object:
        """Return the value that the widget has after loading a saved one: text areas convert it to text."""
        if self.kind == "MARKDOWN" or (self.kind == "STRING" and self.options.get("multiline")):
            return as_text(value)
        if value is None and self.kind in ("COMBO", DYNAMIC_COMBO) and self.choices:
            return self.choices[0]
        return value

    def accepts(self, value: object) -> bool:
        """Return whether a saved value is plausible for this widget; used to choose between layouts."""
        if self.helper == "control":
            return isinstance(value, str) and value in CONTROL_VALUES
        if self.helper == "upload":
            return value is None or value == "image" or value == ""
        if self.helper == "filter":
            return isinstance(value, str)
        if self.helper:
            return True
        if self.kind in ("INT", "FLOAT"):
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.kind == "BOOLEAN":
            return isinstance(value, bool)
        if self.kind in ("STRING", "MARKDOWN", "TEXTAREA"):
            return isinstance(value, str)
        if self.choices:
            # Options such as file names may have changed since the value was saved, but not their type.
            return value is None or isinstance(value, (list, *{type(choice) for choice in self.choices}))
        return True


def as_text(value: object) -> str:
    """Convert a value to text as JavaScript does."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _number_text(value)
    if isinstance(value, list):
        return ",".join(as_text(item) for item in value)
    return "[object Object]" if isinstance(value, dict) else str(value)


def _number_text(value: float) -> str:
    """Format a number as JavaScript does, where all numbers are floats (ECMA-262, `Number::toString`)."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    parts = Decimal(repr(abs(number))).normalize().as_tuple()
    digits, point = "".join(map(str, parts.digits)), len(parts.digits) + int(parts.exponent)
    if 0 < point <= 21:
        whole, fraction = digits[:point].ljust(point, "0"), digits[point:]
        return f"{sign}{whole}.{fraction}" if fraction else sign + whole
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{point - 1:+d}"


@dataclass(frozen=True)
class Spec:
    """An input as the editor reads it from a node's object_info.

    Attributes:
        kind: the type of a wire into it.
        widget_kind: the type of its widget in the editor, "" if it cannot have one.
        forced: whether it is only a socket, although it could have a widget (`forceInput`).
    """

    name: str
    kind: str
    options: Mapping[str, object]
    widget_kind: str
    optional: bool = False

    @property
    def forced(self) -> bool:
        return bool(self.options.get("forceInput"))

    @property
    def has_widget(self) -> bool:
        return bool(self.widget_kind) and not self.forced

    @cached_property
    def widgets(self) -> list[Widget]:
        """The widget that it has or could have, and the helpers after it."""
        if self.widget_kind in ("IMAGEUPLOAD", "AUDIOUPLOAD"):
            value = _INITIAL_VALUES[self.widget_kind](self.options)
            return [Widget(self.name, "", value, helper="upload", sent=False)]
        found = [
            Widget(
                self.name,
                self.widget_kind,
                initial_value(self),
                self.options,
                _choices(self),
                saved=self.widget_kind not in _NOT_SAVED,
                sent=self.widget_kind not in _NOT_SENT,
            )
        ]
        found += [Widget(name, "", value, helper=helper, sent=False) for name, helper, value in _helpers(self)]
        return found

    def nested_inputs(self, value: object) -> list[Spec]:
        """Return the inputs that the option `value` of a dynamic combo adds to the node."""
        options = self.options.get("options") if self.widget_kind == DYNAMIC_COMBO else None
        if not isinstance(options, list):
            return []
        inputs = next((one.get("inputs") for one in options if isinstance(one, dict) and one.get("key") == value), None)
        if not isinstance(inputs, dict):
            return []
        return [
            read_spec(f"{self.name}.{name}", entry, section == "optional")
            for section in ("required", "optional")
            for name, entry in (inputs.get(section) or {}).items()
        ]


def read_spec(name: str, entry: Any, optional: bool = False) -> Spec:
    options = entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}
    kind = "COMBO" if isinstance(entry[0], (list, tuple)) else str(entry[0])
    if isinstance(entry[0], (list, tuple)):
        options = {**options, "options": list(entry[0])}
    template = options.get("template")
    if kind == "COMFY_MATCHTYPE_V3" and isinstance(template, dict):
        kind = str(template.get("allowed_types", "*"))
    widget = str(options.get("widgetType") or kind)
    return Spec(name, kind, options, widget if widget in _INITIAL_VALUES else "", optional)


def input_specs(info: Mapping[str, Any]) -> list[Spec]:
    """Return the inputs of a node in the editor's order, including its upload button."""
    required = dict(info["input"].get("required") or {})
    optional = dict(info["input"].get("optional") or {})
    order = info.get("input_order") or {}
    button = _upload_button(required)
    if button:
        required["upload"] = (button, {})
    names = [
        *(name for name in order.get("required", required) if name in required),
        *(name for name in order.get("optional", optional) if name in optional),
    ]
    names += [name for name in (*required, *optional) if name not in names]
    entries = {**required, **optional}
    return [read_spec(name, entries[name], name in optional) for name in dict.fromkeys(names)]


def _upload_button(required: Mapping[str, object]) -> str:
    for name, entry in required.items():
        spec = read_spec(name, entry)
        if spec.kind == "COMBO" and any(spec.options.get(key) is True for key in _UPLOAD_OPTIONS):
            return "IMAGEUPLOAD"
    audio = required.get("audio")
    return "AUDIOUPLOAD" if audio and read_spec("audio", audio).options.get("audio_upload") is True else ""


def _helpers(spec: Spec) -> list[tuple[str, str, object]]:
    """Return name, kind of helper and initial value of the helpers after a widget."""
    if spec.widget_kind == "BOUNDING_BOX":
        return [(part, "part", value) for part, value in _BOX.items()]
    if spec.widget_kind == "AUDIO_RECORD":
        return [(f"{spec.name}#1", "part", "")]
    helpers: list[tuple[str, str, object]] = []
    remote = spec.options.get("remote")
    if spec.widget_kind == "COMBO" and isinstance(remote, dict) and not spec.options.get("multi_select"):
        helpers.append(("Auto-refresh after generation", "part", False))
        helpers += [("refresh", "part", "refresh")] if remote.get("refresh_button") else []
    control = spec.options.get("control_after_generate")
    if control is None and spec.widget_kind == "INT":
        control = spec.name in SEED_NAMES
    if control and spec.widget_kind in ("INT", "FLOAT", "COMBO"):
        mode = control if control in CONTROL_VALUES else "fixed" if spec.widget_kind == "FLOAT" else "randomize"
        name = control if isinstance(control, str) and control not in CONTROL_VALUES else "control_after_generate"
        helpers.append((name, "control", mode))
        if spec.widget_kind == "COMBO" and not spec.options.get("multi_select"):
            helpers.append(("control_filter_list", "filter", ""))
    return helpers


def _choices(spec: Spec) -> tuple[object, ...] | None:
    options = spec.options.get("options")
    if spec.widget_kind not in ("COMBO", DYNAMIC_COMBO) or not isinstance(options, (list, tuple)):
        return None
    if spec.widget_kind == DYNAMIC_COMBO:
        return tuple(one.get("key") for one in options if isinstance(one, dict))
    return tuple(options)


def initial_value(spec: Spec) -> object:
    """Return the value of an input's widget in a new node."""
    if spec.widget_kind in ("COMBO", DYNAMIC_COMBO):
        if spec.options.get("multi_select"):
            return []
        if spec.options.get("default"):
            return spec.options["default"]
        choices = _choices(spec)
        return choices[0] if choices else "Loading..." if spec.options.get("remote") else None
    default = None if spec.widget_kind in _WITHOUT_DEFAULT else spec.options.get("default")
    return _INITIAL_VALUES[spec.widget_kind](spec.options) if default is None else default
