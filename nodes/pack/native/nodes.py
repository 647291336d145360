"""Nodes on ComfyUI's own types: text and references for a MODEL, noise, and noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....uniworld_core.errors import UniWorldError
from ... import host
from ...declare import Input, Inputs, Node, Output, by_id, validation_result
from ..chat import CONVERSATION, CONVERSATION_SO_FAR
from ..conditioning import PROMPT, guidance_input
from ..latents import samples_of
from ..sampling import DENOISE, steps_input
from ..sigmas import to_sigmas
from ..understanding import ROUTE_OUTPUTS

if TYPE_CHECKING:
    from torch import Tensor

    from ....uniworld_core.prompts.conversation import Conversation
    from ....uniworld_core.prompts.reference import References
    from ..wires import ClipVisionOutput, Conditioning, Latent

_CATEGORY = "UniWorld/native"
_CLIP = Input.wire("clip", "CLIP", "UniWorld's Qwen2.5-VL: Load CLIP with type qwen_image.")
_IMAGE = Input.wire(
    "image", "IMAGE", "The images that the prompt refers to: one, or a batch of the same size.", optional=True
)
_REFERENCES = Input.wire(
    "references",
    "UNIWORLD_REFERENCE",
    "Images of different sizes, from UniWorld Reference. They come before those of image.",
    optional=True,
)


def file_choice(name: str, word: str, tooltip: str) -> Input:
    """Declare a choice of the files in ComfyUI's text_encoders folders. The default is one with `word` in its name."""
    files = host.current().model_files("text_encoders")
    fitting = [file for file in files if word in file]
    default = fitting[0] if fitting else f"uniworld_v1_{word}.safetensors"
    return Input.choice(name, files or (default,), tooltip, default=default if default in files or not files else None)


def pictures_of(image: Tensor | None, references: References | None) -> References:
    """Return the images of both inputs as references, those of `references` first."""
    from ....uniworld_core.prompts.reference import make_references

    return [*(references or []), *([] if image is None else make_references(list(image), None))]


class _TextNode(Node):
    """Base class of the nodes that read a prompt with CLIP."""

    @classmethod
    def VALIDATE_INPUTS(cls, prompt: str | None = None) -> bool | str:
        from ....uniworld_core.prompts.text import check_prompt

        return validation_result(check_prompt, prompt)

    @staticmethod
    def extended(
        prompt: str, image: Tensor | None, references: References | None, conversation: Conversation | None
    ) -> Conversation:
        """Append the prompt and its images to the conversation."""
        from ....uniworld_core import Conversation, Turn

        return (conversation or Conversation()).then(Turn("user", prompt, pictures_of(image, references)))


class EncodeText(_TextNode):
    """Encode an instruction and its images as CONDITIONING, with ComfyUI's own text encoder."""

    ID = "UniWorldTextEncode"
    DISPLAY_NAME = "UniWorld Text Encode"
    SEARCH_ALIASES = ["text encode", "CLIP text encode", "prompt", "qwen_image", "native conditioning"]
    CATEGORY = _CATEGORY
    DESCRIPTION = (
        "Encodes the instruction and its images with UniWorld's Qwen2.5-VL, loaded by ComfyUI's Load CLIP, for KSampler and "
        "every other sampler of ComfyUI. Add the SigLIP features with UniWorld SigLIP Encode and Apply Style Model. "
        "CLIP-L and T5 are not needed."
    )
    OUTPUTS = (Output("conditioning", "CONDITIONING", "The text conditioning of the DiT."), CONVERSATION_SO_FAR)

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            _CLIP,
            file_choice("projector", "projector", "UniWorld's projector, a file in models/text_encoders."),
            PROMPT,
            guidance_input("FLUX's embedded guidance."),
            _IMAGE,
            _REFERENCES,
            CONVERSATION,
        )

    def execute(
        self,
        clip: Any,
        projector: str,
        prompt: str,
        guidance: float,
        image: Tensor | None = None,
        references: References | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[Conditioning, Conversation]:
        from .clip import encode_text

        extended = self.extended(prompt, image, references, conversation)
        return encode_text(clip, projector, extended, guidance), extended


class RouteText(_TextNode):
    """Decide whether an instruction requests an image or text, with ComfyUI's own text encoder."""

    ID = "UniWorldRouteCLIP"
    DISPLAY_NAME = "UniWorld Route (CLIP)"
    SEARCH_ALIASES = ["router", "switch", "branch", "paint or answer", "qwen_image"]
    CATEGORY = _CATEGORY
    DESCRIPTION = (
        "Decides with UniWorld's routing head whether to paint an image or to answer in text, from the states of a CLIP of "
        "type qwen_image. ComfyUI's text encoders do not generate: connect answer_prompt to UniWorld Understand. Only the "
        "selected branch runs."
    )
    OUTPUTS = ROUTE_OUTPUTS

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            _CLIP,
            file_choice("head", "routing", "UniWorld's routing head, a file in models/text_encoders."),
            PROMPT,
            _IMAGE,
            _REFERENCES,
            CONVERSATION,
        )

    def execute(
        self,
        clip: Any,
        head: str,
        prompt: str,
        image: Tensor | None = None,
        references: References | None = None,
        conversation: Conversation | None = None,
    ) -> tuple[bool, float, object, object]:
        from .clip import route_text

        result = route_text(clip, head, self.extended(prompt, image, references, conversation))
        paint, probability = bool(result.paint[0]), float(result.probabilities[0, 1])
        blocked = host.current().block()
        return (paint, probability, prompt, blocked) if paint else (paint, probability, blocked, prompt)


class EncodeSigLIP(Node):
    """Encode images as SigLIP features with ComfyUI's own encoder and the resizing of UniWorld's training."""

    ID = "UniWorldSigLIPEncode"
    DISPLAY_NAME = "UniWorld SigLIP Encode"
    SEARCH_ALIASES = ["CLIP vision encode", "SigLIP", "reference image", "Redux", "style model"]
    CATEGORY = _CATEGORY
    DESCRIPTION = (
        "Encodes images with SigLIP2, loaded by ComfyUI's Load CLIP Vision, for Apply Style Model with UniWorld's style "
        "model. Images are resized to the encoder's square without cropping, exactly as in training; CLIP Vision Encode "
        "crops them or resizes them differently."
    )
    OUTPUTS = (Output("clip_vision_output", "CLIP_VISION_OUTPUT", "The features, for Apply Style Model."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("clip_vision", "CLIP_VISION", "siglip2-so400m-patch16-512 from Load CLIP Vision."),
            _IMAGE,
            _REFERENCES,
        )

    def execute(
        self, clip_vision: Any, image: Tensor | None = None, references: References | None = None
    ) -> tuple[ClipVisionOutput]:
        pictures = [reference.picture for reference in pictures_of(image, references)]
        if not pictures:
            raise UniWorldError("There is no image to encode: connect image, references, or both.")
        from .clip import encode_siglip

        return (encode_siglip(clip_vision, pictures),)


@dataclass(frozen=True)
class ItemNoise:
    """NOISE in which item i of a batch has the seed `seed` + i, so each image can be reproduced on its own."""

    seed: int

    def generate_noise(self, input_latent: Latent) -> Tensor:
        """Return noise in the shape of a LATENT, on the CPU."""
        from ....uniworld_core.sampling.sampler import make_noise

        shape = input_latent["samples"].shape
        return make_noise([(self.seed + i) % 2**64 for i in range(shape[0])], shape[1:])


class MakeNoise(Node):
    """Create noise whose items do not depend on the batch."""

    ID = "UniWorldNoise"
    DISPLAY_NAME = "UniWorld Noise"
    SEARCH_ALIASES = ["random noise", "seed", "batch seed", "custom sampler noise"]
    CATEGORY = _CATEGORY
    DESCRIPTION = (
        "Creates the same noise as UniWorld Sampler, for SamplerCustomAdvanced: item i of a batch uses seed + i. ComfyUI's "
        "RandomNoise draws all items of a batch from one seed."
    )
    OUTPUTS = (Output("noise", "NOISE", "The noise, for SamplerCustomAdvanced."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (Input.seed("seed", "The same seed gives the same image on the same machine."),)

    def execute(self, seed: int) -> tuple[Any]:
        return (ItemNoise(seed),)


class MakeSigmas(Node):
    """Compute UniWorld's noise levels for a latent, without a model."""

    ID = "UniWorldSigmas"
    DISPLAY_NAME = "UniWorld Sigmas"
    SEARCH_ALIASES = ["sigmas", "scheduler", "flow shift", "ModelSamplingFlux", "FLUX scheduler"]
    CATEGORY = _CATEGORY
    DESCRIPTION = (
        "Computes UniWorld's published noise levels from the size of a latent, for SamplerCustomAdvanced. Replaces "
        "ModelSamplingFlux and BasicScheduler."
    )
    OUTPUTS = (Output("sigmas", "SIGMAS", "The noise levels: steps + 1 values, of which the last is 0."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return Input.wire("latent", "LATENT", "A latent of the output size."), steps_input(), DENOISE

    def execute(self, latent: Latent, steps: int, denoise: float) -> tuple[Tensor]:
        from ....uniworld_core.backbones.flux_latents import FLUX_LATENTS, FLUX_SHIFT
        from ....uniworld_core.families.uniworld_v1.painting import NAME
        from ....uniworld_core.sampling.flow import schedule

        samples = samples_of(latent, FLUX_LATENTS, self.DISPLAY_NAME)
        levels = schedule(steps, FLUX_LATENTS.token_count(samples.shape), FLUX_SHIFT, denoise)
        return (to_sigmas(levels, FLUX_SHIFT, NAME),)


NODES = by_id(EncodeText, EncodeSigLIP, RouteText, MakeNoise, MakeSigmas)
