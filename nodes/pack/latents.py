"""LATENT in ComfyUI's form, tagged with the family that the samples belong to and the normalization of their VAE.

Latents of two families can have the same shape: UniPic's and FLUX's both have 16 channels, at 1/16 and 1/8 of the image
size. So have those of two VAEs of a family: nano has one of its own. In the sampler or decoder of the other they would give
a broken image without an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...uniworld_core.errors import UniWorldError

if TYPE_CHECKING:
    import torch

    from ...uniworld_core.sampling.latents import LatentFormat
    from .wires import Latent, Normalization

# ComfyUI's own latent nodes preserve keys that they do not know.
FORMAT_KEY: Final = "uniworld_format"
NORMALIZATION_KEY: Final = "uniworld_normalization"


def to_latent(samples: torch.Tensor, latent_format: LatentFormat, like: Latent | None = None) -> Latent:
    """Return samples of a format as a LATENT.

    Args:
        like: the LATENT that the samples were made from; its other keys are kept.
    """
    made = empty_latent(samples, latent_format)
    made[NORMALIZATION_KEY] = _normalization(latent_format)
    return made if like is None else {**like, **made}


def empty_latent(samples: torch.Tensor, latent_format: LatentFormat) -> Latent:
    """Return samples that only give a size, which every VAE of the family has, as a LATENT."""
    return {"samples": samples, FORMAT_KEY: latent_format.name}


def samples_of(latent: Latent, latent_format: LatentFormat, node: str) -> torch.Tensor:
    """Return the samples of a LATENT for a node whose model works on `latent_format`.

    A LATENT without a format, as from ComfyUI's own nodes, counts as FLUX's if its shape fits.

    Raises:
        UniWorldError: there are no samples, or they belong to another family or to another VAE.
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
    made, wanted = latent.get(NORMALIZATION_KEY), _normalization(latent_format)
    if made is not None and made != wanted:
        raise UniWorldError(
            f"The latent belongs to a VAE with shift {made[0]} and scale {made[1]}, but the model of {node} to one with shift "
            f"{wanted[0]} and scale {wanted[1]}: use dit and vae of the same Load UniWorld."
        )
    return samples


def _normalization(latent_format: LatentFormat) -> Normalization:
    return latent_format.shift, latent_format.scale
