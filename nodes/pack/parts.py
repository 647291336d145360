"""What the `UNIWORLD_*` wires carry: parts of the model that load when first used, under the host's memory management."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import host

if TYPE_CHECKING:
    import torch

    from ...uniworld_core import Conversation
    from ...uniworld_core.families.uniworld_v1.understanding import Understanding
    from ...uniworld_core.loading.parts import PartSet
    from ...uniworld_core.loading.storage import Storage
    from ...uniworld_core.prompts.scope import Scope
    from ...uniworld_core.sampling.flow import Shift
    from ...uniworld_core.sampling.latents import LatentFormat
    from .wires import EncoderWire, TextEncoder, TextPooler, Wired

T = TypeVar("T")

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class HeldPart(Generic[T]):
    """One part of a model, under the host's memory management.

    Attributes:
        parts: of the model.
        name: which of them.
        storage: how its weights are held; a dtype for floats of that dtype.
        device: one of the host's devices.
    """

    parts: PartSet
    name: str
    storage: torch.dtype | Storage
    device: str
    _held: host.Held[Any] | None = field(default=None, repr=False)

    def on_device(self, working_memory: int = 0) -> T:
        """The part on its compute device, loaded if this is the first use, with so many bytes to be free beside it."""
        from ...uniworld_core.loading.storage import set_compute

        here = host.current()
        here.check_interrupt()
        if self._held is None:

            def load() -> Any:
                return self.parts[self.name].load(self.storage, here.offload_device(self.device))

            self._held = here.hold(load(), self.device, load)
        part: T = self._held.on_device(working_memory)
        # Whatever the host has moved: it may leave weights elsewhere that do not fit.
        set_compute(part, device=here.load_device(self.device))
        return part


@dataclass(kw_only=True)
class DiTPart(HeldPart[Any]):
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
class VAEPart(HeldPart[Any]):
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

    clip: Wired[TextPooler]
    t5: Wired[TextEncoder]


@dataclass
class VLMPart:
    """The VLM with its projectors and routing head, and the CLIP that pools the empty prompt where no T5 is used.

    Attributes:
        scope: what the model knows, if it is one of a small world.
    """

    part: Wired[Understanding]
    clip: Wired[TextPooler]
    scope: Scope | None = None
    _pooled_empty: torch.Tensor | None = field(default=None, repr=False)

    def on_device(self) -> Understanding:
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
    siglip: EncoderWire
    dit: DiTPart
    vae: VAEPart
    text: TextParts


def open_parts(checkpoint: Path, flux: Path, siglip: Path, dtype_name: str, device: str) -> Loaded:
    """The parts of a model in these folders. Names and shapes are checked now, weights are read when first used.

    Raises:
        UniWorldError: files that are missing, damaged or do not fit; they are named.
    """
    from ...uniworld_core.backbones.flux_dit import token_bytes
    from ...uniworld_core.backbones.flux_latents import FLUX_SHIFT
    from ...uniworld_core.backbones.flux_vae import PIXEL_BYTES, read_native_side
    from ...uniworld_core.families.uniworld_v1.checkpoint import UniWorldParts
    from ...uniworld_core.prompts.scope import read_scope

    parts = UniWorldParts(checkpoint, flux, siglip)
    parts.check()
    dtype = torch_dtype(dtype_name, host.current().load_device(device))
    clip: HeldPart[Any] = HeldPart(parts, "clip", dtype, device)
    return Loaded(
        vlm=VLMPart(HeldPart(parts, "understanding", dtype, device), clip, read_scope(checkpoint)),
        siglip=HeldPart(parts, "siglip", dtype, device),
        dit=DiTPart(
            parts,
            "dit",
            dtype,
            device,
            native_side=read_native_side(flux),
            latent_format=parts.latent_format,
            shift=FLUX_SHIFT,
            token_bytes=token_bytes(parts.config.denoiser_width),
        ),
        vae=VAEPart(parts, "vae", dtype, device, latent_format=parts.latent_format, pixel_bytes=PIXEL_BYTES),
        text=TextParts(clip, HeldPart(parts, "t5", dtype, device)),
    )


def torch_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; `auto` is bfloat16 on a GPU, as published, and float32 on a CPU."""
    import torch

    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    return getattr(torch, name)
