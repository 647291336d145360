"""The interface of a model family: how its folders are opened, and what its models do with a prompt.

A family implements `Family`. The sampler, the library, the nodes and the workflow files are the same for all families.
`table.py` finds the family of a folder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar

import torch

from ..backbones.generation import OnToken
from ..errors import UniWorldError
from ..images.sizes import Size, size_by_aspect
from ..loading.folders import ModelFolders
from ..loading.parts import Part, PartSet
from ..prompts.conversation import Conversation
from ..prompts.text import check_text
from ..sampling.cache import CACHES
from ..sampling.condition import Condition
from ..sampling.flow import Shift
from ..sampling.latents import LatentFormat
from ..sampling.sampler import paint
from ..sampling.solvers import SOLVERS

T = TypeVar("T")


def _by_aspect(height: float, width: float, side: int) -> Size:
    return size_by_aspect(height, width, side * side)


@dataclass(frozen=True)
class PaintingFacts:
    """What the configuration says about painting with a model, before any weight is read.

    Attributes:
        family: name of the model's family.
        latent_format: format of the latents that the model paints and its VAE decodes.
        shift: shift of the noise levels; None for a model without noise levels, which does not integrate a velocity.
        native_side: side in pixels of the square pictures that the model was trained for.
        token_bytes: working memory of the painter per token, of text or of a latent.
        pixel_bytes: working memory of the VAE per pixel.
        size_for: returns the size to paint for a picture, given its height, its width, and the side of a square of about
            the same area as the result.
    """

    family: str
    latent_format: LatentFormat
    shift: Shift | None
    native_side: int
    token_bytes: int
    pixel_bytes: int
    size_for: Callable[[float, float, int], Size] = _by_aspect


# For each part that a family may lack, the end of the error "FAMILY has ...", with what to do instead.
_LACKING = {
    "understanding": "no part that reads prompts",
    "siglip": "no SigLIP: make references without it (use_siglip=False, or leave the siglip input unconnected)",
    "dit": "no painter",
    "vae": "no VAE: use the VAE of another model with the same latents",
    "clip": "no CLIP: encode without it (use_t5=False, or leave the text input unconnected)",
    "t5": "no T5: encode without it (use_t5=False, or leave the text input unconnected)",
}

# The names by which nodes request parts.
PART_NAMES = tuple(_LACKING)


class FamilyParts(PartSet):
    """The parts of a model of a family.

    These names mean the same in all families, and a family may lack some: `understanding` reads prompts, `siglip` encodes
    references, `dit` is the painter, `vae` encodes and decodes pictures, `clip` and `t5` encode text.

    Args:
        family: name of the family.
        describe, present: as in `PartSet`.

    Attributes:
        names: names of all parts of the family.
        containers: {name: name of the part that has this one as an attribute}. A host manages the memory of the container,
            and must not count the inner part again.
    """

    containers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, family: str, describe: Mapping[str, Callable[[], Part[Any]]], present: Sequence[str]) -> None:
        super().__init__(describe, present)
        self.family, self.names = family, tuple(describe)

    def __contains__(self, name: str) -> bool:
        """Return whether the family has a part of that name."""
        return name in self.names

    def __getitem__(self, name: str) -> Part[Any]:
        """Open the part of that name (`PartSet`). Raises UniWorldError with a remedy if the family lacks it."""
        if name not in self:
            raise UniWorldError(f"{self.family} has {_LACKING.get(name, f'no part {name}')}.")
        return super().__getitem__(name)

    @property
    def facts(self) -> PaintingFacts:
        """What the configuration says about painting. Raises UniWorldError if the configuration is missing or damaged."""
        raise NotImplementedError(f"{type(self).__name__} does not define its painting facts")


class LoadedParts:
    """The loaded parts of a model. The library keeps them in memory; for nodes, the host manages their memory.

    Args:
        get: returns a loaded part by name, with a number of bytes kept free in addition to its weights. Raises UniWorldError
            if the family lacks it or it cannot be loaded.
    """

    def __init__(self, get: Callable[[str, int], Any]) -> None:
        self._get = get
        self._cache: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._get(name, 0)

    def on_device(self, name: str, working_memory: int) -> Any:
        """Return the part, with `working_memory` bytes kept free in addition to its weights."""
        return self._get(name, working_memory)

    def cached(self, name: str, make: Callable[[], T]) -> T:
        """Return the result of `make`, computed on the first call with this name, such as CLIP's pooled empty prompt.

        It is computed without gradients but outside inference mode: autograd rejects tensors made in inference mode, so a
        trainer could not use them later.
        """
        if name not in self._cache:
            with torch.inference_mode(False), torch.no_grad():
                self._cache[name] = make()
        value: T = self._cache[name]
        return value


@dataclass(frozen=True, eq=False)
class Route:
    """The routing head's decision for a batch: answer in text, or paint.

    Attributes:
        logits: (B, 2) float32: (text, image).
        probabilities: (B, 2), the softmax of the logits.
        paint: (B,) bool, True where the prompt asks for a picture.
    """

    logits: torch.Tensor

    @property
    def probabilities(self) -> torch.Tensor:
        """The softmax of the logits, (B, 2)."""
        return self.logits.softmax(dim=-1)

    @property
    def paint(self) -> torch.Tensor:
        """Whether logit 1 is larger than logit 0, (B,) bool."""
        return self.logits[:, 0] < self.logits[:, 1]


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A conversation that a loaded model is ready to answer, token by token.

    Attributes:
        tokenizer: transformers' tokenizer, which decodes the answer.
        length: number of tokens of the prompt, with its pictures.
        generate: generates an answer, given the maximum number of tokens, the temperature, the seed, and a function that is
            called after each token with its id and the log-probabilities (V,), float32, of all tokens in its place, before
            the temperature. An exception from it ends the answer.
    """

    tokenizer: Any
    length: int
    generate: Callable[[int, float, int, OnToken], object]


class Family(Protocol):
    """A model family. `open` and `encode` are required. The other methods say by default that the models cannot do it.

    Attributes:
        name: display name, such as "UniWorld-V1".
        companions: folders that it uses in addition to the checkpoint: any of "flux" and "siglip".
        t5_length: default number of T5 tokens; None for a family without T5.
        steps, guidance: published number of steps and guidance.
        negative: default negative prompt, from which true guidance leads away; None for a family without such guidance.
        answers: whether its models answer in text (`understand`, `prepare`).
        routes: whether its checkpoints may have a routing head (`route`).
        many_turns: whether `encode` and `understand` take conversations of several turns.
    """

    name: str
    companions: tuple[str, ...]
    t5_length: int | None = None
    steps: int = 28
    guidance: float = 3.5
    negative: str | None = None
    answers: bool = False
    routes: bool = False
    many_turns: bool = True

    @abstractmethod
    def open(self, folders: ModelFolders) -> FamilyParts:
        """Return the parts of a model. Nothing is read yet."""

    @abstractmethod
    def encode(
        self, parts: LoadedParts, conversations: Sequence[Conversation], t5_length: int | None = None
    ) -> Condition:
        """Encode a batch of conversations, each ending with a user's turn, to a condition.

        Args:
            t5_length: number of T5 tokens of the last instruction, padded; None to encode without T5. Only for families in
                which T5 is optional.

        Raises:
            UniWorldError: the model cannot read a conversation, or a part is missing.
        """

    def paint(
        self,
        painter: Any,
        condition: Condition,
        size: Size,
        noise: torch.Tensor | Sequence[int],
        steps: int,
        guidance: float,
        *,
        sigmas: torch.Tensor | None = None,
        callback: Callable[[Any], None] | None = None,
        solver: str = SOLVERS[0],
        cache: str = CACHES[0],
    ) -> torch.Tensor:
        """Paint latents with the loaded `dit`, as `sampler.paint`.

        A family whose models do not integrate a velocity has a method of its own, with its own values for `callback`.
        """
        return paint(
            painter,
            condition,
            size,
            noise,
            steps,
            guidance,
            sigmas=sigmas,
            callback=callback,
            solver=solver,
            cache=cache,
        )

    def encode_negative(self, parts: LoadedParts, conversations: Sequence[Conversation], negative: str) -> Condition:
        """Encode the negative prompt of a batch, which goes with the pictures of the conversations (`Condition.negative`).

        Raises:
            UniWorldError: as `encode`, or the family has no true guidance.
        """
        self._lacks("was not trained with a negative prompt: leave it empty")

    def understand(
        self,
        parts: LoadedParts,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answer each conversation in text.

        Args:
            max_new_tokens: maximum length of an answer.
            temperature: 0 for greedy decoding.
            seed: seed for sampling at temperatures above 0.
            callback: called with the number of tokens so far. An exception from it ends the answer.

        Raises:
            UniWorldError: as `encode`, or the family cannot answer.
        """
        self._lacks_answers()

    def prepare(self, parts: LoadedParts, conversation: Conversation) -> PreparedPrompt:
        """Prepare to answer a single conversation, and report each token. Raises UniWorldError as `understand`."""
        self._lacks_answers()

    def route(self, parts: LoadedParts, conversations: Sequence[Conversation]) -> Route:
        """Decide whether each conversation asks for a picture. Raises UniWorldError as `encode`, or without a routing head."""
        self._lacks("has no routing head, which decides between painting and answering: choose yourself")

    def layout(self, config: Mapping[str, Any], siglip_width: int | None) -> dict[str, tuple[int, ...]]:
        """Return {tensor name: shape} of a checkpoint with this `config.json`; see `UniWorld.checkpoint_layout`."""
        self._lacks("has no layout that can be computed from config.json only")

    def _lacks_answers(self) -> NoReturn:
        self._lacks("does not answer in text: use another model for UniWorld Understand")

    def _check_no_t5(self, t5_length: int | None) -> None:
        if t5_length is not None:
            self._lacks("has no T5: encode without it (leave t5_length out, and the text input unconnected)")

    def _lacks(self, what: str) -> NoReturn:
        raise UniWorldError(f"{self.name} {what}.")


def encode_with_negative(
    family: Family,
    parts: LoadedParts,
    conversations: Sequence[Conversation],
    t5_length: int | None = None,
    negative: str | None = "",
) -> Condition:
    """Encode conversations (`Family.encode`) together with their negative prompt, if the family has true guidance.

    Args:
        negative: the negative prompt; if blank, the family's default. None encodes none.

    Raises:
        UniWorldError: as `Family.encode`, or a negative prompt was given to a family without true guidance.
    """
    prompt = negative if negative is None or negative.strip() else family.negative
    if prompt is None:
        return replace(family.encode(parts, conversations, t5_length), family=family.name)
    # First, so that a text encoder is used twice in a row, and not unloaded for the VAE in between.
    opposite = family.encode_negative(parts, conversations, check_text(prompt, "negative prompt"))
    return replace(family.encode(parts, conversations, t5_length), negative=opposite, family=family.name)
