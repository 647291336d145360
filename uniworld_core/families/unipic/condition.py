"""From prompts and pictures to UniPic's condition: embeddings of the prompts, and the latents of the picture to edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ...errors import UniWorldError
from ...images.sizes import Size, check_size
from ...loading.offload import explain_out_of_memory
from ...sampling.condition import Condition
from .config import NAME, UNIPIC_LATENTS
from .network import UniPic
from .prompts import Request, check_words, cropped, edit_text, negative_text, paint_text


class PictureCodec(Protocol):
    """A VAE that encodes pictures (B, H, W, 3) in 0..1 to unscaled latents (B, C, h, w)."""

    def encode(self, image_BHWC: torch.Tensor, /) -> torch.Tensor: ...


@torch.no_grad()
def encode_requests(
    model: UniPic,
    vae: PictureCodec | None,
    requests: Sequence[Request],
    size: Size | None = None,
    negative: str | None = None,
) -> Condition:
    """Encode a batch to a condition with a negative one.

    Args:
        vae: the model's VAE; None for a batch without pictures.
        requests: either all with a picture, or all without.
        size: size of the painted picture, to which pictures are cropped; None for the native one.
        negative: the prompt against which guidance compares; None for the published one.

    Raises:
        UniWorldError: requests with and without pictures are mixed, a side is not a multiple of 16, or a prompt is too long.
    """
    pictures = [request.picture for request in requests if request.picture is not None]
    if pictures and len(pictures) < len(requests):
        raise UniWorldError(
            f"{len(pictures)} of {len(requests)} prompts have a picture: {NAME} paints either edits or new pictures in a batch."
        )
    if negative is not None:
        check_words(negative, "negative prompt")
    side = model.config.native_side
    size = Size(side, side) if size is None else check_size(size.height, size.width, UNIPIC_LATENTS.unit)
    if not pictures:
        tokens, mask = _padded([model.embed(paint_text(request.prompt)) for request in requests])
        other, other_mask = _padded([model.embed(negative_text(negative, edit=False))] * len(requests))
        return Condition(tokens, mask=mask, negative=Condition(other, mask=other_mask))
    assert vae is not None, "pictures need a VAE"
    grid = size.height // UNIPIC_LATENTS.factor, size.width // UNIPIC_LATENTS.factor
    with explain_out_of_memory(model, "picture"):
        z_BCHW = torch.cat([UNIPIC_LATENTS.to_model(vae.encode(cropped(picture, size))) for picture in pictures])
        seen_BND = model.for_llm(model.read_picture(as_tokens(z_BCHW), grid))
        tokens, mask = _padded(
            [model.embed(edit_text(request.prompt), seen) for request, seen in zip(requests, seen_BND)]
        )
        other, other_mask = _padded([model.embed(negative_text(negative, edit=True), seen) for seen in seen_BND])
    return Condition(tokens, mask=mask, references=(z_BCHW,), negative=Condition(other, mask=other_mask))


def as_tokens(z_BChw: torch.Tensor) -> torch.Tensor:
    """Return latents (B, C, h, w) as tokens (B, L, C) in raster order."""
    return z_BChw.flatten(2).transpose(1, 2)


def _padded(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows (T, D) on the right to one tensor (B, T, D), and return the mask (B, T)."""
    mask = torch.nn.utils.rnn.pad_sequence([row.new_ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask
