"""UniWorld Edit Mask and UniWorld Composite Edit: what an edit changed, and the original wherever it changed nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..declare import Input, Inputs, Node, Output, by_id

if TYPE_CHECKING:
    from torch import Tensor


class MakeEditMask(Node):
    """Compare the pictures before and after an edit."""

    ID = "UniWorldEditMask"
    DISPLAY_NAME = "UniWorld Edit Mask"
    SEARCH_ALIASES = ["difference mask", "changed area", "compare images", "diff"]
    CATEGORY = "UniWorld/mask"
    DESCRIPTION = (
        "Finds what an edit changed by comparing the pictures before and after it, in the way UniWorld-V1 weights its "
        "training: as a mask of whole latent cells (8x8 pixels), and as the weight each cell would have."
    )
    OUTPUTS = (
        Output(
            "mask",
            "MASK",
            "1 where the picture was edited, in whole blocks of 8x8 pixels, at the size of the picture after the edit. "
            "All 1 if nothing was edited (a reconstruction).",
        ),
        Output(
            "weight",
            "IMAGE",
            "The weights as a gray picture: white is the heaviest cell, and the others are darker by the factor they weigh "
            "less. All white if every cell weighs the same.",
        ),
        Output(
            "edited_share",
            "FLOAT",
            "The share of edited pixels, 0 to 1; for a batch the mean. Under 0.001 the training would skip the picture.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.editing import masks

        return (
            Input.wire(
                "before",
                "IMAGE",
                "The picture before the edit. Another size is resized to that of the picture after it.",
            ),
            Input.wire("after", "IMAGE", "The picture after the edit."),
            Input.choice(
                "method",
                masks.METHODS,
                "code: as the published program does it (gaps are closed). paper: as the paper describes it (marks are "
                "grown), which makes a larger mask.",
                default=masks.METHODS[0],
            ),
            Input.integer(
                "threshold",
                "From this gray difference on (of 255) a pixel counts as changed.",
                default=masks.THRESHOLD,
                min=0,
                max=255,
            ),
            Input.integer(
                "kernel_size",
                "Diameter in pixels of the ellipse that closes or grows the marks; odd.",
                default=masks.KERNEL_SIZE,
                min=1,
                max=63,
                step=2,
            ),
            Input.number(
                "min_component",
                "Connected parts smaller than this share of all marked pixels are dropped as noise. Lower it if the edit is "
                "in several places.",
                default=masks.MIN_COMPONENT,
                min=0.0,
                max=1.0,
                step=0.01,
            ),
            Input.choice(
                "weight_function",
                masks.WEIGHT_FUNCTIONS,
                "How the weight of the edited part grows the smaller it is, with x = whole / edited area: log2(x)+1, x, "
                "2^(sqrt(x)-1) or (sqrt(x)-1)^2+1.",
                default=masks.WEIGHT_FUNCTION,
            ),
        )

    def execute(
        self,
        before: Tensor,
        after: Tensor,
        method: str,
        threshold: int,
        kernel_size: int,
        min_component: float,
        weight_function: str,
    ) -> tuple[Tensor, Tensor, float]:
        from ...uniworld_core.editing import masks

        before = masks.fit_before(before, after)
        mask = masks.edit_mask(before, after, method, threshold, kernel_size, min_component, cover_edges=True)
        weight = masks.edit_weight(mask.latent, weight_function)
        picture = masks.weight_picture(weight, after.shape[1], after.shape[2])
        return masks.picture_mask(mask), picture, float(mask.share.mean())


class CompositeEdit(Node):
    """Lay the edited part over the original."""

    ID = "UniWorldCompositeEdit"
    DISPLAY_NAME = "UniWorld Composite Edit"
    SEARCH_ALIASES = ["keep original", "paste edit", "blend", "inpaint composite"]
    CATEGORY = "UniWorld/mask"
    DESCRIPTION = (
        "Takes the edited part from the picture after the edit and everything else from the picture before it, bit for "
        "bit, at that picture's size."
    )
    OUTPUTS = (Output("image", "IMAGE", "The picture before the edit with only the masked part replaced."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("before", "IMAGE", "The original. The result has its size."),
            Input.wire("after", "IMAGE", "The edited picture. Another size is resized, bicubic."),
            Input.wire(
                "mask",
                "MASK",
                "What to take from the edited picture, as from UniWorld Edit Mask. Another size is resized.",
            ),
            Input.integer(
                "feather",
                "Over how many pixels the edit fades in from the mask's edge. It fades inward, so that nothing outside the "
                "mask changes.",
                default=8,
                min=0,
                max=1024,
            ),
        )

    def execute(self, before: Tensor, after: Tensor, mask: Tensor, feather: int) -> tuple[Tensor]:
        from ...uniworld_core.editing import masks

        after, mask = masks.fit_edit(before, after, mask)
        return (masks.composite_edit(before, after, mask, feather),)


NODES = by_id(MakeEditMask, CompositeEdit)
