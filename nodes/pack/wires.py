"""Python types of the values on the wires; `declare.WireType` has ComfyUI's names for them.

Parts of a model are protocols, so that parts of other families can be connected as well. IMAGE, MASK and SIGMAS are
plain tensors. UNIWORLD_REFERENCE and UNIWORLD_CONVERSATION are the core's `References` and `Conversation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar

if TYPE_CHECKING:
    import torch

    from ...uniworld_core.families.family import PaintingFacts, PreparedPrompt, Route
    from ...uniworld_core.lora.matching import NetworkLayers
    from ...uniworld_core.prompts.conversation import Conversation
    from ...uniworld_core.prompts.reference import PictureEncoder
    from ...uniworld_core.sampling.condition import Condition
    from ...uniworld_core.sampling.painter import Painter

LoadedPart = TypeVar("LoadedPart", covariant=True)


# `shift` and `scale` of a `LatentFormat`.
Normalization: TypeAlias = "tuple[float | tuple[float, ...], float | tuple[float, ...]]"


class _Samples(TypedDict):
    samples: torch.Tensor


class Latent(_Samples, total=False):
    """LATENT, with ComfyUI's keys and the format of its samples. Other nodes may add more keys.

    Read samples with `latents.samples_of`: those of a family that ComfyUI lacks have another key (`PrivateLatent`).

    Keys:
        samples: (B, C, h, w), or (B, C, 1, h, w).
        noise_mask: (B, H, W), 1 where to paint.
        uniworld_format: the name of a `LatentFormat`.
        uniworld_normalization: shift and scale of the samples' VAE.
    """

    noise_mask: torch.Tensor
    uniworld_format: str
    uniworld_normalization: Normalization


# ComfyUI's form: [tokens (B, L, D), {"pooled_output": (B, P), "guidance": float}] for each entry.
Conditioning: TypeAlias = "list[list[Any]]"

# ComfyUI's class, which can be indexed like a mapping.
ClipVisionOutput: TypeAlias = "Mapping[str, torch.Tensor]"


class Emptyable(Protocol):
    """A wire that is empty if the model's family lacks the part."""

    @property
    def available(self) -> bool:
        """Whether the family has it. Using one that it lacks is an error that names the family and the part."""


class Wired(Emptyable, Protocol[LoadedPart]):
    """A part of a model that is loaded on first use."""

    def on_device(self, working_memory: int = 0) -> LoadedPart:
        """Return the part on its compute device, with `working_memory` bytes kept free in addition to the weights."""


class DiTWire(Protocol):
    """UNIWORLD_DIT, with facts about the model that are known before it is loaded."""

    @property
    def facts(self) -> PaintingFacts: ...

    def layers(self) -> NetworkLayers:
        """Return the layers of its network, known before it is loaded. Raises UniWorldError if it takes no LoRA."""

    def on_device(self, working_memory: int = 0) -> Painter:
        """As `Wired`."""


class LatentCodec(Protocol):
    """Converts images (B, H, W, 3) in 0..1 to latents and back."""

    def decode(self, z: torch.Tensor, /) -> torch.Tensor: ...

    def encode(self, image: torch.Tensor, /) -> torch.Tensor: ...


class VAEWire(Wired[LatentCodec], Protocol):
    """UNIWORLD_VAE, with facts about the model that are known before it is loaded."""

    facts: PaintingFacts


SiglipWire: TypeAlias = "Wired[PictureEncoder]"  # UNIWORLD_SIGLIP


class TextPooler(Protocol):
    """A text encoder that gives one vector per prompt, such as CLIP."""

    def pool(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the pooled embeddings (B, P)."""


class TextEncoder(Protocol):
    """A text encoder that gives a sequence of embeddings per prompt, such as T5."""

    def tokens(self, prompts: Sequence[str], length: int) -> torch.Tensor:
        """Return the token embeddings (B, length, D)."""


class TextWire(Emptyable, Protocol):
    """UNIWORLD_TEXT."""

    @property
    def clip(self) -> Wired[TextPooler]: ...

    @property
    def t5(self) -> Wired[TextEncoder]: ...


class VLMWire(Protocol):
    """UNIWORLD_VLM, with facts about the model that are known before it is loaded."""

    facts: PaintingFacts

    def warn_of_unknown(self, conversation: Conversation) -> None:
        """Warn the user about words and images in a conversation that the model does not know."""

    def encode(
        self, conversation: Conversation, text: TextWire | None, t5_length: int, negative: str = ""
    ) -> Condition:
        """Return the condition of a conversation, a batch of one.

        T5 tokens are included if `text` is connected. If `negative` is blank, the family's default counts.
        """

    def answer(
        self,
        conversation: Conversation,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        callback: Callable[[int], None],
    ) -> str:
        """Return the answer to a conversation; `callback` is called with the number of tokens generated so far."""

    def prepare(self, conversation: Conversation) -> PreparedPrompt:
        """Prepare to answer a conversation token by token, without the warning about unknown words."""

    def route(self, conversation: Conversation) -> Route:
        """Decide whether a conversation requests an image or text."""
