"""People of the world: filled figures seen from the front, in a few poses, with exactly known joints.

Lengths are in units, x to the right and y down; a person's right is the viewer's left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ....uniworld_core.errors import UniWorldError

ARMS = ("up", "out", "down")
LEGS = ("together", "apart")
SPOTS = ("left", "center", "right")
_SPOT_ENDS = (28, 37)  # x where "left" ends, and where "right" starts
# Bounding boxes of arms and legs, relative to the nose: top, bottom, half the width.
ARM_BOXES = {"up": (-8, 13, 15), "out": (-8, 13, 22), "down": (-8, 26, 15)}
LEG_BOXES = {"together": (13, 40, 9), "apart": (13, 40, 14)}

Point = tuple[int, int]
Combination = tuple[str, str, str]

# Relative to the nose, for the left side; the right side is mirrored. Integers, so that all discs are rendered alike.
_TRUNK = {"neck": (0, 8), "left shoulder": (7, 9), "left hip": (4, 23)}
_ARM_JOINTS = {
    "up": {"left elbow": (11, 2), "left wrist": (12, -5)},
    "out": {"left elbow": (13, 9), "left wrist": (19, 9)},
    "down": {"left elbow": (11, 15), "left wrist": (12, 22)},
}
_LEG_JOINTS = {
    "together": {"left knee": (4, 30), "left ankle": (4, 37)},
    "apart": {"left knee": (8, 29), "left ankle": (11, 36)},
}
# Pairs of joints in the order of ControlNet's OpenPose annotator, which gives bone k the hue 20k degrees.
BONES = (
    ("neck", "right shoulder"),
    ("neck", "left shoulder"),
    ("right shoulder", "right elbow"),
    ("right elbow", "right wrist"),
    ("left shoulder", "left elbow"),
    ("left elbow", "left wrist"),
    ("neck", "right hip"),
    ("right hip", "right knee"),
    ("right knee", "right ankle"),
    ("neck", "left hip"),
    ("left hip", "left knee"),
    ("left knee", "left ankle"),
    ("neck", "nose"),
)


@dataclass(frozen=True)
class Figure:
    """One person. x and y are the position of the nose."""

    color: str
    arms: str
    legs: str
    x: int
    y: int

    @property
    def spot(self) -> str:
        """The person's place: "left", "center" or "right"."""
        return SPOTS[sum(self.x >= end for end in _SPOT_ENDS)]

    @property
    def combination(self) -> Combination:
        """Pose, spot and color, by which the split holds out people."""
        return f"{self.arms} {self.legs}", self.spot, self.color

    @property
    def boxes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Bounding boxes (left, top, right, bottom) of the arms and of the legs."""
        parts = (ARM_BOXES[self.arms], LEG_BOXES[self.legs])
        return tuple((self.x - half, self.y + top, self.x + half, self.y + bottom) for top, bottom, half in parts)

    def joints(self) -> dict[str, Point]:
        """Return x and y of the joints that are visible at this size, by OpenPose's names."""
        return {name: (self.x + x, self.y + y) for name, (x, y) in joints_of(self.arms, self.legs).items()}

    def words(self) -> str:
        """Return a description such as "red person on the left with arms up and legs apart"."""
        where = "in the center" if self.spot == "center" else f"on the {self.spot}"
        return f"{self.color} person {where} with arms {self.arms} and legs {self.legs}"


def joints_of(arms: str, legs: str) -> Mapping[str, Point]:
    """Return a pose's joints relative to the nose.

    Raises:
        UniWorldError: `arms` or `legs` is unknown.
    """
    if arms not in ARMS or legs not in LEGS:
        raise UniWorldError(
            f"Unknown pose 'arms {arms}, legs {legs}'; arms can be {', '.join(ARMS)}, legs {' or '.join(LEGS)}."
        )
    left = {**_TRUNK, **_ARM_JOINTS[arms], **_LEG_JOINTS[legs]}
    right = {name.replace("left", "right"): (-x, y) for name, (x, y) in left.items() if "left" in name}
    return MappingProxyType({"nose": (0, 0), **left, **right})
