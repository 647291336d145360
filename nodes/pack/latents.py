"""LATENT on the wires: ComfyUI's form, and in it the name of the family of latents that the samples are of.

Latents of two families can have the same shape (UniPic's and FLUX's have 16 channels, at 1/16 and 1/8 of the picture), and
one in the other's sampler or decoder would give a broken picture without an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...uniworld_core.errors import UniWorldError

if TYPE_CHECKING:
    import torch

    from ...uniworld_core.sampling.latents import LatentFormat
    from .wires import Latent

# ComfyUI's own latent nodes pass keys on that they do not know.
MARK: Final = "uniworld_format"


def marked(samples: torch.Tensor, latent_format: LatentFormat, like: Latent | None = None) -> Latent:
    """Samples of a format as a LATENT, with what else the LATENT they were made from carries."""
    made: Latent = {"samples": samples, MARK: latent_format.name}
    return made if like is None else {**like, **made}


def samples_of(latent: Latent, latent_format: LatentFormat, node: str) -> torch.Tensor:
    """The samples of a LATENT for a node whose model takes a format.

    One without a mark, as ComfyUI's own nodes make, is taken for FLUX's if its shape is one that FLUX has.

    Raises:
        UniWorldError: it is marked, or taken, as of another family.
    """
    from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS

    samples = latent["samples"]
    found = latent.get(MARK, FLUX_LATENTS.name if FLUX_LATENTS.fits(samples.shape) else None)
    if found is not None and found != latent_format.name:
        carries = f"is of the family '{found}'" if MARK in latent else f"carries no mark and has the shape of '{found}'"
        raise UniWorldError(
            f"The latent {carries}, and the model of {node} takes latents of '{latent_format.name}': make the latent with "
            f"a '{latent_format.name}' model (wire its dit into UniWorld Empty Latent, or its vae into UniWorld VAE Encode), "
            f"or turn this one into a picture with the VAE of '{found}'."
        )
    return samples
