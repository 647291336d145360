"""The verdict of the judge on one painted picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """The verdict on a picture. Metrics that do not apply to the task are None.

    Attributes:
        right: whether the picture is correct.
        reasons: everything that is wrong.
        kept: fraction of the unedited objects that are still there, 0 to 1.
        psnr: PSNR of the area that must not change, in dB.
        iou: intersection over union of the marked area or the box.
        edge_f1: F1 of the edges, with a tolerance of one pixel.
        order_right: whether overlapping objects have the correct order.
        angle: mean error of the normals on objects, in degrees.
        joints: fraction of the joints that are found at their positions.
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
