"""UniWorld Reference and UniWorld Condition: pictures and instruction to what the DiT is told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError
from ..declare import Input, Inputs, Node, Output, by_id
from .chat import CONVERSATION, CONVERSATION_SO_FAR, PromptNode

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.prompts.conversation import Conversation
    from ...uniworld_core.prompts.reference import References
    from ...uniworld_core.sampling.condition import Condition
    from .wires import ClipVisionOutput, Conditioning, SiglipWire, TextWire, VLMWire

# The wire and the widget that Understand and Route have too.
VLM = Input.wire("vlm", "UNIWORLD_VLM", "The VLM from Load UniWorld.")
PROMPT = Input.text("prompt", "The instruction, in plain words.", multiline=True, dynamic_prompts=True)


def guidance_input(tooltip: str, *, optional: bool = False) -> Input:
    """FLUX's embedded guidance, for this node and the sampler."""
    from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE

    return Input.number("guidance", tooltip, default=GUIDANCE, min=0.0, max=100.0, step=0.1, optional=optional)


class EncodeReference(Node):
    """Pictures with what SigLIP sees in them, one after the other."""

    ID = "UniWorldReference"
    DISPLAY_NAME = "UniWorld Reference"
    SEARCH_ALIASES = ["reference image", "image prompt", "SigLIP encode", "CLIP vision", "multi reference"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Adds pictures to the references that an instruction speaks of. A batch is several pictures; chain several of these "
        "nodes for pictures of different sizes. SigLIP keeps what the pictures look like for the DiT."
    )
    OUTPUTS = (
        Output(
            "references",
            "UNIWORLD_REFERENCE",
            "All references so far, in order: for UniWorld Condition, Understand and Route.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("image", "IMAGE", "One picture, or a batch of several."),
            Input.wire(
                "siglip",
                "UNIWORLD_SIGLIP",
                "SigLIP from Load UniWorld. Without it only the VLM sees the picture.",
                optional=True,
            ),
            Input.wire("references", "UNIWORLD_REFERENCE", "References that come before these.", optional=True),
            Input.wire(
                "mask",
                "MASK",
                "The transparent part, as Load Image gives it: it becomes white, as in training.",
                optional=True,
            ),
            Input.wire(
                "clip_vision_output",
                "CLIP_VISION_OUTPUT",
                "ComfyUI's own SigLIP2-512 features (CLIP Vision Encode, crop: none), used in place of siglip.",
                optional=True,
            ),
        )

    def execute(
        self,
        image: Tensor,
        siglip: SiglipWire | None = None,
        references: References | None = None,
        mask: Tensor | None = None,
        clip_vision_output: ClipVisionOutput | None = None,
    ) -> tuple[References]:
        from ...uniworld_core.images.pictures import on_white
        from ...uniworld_core.prompts.reference import make_references, native_references

        image = image if mask is None else on_white(image, mask)
        if clip_vision_output is not None:
            new = native_references(image, hidden_states(clip_vision_output))
        else:
            new = make_references(list(image), None if siglip is None else siglip.on_device())
        return ([*(references or []), *new],)


def hidden_states(clip_vision_output: ClipVisionOutput) -> Tensor:
    """The features (B, tokens, width) of a CLIP_VISION_OUTPUT. Raises UniWorldError if it carries none."""
    try:
        return clip_vision_output["last_hidden_state"]
    except (KeyError, AttributeError, TypeError):
        raise UniWorldError(
            "The CLIP vision output has no last hidden state: use CLIP Vision Encode with SigLIP2-512."
        ) from None


class EncodeCondition(PromptNode):
    """Instruction and references to CONDITIONING."""

    ID = "UniWorldCondition"
    DISPLAY_NAME = "UniWorld Condition"
    SEARCH_ALIASES = ["text encode", "prompt", "instruction", "conditioning", "Qwen2.5-VL", "edit prompt"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Qwen2.5-VL reads the instruction and the references; its states and the SigLIP features become the text tokens "
        "of the DiT. Works with UniWorld Sampler and with ComfyUI's own FLUX samplers."
    )
    OUTPUTS = (Output("conditioning", "CONDITIONING", "What the DiT is told."), CONVERSATION_SO_FAR)

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.backbones.flux_text import T5_LENGTH

        return (
            VLM,
            PROMPT,
            Input.wire(
                "references",
                "UNIWORLD_REFERENCE",
                "The pictures that the instruction speaks of, in order.",
                optional=True,
            ),
            Input.wire(
                "text",
                "UNIWORLD_TEXT",
                "CLIP and T5 from Load UniWorld: T5's tokens of the prompt go in front. Without, T5 is off.",
                optional=True,
            ),
            Input.integer(
                "t5_length",
                f"Tokens that T5 gives, padded (published: {T5_LENGTH}).",
                default=T5_LENGTH,
                min=1,
                max=512,
                optional=True,
            ),
            guidance_input("Guidance for ComfyUI's own samplers. UniWorld Sampler has its own.", optional=True),
            CONVERSATION,
        )

    def execute(
        self,
        vlm: VLMWire,
        prompt: str,
        references: References | None = None,
        text: TextWire | None = None,
        t5_length: int | None = None,
        guidance: float | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[Conditioning, Conversation]:
        from ...uniworld_core.backbones.flux_text import T5_LENGTH
        from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE

        asked = self.extended(vlm, prompt, references, conversation)
        condition = vlm.encode(asked, text, T5_LENGTH if t5_length is None else t5_length)
        return conditioning_of(condition, float(GUIDANCE if guidance is None else guidance)), asked


# What a CONDITIONING has no place for, of families that use it: mask, reference latents, negative.
_CONDITION_KEY = "uniworld_condition"


def conditioning_of(condition: Condition, guidance: float) -> Conditioning:
    """The core's condition of one item as a CONDITIONING of one entry, for our own samplers and ComfyUI's."""
    import torch

    kept = condition.to(torch.device("cpu"), condition.tokens.dtype)
    extra: dict[str, object] = {} if kept.pooled is None else {"pooled_output": kept.pooled}
    if kept.mask is not None or kept.references or kept.negative is not None:
        extra[_CONDITION_KEY] = kept
    return [[kept.tokens, {**extra, "guidance": guidance}]]


def to_condition(conditioning: Conditioning) -> Condition:
    """A CONDITIONING of one entry as the core's condition. Raises UniWorldError for several entries."""
    from ...uniworld_core import Condition

    if len(conditioning) != 1:
        raise UniWorldError(
            f"The conditioning has {len(conditioning)} entries; UniWorld Sampler takes one. "
            "Several pictures belong into the references of one Condition node, not into combined conditionings."
        )
    tokens, extra = conditioning[0]
    condition = extra.get(_CONDITION_KEY, Condition(tokens))
    # Those of the entry count, which other nodes may have changed.
    return replace(condition, tokens=tokens, pooled=extra.get("pooled_output"))


NODES = by_id(EncodeReference, EncodeCondition)
