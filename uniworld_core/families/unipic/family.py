"""The UniPic family: one model paints, edits and answers, with a VAE of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...backbones.generation import OnToken
from ...errors import UniWorldError
from ...images.sizes import Size
from ...loading.folders import ModelFolders
from ...prompts.conversation import Conversation
from ...sampling.cache import CACHES
from ...sampling.condition import Condition
from ...sampling.solvers import SOLVERS
from ..family import Family, LoadedParts, PreparedPrompt
from .checkpoint import UniPicParts
from .condition import PictureCodec, encode_requests
from .config import GUIDANCE, ITERATIONS, NAME
from .network import UniPic
from .painting import paint
from .prompts import Request, requests_of
from .understanding import answer, generate_ids, question


class UniPicFamily(Family):
    """The published model: arXiv 2508.03320."""

    name = NAME
    companions = ()
    steps, guidance = ITERATIONS, GUIDANCE
    answers, many_turns = True, False

    def open(self, folders: ModelFolders) -> UniPicParts:
        """Open the folder (`Family.open`)."""
        return UniPicParts(folders.checkpoint)

    def encode(
        self, parts: LoadedParts, conversations: Sequence[Conversation], t5_length: int | None = None
    ) -> Condition:
        """Encode conversations (`Family.encode`), each of one turn with at most one picture, which makes it an edit.

        Pictures are cropped to the native square.
        """
        self._check_no_t5(t5_length)
        requests = requests_of(conversations)
        return encode_requests(parts["dit"], _vae(parts, requests), requests)

    def encode_negative(self, parts: LoadedParts, conversations: Sequence[Conversation], negative: str) -> Condition:
        """Encode the negative prompt, for edits with the picture of each conversation (`Family.encode_negative`)."""
        requests = requests_of(conversations)
        opposite = encode_requests(parts["dit"], _vae(parts, requests), requests, negative=negative).negative
        assert opposite is not None
        return opposite

    def paint(
        self,
        painter: UniPic,
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
        """Paint latents (`painting.paint`, which has more settings); `steps` is the number of iterations.

        Raises:
            UniWorldError: as `painting.paint`, or noise levels, a solver or a cache were chosen: UniPic has none of them.
        """
        if isinstance(noise, torch.Tensor):
            raise UniWorldError(
                f"{NAME} takes the noise of tokens with their order: call families.unipic.painting.paint."
            )
        if sigmas is not None or solver != SOLVERS[0] or cache != CACHES[0]:
            raise UniWorldError(
                f"{NAME} reveals tokens, without noise levels, solver and cache: leave out sigmas, solver and cache."
            )
        return paint(painter, condition, size, noise, steps, guidance, callback=callback)

    def understand(
        self,
        parts: LoadedParts,
        conversations: Sequence[Conversation],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answer conversations (`Family.understand`), each of one turn with at most one picture."""
        requests = requests_of(conversations)
        return answer(parts["dit"], _vae(parts, requests), requests, max_new_tokens, temperature, seed, callback)

    def prepare(self, parts: LoadedParts, conversation: Conversation) -> PreparedPrompt:
        """Prepare to answer a conversation (`Family.prepare`) of one turn with at most one picture."""
        requests = requests_of([conversation])
        model: UniPic = parts["dit"]
        tokens_TD = question(model, _vae(parts, requests), requests[0])

        def generate(max_new_tokens: int, temperature: float, seed: int, on_token: OnToken) -> torch.Tensor:
            return generate_ids(model, tokens_TD, max_new_tokens, temperature, seed, on_token=on_token)

        return PreparedPrompt(model.tokenizer, len(tokens_TD), generate)


def _vae(parts: LoadedParts, requests: Sequence[Request]) -> PictureCodec | None:
    return parts["vae"] if any(request.picture is not None for request in requests) else None
