"""The list of built-in nodes. They have ComfyUI's names, inputs and outputs, so that a workflow runs in both.

VAEDecode and VAEEncode are not included: they take ComfyUI's VAE type, and our VAE has the type UNIWORLD_VAE.
"""

from __future__ import annotations

from ...declare import by_id
from . import images as images
from . import masks as masks
from . import primitives as primitives

NODE_CLASS_MAPPINGS = by_id(
    images.LoadImage,
    images.LoadImageMask,
    images.SaveImage,
    images.PreviewImage,
    images.ImageScale,
    images.ImageBatch,
    images.RebatchImages,
    images.GetImageSize,
    masks.MaskToImage,
    masks.ImageToMask,
    masks.InvertMask,
    primitives.PrimitiveInt,
    primitives.PrimitiveFloat,
    primitives.PrimitiveString,
    primitives.PrimitiveStringMultiline,
    primitives.PrimitiveBoolean,
    primitives.PreviewAny,
)

NODE_DISPLAY_NAME_MAPPINGS = {name: node.DISPLAY_NAME for name, node in NODE_CLASS_MAPPINGS.items()}
