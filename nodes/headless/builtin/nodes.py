"""Which built-in nodes there are. Their names, inputs and outputs are ComfyUI's, so that one workflow runs in both.

VAEDecode and VAEEncode are not among them: they take ComfyUI's VAE type, and our VAE travels as UNIWORLD_VAE.
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
