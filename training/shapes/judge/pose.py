"""The judge of poses: it reads the skeletons with the core's own head.

Shapes: H = W = 64; pictures are float32 (H, W, 3) in 0..255.
"""

from __future__ import annotations

import numpy as np
import torch

from ....uniworld_core.perception.heads import Box, read_pose
from ..world.draw_figure import skeletons
from ..world.figure import Figure
from ..world.maps import blurred
from ..world.scene import UNITS, Scene
from .morphology import grow, overlap
from .oracle import Pixels
from .verdict import Verdict

NEAR = 3.0  # units that a joint may be off
MIN_JOINTS = 0.85  # of all joints: two of a person's fourteen may be lost
MAX_EXTRA = 1  # joints where none should be
MIN_LIT = 0.5  # of what is lit, as intersection over union
LIT = 60.0  # above black
MAX_STRAY = 0.01  # of the picture: what is lit away from every skeleton
# Noise and softness are read by what suits them: the picture as it is, and without its grain.
_BLURS = (0.0, 0.9)


def judge_pose(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Skeletons in OpenPose's colours on black, with the joints of every person where they are."""
    joints, extra = max((_joints(scene.figures, picture_HW3, blur) for blur in _BLURS), key=lambda read: read[0])
    reasons = [] if joints >= MIN_JOINTS else [f"only {100 * joints:.0f}% of the joints are found"]
    if extra > MAX_EXTRA:
        reasons.append(f"{extra} joints are where none should be")
    wanted_HW = skeletons(scene.figures, UNITS).max(-1) > LIT
    seen_HW = picture_HW3.max(-1) > LIT
    lit = overlap(seen_HW, wanted_HW)
    if lit < MIN_LIT:
        reasons.append(f"what is lit agrees only to {lit:.2f} (IoU) with the skeleton")
    stray = float((seen_HW & ~grow(wanted_HW, 2)).mean())
    if stray > MAX_STRAY:
        reasons.append(f"{100 * stray:.1f}% of the picture is lit where no skeleton is")
    return Verdict(not reasons, tuple(reasons), joints=joints)


def _joints(figures: tuple[Figure, ...], picture_HW3: Pixels, blur: float) -> tuple[float, int]:
    """The share of the figures' joints that the core's head finds near where they are, and how many more it finds."""
    if blur:
        picture_HW3 = np.stack([blurred(channel_HW, blur) for channel_HW in np.moveaxis(picture_HW3, -1, 0)], axis=-1)
    free = list(read_pose(torch.from_numpy(np.ascontiguousarray(picture_HW3[None] / 255, np.float32))).boxes[0])
    wanted = [(name, at) for person in figures for name, at in person.joints().items()]
    found = 0
    for name, at in wanted:
        match = next((box for box in free if box["joint"] == name and _near(box, at)), None)
        if match is not None:
            free.remove(match)
            found += 1
    return found / len(wanted), len(free)


def _near(box: Box, at: tuple[int, int]) -> bool:
    middles = (float(box[start]) + float(box[length]) / 2 for start, length in (("x", "width"), ("y", "height")))
    return all(abs(middle - wanted) <= NEAR for middle, wanted in zip(middles, at))
