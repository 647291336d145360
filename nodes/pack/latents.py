"""LATENT on the wires: ComfyUI's form, marked with the name of the family whose latents the samples are.

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
FORMAT_KEY: Final = "uniworld_format"


def to_latent(samples: torch.Tensor, latent_format: LatentFormat, like: Latent | None = None) -> Latent:
    """Samples of a format as a LATENT, with what else the LATENT they were made from carries."""
    made: Latent = {"samples": samples, FORMAT_KEY: latent_format.name}
    return made if like is None else {**like, **made}


def samples_of(latent: Latent, latent_format: LatentFormat, node: str) -> torch.Tensor:
    """The samples of a LATENT for a node whose model takes a format.

    One without a mark, as ComfyUI's own nodes make, is taken for FLUX's if its shape is one that FLUX has.

    Raises:
        UniWorldError: it has no samples, or is marked, or taken, as of another family.
    """
    from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS

    samples = latent.get("samples")
    if samples is None:
        raise UniWorldError(
            f"The latent for {node} has no samples: wire one from UniWorld Empty Latent or UniWorld VAE Encode."
        )
    found = latent.get(FORMAT_KEY, FLUX_LATENTS.name if FLUX_LATENTS.fits(samples.shape) else None)
    if found is not None and found != latent_format.name:
        belongs = (
            "belongs to the family"
            if FORMAT_KEY in latent
            else "carries no mark and has the shape of latents of the family"
        )
        raise UniWorldError(
            f"The latent {belongs} '{found}', but {node} was given a model of the family '{latent_format.name}': wire dit of "
            f"this model into UniWorld Empty Latent, or its vae into UniWorld VAE Encode; or decode the latent with the VAE "
            f"of '{found}'."
        )
    return samples
