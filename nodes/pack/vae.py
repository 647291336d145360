"""UniWorld VAE Decode and UniWorld VAE Encode: convert latents to images and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..declare import Input, Inputs, Node, Output, by_id
from .latents import samples_of, to_latent

if TYPE_CHECKING:
    from torch import Tensor

    from .wires import Latent, VAEWire

_VAE = Input.wire("vae", "UNIWORLD_VAE", "The VAE from Load UniWorld.")


class VAEDecode(Node):
    """Decode latents to images."""

    ID = "UniWorldVAEDecode"
    DISPLAY_NAME = "UniWorld VAE Decode"
    SEARCH_ALIASES = ["latent to image", "decode"]
    CATEGORY = "UniWorld/latent"
    DESCRIPTION = "Decodes latents to images with the model's VAE."
    OUTPUTS = (Output("image", "IMAGE", "The images."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return _VAE, Input.wire("latent", "LATENT", "The latent from UniWorld Sampler, or any FLUX latent.")

    def execute(self, vae: VAEWire, latent: Latent) -> tuple[Tensor]:
        samples = samples_of(latent, vae.facts.latent_format, self.DISPLAY_NAME)
        pixels = samples.shape[0] * samples.shape[-2] * samples.shape[-1] * vae.facts.latent_format.factor**2
        return (vae.on_device(working_memory=pixels * vae.facts.pixel_bytes).decode(samples).cpu(),)


class VAEEncode(Node):
    """Encode images to latents."""

    ID = "UniWorldVAEEncode"
    DISPLAY_NAME = "UniWorld VAE Encode"
    SEARCH_ALIASES = ["image to latent", "encode", "img2img"]
    CATEGORY = "UniWorld/latent"
    DESCRIPTION = "Encodes images to latents with the model's VAE, as a start for denoise below 1."
    OUTPUTS = (Output("latent", "LATENT", "The latent of the images."),)

    @classmethod
    def inputs(cls) -> Inputs:
        return _VAE, Input.wire("image", "IMAGE", "Images whose sides are multiples of 16. Resize other images first.")

    def execute(self, vae: VAEWire, image: Tensor) -> tuple[Latent]:
        pixels = image.shape[0] * image.shape[1] * image.shape[2]
        z = vae.on_device(working_memory=pixels * vae.facts.pixel_bytes).encode(image).cpu()
        return (to_latent(z, vae.facts.latent_format),)


NODES = by_id(VAEDecode, VAEEncode)
