"""Judge line maps: hard and soft edges, straight lines, and sketches.

Shapes: H = W = 64; pictures are float32 (H, W, 3) in 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..world import draw
from ..world.maps import map_of
from ..world.scene import UNITS, Object, Scene
from .likeness import mistaken_objects, nearest_map
from .maps import colorless
from .morphology import Mask, grow, shrink
from .oracle import Pixels
from .verdict import Verdict

EDGE_LEVEL = 100.0  # soft lines do not reach full white
WIDE_LEVEL = 128.0  # half the height of a wide soft line
SKETCH_LEVEL = 135.0  # gray between a sketch's soft outlines and its tones
MIN_EDGE_F1 = 0.75
MIN_OUTLINE = 0.7  # of each object's outline
MAX_FILLED = 0.6  # of each object's inside
MAX_STRAY = 0.006  # of the picture: lines that are not near an edge
MAX_ROUND = 0.35  # of a circle's outline, in a map of straight lines


def judge_edges(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge an edge map: light lines on a dark ground along all outlines of the scene."""
    scene = replace(scene, side=UNITS)
    f1, reasons = _lines(scene, draw.edges(scene), picture_HW3.mean(-1) >= EDGE_LEVEL, scene.objects)
    return _verdict("edge", scene, picture_HW3, f1, reasons)


def judge_hed(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge a HED map: the same lines, wide and soft."""
    scene = replace(scene, side=UNITS)
    wanted_HW = map_of("hed", scene).mean(-1) >= WIDE_LEVEL
    f1, reasons = _lines(scene, wanted_HW, picture_HW3.mean(-1) >= WIDE_LEVEL, scene.objects, wide=True)
    return _verdict("hed", scene, picture_HW3, f1, reasons)


def judge_mlsd(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge an MLSD map: light lines on a dark ground along straight sides, and none along circles."""
    scene = replace(scene, side=UNITS)
    wanted_HW, seen_HW = map_of("mlsd", scene).mean(-1) >= EDGE_LEVEL, picture_HW3.mean(-1) >= EDGE_LEVEL
    straight = tuple(thing for thing in scene.objects if thing.shape != "circle")
    f1, reasons = _lines(scene, wanted_HW, seen_HW, straight, wide=True)
    for thing, mask_HW in zip(scene.objects, draw.visible_masks(scene)):
        outline_HW = grow(mask_HW) & ~shrink(mask_HW) & ~grow(wanted_HW)
        if thing not in straight and (outline_HW & seen_HW).sum() > MAX_ROUND * outline_HW.sum():
            reasons.append(f"the {thing.color} circle is outlined")
    return _verdict("mlsd", scene, picture_HW3, f1, reasons)


def judge_sketch(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge a sketch: dark outlines on white, with tones between them."""
    scene = replace(scene, side=UNITS)
    f1, reasons = _lines(scene, draw.edges(scene), picture_HW3.mean(-1) <= SKETCH_LEVEL, scene.objects)
    return _verdict("sketch", scene, picture_HW3, f1, reasons)


def _lines(
    scene: Scene, wanted_HW: Mask, seen_HW: Mask, outlined: Sequence[Object], wide: bool = False
) -> tuple[float, list[str]]:
    """F1 of the lines, a pixel's difference allowed, and what is wrong with them; wide ones reach into objects."""
    near_wanted_HW, near_seen_HW = grow(wanted_HW), grow(seen_HW)
    precision = float((seen_HW & near_wanted_HW).sum() / max(seen_HW.sum(), 1))
    recall = float((wanted_HW & near_seen_HW).sum() / wanted_HW.sum())
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    reasons = [] if f1 >= MIN_EDGE_F1 else [f"the F1 of the edges is only {f1:.2f}"]
    for thing, mask_HW in zip(scene.objects, draw.visible_masks(scene)):
        outline_HW = grow(mask_HW) & ~shrink(mask_HW) & wanted_HW
        if thing in outlined and (outline_HW & near_seen_HW).sum() < MIN_OUTLINE * outline_HW.sum():
            reasons.append(f"the outline of the {thing.color} {thing.shape} is missing")
        inside_HW = shrink(mask_HW, 2) & ~(near_wanted_HW if wide else wanted_HW)
        if (seen_HW & inside_HW).sum() > MAX_FILLED * inside_HW.sum():
            reasons.append(f"the {thing.color} {thing.shape} is filled")
    stray = float((seen_HW & ~grow(wanted_HW, 2)).mean())
    if stray > MAX_STRAY:
        reasons.append(f"{100 * stray:.1f}% of the picture has lines that are not near an edge")
    return f1, reasons


def _verdict(kind: str, scene: Scene, picture_HW3: Pixels, f1: float, reasons: list[str]) -> Verdict:
    nearest = nearest_map(kind, scene, picture_HW3)
    if nearest != kind:
        reasons.append(f"it looks more like the {nearest} map of the picture")
    reasons += colorless(picture_HW3)
    # Only for pictures that pass everything else, because this check is slow.
    reasons = reasons or mistaken_objects(kind, scene, picture_HW3)
    return Verdict(not reasons, tuple(reasons), edge_f1=f1)
