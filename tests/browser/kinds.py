"""A node pack for the conversion test: a node for every kind of input that the editor treats differently."""

from __future__ import annotations

from typing import Any

TAIL = ("STRING", {"default": "tail"})
TABLE = (
    "INT", "FLOAT", "BOOLEAN", "STRING", "MARKDOWN", "COLOR", "TEXTAREA", "BOUNDING_BOX", "BOUNDING_BOXES", "CHART",
    "GALLERIA", "PAINTER", "COMPOSITOR", "CURVE", "RANGE", "VIDEO_EDIT", "RESOLUTION_PREVIEW", "LIGHT_INFO_PREVIEW",
    "COLORS", "IMAGECOMPARE", "AUDIO_UI", "IMAGE", "UNKNOWN", "*", "INT,FLOAT",
)  # fmt: skip
DYNAMIC = [
    {"key": "one", "inputs": {"required": {"n": ("INT", {"default": 1}), "s": ("STRING", {"default": "s"})}}},
    {"key": "two", "inputs": {"required": {"image": ("IMAGE", {})}, "optional": {"f": ("FLOAT", {"default": 2.5})}}},
    {"key": "none", "inputs": {}},
]
ANY_UPLOAD = (["a.png", "b.png"], {"image_upload": True})
FORCED = ("STRING", {"forceInput": True})


def make(required: dict[str, Any], optional: dict[str, Any] | None = None, returns: tuple[Any, ...] = ()) -> type:
    class Kind:
        RETURN_TYPES = returns or ("STRING",)
        FUNCTION = "run"
        OUTPUT_NODE = True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": required, "optional": optional or {}}

        def run(self, **values: Any) -> tuple[Any, ...]:
            return tuple(str(values) for _ in self.RETURN_TYPES)

    return Kind


def _kinds(name: str, kind: str) -> dict[str, type]:
    """Return nodes with an input of this type between two texts, one for each option that may affect its position."""
    made: dict[str, type] = {}
    for letter, options in {
        "": {}, "Force": {"forceInput": True}, "Default": {"defaultInput": True}, "Lazy": {"lazy": True, "rawLink": True},
        "Control": {"control_after_generate": True}, "Socketless": {"socketless": True},
    }.items():  # fmt: skip
        made[f"{letter}{name}"] = make({"a": ("STRING", {"default": "a"}), "w": (kind, options), "z": TAIL})
    made[f"Optional{name}"] = make({"a": TAIL}, {"w": (kind, {}), "o": TAIL})
    return made


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "Source": make({"s": TAIL}, returns=("STRING", "INT", "FLOAT", "BOOLEAN", "IMAGE", "*", "MASK")),
    "Many": make(
        {
            "image": ("IMAGE",),
            "text": TAIL,
            "n": ("INT", {}),
            "f": ("FLOAT", {}),
            "b": ("BOOLEAN", {}),
            "c": (["x", "y"],),
        },
        {"any": ("*", {}), "m": ("MASK",), "u": ("INT,FLOAT", {}), "image2": ("IMAGE",)},
        ("STRING", "IMAGE", "INT", "MASK", "*"),
    ),
    "Pass": make({"image": ("IMAGE",), "text": FORCED, "amount": ("FLOAT", {})}, returns=("STRING", "IMAGE", "FLOAT")),
    "PassAny": make({"v": ("*", {})}, returns=("*",)),
    "Swap": make({"mask": ("MASK",), "image": ("IMAGE",)}, returns=("IMAGE", "MASK")),
    "Sink": make({"image": ("IMAGE",)}, {"text": TAIL, "any": ("*", {}), "n": ("INT", {"default": 5})}),
    "Text": make({"text": ("STRING", {"multiline": True, "dynamicPrompts": True})}),
    "Seed": make({"seed": ("INT", {"max": 2**64 - 1}), "name": TAIL, "mode": (["one", "two"],)}),
    "SeedOff": make({"seed": ("INT", {"control_after_generate": False}), "z": TAIL}),
    "SeedNamed": make({"noise_seed": ("INT", {"control_after_generate": "mine"}), "z": TAIL}),
    "Stepped": make(
        {"n": ("INT", {"min": 4, "max": 100, "step": 8}), "f": ("FLOAT", {"step": 0.01, "max": 9.0}), "z": TAIL}
    ),
    "Choice": make({"a": TAIL, "w": (["x", "y", "z"], {"default": "y"}), "z": TAIL}),
    "ChoiceNew": make({"a": TAIL, "w": ("COMBO", {"options": ["x", "y"]}), "z": TAIL}),
    "ChoiceControl": make({"w": ("COMBO", {"options": ["x", "y"], "control_after_generate": True}), "z": TAIL}),
    "ChoiceMany": make({"w": (["x", "y"], {"multi_select": True, "control_after_generate": True}), "z": TAIL}),
    "ChoiceForced": make({"w": (["x", "y"], {"forceInput": True}), "z": TAIL}),
    "ChoiceEmpty": make({"w": ([],), "v": ([1, 0], {"default": 0}), "z": TAIL}),
    "Upload": make({"image": ANY_UPLOAD, "z": TAIL}, {"o": TAIL}),
    "UploadOptional": make({"z": TAIL}, {"image": ANY_UPLOAD}),
    "UploadVideo": make({"file": ("COMBO", {"options": ["a.mp4"], "video_upload": True}), "z": TAIL}),
    "Dynamic": make({"a": TAIL, "w": ("COMFY_DYNAMICCOMBO_V3", {"options": DYNAMIC}), "z": TAIL}),
    "Typed": make({"w": ("MINE", {"widgetType": "INT", "control_after_generate": True}), "z": TAIL}),
    "SaveVideo": make({"video": TAIL, "filename_prefix": ("STRING", {"default": "v"})}),
}
for number, kind in enumerate(TABLE):
    NODE_CLASS_MAPPINGS |= _kinds(f"Kind{number}", kind)
NODE_DISPLAY_NAME_MAPPINGS = {"Seed": "A Seed", "Text": "Some Text"}
