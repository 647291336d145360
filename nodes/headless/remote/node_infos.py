"""A registry of the nodes in a server's `/object_info`.

Each node gets a stand-in class with the same inputs and outputs. Conversion, replaced class ids, command-line values and checks
read node classes, so they work unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ....uniworld_core.errors import UniWorldError
from ..registry.registry import Registry
from ..registry.schema import ANY_TYPE, read_schema
from .client import BadAnswer

# Options of a choice that offers an upload. Its values are file names, and new files are valid too.
UPLOADS = ("image_upload", "video_upload", "animated_image_upload", "audio_upload", "file_upload")
PICTURE_UPLOADS = ("image_upload", "animated_image_upload")
# ComfyUI's V3 inputs that expand to several inputs, named PREFIX.NAME.
_DYNAMIC = ("COMFY_AUTOGROW_V3", "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3")
_MATCHING = "COMFY_MATCHTYPE_V3"


@dataclass
class RemoteRegistry(Registry):
    """The nodes of a server.

    Attributes:
        described: its object_info.
        allowed: class, input and value of the options that `allow` added.
    """

    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    allowed: set[tuple[str, str, str]] = field(default_factory=set)

    def info(self, name: str) -> dict[str, object]:
        return self.described[name]

    def is_own(self, name: str) -> bool:
        return False  # errors on a server are not bugs of this program

    def uploads(self, class_type: str, input_name: str) -> tuple[str, ...]:
        """Return the options of `UPLOADS` that an input declares."""
        spec = read_schema(self.classes[class_type]).inputs.get(input_name)
        return () if spec is None else tuple(flag for flag in UPLOADS if spec.options.get(flag))

    def allow(self, class_type: str, input_name: str, value: str) -> None:
        """Add a value to a choice, such as the name of a file that will be uploaded."""
        choices = read_schema(self.classes[class_type]).inputs[input_name]
        options = choices.type if isinstance(choices.type, list) else choices.options.get("options")
        if isinstance(options, list) and value not in options:
            options.append(value)
            self.allowed.add((class_type, input_name, value))


def read_registry(data: object, url: str) -> RemoteRegistry:
    """Build a registry from a server's object_info. Nodes with an invalid description are skipped.

    Raises:
        BadAnswer: no node has a valid description.
    """
    registry = RemoteRegistry()
    for name, info in data.items() if isinstance(data, dict) else ():
        if not isinstance(info, dict) or not isinstance(info.get("input"), dict):
            continue
        made = _stand_in(name, info)
        try:
            read_schema(made)
        except (UniWorldError, TypeError, AttributeError):
            continue
        module = info.get("python_module")
        label = info.get("display_name")
        registry.described[name] = info
        registry.add(
            {name: made},
            {name: label if isinstance(label, str) else name},
            module if isinstance(module, str) else "nodes",
        )
    if not registry.classes:
        raise BadAnswer(f"{url}/object_info describes no nodes. Is it ComfyUI or `uniworld serve`?")
    return registry


def _stand_in(name: str, info: Mapping[str, Any]) -> type:
    declared = {part: _inputs(entries) for part, entries in info["input"].items() if isinstance(entries, dict)}
    required = declared.get("required", {})
    # A prompt contains their expanded inputs, not the inputs themselves.
    dynamic = {name: required.pop(name) for name in list(required) if _is_dynamic(info["input"]["required"][name])}
    declared["optional"] = dynamic | declared.get("optional", {})

    def run(self: object, **inputs: object) -> None:
        """Accept any input: object_info does not say whether the function takes undeclared ones."""

    outputs, is_list = info.get("output"), info.get("output_is_list")
    return type(
        str(name),
        (),
        {
            "__module__": __name__,
            "INPUT_TYPES": classmethod(lambda cls: declared),
            "RETURN_TYPES": tuple(map(_output, outputs)) if isinstance(outputs, list) else (),
            "OUTPUT_IS_LIST": tuple(is_list) if isinstance(is_list, list) else (),
            "OUTPUT_NODE": info.get("output_node") is True,
            "FUNCTION": "run",
            "run": run,
        },
    )


def _inputs(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _input(entry) for name, entry in entries.items()}


def _input(entry: Any) -> Any:
    """Return the declaration of an input, with restrictions removed that the server does not apply."""
    if not isinstance(entry, list) or not entry:
        return entry
    kind, options = entry[0], entry[1] if len(entry) > 1 and isinstance(entry[1], dict) else {}
    if _is_dynamic(entry):
        return [ANY_TYPE, {}]
    if kind == _MATCHING:
        template = options.get("template")
        allowed = template.get("allowed_types") if isinstance(template, dict) else None
        return [allowed if isinstance(allowed, str) else ANY_TYPE, options]
    if any(options.get(flag) for flag in UPLOADS) and (kind == "COMBO" or isinstance(kind, list)):
        return ["COMBO", {key: value for key, value in options.items() if key != "options"}]
    return entry


def _is_dynamic(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and isinstance(entry[0], str) and entry[0] in _DYNAMIC


def _output(kind: Any) -> Any:
    return ANY_TYPE if kind == _MATCHING else kind
