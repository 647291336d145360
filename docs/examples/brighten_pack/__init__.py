"""A node pack with one node in ComfyUI's V1 form, for `uniworld run --pack` and ComfyUI's `custom_nodes/`."""

from __future__ import annotations

from typing import Any


class Brighten:
    """Makes images brighter."""

    CATEGORY = "example"
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "brighten"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        amount = {"default": 0.2, "min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {"image": ("IMAGE",), "amount": ("FLOAT", amount)}}

    def brighten(self, image: Any, amount: float) -> tuple[Any]:
        return ((image + amount).clamp(0, 1),)  # (B, H, W, 3) in 0..1


NODE_CLASS_MAPPINGS = {"ExampleBrighten": Brighten}
NODE_DISPLAY_NAME_MAPPINGS = {"ExampleBrighten": "Brighten"}
