"""Judge normal maps.

Shapes: H = W = 64; pictures are float32 (H, W, 3) in 0..255.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....uniworld_core.perception.heads import NORMAL_TOLERANCE
from ..world import draw
from ..world.maps import Floats, blurred, normals
from ..world.scene import UNITS, Scene
from .likeness import mistaken_objects
from .morphology import grow
from .oracle import Pixels
from .verdict import Verdict

RIM = 20.0  # degrees to the viewing direction above which a surface counts as tilted
MAX_RIM_ERROR = 28.0  # degrees, mean over an object's rim
MAX_FLAT_ERROR = 10.0  # degrees, mean over the ground
MAX_STRAY = 0.01  # of the ground: tilted pixels
MIN_UNIT = 0.95  # of the picture: normals of about unit length
_NOISE_BLUR = 0.7  # pixels
_MAX_DRIFT = 15.0  # of the colors of the whole picture


def judge_normals(scene: Scene, picture_HW3: Pixels) -> Verdict:
    """Judge unit normals that are tilted outwards on the rim of every object and face the viewer elsewhere."""
    scene = replace(scene, side=UNITS)
    wanted_HW3, masks_NHW = normals(scene), draw.visible_masks(scene)
    drift_3 = np.median((picture_HW3 - 255 * (wanted_HW3 + 1) / 2).reshape(-1, 3), axis=0).clip(-_MAX_DRIFT, _MAX_DRIFT)
    calm_HW3 = np.stack(
        [blurred(channel_HW, _NOISE_BLUR) for channel_HW in np.moveaxis(picture_HW3 - drift_3, -1, 0)], -1
    )
    seen_HW3 = (calm_HW3 / 255 * 2 - 1).astype(np.float32)
    length_HW1 = np.linalg.norm(seen_HW3, axis=-1, keepdims=True)
    unit = float((np.abs(length_HW1 - 1) <= NORMAL_TOLERANCE).mean())
    reasons = [] if unit >= MIN_UNIT else [f"only {100 * unit:.0f}% of the picture has unit normals"]
    rim_HW = _angles(wanted_HW3, np.array([0, 0, 1], np.float32)) > RIM
    # The picture may be shifted by a pixel.
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    seen_HW3 = seen_HW3 / length_HW1.clip(1e-3)
    angles = [_angles(np.roll(seen_HW3, shift, (0, 1)), wanted_HW3) for shift in shifts]
    angle_HW = min(angles, key=lambda angle_HW: float(angle_HW[rim_HW].mean()))
    for thing, mask_HW in zip(scene.objects, masks_NHW):
        error = float(angle_HW[mask_HW & rim_HW].mean())
        if error > MAX_RIM_ERROR:
            reasons.append(f"the rim of the {thing.color} {thing.shape} is off by {error:.0f} degrees")
    object_HW = np.any(masks_NHW, axis=0)
    flat_HW = ~grow(object_HW, 2)
    if angle_HW[flat_HW].mean() > MAX_FLAT_ERROR:
        reasons.append(f"the ground is tilted by {angle_HW[flat_HW].mean():.0f} degrees")
    stray = float((angle_HW[flat_HW] > RIM).mean())
    if stray > MAX_STRAY:
        reasons.append(f"{100 * stray:.1f}% of the ground is tilted away from all objects")
    # Only for pictures that pass everything else, because this check is slow.
    reasons = reasons or mistaken_objects("normal", scene, picture_HW3)
    return Verdict(not reasons, tuple(reasons), angle=float(angle_HW[object_HW].mean()))


def _angles(one_HW3: Floats, other_HW3: Floats) -> Floats:
    """Return the angles between unit vectors in degrees."""
    return np.degrees(np.arccos((one_HW3 * other_HW3).sum(-1).clip(-1, 1)))
