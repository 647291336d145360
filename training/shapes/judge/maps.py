"""Judge depth maps, segmentation overlays and detection boxes.

Shapes: H = W = 64; pictures are float32 (H, W, 3) in 0..255.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ....uniworld_core.images.components import connected_components
from ..world import draw
from ..world.scene import COLORS, GROUNDS, UNITS, Object, Scene
from .likeness import mistaken_objects
from .morphology import Mask, grow, overlap, shrink
from .oracle import Pixels, smooth
from .verdict import Verdict

MAX_CHROMA = 60.0  # maximum difference between the channels of a gray map
MIN_DEPTH_IOU = 0.6
MIN_DEPTH_STEP = 35.0  # gray levels between an object and the one below it
MAX_MISPLACED = 0.006  # of the picture
MIN_SEGMENT_IOU = 0.6
MIN_COVERED = 0.85  # of the subject's inside
MIN_ON_SUBJECT = 0.5  # of each mark
MIN_BOX_IOU = 0.6
MIN_BOX_SIDE = 0.7  # of each side of a box
# Maximum distance of a marked pixel from the line between the source's color and the mark's, in RGB.
MAX_OFF = 55.0
MIN_PART = 10  # pixels of a part of a mark


@dataclass(frozen=True)
class FoundMark:
    """A mark in a picture: its area, the expected area, and what is wrong with it."""

    marked: Mask
    wanted: Mask
    iou: float
    reasons: tuple[str, ...]


def judge_depth(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge a depth map: a dark ground, and objects that are brighter the higher they are in the stacking order."""
    scene = replace(scene, side=UNITS)
    gray_HW, masks_NHW = smooth(picture_HW3).mean(-1), draw.visible_masks(scene)
    levels_N = [_level(gray_HW, mask_HW) for mask_HW in masks_NHW]
    iou = overlap(gray_HW > draw.DEPTH_LEVELS[1] / 2, np.any(masks_NHW, axis=0))
    reasons = [] if iou >= MIN_DEPTH_IOU else [f"the IoU of the objects' area is only {iou:.2f}"]
    levels = np.array(draw.DEPTH_LEVELS)
    for thing, level, height in zip(scene.objects, levels_N, draw.stacking(scene)):
        seen = int(np.abs(levels - level).argmin())
        if seen != height:
            reasons.append(f"the {thing.color} {thing.shape} is at height {seen}, not {height}")
    full = [draw.full_mask(thing, UNITS) for thing in scene.objects]
    order_right = all(
        levels_N[above] >= levels_N[below] + MIN_DEPTH_STEP
        for above in range(len(full))
        for below in range(above)
        if (full[above] & full[below]).any()
    )
    if not order_right:
        reasons.append("objects in front are not brighter")
    misplaced = _misplaced(scene, gray_HW)
    if misplaced > MAX_MISPLACED:
        reasons.append(f"{100 * misplaced:.1f}% of the picture has the wrong height, away from all outlines")
    reasons += colorless(picture_HW3)
    # Only for pictures that pass everything else, because this check is slow.
    reasons = reasons or mistaken_objects("depth", scene, picture_HW3)
    return Verdict(not reasons, tuple(reasons), iou=iou, order_right=order_right)


def _misplaced(scene: Scene, gray_HW: np.ndarray) -> float:
    """Return the fraction of the picture with the gray of another height, ignoring two pixels along outlines."""
    levels = np.array(draw.DEPTH_LEVELS, np.float32)
    wanted_HW = draw.depth(scene).mean(-1)
    seen_HW = np.abs(gray_HW[..., None] - levels).argmin(-1)
    rims_HW = np.zeros(wanted_HW.shape, bool)
    rims_HW[1:] |= wanted_HW[1:] != wanted_HW[:-1]
    rims_HW[:, 1:] |= wanted_HW[:, 1:] != wanted_HW[:, :-1]
    wrong_HW = levels[seen_HW] != wanted_HW
    return float((wrong_HW & ~grow(rims_HW, 2)).mean())


def judge_segment(scene: Scene, subject: Object, picture_HW3: Pixels) -> FoundMark:
    """Judge a segmentation: the translucent mark covers the subject and nothing else."""
    scene = replace(scene, side=UNITS)
    wanted_HW = draw.visible_masks(scene)[scene.objects.index(subject)]
    source_HW3 = draw.paint(scene).astype(np.float32)
    labels_HW = _labels(_painted(picture_HW3, source_HW3, draw.MARK_STRENGTH))
    parts = [labels_HW == number for number in range(1, int(labels_HW.max()) + 1)]
    marks = [part_HW for part_HW in parts if _is_coat(part_HW, picture_HW3, source_HW3)]
    near_HW = grow(wanted_HW)
    of_subject = [(mark_HW & near_HW).sum() >= MIN_ON_SUBJECT * mark_HW.sum() for mark_HW in marks]
    nothing_HW = np.zeros_like(wanted_HW)
    everything_HW = np.any(marks, axis=0) if marks else nothing_HW
    marked_HW = np.any([mark_HW for mark_HW, own in zip(marks, of_subject) if own] or [nothing_HW], axis=0)
    iou = overlap(everything_HW, wanted_HW)
    reasons = [] if iou >= MIN_SEGMENT_IOU else [f"the IoU of mark and subject is only {iou:.2f}"]
    inside_HW = shrink(wanted_HW) if shrink(wanted_HW).any() else wanted_HW
    covered = float((marked_HW & inside_HW).sum() / inside_HW.sum())
    if covered < MIN_COVERED:
        reasons.append(f"only {100 * covered:.0f}% of the subject is marked")
    if not all(of_subject):
        reasons.append("something other than the subject is marked")
    return FoundMark(marked_HW, wanted_HW, iou, tuple(reasons))


def judge_box(scene: Scene, subject: Object, picture_HW3: Pixels) -> FoundMark:
    """Judge a detection: one box of the mark's color around the subject."""
    scene = replace(scene, side=UNITS)
    left, top, right, bottom = draw.box_around(scene, subject)
    wanted_HW = np.zeros((UNITS, UNITS), bool)
    wanted_HW[top:bottom, left:right] = True
    lines_HW = _painted(picture_HW3, draw.paint(scene).astype(np.float32), 1.0)
    labels_HW = _labels(lines_HW)
    areas = np.bincount(labels_HW.ravel())
    areas[0] = 0
    if areas.max() < MIN_PART:
        return FoundMark(lines_HW, wanted_HW, 0.0, ("no box is drawn",))
    box_HW = labels_HW == areas.argmax()
    rows, columns = np.nonzero(box_HW)
    inside = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
    seen_HW = np.zeros_like(wanted_HW)
    seen_HW[inside] = True
    iou = overlap(seen_HW, wanted_HW)
    reasons = [] if iou >= MIN_BOX_IOU else [f"the IoU of the box is only {iou:.2f}"]
    line_hw = box_HW[inside]
    sides = (line_hw[:4].any(0), line_hw[-4:].any(0), line_hw[:, :4].any(1), line_hw[:, -4:].any(1))
    if min(float(side.mean()) for side in sides) < MIN_BOX_SIDE or line_hw.mean() > 0.8:
        reasons.append("the mark is not the outline of a box")
    if (areas >= MIN_PART).sum() > 1:
        reasons.append("more than one box is drawn")
    return FoundMark(lines_HW, wanted_HW, iou, tuple(reasons))


def _painted(picture_HW3: Pixels, source_HW3: Pixels, strength: float) -> Mask:
    """Return the pixels that are closer to the source overlaid with the mark than to the plain source."""
    drift_3 = np.median((picture_HW3 - source_HW3).reshape(-1, 3), axis=0)
    delta_HW3 = picture_HW3 - drift_3.clip(-15, 15) - source_HW3
    paint_HW3 = strength * (np.array(draw.MARK, np.float32) - source_HW3)
    share_HW = (delta_HW3 * paint_HW3).sum(-1) / (paint_HW3**2).sum(-1)
    off_HW = np.linalg.norm(delta_HW3 - share_HW[..., None].clip(0, 1.3) * paint_HW3, axis=-1)
    return (share_HW > 0.5) & (off_HW < MAX_OFF)


def _is_coat(part_HW: Mask, picture_HW3: Pixels, source_HW3: Pixels) -> bool:
    """Whether a part is the translucent mark, rather than an object that was painted or erased in a palette color."""
    inside_HW = shrink(part_HW)
    # Displaced edges leave thin rims, which have no inside.
    if not inside_HW.any():
        return False
    coat_HW3 = source_HW3 + draw.MARK_STRENGTH * (np.array(draw.MARK, np.float32) - source_HW3)
    seen_3, coat_3 = (np.median(colors_HW3[inside_HW], axis=0) for colors_HW3 in (picture_HW3, coat_HW3))
    named = [np.linalg.norm(seen_3 - rgb) for rgb in (*COLORS.values(), *GROUNDS.values())]
    return bool(np.linalg.norm(seen_3 - coat_3) < min(named))


def _labels(mask_HW: Mask) -> np.ndarray:
    return connected_components(torch.from_numpy(mask_HW)[None]).labels[0].numpy()


def _level(gray_HW: np.ndarray, mask_HW: Mask) -> float:
    inside_HW = shrink(mask_HW, 2)
    return float(np.median(gray_HW[inside_HW if inside_HW.any() else mask_HW]))


def colorless(picture_HW3: Pixels) -> list[str]:
    """Return a reason if a gray map has colors."""
    smooth_HW3 = smooth(picture_HW3)
    colored = float((smooth_HW3.max(-1) - smooth_HW3.min(-1) > MAX_CHROMA).mean())
    return [f"{100 * colored:.0f}% of the map is colored"] if colored > 0.02 else []
