"""The text tokens of a condition: VLM states and SigLIP features, projected, spliced, and joined with T5 tokens.

Published: modeling_univa_qwen2p5vl.py (`_insert_img_to_vlm`) and serve/cli.py. The order of text tokens does not change the
picture, since all have position (0, 0, 0). It follows the published code so that results can be compared.

Shapes: B batch, L tokens, T SigLIP tokens of one picture, D joint width, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ...errors import UniWorldError
from ...prompts.conversation import Conversation
from .projectors import Projectors
from .understanding import Understanding


def splice(
    lengths: Sequence[int], ends: Sequence[Sequence[int]], features: Sequence[Sequence[int | None]]
) -> torch.Tensor:
    """Compute the source row of each token of the condition. A picture's features go just before its end token.

    Rows are numbered over the VLM tokens of all items, item by item, followed by the features of all pictures. Each
    projector therefore runs once, without padding, and a single gather builds the padded batch.

    Args:
        lengths: number of VLM tokens of each item.
        ends: for each item, the positions of its `<|vision_end|>` tokens.
        features: for each item and picture, the number of its features, or None for a picture without features.

    Returns:
        Row numbers (B, L + inserted) on the CPU, padded on the left with -1.

    Raises:
        UniWorldError: the number of pictures of an item does not match its entries in `features`.
    """
    rows, token, feature = [], 0, sum(lengths)
    for length, item_ends, counts in zip(lengths, ends, features):
        if len(item_ends) != len(counts):
            raise UniWorldError(
                f"The prompt has {len(item_ends)} pictures, but there are {len(counts)} references: give one for each picture."
            )
        pieces, start = [], 0
        for end, count in zip(item_ends, counts):
            pieces += [torch.arange(token + start, token + end), torch.arange(feature, feature + (count or 0))]
            start, feature = end, feature + (count or 0)
        rows.append(torch.cat([*pieces, torch.arange(token + start, token + length)]))
        token += length
    width = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (width - len(row), 0), value=-1) for row in rows])


def gather_rows(rows_ND: torch.Tensor, index_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather rows into tokens (B, L, D), with zeros where the index is -1, and return them with their mask (B, L)."""
    padding_1D = rows_ND.new_zeros(1, rows_ND.shape[1])  # the last row, which index -1 selects
    return torch.cat([rows_ND, padding_1D])[index_BL], index_BL >= 0


def pad_left(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack rows (L_i, D) to (B, L, D), padded with zeros on the left, and return them with their mask (B, L)."""
    lengths = torch.tensor([row.shape[0] for row in rows], device=rows[0].device)
    padded = pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
    columns = torch.arange(padded.shape[1], device=padded.device)
    return padded, columns[None, :] >= padded.shape[1] - lengths[:, None]


def encode_conversations(
    understanding: Understanding, conversations: Sequence[Conversation]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode all turns and pictures of conversations to tokens (B, L, D) and their mask (B, L), without T5.

    Raises:
        UniWorldError: a conversation exceeds the model's context length, or SigLIP features have the wrong width.
    """
    vlm = understanding.vlm
    with torch.no_grad():
        inputs = vlm.inputs(conversations)
        hidden = vlm.hidden_states(inputs)
        ends = inputs.ids == vlm.config.tokens["vision_end_token_id"]
        features = [[ref.features for ref in item.refs] for item in conversations]
        return project(understanding.projectors, hidden, inputs.mask, ends, features)


def project(
    projectors: Projectors,
    hidden_BLD: torch.Tensor,
    mask_BL: torch.Tensor,
    ends_BL: torch.Tensor,
    features: Sequence[Sequence[torch.Tensor | None]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply both projectors and the splice; differentiable.

    Args:
        hidden_BLD: the VLM's last hidden states.
        mask_BL: True at tokens.
        ends_BL: True at every picture's `<|vision_end|>`.
        features: for each item and picture, SigLIP features (T, S), or None for a picture seen only by the VLM.

    Returns:
        Tokens (B, L + inserted, D) and their mask.

    Raises:
        UniWorldError: features have the wrong width, or their number does not match the pictures.
    """
    present = [_checked_features(picture, projectors) for item in features for picture in item if picture is not None]
    rows_ND = project_rows(projectors, hidden_BLD[mask_BL], torch.cat(present) if present else None)
    ends = [at[here].nonzero().flatten().tolist() for at, here in zip(ends_BL.cpu(), mask_BL.cpu())]
    counts = [[None if picture is None else len(picture) for picture in item] for item in features]
    return gather_rows(rows_ND, splice(mask_BL.sum(dim=1).tolist(), ends, counts).to(rows_ND.device))


def project_rows(
    projectors: Projectors, hidden_ND: torch.Tensor, features_FS: torch.Tensor | None = None
) -> torch.Tensor:
    """Project VLM states (N, D) and SigLIP features (F, S), each with its projector, to rows (N + F, joint width).

    Raises:
        UniWorldError: the features have the wrong width.
    """
    projector = projectors.denoise_projector
    rows_ND = projector(hidden_ND.to(projector.device, projector.dtype))
    if features_FS is None:
        return rows_ND
    return torch.cat([rows_ND, projectors.siglip_projector(_checked_features(features_FS, projectors))])


def join_t5(t5_BTD: torch.Tensor, tokens_BLD: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Put T5 tokens (B, T, D) in front of the condition. Their padding is not masked, as published (serve/cli.py).

    Returns:
        Tokens (B, T + L, D) and their mask.

    Raises:
        UniWorldError: the T5 tokens have the wrong width.
    """
    if t5_BTD.shape[-1] != tokens_BLD.shape[-1]:
        raise UniWorldError(
            f"T5's tokens are {t5_BTD.shape[-1]} wide and the checkpoint's joint width is {tokens_BLD.shape[-1]}: "
            "the FLUX folder belongs to another model, use FLUX.1-dev's."
        )
    mask = torch.cat([mask_BL.new_ones(t5_BTD.shape[:2]), mask_BL], dim=1)
    return torch.cat([t5_BTD.to(tokens_BLD), tokens_BLD], dim=1), mask


def join_rows(
    t5: Sequence[torch.Tensor | None], tokens_BLD: torch.Tensor, mask_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put T5 tokens (T, D) in front of some items; the others have None. As `join_t5`, with new padding on the left."""
    rows = [tokens_LD[mask_L] for tokens_LD, mask_L in zip(tokens_BLD, mask_BL)]
    return pad_left([row if prefix is None else torch.cat([prefix.to(row), row]) for prefix, row in zip(t5, rows)])


def _checked_features(features_TS: torch.Tensor, projectors: Projectors) -> torch.Tensor:
    projector = projectors.siglip_projector
    if features_TS.shape[-1] != projector.width:
        raise UniWorldError(
            f"The reference's SigLIP features are {features_TS.shape[-1]} wide and the checkpoint takes {projector.width}: "
            "use the SigLIP that the checkpoint was trained with (siglip2-so400m-patch16-512)."
        )
    return features_TS.to(projector.device, projector.dtype)
