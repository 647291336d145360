"""What the `UNIWORLD_*` wires carry: parts of the model that load when first used, under the host's memory management."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import host

if TYPE_CHECKING:
    import torch

    from ...uniworld_core import Conversation
    from ...uniworld_core.prompts.scope import Scope
    from ...uniworld_core.sampling.flow import Shift
    from ...uniworld_core.sampling.latents import LatentFormat

T = TypeVar("T")

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class Part(Generic[T]):
    """One part of the model.

    Attributes:
        load: reads the part's weights to a device.
        device: one of the host's devices.
    """

    load: Callable[[torch.device], T]
    device: str
    _held: Any = field(default=None, repr=False)

    def on_device(self, working_memory: int = 0) -> T:
        """The part on its compute device, loaded if this is the first use, with so many bytes to be free beside it."""
        here = host.current()
        here.check_interrupt()
        if self._held is None:

            def load() -> Any:
                return self.load(here.offload_device(self.device))

            self._held = here.hold(load(), self.device, load)
        return self._held.on_device(working_memory)


@dataclass(kw_only=True)
class DiTPart(Part[Any]):
    """The DiT.

    Attributes:
        native_side: side in pixels of the square pictures that the model was made for.
        latent_format: of the latents that it paints.
        shift: of its noise levels.
        token_bytes: memory that one token, of text or of a latent, takes while it computes.
    """

    native_side: int
    latent_format: LatentFormat
    shift: Shift
    token_bytes: int


@dataclass(kw_only=True)
class VAEPart(Part[Any]):
    """The VAE.

    Attributes:
        latent_format: of the latents that it makes.
        pixel_bytes: memory that one pixel of a picture takes while it computes.
    """

    latent_format: LatentFormat
    pixel_bytes: int


@dataclass
class TextParts:
    """FLUX's CLIP and T5."""

    clip: Part[Any]
    t5: Part[Any]


@dataclass
class VLMPart:
    """The VLM with its projectors and routing head, and the CLIP that pools the empty prompt where no T5 is used.

    Attributes:
        scope: what the model knows, if it is one of a small world.
    """

    part: Part[Any]
    clip: Part[Any]
    scope: Scope | None = None
    _pooled_empty: Any = field(default=None, repr=False)

    def on_device(self) -> Any:
        return self.part.on_device()

    def warn_of_unknown(self, conversation: Conversation) -> None:
        """Warn the user of words and pictures in a conversation that the model knows nothing of."""
        if self.scope is not None and (sentence := self.scope.outside(conversation)) is not None:
            host.current().warn(sentence)

    def pooled_empty(self) -> torch.Tensor:
        """CLIP's pooled empty prompt (1, P), computed once."""
        if self._pooled_empty is None:
            self._pooled_empty = self.clip.on_device().pool([""]).cpu()
        return self._pooled_empty


@dataclass(frozen=True)
class Loaded:
    """All parts of one model, none read yet."""

    vlm: VLMPart
    siglip: Part[Any]
    dit: DiTPart
    vae: VAEPart
    text: TextParts


def open_parts(checkpoint: Path, flux: Path, siglip: Path, dtype_name: str, device: str) -> Loaded:
    """The parts of a model in these folders. Names and shapes are checked now, weights are read when first used.

    Raises:
        UniWorldError: files that are missing, damaged or do not fit; they are named.
    """
    from ...uniworld_core import VAE, SigLIP, UniWorld
    from ...uniworld_core.backbones.flux_dit import token_bytes
    from ...uniworld_core.backbones.flux_latents import FLUX_SHIFT, read_latent_format
    from ...uniworld_core.backbones.flux_text import CLIP, T5
    from ...uniworld_core.backbones.flux_vae import PIXEL_BYTES, read_native_side
    from ...uniworld_core.families.uniworld_v1.checkpoint import load_dit
    from ...uniworld_core.families.uniworld_v1.config import UniWorldConfig
    from ...uniworld_core.families.uniworld_v1.understanding import Understanding
    from ...uniworld_core.prompts.scope import read_scope

    UniWorld.from_pretrained(checkpoint, flux=flux, siglip=siglip)
    dtype = torch_dtype(dtype_name, host.current().load_device(device))
    latent_format = read_latent_format(flux)
    clip: Part[Any] = Part(lambda where: CLIP.from_pretrained(flux, dtype, where), device)
    return Loaded(
        vlm=VLMPart(
            Part(lambda where: Understanding.from_pretrained(checkpoint, dtype, where), device),
            clip,
            read_scope(checkpoint),
        ),
        siglip=Part(lambda where: SigLIP.from_pretrained(siglip, dtype, where), device),
        dit=DiTPart(
            lambda where: load_dit(checkpoint, flux, dtype, where),
            device,
            native_side=read_native_side(flux),
            latent_format=latent_format,
            shift=FLUX_SHIFT,
            token_bytes=token_bytes(UniWorldConfig.read(checkpoint).denoiser_width),
        ),
        vae=VAEPart(
            lambda where: VAE.from_pretrained(flux, dtype, where),
            device,
            latent_format=latent_format,
            pixel_bytes=PIXEL_BYTES,
        ),
        text=TextParts(clip, Part(lambda where: T5.from_pretrained(flux, dtype, where), device)),
    )


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; `auto` is bfloat16 on a GPU, as published, and float32 on a CPU."""
    import torch

    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return getattr(torch, name)
