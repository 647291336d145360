"""What travels on the wires, as Python's types; `declare.WireType` has ComfyUI's names of them.

What the nodes ask of a part of a model is a protocol, so that parts of other families can be wired as well. IMAGE, MASK
and SIGMAS are plain tensors, and UNIWORLD_REFERENCE and UNIWORLD_CONVERSATION the core's `References` and `Conversation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar

if TYPE_CHECKING:
    import torch

    from ...uniworld_core.families.family import PaintingFacts, Route
    from ...uniworld_core.prompts.conversation import Conversation
    from ...uniworld_core.prompts.reference import PictureEncoder
    from ...uniworld_core.sampling.condition import Condition
    from ...uniworld_core.sampling.painter import Painter

LoadedPart = TypeVar("LoadedPart", covariant=True)


class _Samples(TypedDict):
    samples: torch.Tensor


class Latent(_Samples, total=False):
    """LATENT, with ComfyUI's keys and our mark; other nodes may add more.

    Keys:
        samples: (B, C, h, w), or (B, C, 1, h, w).
        noise_mask: (B, H, W), 1 where it is to be painted.
        uniworld_format: the name of a `LatentFormat`.
    """

    noise_mask: torch.Tensor
    uniworld_format: str


# ComfyUI's: lists of tokens (B, L, D) and a dict with "pooled_output" (B, P) and "guidance".
Conditioning: TypeAlias = "list[list[Any]]"

# ComfyUI's: it can be read like a mapping.
ClipVisionOutput: TypeAlias = "Mapping[str, torch.Tensor]"


class Wired(Protocol[LoadedPart]):
    """A part of a model that is loaded when it is first used."""

    def on_device(self, working_memory: int = 0) -> LoadedPart:
        """The part on its compute device, with so many bytes to be free beside it."""


class DiTWire(Protocol):
    """UNIWORLD_DIT, with what is known of the model before it is loaded."""

    facts: PaintingFacts

    def on_device(self, working_memory: int = 0) -> Painter:
        """As `Wired`."""


class LatentCodec(Protocol):
    """What turns pictures (B, H, W, 3) in 0..1 into latents and back."""

    def decode(self, z: torch.Tensor, /) -> torch.Tensor: ...

    def encode(self, image: torch.Tensor, /) -> torch.Tensor: ...


class VAEWire(Wired[LatentCodec], Protocol):
    """UNIWORLD_VAE, with what is known of the model before it is loaded."""

    facts: PaintingFacts


SiglipWire: TypeAlias = "Wired[PictureEncoder]"  # UNIWORLD_SIGLIP


class TextPooler(Protocol):
    """What sums prompts up, as CLIP."""

    def pool(self, prompts: Sequence[str]) -> torch.Tensor:
        """One vector a prompt: (B, P)."""


class TextEncoder(Protocol):
    """What makes tokens of prompts, as T5."""

    def tokens(self, prompts: Sequence[str], length: int) -> torch.Tensor:
        """Tokens (B, length, D)."""


class TextWire(Protocol):
    """UNIWORLD_TEXT."""

    @property
    def clip(self) -> Wired[TextPooler]: ...

    @property
    def t5(self) -> Wired[TextEncoder]: ...


class VLMWire(Protocol):
    """UNIWORLD_VLM."""

    def warn_of_unknown(self, conversation: Conversation) -> None:
        """Warn the user of words and pictures in a conversation that the model knows nothing of."""

    def encode(self, conversation: Conversation, text: TextWire | None, t5_length: int) -> Condition:
        """What a conversation asks to paint, of one item, with T5's tokens where `text` is wired."""

    def answer(
        self,
        conversation: Conversation,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        callback: Callable[[int], None],
    ) -> str:
        """The answer to a conversation; `callback` is called with the number of tokens so far."""

    def route(self, conversation: Conversation) -> Route:
        """Whether a conversation asks for a picture."""
