"""What the judge says of one painted picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What the judge says; a number is None where the task has none.

    Attributes:
        right: nothing is wrong.
        reasons: everything that is wrong.
        kept: share of the objects that had to stay and did, 0 to 1.
        psnr: of the area that had to stay as it was, in dB.
        iou: intersection over union of the marked area or the box.
        edge_f1: F1 of the edges, a pixel's difference allowed.
        order_right: whether what lies in front is in front.
        angle: between the normals painted on objects and the right ones, the mean in degrees.
        joints: share of the joints found where they should be.
    """

    right: bool
    reasons: tuple[str, ...] = ()
    kept: float | None = None
    psnr: float | None = None
    iou: float | None = None
    edge_f1: float | None = None
    order_right: bool | None = None
    angle: float | None = None
    joints: float | None = None
