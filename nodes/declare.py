"""The declaration of a node, from which ComfyUI's V1 form is derived. It also has everything that the V3 form needs.

    class Brighten(Node):
        ID = "UniWorldBrighten"
        DISPLAY_NAME = "UniWorld Brighten"
        CATEGORY = "UniWorld/image"
        DESCRIPTION = "Makes images brighter."
        OUTPUTS = (Output("image", "IMAGE", "The brighter images."),)

        @classmethod
        def inputs(cls) -> Inputs:
            return (
                Input.wire("image", "IMAGE", "The images."),
                Input.number("amount", "Added to every pixel.", default=0.2, min=0.0, max=1.0, step=0.01),
            )

        def execute(self, image: torch.Tensor, amount: float) -> tuple[torch.Tensor]:
            return ((image + amount).clamp(0, 1),)

    NODES = by_id(Brighten)

`inputs` is a method because defaults come from the core and choices from the host's folders. Both are read on demand, so
importing the nodes does not import torch. `execute` takes the inputs by name and has a default for each optional one.
A type of wire that no other node has is added to `WireType`.
Saved workflows store widget values by position, so new inputs are always appended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..uniworld_core.errors import UniWorldError

# ComfyUI's own types, and this package's.
WireType = Literal[
    "IMAGE",
    "MASK",
    "LATENT",
    "CONDITIONING",
    "CLIP_VISION_OUTPUT",
    "SIGMAS",
    "STRING",
    "INT",
    "FLOAT",
    "BOOLEAN",
    "MODEL",
    "VAE",
    "CLIP",
    "CLIP_VISION",
    "NOISE",
    "*",
    "UNIWORLD_VLM",
    "UNIWORLD_SIGLIP",
    "UNIWORLD_DIT",
    "UNIWORLD_VAE",
    "UNIWORLD_TEXT",
    "UNIWORLD_REFERENCE",
    "UNIWORLD_CONVERSATION",
]

_MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Output:
    """One output of a node."""

    name: str
    type: WireType
    tooltip: str = ""


@dataclass(frozen=True)
class Input:
    """One input of a node. The class methods create each kind.

    Attributes:
        type: the type of the wire or of the widget's value; for a choice, its options.
        optional: whether the node runs without it.
        options: ComfyUI's settings of the widget, in the order that ComfyUI's own nodes use; None for a wire. An empty
            dict is kept, because some of ComfyUI's own nodes declare one and clients read it.
    """

    name: str
    type: WireType | tuple[str, ...]
    tooltip: str = ""
    optional: bool = False
    options: dict[str, Any] | None = None

    @classmethod
    def wire(cls, name: str, type: WireType, tooltip: str = "", *, optional: bool = False) -> Input:
        """Declare an input that must be linked to another node's output."""
        return cls(name, type, tooltip, optional)

    @classmethod
    def integer(
        cls,
        name: str,
        tooltip: str = "",
        *,
        default: int,
        min: int,
        max: int,
        step: int | None = None,
        optional: bool = False,
    ) -> Input:
        """Declare an integer widget; `step` is the increment of its arrows."""
        return cls(name, "INT", tooltip, optional, _number(default, min, max, step))

    @classmethod
    def number(
        cls, name: str, tooltip: str, *, default: float, min: float, max: float, step: float, optional: bool = False
    ) -> Input:
        """Declare a float widget; `step` is the increment of its arrows, and the value is rounded to it."""
        return cls(name, "FLOAT", tooltip, optional, _number(default, min, max, step))

    @classmethod
    def seed(cls, name: str, tooltip: str) -> Input:
        """Declare a seed widget, with the editor's control that changes it after every run."""
        return cls(name, "INT", tooltip, False, _number(0, 0, _MAX_SEED) | {"control_after_generate": True})

    @classmethod
    def text(
        cls,
        name: str,
        tooltip: str = "",
        *,
        default: str = "",
        multiline: bool = False,
        dynamic_prompts: bool = False,
        optional: bool = False,
    ) -> Input:
        """Declare a text widget.

        Args:
            multiline: whether the widget has several lines.
            dynamic_prompts: whether the editor replaces `{a|b}` with one of the alternatives.
        """
        shown = ({"multiline": True} if multiline else {}) | ({"dynamicPrompts": True} if dynamic_prompts else {})
        return cls(name, "STRING", tooltip, optional, shown | {"default": default})

    @classmethod
    def choice(
        cls,
        name: str,
        options: Iterable[str],
        tooltip: str = "",
        *,
        default: str | None = None,
        optional: bool = False,
        advanced: bool = False,
    ) -> Input:
        """Declare a choice between names; without `default`, the first one is selected.

        Args:
            advanced: whether editors that can do so show the widget only on demand.
        """
        settings = ({} if default is None else {"default": default}) | ({"advanced": True} if advanced else {})
        return cls(name, tuple(options), tooltip, optional, settings or None)

    def v1(self) -> tuple[Any, ...]:
        """Return the entry for `INPUT_TYPES`: the type or list of options, and the settings if there are any."""
        kind = self.type if isinstance(self.type, str) else list(self.type)
        settings = (self.options or {}) | ({"tooltip": self.tooltip} if self.tooltip else {})
        return (kind,) if self.options is None and not settings else (kind, settings)


Inputs = tuple[Input, ...]


def _number(default: float, min: float, max: float, step: float | None = None) -> dict[str, Any]:
    return {"default": default, "min": min, "max": max} | ({} if step is None else {"step": step})


class Node:
    """Base class of nodes. Attributes have the names of ComfyUI's V1 form; the rest of that form is derived.

    Attributes:
        ID: the class id that workflows store. It never changes (`renamed.py`).
        SEARCH_ALIASES: other words by which the editor's search finds the node.
        HIDDEN: arguments supplied by the host, as {argument: ComfyUI's name} ("PROMPT", "UNIQUE_ID").
        OUTPUT_NODE: whether the node runs even if nothing is linked to it.
    """

    ID: ClassVar[str]
    DISPLAY_NAME: ClassVar[str]
    CATEGORY: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    SEARCH_ALIASES: ClassVar[list[str]] = []
    OUTPUTS: ClassVar[tuple[Output, ...]] = ()
    HIDDEN: ClassVar[dict[str, str]] = {}
    OUTPUT_NODE: ClassVar[bool] = False

    # Derived from OUTPUTS. OUTPUT_TOOLTIPS is left out if no output has a tooltip, as in ComfyUI's own nodes.
    RETURN_TYPES: ClassVar[tuple[str, ...]]
    RETURN_NAMES: ClassVar[tuple[str, ...]]
    OUTPUT_TOOLTIPS: ClassVar[tuple[str, ...]]
    FUNCTION: ClassVar[str] = "execute"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.RETURN_TYPES = tuple(output.type for output in cls.OUTPUTS)
        cls.RETURN_NAMES = tuple(output.name for output in cls.OUTPUTS)
        if any(output.tooltip for output in cls.OUTPUTS):
            cls.OUTPUT_TOOLTIPS = tuple(output.tooltip for output in cls.OUTPUTS)

    @classmethod
    def inputs(cls) -> Inputs:
        """Return the inputs in order, required ones first."""
        raise NotImplementedError(f"{cls.__name__} declares no inputs")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Return the inputs in ComfyUI's V1 form."""
        inputs = cls.inputs()
        groups: dict[str, dict[str, Any]] = {
            "required": {one.name: one.v1() for one in inputs if not one.optional},
            "optional": {one.name: one.v1() for one in inputs if one.optional},
            "hidden": dict(cls.HIDDEN),
        }
        return {group: entries for group, entries in groups.items() if entries or group == "required"}


def validation_result(check: Callable[..., object], *values: object) -> bool | str:
    """Return the result of a node's `VALIDATE_INPUTS`: True, or the message of the UniWorldError from `check(*values)`.

    The value of a linked input is None here; it is checked when the node runs. `VALIDATE_INPUTS` names only the inputs
    that it checks, because ComfyUI skips its own range and choice checks for every input named there.
    """
    if any(value is None for value in values):
        return True
    try:
        check(*values)
    except UniWorldError as error:
        return str(error)
    return True


def by_id(*nodes: type[Node]) -> dict[str, type[Node]]:
    """Return node classes in the form of `NODE_CLASS_MAPPINGS`."""
    return {node.ID: node for node in nodes}
