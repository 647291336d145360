"""Judge poses, reading the skeletons with the core's own head.

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

NEAR = 3.0  # maximum error of a joint in units
MIN_JOINTS = 0.85  # of all joints: two of a person's fourteen may be missing
MAX_EXTRA = 1  # spurious joints
MIN_LIT = 0.5  # IoU of the lit pixels
LIT = 60.0  # minimum brightness of a lit pixel
MAX_STRAY = 0.01  # of the picture: lit pixels away from all skeletons
# Soft pictures are read better as they are, noisy ones after a blur; the better result counts.
_BLURS = (0.0, 0.9)


def judge_pose(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge skeletons in OpenPose's colors on black, with all joints of every person in the correct positions."""
    joints, extra = max((_joints(scene.figures, picture_HW3, blur) for blur in _BLURS), key=lambda read: read[0])
    reasons = [] if joints >= MIN_JOINTS else [f"only {100 * joints:.0f}% of the joints are found"]
    if extra > MAX_EXTRA:
        reasons.append(f"{extra} spurious joints")
    wanted_HW = skeletons(scene.figures, UNITS).max(-1) > LIT
    seen_HW = picture_HW3.max(-1) > LIT
    lit = overlap(seen_HW, wanted_HW)
    if lit < MIN_LIT:
        reasons.append(f"the IoU with the skeleton is only {lit:.2f}")
    stray = float((seen_HW & ~grow(wanted_HW, 2)).mean())
    if stray > MAX_STRAY:
        reasons.append(f"{100 * stray:.1f}% of the picture is lit away from the skeleton")
    return Verdict(not reasons, tuple(reasons), joints=joints)


def _joints(figures: tuple[Figure, ...], picture_HW3: Pixels, blur: float) -> tuple[float, int]:
    """Return the fraction of the figures' joints that the core's head finds near their positions, and the number of others."""
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
