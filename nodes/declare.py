"""One declaration a node: ComfyUI's V1 form is derived from it, and all that its V3 form asks for is in it.

    class Brighten(Node):
        ID = "UniWorldBrighten"
        DISPLAY_NAME = "UniWorld Brighten"
        CATEGORY = "UniWorld/image"
        DESCRIPTION = "Adds light to pictures."
        OUTPUTS = (Output("image", "IMAGE", "The lighter pictures."),)

        @classmethod
        def inputs(cls) -> Inputs:
            from ...uniworld_core.images.light import AMOUNT

            return (
                Input.wire("image", "IMAGE", "The pictures."),
                Input.number("amount", "How much light is added.", default=AMOUNT, min=0.0, max=1.0, step=0.01),
            )

        def execute(self, image: torch.Tensor, amount: float) -> tuple[torch.Tensor]:
            return ((image + amount).clamp(0, 1),)

    NODES = by_id(Brighten)

`inputs` is a method because defaults come from the core and choices from the host's folders: they are read when somebody
asks for them, so that importing the nodes imports no torch. `execute` takes the inputs by name, and has a default for
each optional one. Saved workflows hold the values of widgets by position, so a new input is always appended.
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
    """One input of a node; the class methods make the kinds there are.

    Attributes:
        type: the type of the wire or of the widget's value; for a choice, its options.
        optional: whether the node runs without it.
        options: ComfyUI's settings of the widget, in the order in which its own nodes have them; None for a wire. An
            empty dict is kept: some of ComfyUI's own nodes have one, and their clients read it.
    """

    name: str
    type: WireType | tuple[str, ...]
    tooltip: str = ""
    optional: bool = False
    options: dict[str, Any] | None = None

    @classmethod
    def wire(cls, name: str, type: WireType, tooltip: str = "", *, optional: bool = False) -> Input:
        """An input that another node's output must be linked to."""
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
        """A whole number; `step` is how far the widget's arrows go."""
        return cls(name, "INT", tooltip, optional, _number(default, min, max, step))

    @classmethod
    def number(
        cls, name: str, tooltip: str, *, default: float, min: float, max: float, step: float, optional: bool = False
    ) -> Input:
        """A number; `step` is how far the widget's arrows go, and what it rounds to."""
        return cls(name, "FLOAT", tooltip, optional, _number(default, min, max, step))

    @classmethod
    def seed(cls, name: str, tooltip: str) -> Input:
        """A seed, with the editor's switch that changes it after every run."""
        return cls(name, "INT", tooltip, False, _number(0, 0, _MAX_SEED) | {"control_after_generate": True})

    @classmethod
    def text(
        cls, name: str, tooltip: str = "", *, default: str = "", multiline: bool = False, dynamic_prompts: bool = False
    ) -> Input:
        """A text.

        Args:
            multiline: whether the widget has several lines.
            dynamic_prompts: whether the editor replaces `{a|b}` with one of the alternatives.
        """
        shown = ({"multiline": True} if multiline else {}) | ({"dynamicPrompts": True} if dynamic_prompts else {})
        return cls(name, "STRING", tooltip, False, shown | {"default": default})

    @classmethod
    def choice(cls, name: str, options: Iterable[str], tooltip: str = "", *, default: str | None = None) -> Input:
        """One of several names; without a `default` the first is chosen."""
        return cls(name, tuple(options), tooltip, False, None if default is None else {"default": default})

    def v1(self) -> tuple[Any, ...]:
        """The entry of `INPUT_TYPES`: the type or the list of options, and the settings if it has them."""
        kind = self.type if isinstance(self.type, str) else list(self.type)
        settings = (self.options or {}) | ({"tooltip": self.tooltip} if self.tooltip else {})
        return (kind,) if self.options is None and not settings else (kind, settings)


Inputs = tuple[Input, ...]


def _number(default: float, min: float, max: float, step: float | None = None) -> dict[str, Any]:
    return {"default": default, "min": min, "max": max} | ({} if step is None else {"step": step})


class Node:
    """What a node declares, in the names of ComfyUI's V1 form where it has one; the rest of that form follows from it.

    Attributes:
        ID: the name under which workflows know the node. It never changes (`renamed.py`).
        SEARCH_ALIASES: other words by which the editor's search finds it.
        HIDDEN: arguments that the host gives, by ComfyUI's names of them ("PROMPT", "UNIQUE_ID").
        OUTPUT_NODE: whether the node runs although nothing is linked to it.
    """

    ID: ClassVar[str]
    DISPLAY_NAME: ClassVar[str]
    CATEGORY: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    SEARCH_ALIASES: ClassVar[list[str]] = []
    OUTPUTS: ClassVar[tuple[Output, ...]] = ()
    HIDDEN: ClassVar[dict[str, str]] = {}
    OUTPUT_NODE: ClassVar[bool] = False

    # Derived from OUTPUTS; a node whose outputs have no tooltips has no OUTPUT_TOOLTIPS.
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
        """The inputs in order, the required ones first."""
        raise NotImplementedError(f"{cls.__name__} declares no inputs")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """The inputs in ComfyUI's V1 form."""
        inputs = cls.inputs()
        groups: dict[str, dict[str, Any]] = {
            "required": {one.name: one.v1() for one in inputs if not one.optional},
            "optional": {one.name: one.v1() for one in inputs if one.optional},
            "hidden": dict(cls.HIDDEN),
        }
        return {group: entries for group, entries in groups.items() if entries or group == "required"}


def validation_result(check: Callable[..., object], *values: object) -> bool | str:
    """What a node's `VALIDATE_INPUTS` answers: True, or the sentence of the UniWorldError that `check(*values)` raises.

    A value is None where it is linked; it is checked when it comes. `VALIDATE_INPUTS` names its arguments, as ComfyUI
    leaves the ranges and choices of all that it names to it.
    """
    if any(value is None for value in values):
        return True
    try:
        check(*values)
    except UniWorldError as error:
        return str(error)
    return True


def by_id(*nodes: type[Node]) -> dict[str, type[Node]]:
    """Node classes as a pack's `NODE_CLASS_MAPPINGS` has them."""
    return {node.ID: node for node in nodes}
