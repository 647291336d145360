"""The condition of Qwen-Image-Edit: hidden states of Qwen2.5-VL, and the references' latents.

Shapes: B batch, L tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from ...backbones.qwen_image_vae import PIXEL_BYTES, QwenImageVAE
from ...backbones.qwen_vl import VLM
from ...errors import UniWorldError
from ...images.pictures import to_image
from ...prompts.text import check_text
from ...sampling.condition import Condition
from ..family import LoadedParts
from .prompt import Release, Template, read_template, resize


@torch.no_grad()  # not inference_mode, because autograd rejects its tensors when a trainer uses them
def encode_text(
    vlm: VLM, template: Template, instructions: Sequence[str], pictures: Sequence[Sequence[Image.Image]]
) -> Condition:
    """Encode instructions with their pictures, which have the right size already, to tokens with a mask.

    Args:
        pictures: one list per instruction.

    Returns:
        A condition of tokens (B, L, D), padded with zeros on the right, and their mask.

    Raises:
        UniWorldError: a prompt exceeds the model's context length.
    """
    texts = [template.render(text, len(shown)) for text, shown in zip(instructions, pictures, strict=True)]
    inputs = vlm.text_inputs(texts, [picture for shown in pictures for picture in shown])
    hidden_BLD = vlm.hidden_states(inputs)
    rows = [states[here][template.skipped :] for states, here in zip(hidden_BLD, inputs.mask)]
    tokens_BLD = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=tokens_BLD.device)
    mask_BL = torch.arange(tokens_BLD.shape[1], device=tokens_BLD.device) < lengths[:, None]
    return Condition(tokens_BLD, mask=None if bool(mask_BL.all()) else mask_BL)


def encode_references(vae: QwenImageVAE, pictures: Sequence[Sequence[Image.Image]]) -> tuple[torch.Tensor, ...]:
    """Encode the references of a batch to normalized latents, each (B, 16, 1, h, w).

    Args:
        pictures: one list per item, in the sizes in which the VAE gets them. All lists have the same sizes.
    """
    columns = [to_image(column) for column in zip(*pictures)]
    return tuple(vae.latent_format.to_model(vae.encode(image_BHWC)) for image_BHWC in columns)


def encode(
    parts: LoadedParts,
    release: Release,
    instructions: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
    negative: str,
) -> Condition:
    """Encode instructions and their references to a condition with a negative one.

    Args:
        pictures: the references of each instruction, in any size.
        negative: the negative prompt, which goes with the same pictures.

    Raises:
        UniWorldError: a prompt has too few or too many references or exceeds the context length, the negative prompt is
            invalid, or the references of the items do not match.
    """
    check_text(negative, "negative prompt")
    for item in pictures:
        _check_count(release, len(item))
    side = parts["vae"].native_side
    sized = [[resize(picture, side) for picture in item] for item in pictures]
    _check_sizes(sized)
    seen = sized
    if release.vlm_side is not None:
        seen = [[resize(picture, release.vlm_side) for picture in item] for item in pictures]
    vlm, template = parts["understanding"], read_template(release.pipeline)
    positive = encode_text(vlm, template, instructions, seen)
    opposite = encode_text(vlm, template, [negative] * len(instructions), seen)
    if not sized[0]:
        return replace(positive, negative=opposite)
    vae = parts.on_device("vae", len(sized) * side * side * PIXEL_BYTES)
    return replace(positive, negative=opposite, references=encode_references(vae, sized))


def _check_sizes(pictures: Sequence[Sequence[Image.Image]]) -> None:
    sizes = [[picture.size for picture in item] for item in pictures]
    if any(item != sizes[0] for item in sizes):
        raise UniWorldError(
            "The prompts of the batch have references of different numbers or sizes: encode them one by one, or crop the "
            "pictures to the same aspect ratio."
        )


def _check_count(release: Release, count: int) -> None:
    if release.min_references <= count <= release.max_references:
        return
    wanted = f"{release.min_references} to {release.max_references}"
    if release.min_references == release.max_references:
        wanted = f"exactly {release.max_references}"
    raise UniWorldError(
        f"The prompt has {count} references, and {release.name} takes {wanted}: add or leave out pictures."
    )
