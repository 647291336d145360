"""Which widgets the editor gives a node, and how their values lie in a saved node's `widgets_values`.

The editor saves values by position: a widget for each input of a widget type, in the order of the inputs, and between
them the values of helper widgets that are no inputs (what happens to a seed after a run, the upload button).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .schema import WIDGET_TYPES

CONTROL_VALUES = ("fixed", "increment", "decrement", "randomize")
# INT inputs of these names get a control widget unless they say otherwise.
SEED_NAMES = ("seed", "noise_seed")
_UPLOAD_OPTIONS = ("image_upload", "video_upload", "animated_image_upload")


@dataclass(frozen=True)
class Slot:
    """A position in `widgets_values`: a widget's input, or a helper ("control", "filter", "upload")."""

    name: str
    default: Any = None
    helper: str = ""

    def may_hold(self, value: Any) -> bool:
        """Whether a value can be this helper's; for files that leave helpers out."""
        if self.helper == "control":
            return value in CONTROL_VALUES
        return value == {"upload": "image", "filter": ""}[self.helper]


def widget_slots(info: dict[str, Any]) -> list[Slot]:
    """The positions in `widgets_values` of a node with this object_info."""
    slots: list[Slot] = []
    for section in ("required", "optional"):
        entries = info["input"].get(section) or {}
        for name in info["input_order"].get(section, entries):
            slots += _slots_of(name, entries[name])
        if section == "required" and any(
            _options(entry).get(key) for entry in entries.values() for key in _UPLOAD_OPTIONS
        ):
            # The editor adds the button as one more required input, behind all others.
            slots.append(Slot("upload", helper="upload"))
    return slots


def _slots_of(name: str, entry: Any) -> list[Slot]:
    kind, options = entry[0], _options(entry)
    if options.get("forceInput") or options.get("defaultInput"):
        return []
    widget = options.get("widgetType") or kind
    is_choice = isinstance(kind, (list, tuple)) or widget == "COMBO"
    if not is_choice and widget not in WIDGET_TYPES and not options.get("socketless"):
        return []
    slots = [Slot(name, _default(kind, options))]
    control = options.get("control_after_generate")
    if control or (control is None and widget == "INT" and name in SEED_NAMES):
        slots.append(Slot("control_after_generate", helper="control"))
        if is_choice:
            slots.append(Slot("control_filter_list", helper="filter"))
    return slots


def _options(entry: Any) -> dict[str, Any]:
    return entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}


def _default(kind: Any, options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    choices = kind if isinstance(kind, (list, tuple)) else options.get("options")
    if isinstance(choices, (list, tuple)):
        return choices[0] if choices else None
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(kind)


def widget_values(info: dict[str, Any], saved: Any) -> dict[str, Any]:
    """The value of every widget by input name, from a saved node's `widgets_values`.

    A value that was not saved is the widget's default. The values may also be saved by name.
    """
    slots = widget_slots(info)
    values = {slot.name: slot.default for slot in slots if not slot.helper}
    if isinstance(saved, dict):
        values.update({name: saved[name] for name in values if name in saved})
    elif isinstance(saved, list):
        values.update({slot.name: saved[index] for slot, index in _positions(slots, saved) if not slot.helper})
    return values


def widget_position(info: dict[str, Any], saved: list[Any], name: str) -> int | None:
    """Where in `widgets_values` the value of an input lies; None if it is not there."""
    return next((index for slot, index in _positions(widget_slots(info), saved) if slot.name == name), None)


def widget_surplus(info: dict[str, Any], saved: list[Any]) -> tuple[list[str], int]:
    """The inputs of a node whose values were not saved, and how many values were saved beyond them."""
    slots = widget_slots(info)
    placed = {slot.name for slot, _ in _positions(slots, saved)}
    # A node without widgets may still have had some of the editor's own, whose values matter to no one.
    extra = max(0, len(saved) - len(slots)) if slots else 0
    return [slot.name for slot in slots if not slot.helper and slot.name not in placed], extra


def _positions(slots: list[Slot], saved: list[Any]) -> list[tuple[Slot, int]]:
    positions = []
    index = 0
    complete = len(saved) >= len(slots)
    for slot in slots:
        if index >= len(saved):
            break
        if slot.helper and not complete and not slot.may_hold(saved[index]):
            continue
        positions.append((slot, index))
        index += 1
    return positions
