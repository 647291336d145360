"""The V1 form is derived from a node's declaration, and every node of the pack has one."""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any, get_args

import pytest
import torch
from uniworld.nodes import NODE_CLASS_MAPPINGS, declare
from uniworld.nodes.declare import Input, Inputs, Node, Output, WireType, by_id, validation_result
from uniworld.nodes.headless.registry.schema import read_schema
from uniworld.uniworld_core.errors import UniWorldError


class Everything(Node):
    ID = "Everything"
    OUTPUTS = (Output("picture", "IMAGE", "A picture."), Output("count", "INT", "How many."))

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("image", "IMAGE", "A picture."),
            Input.integer("steps", "Steps.", default=28, min=1, max=1000),
            Input.number("guidance", "Guidance.", default=3.5, min=0.0, max=100.0, step=0.1),
            Input.choice("method", ("code", "paper"), "The way."),
            Input.choice("method2", ["code", "paper"], "The way.", default="paper"),
            Input.text("line", "A line."),
            Input.text("prompt", "A prompt.", multiline=True, dynamic_prompts=True),
            Input.seed("seed", "A seed."),
            Input.wire("mask", "MASK", "A mask.", optional=True),
            Input.integer("side", "A side.", default=0, min=0, max=64, step=32, optional=True),
        )

    def execute(self) -> None: ...


def test_the_template_in_the_docstring_is_a_working_node() -> None:
    (code,) = re.findall(r"^    class .*?^    NODES = .*?$", declare.__doc__ or "", re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {**vars(declare), "torch": torch}
    exec(textwrap.dedent(code), names)
    ((node_id, node),) = names["NODES"].items()
    assert node_id == node.ID
    amount = node.INPUT_TYPES()["required"]["amount"][1]["default"]
    (brighter,) = node().execute(torch.zeros(1, 2, 2, 3), amount)
    assert torch.equal(brighter, torch.full((1, 2, 2, 3), amount))


def test_the_v1_form_of_every_kind_of_input() -> None:
    assert Everything.INPUT_TYPES() == {
        "required": {
            "image": ("IMAGE", {"tooltip": "A picture."}),
            "steps": ("INT", {"default": 28, "min": 1, "max": 1000, "tooltip": "Steps."}),
            "guidance": ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": "Guidance."}),
            "method": (["code", "paper"], {"tooltip": "The way."}),
            "method2": (["code", "paper"], {"default": "paper", "tooltip": "The way."}),
            "line": ("STRING", {"default": "", "tooltip": "A line."}),
            "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True, "default": "", "tooltip": "A prompt."}),
            "seed": (
                "INT",
                {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True, "tooltip": "A seed."},
            ),
        },
        "optional": {
            "mask": ("MASK", {"tooltip": "A mask."}),
            "side": ("INT", {"default": 0, "min": 0, "max": 64, "step": 32, "tooltip": "A side."}),
        },
    }


def test_the_v1_form_of_the_outputs() -> None:
    assert Everything.RETURN_TYPES == ("IMAGE", "INT")
    assert Everything.RETURN_NAMES == ("picture", "count")
    assert Everything.OUTPUT_TOOLTIPS == ("A picture.", "How many.")
    assert by_id(Everything) == {"Everything": Everything}


def test_a_form_has_no_more_than_what_is_declared() -> None:
    class Bare(Node):
        ID = "Bare"
        OUTPUTS = (Output("IMAGE", "IMAGE"),)
        HIDDEN = {"graph": "PROMPT"}

        @classmethod
        def inputs(cls) -> Inputs:
            return Input.wire("image", "IMAGE"), Input.choice("crop", ("disabled", "center"))

    assert Bare.INPUT_TYPES() == {
        "required": {"image": ("IMAGE",), "crop": (["disabled", "center"],)},
        "hidden": {"graph": "PROMPT"},
    }
    assert not hasattr(Bare, "OUTPUT_TOOLTIPS")


def test_the_host_reads_the_form() -> None:
    schema = read_schema(Everything)
    assert list(schema.inputs) == [one.name for one in Everything.inputs()]
    assert schema.inputs["method"].choices == ["code", "paper"]
    assert not schema.is_output


def test_a_list_of_choices_is_a_new_one_each_time() -> None:
    # Some packs change the lists of other nodes in place.
    Everything.INPUT_TYPES()["required"]["method"][0].append("other")
    assert Everything.INPUT_TYPES()["required"]["method"][0] == ["code", "paper"]


def test_the_answer_of_a_check() -> None:
    def check(value: object, least: int) -> None:
        if not isinstance(value, int):
            raise TypeError("an error in the check is not a validation result")
        if value < least:
            raise UniWorldError(f"The value is {value}; it must be at least {least}.")

    assert validation_result(check, 5, 3) is True
    assert validation_result(check, None, 3) is True  # linked
    assert validation_result(check, 2, 3) == "The value is 2; it must be at least 3."
    with pytest.raises(TypeError):
        validation_result(check, "2", 3)


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_execute_takes_the_inputs_in_the_order_of_the_declaration(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    inputs, (_, *taken) = node.inputs(), inspect.signature(node.execute).parameters.values()
    assert [one.name for one in taken] == [one.name for one in inputs]
    # Required inputs come first, in the declaration as in Python.
    assert [one.optional for one in inputs] == sorted(one.optional for one in inputs)
    assert [one.default is not inspect.Parameter.empty for one in taken] == [one.optional for one in inputs]
    assert {one.type for one in inputs if isinstance(one.type, str)} <= {*get_args(WireType)}


# The annotations of `execute` (pack/wires.py).
PYTHON_TYPES = {
    "IMAGE": "Tensor",
    "MASK": "Tensor",
    "SIGMAS": "Tensor",
    "LATENT": "Latent",
    "CONDITIONING": "Conditioning",
    "INT": "int",
    "FLOAT": "float",
    "STRING": "str",
    "BOOLEAN": "bool",
    "CLIP_VISION_OUTPUT": "ClipVisionOutput",
    # ComfyUI's own objects.
    **dict.fromkeys(("MODEL", "VAE", "CLIP", "CLIP_VISION", "NOISE"), "Any"),
    "UNIWORLD_VLM": "VLMWire",
    "UNIWORLD_SIGLIP": "SiglipWire",
    "UNIWORLD_DIT": "DiTWire",
    "UNIWORLD_VAE": "VAEWire",
    "UNIWORLD_TEXT": "TextWire",
    "UNIWORLD_REFERENCE": "References",
    "UNIWORLD_CONVERSATION": "Conversation",
}


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_execute_is_annotated_with_what_the_wires_carry(name: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    given = dict(node.execute.__annotations__)
    returned = [part.strip() for part in given.pop("return").removeprefix("tuple[").removesuffix("]").split(",")]
    defaults = {name: parameter.default for name, parameter in inspect.signature(node.execute).parameters.items()}
    for one in node.inputs():
        plain = PYTHON_TYPES[one.type] if isinstance(one.type, str) else "str"
        assert given.pop(one.name) == plain + " | None" * (defaults[one.name] is None), one.name
    assert not given
    assert len(returned) == len(node.OUTPUTS)
    for output, kind in zip(node.OUTPUTS, returned):
        # An output that may hold an ExecutionBlocker is annotated as object.
        assert kind in (PYTHON_TYPES[output.type], "object"), output.name
