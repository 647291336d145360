"""UniWorld Edit Mask and UniWorld Composite Edit: what an edit changed, and the original wherever it changed nothing."""

from __future__ import annotations

from typing import Any


class EditMask:
    """Compare the pictures before and after an edit."""

    DISPLAY_NAME = "UniWorld Edit Mask"
    SEARCH_ALIASES = ["difference mask", "changed area", "compare images", "diff"]
    CATEGORY = "UniWorld/mask"
    DESCRIPTION = (
        "Finds what an edit changed by comparing the pictures before and after it, in the way UniWorld-V1 weights its "
        "training: as a mask of whole latent cells (8x8 pixels), and as the weight each cell would have."
    )
    RETURN_TYPES = ("MASK", "IMAGE", "FLOAT")
    RETURN_NAMES = ("mask", "weight", "edited_share")
    OUTPUT_TOOLTIPS = (
        "1 where the picture was edited, in whole blocks of 8x8 pixels, at the size of the picture after the edit. "
        "All 1 if nothing was edited (a reconstruction).",
        "The weights as a gray picture: white is the heaviest cell, and the others are darker by the factor they weigh "
        "less. All white if every cell weighs the same.",
        "The share of edited pixels, 0 to 1; for a batch the mean. Under 0.001 the training would skip the picture.",
    )
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        from ...uniworld_core.editing import masks

        threshold = {"default": masks.THRESHOLD, "min": 0, "max": 255}
        kernel_size = {"default": masks.KERNEL_SIZE, "min": 1, "max": 63, "step": 2}
        min_component = {"default": masks.MIN_COMPONENT, "min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "before": (
                    "IMAGE",
                    {
                        "tooltip": "The picture before the edit. Another size is resized to that of the picture after it."
                    },
                ),
                "after": ("IMAGE", {"tooltip": "The picture after the edit."}),
                "method": (
                    list(masks.METHODS),
                    {
                        "default": masks.METHODS[0],
                        "tooltip": "code: as the published program does it (gaps are closed). paper: as the paper "
                        "describes it (marks are grown), which makes a larger mask.",
                    },
                ),
                "threshold": (
                    "INT",
                    {**threshold, "tooltip": "From this gray difference on (of 255) a pixel counts as changed."},
                ),
                "kernel_size": (
                    "INT",
                    {
                        **kernel_size,
                        "tooltip": "Diameter in pixels of the ellipse that closes or grows the marks; odd.",
                    },
                ),
                "min_component": (
                    "FLOAT",
                    {
                        **min_component,
                        "tooltip": "Connected parts smaller than this share of all marked pixels are dropped as noise. Lower "
                        "it if the edit is in several places.",
                    },
                ),
                "weight_function": (
                    list(masks.WEIGHT_FUNCTIONS),
                    {
                        "default": "logarithmic",
                        "tooltip": "How the weight of the edited part grows the smaller it is, with x = whole / edited area: "
                        "log2(x)+1, x, 2^(sqrt(x)-1) or (sqrt(x)-1)^2+1.",
                    },
                ),
            }
        }

    def execute(
        self,
        before: Any,
        after: Any,
        method: str,
        threshold: int,
        kernel_size: int,
        min_component: float,
        weight_function: str,
    ) -> tuple[Any, Any, float]:
        from ...uniworld_core.editing import masks

        before = masks.fit_before(before, after)
        mask = masks.edit_mask(before, after, method, threshold, kernel_size, min_component, cover_edges=True)
        weight = masks.edit_weight(mask.latent, weight_function)
        picture = masks.weight_picture(weight, after.shape[1], after.shape[2])
        return masks.picture_mask(mask), picture, float(mask.share.mean())


class CompositeEdit:
    """Lay the edited part over the original."""

    DISPLAY_NAME = "UniWorld Composite Edit"
    SEARCH_ALIASES = ["keep original", "paste edit", "blend", "inpaint composite"]
    CATEGORY = "UniWorld/mask"
    DESCRIPTION = (
        "Takes the edited part from the picture after the edit and everything else from the picture before it, bit for "
        "bit, at that picture's size."
    )
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The picture before the edit with only the masked part replaced.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "before": ("IMAGE", {"tooltip": "The original. The result has its size."}),
                "after": ("IMAGE", {"tooltip": "The edited picture. Another size is resized, bicubic."}),
                "mask": (
                    "MASK",
                    {
                        "tooltip": "What to take from the edited picture, as from UniWorld Edit Mask. Another size is resized."
                    },
                ),
                "feather": (
                    "INT",
                    {
                        "default": 8,
                        "min": 0,
                        "max": 1024,
                        "tooltip": "Over how many pixels the edit fades in from the mask's edge. It fades inward, so that "
                        "nothing outside the mask changes.",
                    },
                ),
            }
        }

    def execute(self, before: Any, after: Any, mask: Any, feather: int) -> tuple[Any]:
        from ...uniworld_core.editing import masks

        after, mask = masks.fit_edit(before, after, mask)
        return (masks.composite_edit(before, after, mask, feather),)


NODES = {"UniWorldEditMask": EditMask, "UniWorldCompositeEdit": CompositeEdit}
