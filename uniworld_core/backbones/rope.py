"""Qwen2.5-VL's three-axis positions (arXiv 2502.13923, section 2.1.2), for sequences with pictures.

transformers' `get_rope_index` computes the same positions. But transformers 5 needs `mm_token_type_ids` for it, and without
them it silently falls back to plain text positions: hidden states are then off by about 2.5 instead of 3e-6. Positions that
are passed explicitly work in every version.
"""

from __future__ import annotations

import torch

# B batch, L tokens; grid rows are (frames, height, width) in unmerged patches.


def rope_positions(
    ids_BL: torch.Tensor, mask_BL: torch.Tensor, grids: torch.Tensor | None, image_token: int, merge: int
) -> torch.Tensor:
    """Return positions (3, B, L) on the axes time, height and width.

    Text tokens have the same position on all three axes. The tokens of a picture share one time and have their row and
    column, counted from the end of the text before. The text after a picture continues from the largest position so far.
    Padding has position 1.

    Args:
        ids_BL: token ids, padded on either side.
        mask_BL: True at tokens.
        grids: (pictures, 3) grids of all items in order, or None without pictures.
        image_token: id of the picture token.
        merge: side of a token in patches.
    """
    positions = torch.ones(3, *ids_BL.shape, dtype=torch.long, device=ids_BL.device)
    remaining = [] if grids is None else grids.tolist()
    for item in range(ids_BL.shape[0]):
        here = mask_BL[item].bool()
        ids = ids_BL[item][here].tolist()
        columns: list[torch.Tensor] = []
        next_position, at = 0, 0
        while at < len(ids):
            if ids[at] == image_token:
                frames, height, width = remaining.pop(0)
                block = _picture_block(frames, height // merge, width // merge)
            else:
                end = ids.index(image_token, at) if image_token in ids[at:] else len(ids)
                block = torch.arange(end - at).expand(3, -1)
            columns.append(block + next_position)
            next_position += int(block.max()) + 1
            at += block.shape[1]
        positions[:, item, here] = torch.cat(columns, dim=1).to(ids_BL.device)
    return positions


def _picture_block(frames: int, rows: int, columns: int) -> torch.Tensor:
    axes = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes])
