"""LATENT in ComfyUI's form, tagged with the name of the family that the samples belong to.

Latents of two families can have the same shape: UniPic's and FLUX's both have 16 channels, at 1/16 and 1/8 of the image
size. In the other family's sampler or decoder they would give a broken image without an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...uniworld_core.errors import UniWorldError

if TYPE_CHECKING:
    import torch

    from ...uniworld_core.sampling.latents import LatentFormat
    from .wires import Latent

# ComfyUI's own latent nodes preserve keys that they do not know.
FORMAT_KEY: Final = "uniworld_format"


def to_latent(samples: torch.Tensor, latent_format: LatentFormat, like: Latent | None = None) -> Latent:
    """Return samples of a format as a LATENT.

    Args:
        like: the LATENT that the samples were made from; its other keys are kept.
    """
    latent: Latent = {"samples": samples, FORMAT_KEY: latent_format.name}
    return latent if like is None else {**like, **latent}


def samples_of(latent: Latent, latent_format: LatentFormat, node: str) -> torch.Tensor:
    """Return the samples of a LATENT for a node whose model works on `latent_format`.

    A LATENT without a format, as from ComfyUI's own nodes, counts as FLUX's if its shape fits.

    Raises:
        UniWorldError: there are no samples, or they belong to another family.
    """
    from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS

    samples = latent.get("samples")
    if samples is None:
        raise UniWorldError(
            f"The latent for {node} has no samples: connect the output of UniWorld Empty Latent or UniWorld VAE Encode."
        )
    found = latent.get(FORMAT_KEY, FLUX_LATENTS.name if FLUX_LATENTS.fits(samples.shape) else None)
    if found is not None and found != latent_format.name:
        belongs = (
            "belongs to the family"
            if FORMAT_KEY in latent
            else "names no family and has the shape of latents of the family"
        )
        raise UniWorldError(
            f"The latent {belongs} '{found}', but the model of {node} belongs to the family '{latent_format.name}': connect "
            f"dit of this model to UniWorld Empty Latent, or its vae to UniWorld VAE Encode; or decode the latent with the "
            f"VAE of '{found}'."
        )
    return samples
