"""From Mask2Former's outputs to objects, with the rules of mmdet, with which GenEval's published results were made.

Source: open-mmlab/mmdetection 2.x, mmdet/models/seg_heads/panoptic_fusion_heads/maskformer_fusion_head.py
(`instance_postprocess`) and mmdet/core/mask/utils.py (`mask2bbox`). transformers' own post-processing differs: it makes masks
of 384x384 pixels that do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

MAX_OBJECTS = 100
# Sides of the picture for the detector: the short one, unless the long one would be longer than this.
SHORT, LONG, MULTIPLE = 800, 1333, 32
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class PaddedPicture:
    """A picture for the detector: pixels (1, 3, H, W), and the height and width without padding."""

    pixels: torch.Tensor
    height: int
    width: int


@dataclass(frozen=True)
class Instance:
    """One object: the number of its class, its score, its box (x0, y0, x1, y1), and its mask (H, W)."""

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: Any


def padded(picture: Image.Image, short: int = SHORT, long: int = LONG) -> PaddedPicture:
    """Resize a picture, keeping its aspect ratio, normalize it and pad it on the right and below."""
    scale = min(long / max(picture.size), short / min(picture.size))
    width, height = (int(side * scale + 0.5) for side in picture.size)
    rgb = picture.convert("RGB")
    data = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).reshape(rgb.height, rgb.width, 3).float()
    # Without antialiasing and with rounding, as OpenCV resizes 8-bit pictures.
    whole = data.permute(2, 0, 1)[None]
    resized = F.interpolate(whole, (height, width), mode="bilinear", align_corners=False).round()
    pixels = (resized - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    pad = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    return PaddedPicture(F.pad(pixels, pad), height, width)


def instances(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    shown: PaddedPicture,
    size: tuple[int, int],
    least: float = 0.0,
) -> list[Instance]:
    """Return the objects of one picture, best class scores first.

    Args:
        class_logits: (Q, classes + 1); the last class is "no object".
        mask_logits: (Q, h, w), for the padded picture.
        size: width and height of the original picture.
        least: objects with a score up to this are omitted.
    """
    scores = class_logits.float().softmax(dim=-1)[:, :-1]
    classes = scores.shape[1]
    best, places = scores.flatten().topk(min(MAX_OBJECTS, scores.numel()))
    masks: dict[int, torch.Tensor] = {}
    found = []
    for score, place in zip(best.tolist(), places.tolist()):
        query = place // classes
        if score <= least:  # the final score is not higher
            break
        if query not in masks:
            masks[query] = _resized(mask_logits[query].float(), shown, size)
        logits = masks[query]
        inside = logits > 0
        total = score * float((logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
        if total > least:
            found.append(Instance(place % classes, total, _box(inside), inside.numpy()))
    return found


def _resized(mask: torch.Tensor, shown: PaddedPicture, size: tuple[int, int]) -> torch.Tensor:
    """Return a mask (H, W) in the original size: enlarged to the padded picture, cut, and resized."""
    padded_size = shown.pixels.shape[-2:]
    whole = F.interpolate(mask[None, None], padded_size, mode="bilinear", align_corners=False)
    cut = whole[..., : shown.height, : shown.width]
    return F.interpolate(cut, (size[1], size[0]), mode="bilinear", align_corners=False)[0, 0]


def _box(mask: torch.Tensor) -> tuple[float, float, float, float]:
    columns, rows = mask.any(dim=0).nonzero(), mask.any(dim=1).nonzero()
    if not len(columns):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
