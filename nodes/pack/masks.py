"""UniWorld Edit Mask and UniWorld Composite Edit: find the changes of an edit, and restore the original elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..declare import Input, Inputs, Node, Output, by_id

if TYPE_CHECKING:
    from torch import Tensor


def _fit_input() -> Input:
    """Declare the choice of how images of different sizes lie over one another."""
    from ...uniworld_core.editing.fitting import FITS

    return Input.choice(
        "fit",
        FITS,
        "If the sizes differ. stretch: both show the same. crop: the edited image shows the part in the middle of the original "
        "that has its aspect ratio, as with UniPic.",
        default=FITS[0],
        optional=True,
    )


class MakeEditMask(Node):
    """Compare the images before and after an edit."""

    ID = "UniWorldEditMask"
    DISPLAY_NAME = "UniWorld Edit Mask"
    SEARCH_ALIASES = ["difference mask", "changed area", "compare images", "diff"]
    CATEGORY = "UniWorld/mask"
    DESCRIPTION = (
        "Finds what an edit changed by comparing the images before and after it, as UniWorld-V1 does to weight its "
        "training loss. Returns a mask of complete latent cells (8x8 pixels) and the loss weight of each cell."
    )
    OUTPUTS = (
        Output(
            "mask",
            "MASK",
            "1 where the image was edited, in blocks of 8x8 pixels, at the size of the image after the edit. "
            "All 1 if nothing was edited (a reconstruction).",
        ),
        Output(
            "weight",
            "IMAGE",
            "The weights as a grayscale image, relative to the highest weight, which is white. All white if all weights "
            "are equal.",
        ),
        Output(
            "edited_share",
            "FLOAT",
            "The fraction of edited pixels, 0 to 1; the mean over a batch. Training skips samples below 0.001.",
        ),
    )

    @classmethod
    def inputs(cls) -> Inputs:
        from ...uniworld_core.editing import masks, morphology, weights

        return (
            Input.wire(
                "before",
                "IMAGE",
                "The image before the edit. It is resized if its size differs from after.",
            ),
            Input.wire("after", "IMAGE", "The image after the edit."),
            Input.choice(
                "method",
                masks.METHODS,
                "code: as in the published program (morphological closing). paper: as described in the paper (dilation), "
                "which gives a larger mask.",
                default=masks.METHODS[0],
            ),
            Input.integer(
                "threshold",
                "A pixel counts as changed if its gray value differs by at least this much, of 255.",
                default=masks.THRESHOLD,
                min=0,
                max=255,
            ),
            Input.integer(
                "kernel_size",
                "Diameter of the elliptical kernel for closing or dilation, in pixels. Must be odd.",
                default=morphology.KERNEL_SIZE,
                min=1,
                max=63,
                step=2,
            ),
            Input.number(
                "min_component",
                "Connected components smaller than this fraction of all changed pixels are discarded as noise. Lower it if "
                "the edit is in several places.",
                default=masks.MIN_COMPONENT,
                min=0.0,
                max=1.0,
                step=0.01,
            ),
            Input.choice(
                "weight_function",
                weights.WEIGHT_FUNCTIONS,
                "Weight of the edited part as a function of x = total area / edited area. logarithmic: log2(x)+1, linear: "
                "x, exponential_root: 2^(sqrt(x)-1), quadratic_root: (sqrt(x)-1)^2+1.",
                default=weights.WEIGHT_FUNCTION,
            ),
            _fit_input(),
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
        fit: str = "stretch",
    ) -> tuple[Tensor, Tensor, float]:
        from ...uniworld_core.editing import fitting, masks, weights

        before = fitting.fit_before(before, after, fit)
        mask = masks.edit_mask(before, after, method, threshold, kernel_size, min_component, cover_edges=True)
        weight = weights.edit_weight(mask.latent, weight_function)
        picture = weights.weight_picture(weight, after.shape[1], after.shape[2])
        return masks.picture_mask(mask), picture, float(mask.share.mean())


class CompositeEdit(Node):
    """Composite the edited part onto the original."""

    ID = "UniWorldCompositeEdit"
    DISPLAY_NAME = "UniWorld Composite Edit"
    SEARCH_ALIASES = ["keep original", "paste edit", "blend", "inpaint composite"]
    CATEGORY = "UniWorld/mask"
    DESCRIPTION = (
        "Takes the masked part from the edited image and everything else from the original, bit for bit, at the "
        "original's size."
    )
    OUTPUTS = (Output("image", "IMAGE", "The original with only the masked part replaced."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return (
            Input.wire("before", "IMAGE", "The original. The result has the same size."),
            Input.wire("after", "IMAGE", "The edited image. It is resized (bicubic) if its size differs."),
            Input.wire(
                "mask",
                "MASK",
                "The part to take from the edited image, for example from UniWorld Edit Mask. It is resized if its size "
                "differs.",
            ),
            Input.integer(
                "feather",
                "Width in pixels of the transition at the edge of the mask. The transition is inside the mask, so nothing "
                "outside changes.",
                default=8,
                min=0,
                max=1024,
            ),
            _fit_input(),
        )

    def execute(self, before: Tensor, after: Tensor, mask: Tensor, feather: int, fit: str = "stretch") -> tuple[Tensor]:
        from ...uniworld_core.editing.composite import composite_edit
        from ...uniworld_core.editing.fitting import fit_edit

        after, mask = fit_edit(before, after, mask, fit)
        return (composite_edit(before, after, mask, feather),)


NODES = by_id(MakeEditMask, CompositeEdit)
