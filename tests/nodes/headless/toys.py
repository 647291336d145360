"""A node pack for the tests: small nodes, each for one rule."""

from __future__ import annotations

import time
from typing import Any

calls: list[str] = []


class Number:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {"default": 1, "min": 0, "max": 100})}}

    def run(self, value: int) -> tuple[int]:
        calls.append(f"Number {value}")
        return (value,)


class Add:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = ("INT", {"default": 0})
        return {"required": {"a": number, "b": number}, "optional": {"c": number}}

    def run(self, a: int, b: int, c: int = 0) -> tuple[int]:
        calls.append("Add")
        return (a + b + c,)


class Options:
    """One widget of every type."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text": ("STRING", {"default": "hello"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "strength": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0}),
                "on": ("BOOLEAN", {"default": True}),
                "old_choice": (["a", "b"],),
                "new_choice": ("COMBO", {"options": ["x", "y"]}),
            },
            "optional": {"count": ("INT", {"default": 3, "control_after_generate": True}), "tail": ("STRING", {})},
        }

    def run(self, **values: Any) -> dict[str, Any]:
        return {"ui": {"text": [repr(values)]}, "result": (repr(values),)}


class Show:
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {})}}

    def run(self, value: Any) -> dict[str, Any]:
        calls.append("Show")
        return {"ui": {"text": [str(value)]}}


class Hidden:
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        hidden = {"prompt": "PROMPT", "png": "EXTRA_PNGINFO", "me": "UNIQUE_ID"}
        return {"required": {"value": ("INT", {})}, "hidden": hidden}

    def run(self, value: int, prompt: Any, png: Any, me: str) -> dict[str, Any]:
        return {"ui": {"seen": [{"prompt": prompt, "png": png, "me": me}]}}


class Switch:
    """Requests one of its two lazy inputs."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        lazy = ("INT", {"lazy": True})
        return {"required": {"which": ("BOOLEAN", {}), "yes": lazy, "no": lazy}}

    def check_lazy_status(self, which: bool, yes: int | None = None, no: int | None = None) -> list[str]:
        wanted, value = ("yes", yes) if which else ("no", no)
        return [wanted] if value is None else []

    def run(self, which: bool, yes: int | None = None, no: int | None = None) -> tuple[Any]:
        return (yes if which else no,)


class Spread:
    RETURN_TYPES = ("INT",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"count": ("INT", {"default": 3})}}

    def run(self, count: int) -> tuple[list[int]]:
        return (list(range(count)),)


class Sum:
    RETURN_TYPES = ("INT",)
    INPUT_IS_LIST = True
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"values": ("INT", {}), "times": ("INT", {"default": 1})}}

    def run(self, values: list[int], times: list[int]) -> tuple[int]:
        return (sum(values) * times[0],)


class Changing(Number):
    state = 0

    @classmethod
    def IS_CHANGED(cls, value: int) -> int | float:
        return cls.state if value else float("nan")


class Checked(Number):
    OUTPUT_NODE = True

    @classmethod
    def VALIDATE_INPUTS(cls, value: int) -> bool | str:
        return True if value != 13 else "13 brings bad luck. Choose another number."


class AnyTyped(Number):
    """Accepts links of every type, and checks the type itself."""

    OUTPUT_NODE = True

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: dict[str, str]) -> bool | str:
        return True if input_types.get("value", "INT") in ("INT", "STRING") else "only INT and STRING are allowed."


class Knowing(Number):
    """Receives its own id before it runs, and rejects the id 13."""

    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {**super().INPUT_TYPES(), "hidden": {"me": "UNIQUE_ID", "prompt": ("PROMPT",)}}

    @classmethod
    def IS_CHANGED(cls, value: int, me: str) -> str:
        return me

    @classmethod
    def VALIDATE_INPUTS(cls, me: str) -> bool | str:
        return True if me != "13" else "no node can be number 13. Renumber it."

    def run(self, value: int, me: str, prompt: Any) -> tuple[int]:  # type: ignore[override]
        return super().run(value)


class Failing:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT", {})}}

    def run(self, value: int) -> tuple[int]:
        raise ValueError("The oven is cold. Light it.")


class Strange:
    """Returns values that do not have the form of V1 nodes."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"how": (["none", "number", "short"],)}}

    def run(self, how: str) -> Any:
        return {"none": None, "number": 5, "short": ()}[how]


class Blocker:
    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"message": ("STRING", {"default": ""})}}

    def run(self, message: str) -> tuple[Any]:
        from uniworld.nodes.headless.registry.calls import ExecutionBlocker

        return (ExecutionBlocker(message or None),)


class Slow:
    """Takes steps of 20 ms, reports them, and can be interrupted, like the sampler."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"steps": ("INT", {"default": 5})}}

    def run(self, steps: int) -> tuple[int]:
        from uniworld.nodes import host

        progress = host.current().progress(steps)
        for step in range(steps):
            host.current().check_interrupt()
            time.sleep(0.02)
            progress.update(step + 1)
        print("a node may print")
        return (steps,)


class NoiseImage:
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"width": ("INT", {"default": 8}), "height": ("INT", {"default": 6})}}

    def run(self, width: int, height: int) -> tuple[Any, Any]:
        import torch

        generator = torch.Generator().manual_seed(0)
        return torch.rand(1, height, width, 3, generator=generator), torch.zeros(1, height, width)


class Coroutine(Number):
    async def run(self, value: int) -> tuple[int]:  # type: ignore[override]
        return (value + 1,)


class Prompted:
    """A prompt with choices, and a seed."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "plain": ("STRING", {"default": ""}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
            }
        }

    def run(self, text: str, plain: str, seed: int) -> dict[str, Any]:
        return {"ui": {"text": [text]}}


NODE_CLASS_MAPPINGS: dict[str, type] = {
    node.__name__: node
    for node in (
        Number, Add, Options, Show, Hidden, Switch, Spread, Sum, Changing, Checked, AnyTyped, Knowing,
        Failing, Strange, Blocker, Slow, NoiseImage, Coroutine, Prompted,
    )
}  # fmt: skip
NODE_DISPLAY_NAME_MAPPINGS = {"Options": "All Options"}
