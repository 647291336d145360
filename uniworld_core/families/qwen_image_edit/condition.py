"""The condition of Qwen-Image-Edit: hidden states of Qwen2.5-VL, and the references' latents.

Shapes: B batch, L tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from ...backbones.qwen_image_vae import PIXEL_BYTES, QwenImageVAE
from ...backbones.qwen_vl import VLM
from ...errors import UniWorldError
from ...images.pictures import to_image
from ...prompts.conversation import Conversation
from ...sampling.condition import Condition
from ..family import LoadedParts
from .prompt import Release, read_template, resize


@dataclass(frozen=True, eq=False)
class SizedPictures:
    """The references of a batch, in the sizes in which the model gets them. Both have one list per item.

    Attributes:
        seen: for Qwen2.5-VL.
        encoded: for the VAE; the same sizes in each item.
    """

    seen: list[list[Image.Image]]
    encoded: list[list[Image.Image]]


def pictures_of(conversations: Sequence[Conversation], release: Release, side: int) -> SizedPictures:
    """Return the latest pictures of conversations, resized.

    Args:
        side: side of a square with the area in which the VAE gets references.

    Raises:
        UniWorldError: a conversation has too few or too many pictures, or those of the items have different sizes.
    """
    pictures = [[ref.picture for ref in conversation.latest_refs] for conversation in conversations]
    for item in pictures:
        _check_count(release, len(item))
    encoded = [[resize(picture, side) for picture in item] for item in pictures]
    sizes = [[picture.size for picture in item] for item in encoded]
    if any(item != sizes[0] for item in sizes):
        raise UniWorldError(
            "The prompts of the batch have references of different numbers or aspect ratios: encode them one by one, or crop "
            "the pictures to the same aspect ratio."
        )
    if release.vlm_side is None:
        return SizedPictures(encoded, encoded)
    return SizedPictures([[resize(picture, release.vlm_side) for picture in item] for item in pictures], encoded)


@torch.no_grad()  # not inference_mode, because autograd rejects its tensors when a trainer uses them
def encode_text(vlm: VLM, release: Release, instructions: Sequence[str], pictures: SizedPictures) -> Condition:
    """Encode instructions with their pictures to a condition without references.

    Returns:
        Tokens (B, L, D), padded with zeros on the right, and their mask.

    Raises:
        UniWorldError: a prompt exceeds the model's context length.
    """
    template = read_template(release.pipeline)
    texts = [template.render(text, len(seen)) for text, seen in zip(instructions, pictures.seen, strict=True)]
    inputs = vlm.text_inputs(texts, [picture for seen in pictures.seen for picture in seen])
    hidden_BLD = vlm.hidden_states(inputs)
    rows = [states_LD[here][template.skipped :] for states_LD, here in zip(hidden_BLD, inputs.mask)]
    tokens_BLD = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=tokens_BLD.device)
    mask_BL = torch.arange(tokens_BLD.shape[1], device=tokens_BLD.device) < lengths[:, None]
    return Condition(tokens_BLD, mask=None if bool(mask_BL.all()) else mask_BL)


def encode_references(parts: LoadedParts, pictures: SizedPictures) -> tuple[torch.Tensor, ...]:
    """Encode the references of a batch to normalized latents in order, each (B, 16, 1, h, w)."""
    columns = [to_image(column) for column in zip(*pictures.encoded)]
    if not columns:
        return ()
    pixels = max(image_BHWC.shape[:3].numel() for image_BHWC in columns)
    vae: QwenImageVAE = parts.on_device("vae", pixels * PIXEL_BYTES)
    return tuple(vae.latent_format.to_model(vae.encode(image_BHWC)) for image_BHWC in columns)


def _check_count(release: Release, count: int) -> None:
    low, high = release.min_references, release.max_references
    if not low <= count <= high:
        wanted = f"exactly {high}" if low == high else f"{low} to {high}"
        raise UniWorldError(
            f"The prompt has {count} references, and {release.name} takes {wanted}: add or leave out pictures."
        )
