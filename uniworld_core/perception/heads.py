"""Heads that read maps with data in every pixel: edges, depth, surface normals, poses.

Shapes: B items, H rows, W columns, N joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import counted
from ..images.components import Components, connected_components

Box = dict[str, int | float | str]

# If the strongest line differs from the background by less than this (0..1), the map is blank and its variation is noise.
MIN_CONTRAST = 0.25
# Threshold relative to the strongest line. At half strength, a line blurred by resampling keeps its width.
EDGE_LEVEL = 0.5
# ControlNet's OpenPose annotator (draw_bodypose) paints limbs at 0.6 and joints at full brightness. Limbs must exceed the
# first level, and only joints the second.
POSE_LEVEL = 0.35
JOINT_LEVEL = 0.8
JOINT_SATURATION = 0.5
# Joints are discs of the same size. A part that fills less of its box, is longer than twice its width, or is much smaller than
# the others is a finger (hands are also bright) or a spot where two colors mix.
MIN_JOINT_FILL = 0.6
MAX_JOINT_ASPECT = 2
MIN_JOINT_AREA = 0.4  # relative to the area at which the larger discs hold half of all joint pixels
# The 18 keypoints of OpenPose's COCO model; keypoint k is a disc of hue 20k degrees.
JOINTS = (
    "nose",
    "neck",
    "right shoulder",
    "right elbow",
    "right wrist",
    "left shoulder",
    "left elbow",
    "left wrist",
    "right hip",
    "right knee",
    "right ankle",
    "left hip",
    "left knee",
    "left ankle",
    "right eye",
    "left eye",
    "right ear",
    "left ear",
)
# Normals whose length differs from 1 by more are background (black and white decode to length 1.73, gray to 0).
NORMAL_TOLERANCE = 0.5

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow converts to gray


@dataclass(frozen=True, eq=False)
class PerceptionResult:
    """The data in a painted map.

    Attributes:
        map: float32 IMAGE (B, H, W, 3), the map without artifacts of the painter.
        mask: float32 MASK (B, H, W) in 0..1.
        boxes: for each item a list of {"x", "y", "width", "height"} in pixels of the map; x and y are the left and top edge.
            Detections also have "score" (the share of the outline that was found, 0..1), poses "joint" (its name).
        text: a summary in one line.
    """

    map: Tensor
    mask: Tensor
    boxes: list[list[Box]]
    text: str


def read_edges(painted_BHW3: Tensor) -> PerceptionResult:
    """Read binary edges, white on black. The median is the background, so that lines may be lighter or darker than it.

    The mask has the edges.
    """
    gray_BHW = luma(painted_BHW3)
    ground_B11 = gray_BHW.flatten(1).median(dim=1).values[:, None, None]
    dark_B11 = ground_B11 < 0.5
    mask_BHW = stands_out(torch.where(dark_B11, gray_BHW - ground_B11, ground_B11 - gray_BHW), EDGE_LEVEL)
    lines = []
    for mask_HW, dark in zip(mask_BHW, dark_B11.flatten().tolist()):
        drawn = "light on dark" if dark else "dark on light"
        lines.append(f"edges on {percent(mask_HW)} of the picture, painted {drawn}" if mask_HW.any() else "no edges")
    return PerceptionResult(as_image(mask_BHW), mask_BHW.float(), no_boxes(mask_BHW), one_line(lines))


def read_depth(painted_BHW3: Tensor) -> PerceptionResult:
    """Read relative depth, stretched to 0..1 per item; brighter is nearer, as the model paints it.

    The mask has the same depth. A flat map becomes 0 everywhere.
    """
    gray_BHW = luma(painted_BHW3)
    low_B11, high_B11 = gray_BHW.amin(dim=(1, 2), keepdim=True), gray_BHW.amax(dim=(1, 2), keepdim=True)
    span_B11 = high_B11 - low_B11
    # Differences of one 8-bit step are rounding of a flat map, not depth.
    depth_BHW = torch.where(span_B11 > 1.5 / 255, (gray_BHW - low_B11) / span_B11.clamp(min=1e-6), 0.0)
    lines = [
        f"depth painted from {low:.2f} (far) to {high:.2f} (near), stretched to 0 to 1"
        for low, high in zip(low_B11.flatten().tolist(), high_B11.flatten().tolist())
    ]
    return PerceptionResult(as_image(depth_BHW), depth_BHW, no_boxes(depth_BHW), one_line(lines))


def read_normals(painted_BHW3: Tensor) -> PerceptionResult:
    """Read unit normals. The map stores (n + 1) / 2, so `map * 2 - 1` gives vectors of length 1, with z towards the viewer.

    The mask is 1 where the painted vector has about unit length, and 0 on a plain background such as black.
    """
    vector_BHW3 = painted_BHW3 * 2 - 1
    length_BHW1 = vector_BHW3.norm(dim=-1, keepdim=True)
    facing = vector_BHW3.new_tensor([0.0, 0.0, 1.0])
    # Middle gray in 8 bits is half a step away from zero, and its direction is meaningless.
    normal_BHW3 = torch.where(length_BHW1 > 2 / 255, F.normalize(vector_BHW3, dim=-1), facing)
    mask_BHW = (length_BHW1.squeeze(-1) - 1).abs() <= NORMAL_TOLERANCE
    lines = [f"normals on {percent(mask_HW)} of the picture" for mask_HW in mask_BHW]
    return PerceptionResult((normal_BHW3 + 1) / 2, mask_BHW.float(), no_boxes(mask_BHW), one_line(lines))


def read_pose(painted_BHW3: Tensor) -> PerceptionResult:
    """Read a skeleton in OpenPose's colors: the map on black, its mask, and a box for every joint identified by its color."""
    ground_B113 = painted_BHW3.flatten(1, 2).median(dim=1).values[:, None, None, :]
    mask_BHW = stands_out((painted_BHW3 - ground_B113).abs().amax(dim=-1), POSE_LEVEL)
    parts = connected_components(_joint_colors(painted_BHW3) * mask_BHW)
    boxes: list[list[Box]] = []
    lines = []
    for item in range(painted_BHW3.shape[0]):
        discs = ((parts.items == item) & _is_disc(parts)).nonzero().flatten()
        discs = discs[parts.areas[discs].argsort(descending=True, stable=True)]
        areas = parts.areas[discs]
        usual = areas[(2 * areas.cumsum(0) >= areas.sum()).nonzero()[:1, 0]]
        joints = discs[: int((areas >= MIN_JOINT_AREA * usual).sum())].tolist()
        found = _distinct([(parts.boxes[part].tolist(), JOINTS[int(parts.values[part]) - 1]) for part in joints])
        boxes.append(found)
        names = ", ".join(sorted({str(box["joint"]) for box in found}, key=JOINTS.index))
        lines.append(f"{counted(len(found), 'joint')}: {names}" if found else "no joints")
    clean_BHW3 = painted_BHW3 * mask_BHW.unsqueeze(-1)
    return PerceptionResult(clean_BHW3, mask_BHW.float(), boxes, one_line(lines))


def luma(image_BHW3: Tensor) -> Tensor:
    """Convert to gray (B, H, W) in 0..1."""
    return (image_BHW3 * image_BHW3.new_tensor(_LUMA)).sum(dim=-1).clamp(0, 1)


def stands_out(strength_BHW: Tensor, level: float) -> Tensor:
    """Return where the strength is at least `level` of the item's maximum; nowhere on a blank map. bool (B, H, W)."""
    peak_B11 = strength_BHW.amax(dim=(1, 2), keepdim=True)
    return (strength_BHW >= level * peak_B11) & (peak_B11 >= MIN_CONTRAST)


def as_image(values_BHW: Tensor) -> Tensor:
    """Convert a mask or one channel to a gray IMAGE (B, H, W, 3)."""
    return values_BHW.float().unsqueeze(-1).expand(-1, -1, -1, 3).contiguous()


def no_boxes(batch: Tensor) -> list[list[Box]]:
    return [[] for _ in range(batch.shape[0])]


def percent(mask_HW: Tensor) -> str:
    return f"{100 * float(mask_HW.float().mean()):.1f} %"


def one_line(lines: list[str]) -> str:
    """Join the summaries of the items to one line, numbered if there are several."""
    return lines[0] if len(lines) == 1 else "; ".join(f"picture {i + 1}: {line}" for i, line in enumerate(lines))


def _joint_colors(painted_BHW3: Tensor) -> Tensor:
    """Return 1 + the index of the joint with the color of each bright, saturated pixel, and 0 elsewhere: int64 (B, H, W)."""
    high_BHW, low_BHW = painted_BHW3.amax(dim=-1), painted_BHW3.amin(dim=-1)
    chroma_BHW = (high_BHW - low_BHW).clamp(min=1e-6)
    red, green, blue = painted_BHW3.unbind(dim=-1)
    sixth_BHW = torch.where(
        high_BHW == red,
        (green - blue) / chroma_BHW,
        torch.where(high_BHW == green, 2 + (blue - red) / chroma_BHW, 4 + (red - green) / chroma_BHW),
    )
    joint_BHW = (sixth_BHW * len(JOINTS) / 6).round().long() % len(JOINTS)
    clear_BHW = (high_BHW >= JOINT_LEVEL) & (chroma_BHW >= JOINT_SATURATION * high_BHW)
    return (joint_BHW + 1) * clear_BHW


def _is_disc(parts: Components) -> Tensor:
    """Return which parts may be discs: bool (N,)."""
    width_N, height_N = parts.boxes[:, 2], parts.boxes[:, 3]
    round_N = torch.maximum(width_N, height_N) <= MAX_JOINT_ASPECT * torch.minimum(width_N, height_N)
    return round_N & (parts.areas >= MIN_JOINT_FILL * width_N * height_N) & (parts.areas > 1)


def _distinct(found: list[tuple[list[int], str]]) -> list[Box]:
    """Return the boxes, largest first, without those centered in a larger one (a disc's rim in another color)."""
    taken: list[Box] = []
    corners: list[list[int]] = []
    for (x, y, width, height), joint in found:
        middle_x, middle_y = x + width / 2, y + height / 2
        if any(x0 <= middle_x <= x0 + w and y0 <= middle_y <= y0 + h for x0, y0, w, h in corners):
            continue
        corners.append([x, y, width, height])
        taken.append({"x": x, "y": y, "width": width, "height": height, "joint": joint})
    return taken
