"""The condition: VLM states and SigLIP features, projected, spliced and joined with T5 into the DiT's text tokens.

Published: modeling_univa_qwen2p5vl.py (`_insert_img_to_vlm`) and serve/cli.py. Shapes: B batch, L tokens, T SigLIP
tokens of one picture, D joint width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from .projectors import Projectors, input_layer
from .reference import References
from .understanding import Understanding


@dataclass(frozen=True)
class Condition:
    """What the DiT is told.

    Attributes:
        tokens: (B, L, D) joint text tokens; all their positions are (0, 0, 0).
        pooled: (B, P) CLIP's pooled prompt.
        mask: (B, L) True where there is a token; None where nothing is padded.
    """

    tokens: torch.Tensor
    pooled: torch.Tensor
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> Condition:
        """The condition on a device in a dtype, without a mask that masks nothing."""
        mask = None if self.mask is None or bool(self.mask.all()) else self.mask.to(device)
        return Condition(self.tokens.to(device, dtype), self.pooled.to(device, dtype), mask)

    def repeat(self, count: int) -> Condition:
        """A condition of one item as one of `count` items; of `count` items as it is. ValueError otherwise."""
        if len(self) == count:
            return self
        if len(self) != 1:
            raise ValueError(
                f"The condition has {len(self)} items and the batch {count}: give one item, or as many as the batch."
            )
        mask = None if self.mask is None else self.mask.expand(count, -1)
        return Condition(self.tokens.expand(count, -1, -1), self.pooled.expand(count, -1), mask)


def splice(
    tokens_BLD: torch.Tensor,
    mask_BL: torch.Tensor,
    ends_BL: torch.Tensor,
    features: Sequence[Sequence[torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Insert each picture's features just before its end token, dropping old padding and padding on the left anew.

    Args:
        tokens_BLD: projected VLM states.
        mask_BL: True where there is a token.
        ends_BL: True at every picture's `<|vision_end|>`.
        features: per item and picture (T, D) projected features, or None for a picture to leave as it is.

    Returns:
        Tokens (B, L + inserted, D) and their mask.

    Raises:
        ValueError: an item has another number of pictures than of feature entries.
    """
    rows = []
    for tokens_LD, mask_L, ends_L, pictures in zip(tokens_BLD, mask_BL, ends_BL, features):
        tokens_LD, ends_L = tokens_LD[mask_L], ends_L[mask_L]
        ends = ends_L.nonzero().flatten().tolist()
        if len(ends) != len(pictures):
            raise ValueError(
                f"The prompt holds {len(ends)} pictures and the references {len(pictures)}; they must be the same."
            )
        pieces, start = [], 0
        for end, picture in zip(ends, pictures):
            pieces.append(tokens_LD[start:end])
            if picture is not None:
                pieces.append(picture.to(tokens_LD))
            start = end
        rows.append(torch.cat([*pieces, tokens_LD[start:]]))
    return pad_left(rows)


def pad_left(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (L_i, D) as one (B, L, D), padded with zeros on the left, and the mask (B, L), True at tokens."""
    lengths = torch.tensor([row.shape[0] for row in rows], device=rows[0].device)
    padded = pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
    columns = torch.arange(padded.shape[1], device=padded.device)
    return padded, columns[None, :] >= padded.shape[1] - lengths[:, None]


def encode_prompts(
    understanding: Understanding, prompts: Sequence[str], references: Sequence[References]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The VLM's part of the condition: tokens (B, L, D) and mask (B, L).

    Args:
        prompts: one per item.
        references: per item, in the order in which the prompt speaks of them.

    Raises:
        ValueError: an empty prompt, or features of another width than the checkpoint's.
    """
    vlm = understanding.vlm
    with torch.no_grad():
        inputs = vlm.inputs(prompts, [[ref.picture for ref in item] for item in references])
        hidden = vlm.hidden_states(inputs)
        ends = inputs.ids == vlm.config.tokens["vision_end_token_id"]
        features = [[ref.features for ref in item] for item in references]
        return project(understanding.projectors, hidden, inputs.mask, ends, features)


def project(
    projectors: Projectors,
    hidden_BLD: torch.Tensor,
    mask_BL: torch.Tensor,
    ends_BL: torch.Tensor,
    features: Sequence[Sequence[torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both projectors and the splice, differentiable: what the trainers train.

    Args:
        hidden_BLD: the VLM's last hidden states.
        mask_BL: True where there is a token.
        ends_BL: True at every picture's `<|vision_end|>`.
        features: per item and picture (T, S) SigLIP features, or None for a picture that only the VLM saw.

    Returns:
        Tokens (B, L + inserted, D) and their mask.

    Raises:
        ValueError: features of another width than the checkpoint's, or another number of them than of pictures.
    """
    weight = input_layer(projectors.denoise_projector).weight
    tokens = projectors.denoise_projector(hidden_BLD.to(weight.device, weight.dtype))
    projected = [
        [None if picture is None else projectors.siglip_projector(_fitting(picture, projectors)) for picture in item]
        for item in features
    ]
    return splice(tokens, mask_BL, ends_BL, projected)


def join_t5(t5_BTD: torch.Tensor, tokens_BLD: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """T5 tokens (B, T, D), unmasked as published (serve/cli.py), in front of the condition; tokens (B, T + L, D) and mask.

    Raises:
        ValueError: T5 is of another width than the condition.
    """
    if t5_BTD.shape[-1] != tokens_BLD.shape[-1]:
        raise ValueError(
            f"T5's tokens are {t5_BTD.shape[-1]} wide and the checkpoint's joint width is {tokens_BLD.shape[-1]}: "
            "the FLUX folder belongs to another model, use FLUX.1-dev's."
        )
    mask = torch.cat([mask_BL.new_ones(t5_BTD.shape[:2]), mask_BL], dim=1)
    return torch.cat([t5_BTD.to(tokens_BLD), tokens_BLD], dim=1), mask


def join_rows(
    t5: Sequence[torch.Tensor | None], tokens_BLD: torch.Tensor, mask_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `join_t5`, for items of which some go without T5 (None): T5 tokens (T, D) of each, padded anew on the left."""
    rows = [tokens_LD[mask_L] for tokens_LD, mask_L in zip(tokens_BLD, mask_BL)]
    return pad_left([row if prefix is None else torch.cat([prefix.to(row), row]) for prefix, row in zip(t5, rows)])


def _fitting(features_TS: torch.Tensor, projectors: Projectors) -> torch.Tensor:
    weight = input_layer(projectors.siglip_projector).weight
    if features_TS.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"The reference's SigLIP features are {features_TS.shape[-1]} wide and the checkpoint takes {weight.shape[1]}: "
            "use the SigLIP that the checkpoint was trained with (siglip2-so400m-patch16-512)."
        )
    return features_TS.to(weight.device, weight.dtype)
