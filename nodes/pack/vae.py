"""VAE decode and encode: between latents and pictures."""

from __future__ import annotations

from typing import Any

# Bytes the VAE's widest layers take for one pixel of one picture (128 channels, float32, input and output).
_BYTES_PER_PIXEL = 2048

_VAE = ("UNIWORLD_VAE", {"tooltip": "The VAE from Load UniWorld."})


class VAEDecode:
    """Latents to pictures."""

    DISPLAY_NAME = "UniWorld VAE Decode"
    SEARCH_ALIASES = ["latent to image", "decode"]
    CATEGORY = "UniWorld/latent"
    DESCRIPTION = "Turns painted latents into pictures with the VAE of the FLUX folder."
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The pictures.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": _VAE,
                "latent": ("LATENT", {"tooltip": "From UniWorld Sampler, or any FLUX latent."}),
            }
        }

    def execute(self, vae: Any, latent: dict[str, Any]) -> tuple[Any]:
        samples = latent["samples"]
        pixels = samples.shape[0] * samples.shape[-2] * samples.shape[-1] * 64
        return (vae.on_device(working_memory=pixels * _BYTES_PER_PIXEL).decode(samples).cpu(),)


class VAEEncode:
    """Pictures to latents."""

    DISPLAY_NAME = "UniWorld VAE Encode"
    SEARCH_ALIASES = ["image to latent", "encode", "img2img"]
    CATEGORY = "UniWorld/latent"
    DESCRIPTION = "Turns pictures into latents with the VAE of the FLUX folder, to start from with denoise under 1."
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("latent",)
    OUTPUT_TOOLTIPS = ("The latent of the pictures.",)
    FUNCTION = "execute"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "vae": _VAE,
                "image": ("IMAGE", {"tooltip": "Pictures whose sides are multiples of 16; scale others first."}),
            }
        }

    def execute(self, vae: Any, image: Any) -> tuple[dict[str, Any]]:
        pixels = image.shape[0] * image.shape[1] * image.shape[2]
        return ({"samples": vae.on_device(working_memory=pixels * _BYTES_PER_PIXEL).encode(image).cpu()},)


NODES = {"UniWorldVAEDecode": VAEDecode, "UniWorldVAEEncode": VAEEncode}
