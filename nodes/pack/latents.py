"""LATENT in ComfyUI's form, tagged with the family that the samples belong to and the normalization of their VAE.

Latents of two families can have the same shape: UniPic's and FLUX's both have 16 channels, at 1/16 and 1/8 of the image
size. So have those of two VAEs of a family: nano has one of its own. In the sampler or decoder of the other they would give
a broken image without an error. ComfyUI's own samplers and decoders do not look at the tags, so a LATENT of a family that
none of them can use keeps its samples from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from ...uniworld_core.errors import UniWorldError

if TYPE_CHECKING:
    import torch

    from ...uniworld_core.sampling.latents import LatentFormat
    from .wires import Latent, Normalization

# ComfyUI's own latent nodes preserve keys that they do not know.
FORMAT_KEY: Final = "uniworld_format"
NORMALIZATION_KEY: Final = "uniworld_normalization"
# The samples of a `PrivateLatent`.
PRIVATE_KEY: Final = "uniworld_samples"


class PrivateLatent(dict[str, Any]):
    """LATENT whose samples only UniWorld's nodes use. Reading "samples", as the nodes of ComfyUI do, is an error.

    Copies have the same class, because nodes such as ComfyUI's SetLatentNoiseMask copy a LATENT to change other keys.
    """

    def __missing__(self, key: str) -> Any:
        if key != "samples":
            raise KeyError(key)
        raise UniWorldError(
            f"The latent belongs to the family '{self.get(FORMAT_KEY)}', which this node cannot use: connect it to UniWorld "
            "VAE Decode, and use the image instead."
        )

    def copy(self) -> PrivateLatent:
        """Return a shallow copy."""
        return type(self)(self)


def to_latent(samples: torch.Tensor, latent_format: LatentFormat, like: Latent | None = None) -> Latent:
    """Return samples of a format as a LATENT.

    Args:
        like: the LATENT that the samples were made from; its other keys are kept.
    """
    made = empty_latent(samples, latent_format)
    made[NORMALIZATION_KEY] = _normalization(latent_format)
    if like is not None:
        made.update({key: value for key, value in like.items() if key not in made})  # type: ignore[typeddict-item]
    return made


def empty_latent(samples: torch.Tensor, latent_format: LatentFormat) -> Latent:
    """Return samples that only give a size, which every VAE of the family has, as a LATENT."""
    if not latent_format.in_comfyui:
        return cast("Latent", PrivateLatent({PRIVATE_KEY: samples, FORMAT_KEY: latent_format.name}))
    return {"samples": samples, FORMAT_KEY: latent_format.name}


def samples_of(latent: Latent, latent_format: LatentFormat, node: str) -> torch.Tensor:
    """Return the samples of a LATENT for a node whose model works on `latent_format`.

    A LATENT without a format, as from ComfyUI's own nodes, counts as FLUX's if its shape fits. It never counts as that of
    a family that ComfyUI lacks.

    Raises:
        UniWorldError: there are no samples, or they belong to another family or to another VAE.
    """
    samples: torch.Tensor | None = latent.get("samples", latent.get(PRIVATE_KEY))
    if samples is None:
        raise UniWorldError(
            f"The latent for {node} has no samples: connect the output of UniWorld Empty Latent or UniWorld VAE Encode."
        )
    _check_family(latent, samples, latent_format, node)
    made, wanted = latent.get(NORMALIZATION_KEY), _normalization(latent_format)
    if made is not None and made != wanted:
        raise UniWorldError(
            f"The latent belongs to a VAE with shift {made[0]} and scale {made[1]}, but the model of {node} to one with shift "
            f"{wanted[0]} and scale {wanted[1]}: use dit and vae of the same Load UniWorld."
        )
    return samples


def _check_family(latent: Latent, samples: torch.Tensor, latent_format: LatentFormat, node: str) -> None:
    """Raise UniWorldError if the samples of a LATENT belong to another family."""
    from ...uniworld_core.backbones.flux_latents import FLUX_LATENTS

    found = latent.get(FORMAT_KEY, FLUX_LATENTS.name if FLUX_LATENTS.fits(samples.shape) else None)
    if found == latent_format.name:
        return
    if FORMAT_KEY in latent:
        belongs = f"belongs to the family '{found}'"
    elif found is not None:
        belongs = f"names no family and has the shape of latents of the family '{found}'"
    elif latent_format.in_comfyui:
        return  # the model reports whether the shape fits
    else:
        belongs = "names no family"
    decoder = f"the VAE of '{found}'" if found else "the VAE that it was made for"
    raise UniWorldError(
        f"The latent {belongs}, but the model of {node} belongs to the family '{latent_format.name}': connect dit of this "
        f"model to UniWorld Empty Latent, or its vae to UniWorld VAE Encode; or decode the latent with {decoder}."
    )


def _normalization(latent_format: LatentFormat) -> Normalization:
    return latent_format.shift, latent_format.scale
