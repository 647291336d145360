"""The tokens of a condition: VLM states and SigLIP features, projected, spliced and joined with T5.

Published: modeling_univa_qwen2p5vl.py (`_insert_img_to_vlm`) and serve/cli.py. Shapes: B batch, L tokens, T SigLIP
tokens of one picture, D joint width, P pooled width.
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
    """Where each token of the condition comes from: every picture's features just before its end token.

    The rows that it numbers are the VLM's tokens of all items, one item after the other, and behind them the features
    of all items' pictures. So both projectors work on what is there, once, and one gather makes the padded batch.

    Args:
        lengths: per item its VLM tokens.
        ends: per item where its `<|vision_end|>` tokens stand.
        features: per item and picture how many features it has, or None for a picture to leave as it is.

    Returns:
        Row numbers (B, L + inserted) on the CPU, padded on the left with -1.

    Raises:
        UniWorldError: an item has another number of pictures than of feature entries.
    """
    rows, token, feature = [], 0, sum(lengths)
    for length, item_ends, counts in zip(lengths, ends, features):
        if len(item_ends) != len(counts):
            raise UniWorldError(
                f"The prompt holds {len(item_ends)} pictures and the references {len(counts)}; they must be the same."
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
    """Rows by number as tokens (B, L, D), zeros where the number is -1, and their mask (B, L), True at tokens."""
    nothing_1D = rows_ND.new_zeros(1, rows_ND.shape[1])
    return torch.cat([rows_ND, nothing_1D])[index_BL], index_BL >= 0


def pad_left(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (L_i, D) as one (B, L, D), padded with zeros on the left, and the mask (B, L), True at tokens."""
    lengths = torch.tensor([row.shape[0] for row in rows], device=rows[0].device)
    padded = pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
    columns = torch.arange(padded.shape[1], device=padded.device)
    return padded, columns[None, :] >= padded.shape[1] - lengths[:, None]


def encode_conversations(
    understanding: Understanding, conversations: Sequence[Conversation]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The VLM's part of the condition: tokens (B, L, D) and mask (B, L), of all turns and all their pictures.

    Raises:
        UniWorldError: a conversation is longer than the model reads, or has features of another width than the checkpoint's.
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
    """Both projectors and the splice, differentiable.

    Args:
        hidden_BLD: the VLM's last hidden states.
        mask_BL: True where there is a token.
        ends_BL: True at every picture's `<|vision_end|>`.
        features: per item and picture (T, S) SigLIP features, or None for a picture that only the VLM saw.

    Returns:
        Tokens (B, L + inserted, D) and their mask.

    Raises:
        UniWorldError: features of another width than the checkpoint's, or another number of them than of pictures.
    """
    present = [_fitting(picture, projectors) for item in features for picture in item if picture is not None]
    rows_ND = project_rows(projectors, hidden_BLD[mask_BL], torch.cat(present) if present else None)
    ends = [at[here].nonzero().flatten().tolist() for at, here in zip(ends_BL.cpu(), mask_BL.cpu())]
    counts = [[None if picture is None else len(picture) for picture in item] for item in features]
    return gather_rows(rows_ND, splice(mask_BL.sum(dim=1).tolist(), ends, counts).to(rows_ND.device))


def project_rows(
    projectors: Projectors, hidden_ND: torch.Tensor, features_FS: torch.Tensor | None = None
) -> torch.Tensor:
    """VLM states (N, D) and SigLIP features (F, S), each through its projector: rows (N + F, joint width).

    Raises:
        UniWorldError: features of another width than the checkpoint's.
    """
    projector = projectors.denoise_projector
    rows_ND = projector(hidden_ND.to(projector.device, projector.dtype))
    if features_FS is None:
        return rows_ND
    return torch.cat([rows_ND, projectors.siglip_projector(_fitting(features_FS, projectors))])


def join_t5(t5_BTD: torch.Tensor, tokens_BLD: torch.Tensor, mask_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """T5 tokens (B, T, D), unmasked as published (serve/cli.py), in front of the condition; tokens (B, T + L, D) and mask.

    Raises:
        UniWorldError: T5 is of another width than the condition.
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
    """As `join_t5`, for items of which some go without T5 (None): T5 tokens (T, D) of each, padded anew on the left."""
    rows = [tokens_LD[mask_L] for tokens_LD, mask_L in zip(tokens_BLD, mask_BL)]
    return pad_left([row if prefix is None else torch.cat([prefix.to(row), row]) for prefix, row in zip(t5, rows)])


def _fitting(features_TS: torch.Tensor, projectors: Projectors) -> torch.Tensor:
    projector = projectors.siglip_projector
    if features_TS.shape[-1] != projector.width:
        raise UniWorldError(
            f"The reference's SigLIP features are {features_TS.shape[-1]} wide and the checkpoint takes {projector.width}: "
            "use the SigLIP that the checkpoint was trained with (siglip2-so400m-patch16-512)."
        )
    return features_TS.to(projector.device, projector.dtype)
