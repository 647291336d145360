"""Test nodes for features of the server: previews, files, held modules."""

from __future__ import annotations

import time
from typing import Any


def _host() -> Any:
    from uniworld.nodes import host

    return host.current()


class Paint:
    """Reports a preview after each step."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"steps": ("INT", {"default": 3}), "seed": ("INT", {"default": 0})}}

    def run(self, steps: int, seed: int) -> dict[str, Any]:
        from PIL import Image

        progress = _host().progress(steps)
        for step in range(steps):
            _host().check_interrupt()
            time.sleep(0.02)
            progress.update(step + 1, Image.new("RGB", (640, 320), (255, 0, step)))
        return {"ui": {"text": [str(seed)]}, "result": (seed,)}


class Record:
    """Appends a line to a file each time it runs, and sleeps."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"text": ("STRING", {"default": ""})}
        return {"required": required, "optional": {"milliseconds": ("INT", {"default": 0}), "after": ("INT", {})}}

    def run(self, text: str, milliseconds: int = 0, after: int = 0) -> dict[str, Any]:
        _write_line(text)
        end = time.monotonic() + milliseconds / 1000
        while time.monotonic() < end:
            _host().check_interrupt()
            time.sleep(0.01)
        return {"ui": {"text": [text]}}


class Tick:
    """A source node that appends a line each time it runs."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "run"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"default": ""})}}

    def run(self, text: str) -> tuple[int]:
        _write_line(text)
        return (1,)


def _write_line(text: str) -> None:
    from uniworld.nodes.headless.storage import folders

    with (folders.current().output / "record.txt").open("a") as file:
        file.write(text + "\n")


class Unruly:
    """Returns UI data that JSON cannot represent, and a preview that is not a picture."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> dict[str, Any]:
        circle: list[Any] = []
        circle.append(circle)
        _host().progress(2).update(1, "no picture")
        return {"ui": {"text": [{("a", 1): 2}, circle, float("nan")]}}


class Exits:
    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> None:
        raise SystemExit("a node must not end the server")


class Stubborn:
    """Never checks for interrupts."""

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def run(self) -> None:
        time.sleep(1)


NODE_CLASS_MAPPINGS: dict[str, type] = {node.__name__: node for node in (Paint, Record, Tick, Exits, Stubborn, Unruly)}
NODE_DISPLAY_NAME_MAPPINGS = {"Paint": "Paint a little"}
WEB_DIRECTORY = "./web"
