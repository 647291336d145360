"""UniWorld Reference and UniWorld Condition: from images and an instruction to the DiT's text conditioning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...uniworld_core.errors import UniWorldError
from ..declare import Input, Inputs, Node, Output, by_id
from .chat import CONVERSATION, CONVERSATION_SO_FAR, PromptNode
from .parts import connected

if TYPE_CHECKING:
    from torch import Tensor

    from ...uniworld_core.prompts.conversation import Conversation
    from ...uniworld_core.prompts.reference import References
    from ...uniworld_core.sampling.condition import Condition
    from ...uniworld_core.sampling.latents import LatentFormat
    from .wires import ClipVisionOutput, Conditioning, SiglipWire, TextWire, VLMWire

# Inputs shared with Understand and Route.
VLM = Input.wire("vlm", "UNIWORLD_VLM", "The VLM from Load UniWorld.")
PROMPT = Input.text("prompt", "The instruction, in natural language.", multiline=True, dynamic_prompts=True)


def guidance_input(tooltip: str, *, optional: bool = False) -> Input:
    """Declare the input for FLUX's embedded guidance, for UniWorld Condition and UniWorld Sampler."""
    from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE

    return Input.number("guidance", tooltip, default=GUIDANCE, min=0.0, max=100.0, step=0.1, optional=optional)


class EncodeReference(Node):
    """Encode images with SigLIP and append them to the list of references."""

    ID = "UniWorldReference"
    DISPLAY_NAME = "UniWorld Reference"
    SEARCH_ALIASES = ["reference image", "image prompt", "SigLIP encode", "CLIP vision", "multi reference"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Adds images to the references of an instruction. A batch counts as several images; chain these nodes for images "
        "of different sizes. The SigLIP features carry the appearance of the images to the DiT."
    )
    OUTPUTS = (
        Output(
            "references",
            "UNIWORLD_REFERENCE",
            "All references so far, in order, for UniWorld Condition, Understand and Route.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("image", "IMAGE", "One image, or a batch of several."),
            Input.wire(
                "siglip",
                "UNIWORLD_SIGLIP",
                "SigLIP from Load UniWorld. If not connected, only the VLM sees the image.",
                optional=True,
            ),
            Input.wire("references", "UNIWORLD_REFERENCE", "References that come before these.", optional=True),
            Input.wire(
                "mask",
                "MASK",
                "The mask from Load Image. Transparent areas are filled with white, as in training.",
                optional=True,
            ),
            Input.wire(
                "clip_vision_output",
                "CLIP_VISION_OUTPUT",
                "SigLIP2-512 features from ComfyUI's CLIP Vision Encode (crop: none), used instead of siglip.",
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
            encoder = connected(siglip)
            new = make_references(list(image), None if encoder is None else encoder.on_device())
        return ([*(references or []), *new],)


def hidden_states(clip_vision_output: ClipVisionOutput) -> Tensor:
    """Return the features (B, tokens, width) of a CLIP_VISION_OUTPUT. Raises UniWorldError if it has none."""
    try:
        return clip_vision_output["last_hidden_state"]
    except (KeyError, AttributeError, TypeError):
        raise UniWorldError(
            "The CLIP vision output has no last hidden state: use CLIP Vision Encode with SigLIP2-512."
        ) from None


class EncodeCondition(PromptNode):
    """Encode an instruction and its references as CONDITIONING."""

    ID = "UniWorldCondition"
    DISPLAY_NAME = "UniWorld Condition"
    SEARCH_ALIASES = ["text encode", "prompt", "instruction", "conditioning", "Qwen2.5-VL", "edit prompt"]
    CATEGORY = "UniWorld/conditioning"
    DESCRIPTION = (
        "Encodes the instruction and the references with Qwen2.5-VL. Its hidden states and the SigLIP features become the "
        "text tokens of the DiT. The result works with UniWorld Sampler and with ComfyUI's own FLUX samplers."
    )
    OUTPUTS = (Output("conditioning", "CONDITIONING", "The text conditioning of the DiT."), CONVERSATION_SO_FAR)

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.backbones.flux_text import T5_LENGTH

        return (
            VLM,
            PROMPT,
            Input.wire(
                "references",
                "UNIWORLD_REFERENCE",
                "The images that the instruction refers to, in order.",
                optional=True,
            ),
            Input.wire(
                "text",
                "UNIWORLD_TEXT",
                "CLIP and T5 from Load UniWorld. T5 tokens of the prompt are placed first. If not connected, T5 is not used.",
                optional=True,
            ),
            Input.integer(
                "t5_length",
                f"Number of T5 tokens, including padding (published: {T5_LENGTH}).",
                default=T5_LENGTH,
                min=1,
                max=512,
                optional=True,
            ),
            guidance_input(
                "Guidance for ComfyUI's own samplers. UniWorld Sampler has a guidance input of its own.", optional=True
            ),
            CONVERSATION,
            Input.text(
                "negative_prompt",
                "What to avoid, for models with true guidance, such as Qwen-Image-Edit. Empty: the default of the model. "
                "Leave it empty for UniWorld-V1 and FLUX.1 Kontext.",
                default="",
                optional=True,
            ),
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
        negative_prompt: str = "",
    ) -> tuple[Conditioning, Conversation]:
        from ...uniworld_core.backbones.flux_text import T5_LENGTH
        from ...uniworld_core.families.uniworld_v1.painting import GUIDANCE

        extended = self.extended(vlm, prompt, references, conversation)
        length = T5_LENGTH if t5_length is None else t5_length
        condition = vlm.encode(extended, connected(text), length, negative_prompt)
        chosen = float(GUIDANCE if guidance is None else guidance)
        return conditioning_of(condition, chosen, vlm.facts.latent_format), extended


# Entry for the parts of a condition that a CONDITIONING has no key for: mask, reference latents, negative. UniWorld-V1
# uses none of them.
_CONDITION_KEY = "uniworld_condition"
# Entry for the name of the family that encoded the prompt. Conditionings of two families can have the same widths: those of
# UniWorld-V1 and FLUX.1 Kontext do, and only give the wrong image.
FAMILY_KEY = "uniworld_family"
# ComfyUI's entry for reference latents, a list of unscaled VAE latents. ReferenceLatent appends to it.
_REFERENCES_KEY = "reference_latents"


def conditioning_of(condition: Condition, guidance: float, latents: LatentFormat) -> Conditioning:
    """Return the core's condition of one item as a CONDITIONING of one entry.

    Args:
        latents: format of the condition's reference latents.
    """
    import torch

    kept = condition.to(torch.device("cpu"), condition.tokens.dtype)
    extra: dict[str, object] = {} if kept.pooled is None else {"pooled_output": kept.pooled}
    if kept.mask is not None or kept.references or kept.negative is not None:
        extra[_CONDITION_KEY] = kept
    if kept.family is not None:
        extra[FAMILY_KEY] = kept.family
    if kept.references:  # for ComfyUI's own samplers
        extra[_REFERENCES_KEY] = [latents.from_model(latent) for latent in kept.references]
    return [[kept.tokens, {**extra, "guidance": guidance}]]


def to_condition(conditioning: Conditioning, latents: LatentFormat) -> Condition:
    """Return a CONDITIONING of one entry as the core's condition. Raises UniWorldError for several entries.

    Args:
        latents: format of the latents of the painter, for reference latents of other nodes.
    """
    from ...uniworld_core import Condition

    if len(conditioning) != 1:
        raise UniWorldError(
            f"The conditioning has {len(conditioning)} entries; UniWorld Sampler takes one. "
            "For several images, use the references of one UniWorld Condition node instead of combined conditionings."
        )
    tokens, extra = conditioning[0]
    condition = extra.get(_CONDITION_KEY, Condition(tokens))
    # The condition's own references have not been rounded by `from_model`. Only those after them are of other nodes.
    own = condition.references
    added = tuple(extra.get(_REFERENCES_KEY, ()))[len(own) :]
    # The painter refuses latents of another shape.
    references = own + tuple(latents.to_model(z) if latents.fits(z.shape) else z for z in added)
    # The entry's own values take precedence: other nodes may have changed them.
    pooled, family = extra.get("pooled_output"), extra.get(FAMILY_KEY)
    return replace(condition, tokens=tokens, pooled=pooled, references=references, family=family)


NODES = by_id(EncodeReference, EncodeCondition)
