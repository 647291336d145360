"""The FLUX.1 Kontext family: T5 and CLIP read the prompt, FLUX's transformer paints next to the references' latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...backbones.flux_vae import PIXEL_BYTES
from ...loading.folders import ModelFolders
from ...prompts.conversation import Conversation
from ...sampling.condition import Condition
from ..family import Family, LoadedParts
from .folder import NAME, KontextParts
from .references import encode_references, reference_sizes

# Number of T5 tokens, padded and unmasked (published: diffusers' FluxKontextPipeline). Edit-R1 trains with 128.
T5_LENGTH = 512


class Kontext(Family):
    """The published model, FLUX.1-Kontext-dev: arXiv 2506.15742."""

    name = NAME
    companions = ()
    t5_length = T5_LENGTH

    def open(self, folders: ModelFolders) -> KontextParts:
        """Open the folder (`Family.open`)."""
        return KontextParts(folders.checkpoint)

    @torch.no_grad()
    def encode(
        self, parts: LoadedParts, conversations: Sequence[Conversation], t5_length: int | None = None
    ) -> Condition:
        """Encode the last instruction of conversations with their latest pictures (`Family.encode`).

        Args:
            t5_length: number of T5 tokens; None for `T5_LENGTH`.

        Raises:
            UniWorldError: the items of a batch have different numbers of pictures, or different aspect ratios.
        """
        instructions = [conversation.instruction for conversation in conversations]
        pictures = [[ref.picture for ref in conversation.latest_refs] for conversation in conversations]
        sizes = reference_sizes(pictures)
        pooled = parts["clip"].pool(instructions)
        tokens = parts["t5"].tokens(instructions, T5_LENGTH if t5_length is None else t5_length)
        if not sizes:
            return Condition(tokens, pooled)
        pixels = len(pictures) * max(size.height * size.width for size in sizes)
        vae = parts.on_device("vae", pixels * PIXEL_BYTES)
        return Condition(tokens, pooled, references=encode_references(vae, pictures))
