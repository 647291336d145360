"""What a model family is: how its folders are opened, and what its models do with a prompt.

A family brings what `Family` names; the sampler, the library, the nodes and the files of workflows are the same for all.
`table.py` finds the family of a folder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

import torch

from ..errors import UniWorldError
from ..loading.parts import Part, PartSet
from ..prompts.conversation import Conversation
from ..sampling.condition import Condition
from ..sampling.flow import Shift
from ..sampling.latents import LatentFormat

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFolders:
    """Where the files of a model lie.

    Attributes:
        checkpoint: by which the family is known.
        flux: a FLUX.1-dev folder in diffusers layout, for a family that takes one.
        siglip: a SigLIP folder, likewise.
    """

    checkpoint: Path
    flux: Path | None = None
    siglip: Path | None = None


@dataclass(frozen=True)
class PaintingFacts:
    """What is known of a model before any weight is read, for those that make latents for it.

    Attributes:
        latent_format: of the latents that it paints and that its VAE takes.
        shift: of its noise levels.
        native_side: side in pixels of the square pictures that it was made for.
        token_bytes: memory that one token, of text or of a latent, takes while it paints.
        pixel_bytes: memory that one pixel takes while its VAE works.
    """

    latent_format: LatentFormat
    shift: Shift
    native_side: int
    token_bytes: int
    pixel_bytes: int


# What a part is called where a family has none, and what is done instead.
_LACKING = {
    "understanding": "no part that reads prompts",
    "siglip": "no SigLIP: make references without it (use_siglip=False, or nothing wired into siglip)",
    "dit": "no painter",
    "vae": "no VAE: use another model's for its latents",
    "clip": "no CLIP: encode without it (use_t5=False, or nothing wired into text)",
    "t5": "no T5: encode without it (use_t5=False, or nothing wired into text)",
}

# The names that nodes ask for.
PART_NAMES = tuple(_LACKING)


class FamilyParts(PartSet):
    """The parts of one model of a family. These names mean the same in all families, and each may lack some:
    `understanding` reads prompts, `siglip` sees references, `dit` is the painter, `vae` makes pictures and latents of each
    other, `clip` and `t5` read text.

    Args:
        family: its name.
        describe, present: as in `PartSet`.

    Attributes:
        names: of the parts that the family has, these and others.
        within: of those that are attributes of another part: its name. A host holds the other whole, and not both.
    """

    within: ClassVar[Mapping[str, str]] = {}

    def __init__(self, family: str, describe: Mapping[str, Callable[[], Part[Any]]], present: Sequence[str]) -> None:
        super().__init__(describe, present)
        self.family, self.names = family, tuple(describe)

    def __contains__(self, name: str) -> bool:
        """Whether the family has a part of that name."""
        return name in self.names

    def __getitem__(self, name: str) -> Part[Any]:
        """As `PartSet`; a part that the family lacks is a UniWorldError that says so."""
        if name not in self:
            raise UniWorldError(f"{self.family} has {_LACKING.get(name, f'no part {name}')}.")
        return super().__getitem__(name)

    @property
    def facts(self) -> PaintingFacts:
        """What is known of the model. Raises UniWorldError if a configuration that says so is missing or damaged."""
        raise NotImplementedError(f"{type(self).__name__} says nothing of its latents")


class LoadedParts:
    """The parts of a model, ready to compute: the library holds them itself, nodes have the host's memory management.

    Args:
        get: gives the part of a name. Raises UniWorldError if the family lacks it, or it cannot be loaded.
    """

    def __init__(self, get: Callable[[str], Any]) -> None:
        self._get = get
        self._kept: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._get(name)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gave when it was first asked for under that name: such as what a model reads in the empty prompt.

        It is computed without gradients and outside inference mode, whose tensors a later trainer could not use.
        """
        if name not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                self._kept[name] = make()
        kept: T = self._kept[name]
        return kept


@dataclass(frozen=True, eq=False)
class Route:
    """What the routing head says of a batch.

    Attributes:
        logits: (B, 2) float32: answer, paint.
        probabilities: (B, 2), their softmax.
        paint: (B,) bool: True where the model is to paint.
    """

    logits: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        """(B, 2), the softmax of the logits."""
        return self.logits.softmax(dim=-1)

    @property
    def paint(self) -> torch.Tensor:
        """(B,) bool: logit 1 beats logit 0."""
        return self.logits[:, 0] < self.logits[:, 1]


class Family(Protocol):
    """A model family. It opens its models and encodes prompts; what else it does not override, its models cannot do.

    Attributes:
        name: for people, such as "UniWorld-V1".
        companions: which folders besides the checkpoint it is opened with: of "flux" and "siglip".
    """

    name: str
    companions: tuple[str, ...]

    @abstractmethod
    def open(self, folders: ModelFolders) -> FamilyParts:
        """The parts of a model, of which nothing is read yet."""

    @abstractmethod
    def encode(
        self, parts: LoadedParts, conversations: Sequence[Conversation], t5_length: int | None = None
    ) -> Condition:
        """The condition of a batch of conversations, each of which ends with the user's turn.

        Args:
            t5_length: in a family where T5 is optional, its tokens of the last instruction, padded; None leaves T5 out.

        Raises:
            UniWorldError: a conversation that the model cannot read, or a part that is missing.
        """

    def understand(
        self,
        parts: LoadedParts,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> list[str]:
        """An answer in words to each conversation.

        Args:
            max_new_tokens: where an answer is cut.
            temperature: 0 for the likeliest answer.
            seed: of the random choice above 0.
            callback: called with the number of tokens so far; what it raises ends the answer.

        Raises:
            UniWorldError: as `encode`, or the family does not answer.
        """
        self._lacks("does not answer in words: use another model for UniWorld Understand")

    def route(self, parts: LoadedParts, conversations: Sequence[Conversation]) -> Route:
        """Whether each conversation asks for a picture. Raises UniWorldError as `encode`, or without a routing head."""
        self._lacks("has no routing head, which decides between painting and answering: choose yourself")

    def layout(self, config: Mapping[str, Any], siglip_width: int | None) -> dict[str, tuple[int, ...]]:
        """{tensor name: shape} of a checkpoint of that `config.json`; see `UniWorld.checkpoint_layout`."""
        self._lacks("has no layout that can be computed from its config.json alone")

    def _lacks(self, what: str) -> NoReturn:
        raise UniWorldError(f"{self.name} {what}.")
