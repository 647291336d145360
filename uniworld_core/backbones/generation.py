"""Text generation with transformers: the settings in a model folder, and checks of every token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ..errors import UniWorldError, shown
from ..loading.dtypes import OVERFLOW
from ..loading.settings import FLAG, TOKEN, either, listed, number, optional, read_json, take, whole
from ..sampling.seeds import check_seed

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Called with the id of a token and the log-probabilities (V,), float32, of all tokens in its place.
OnToken: TypeAlias = "Callable[[int, torch.Tensor], None]"

# Accepted keys of a generation_config.json. Others request search methods that `generate` does not support, or run code.
TEMPERATURE = number(1e-6, 1e6)  # logits are divided by it, and overflow at smaller values
_GENERATION = {
    "bos_token_id": optional(TOKEN),
    "eos_token_id": optional(either(TOKEN, listed(TOKEN, 1, 64))),
    "pad_token_id": optional(TOKEN),
    "do_sample": FLAG,
    "temperature": optional(TEMPERATURE),
    "top_p": optional(number(1e-6, 1)),
    "top_k": optional(whole(0, 2**21)),
    "repetition_penalty": optional(number(1e-3, 1e3)),
}
# A checkpoint's generation_config may set sampling options, of which transformers warns in greedy decoding: reset them.
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def read_generation(folder: Path, text: Mapping[str, Any]) -> GenerationConfig:
    """Read a folder's default settings for text generation.

    Args:
        text: settings of the language model, whose special tokens are used if the file has none.

    Raises:
        UniWorldError: the file is damaged.
    """
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    known = take(read_json(file), _GENERATION, str(file)) if file.exists() else {}
    ids = {key: text[key] for key in ("bos_token_id", "eos_token_id") if key in text}
    return GenerationConfig(**ids | known)


def answer_settings(
    defaults: GenerationConfig, padding: int | None, max_new_tokens: int, temperature: float
) -> GenerationConfig:
    """Return the settings of one answer.

    Args:
        defaults: those of the folder, from `read_generation`. They are not changed.
        padding: the tokenizer's padding token.
        max_new_tokens: maximum length of the answer.
        temperature: 0 for greedy decoding, or from 1e-6 to 1e6.

    Raises:
        UniWorldError: the length or the temperature is out of range.
    """
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise UniWorldError(f"max_new_tokens is {shown(max_new_tokens)}; it must be a whole number of at least 1.")
    if temperature != 0 and not TEMPERATURE.holds(temperature):
        raise UniWorldError(
            f"temperature is {shown(temperature)}; it must be 0 (greedy decoding) or {TEMPERATURE.expected}."
        )
    settings = copy.deepcopy(defaults)
    settings.update(max_new_tokens=max_new_tokens, pad_token_id=padding)
    settings.update(**({"do_sample": True, "temperature": temperature} if temperature > 0 else GREEDY))
    return settings


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators within the block, and restore them after it. Raises UniWorldError for a bad seed."""
    check_seed(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def token_hooks(
    start: int, callback: Callable[[int], None] | None = None, on_token: OnToken | None = None
) -> dict[str, Any]:
    """Return the arguments of transformers' `generate` that check every token and report it.

    Args:
        start: number of tokens of the prompt among those that `generate` passes on.
        callback: called after each token with the number of tokens so far. An exception from it ends the answer.
        on_token: for a single prompt, called after each token with its id and the log-probabilities (V,), float32, of all
            tokens in its place. An exception from it ends the answer.
    """
    processors, criteria = _only_finite(start), _after_each_token(start, callback)
    if on_token is not None:
        logits, choices = _token_reports(on_token)
        processors.append(logits)
        criteria.append(choices)
    return {"logits_processor": processors, "stopping_criteria": criteria}


def _after_each_token(start: int, callback: Callable[[int], None] | None) -> Any:
    """Make a stopping criterion that calls back with the number of new tokens, and never stops.

    Args:
        start: number of tokens of the prompt among those that `generate` passes on.
        callback: an exception from it ends the answer.
    """
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Report(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if callback is not None:
                callback(input_ids.shape[1] - start)
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Report()])


def _only_finite(start: int) -> Any:
    """Make a logits processor that raises UniWorldError at NaN and infinity.

    Sampling from such values fails in torch, on a GPU for all later calls of the process. Greedy decoding would return a
    meaningless token.
    """
    from transformers import LogitsProcessor, LogitsProcessorList

    class OnlyFinite(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            # Masked tokens are -infinity, which is fine. The maximum is NaN if any value is.
            if not bool(torch.isfinite(scores.amax(dim=-1)).all()):
                raise UniWorldError(
                    f"The logits of token {input_ids.shape[1] - start + 1} of the answer are NaN or infinite: {OVERFLOW}; "
                    "otherwise the weights are damaged."
                )
            return scores

    return LogitsProcessorList([OnlyFinite()])


def _token_reports(on_token: OnToken) -> tuple[Any, Any]:
    """Make a logits processor and a stopping criterion that report the tokens of a single prompt together.

    Args:
        on_token: called after each token with its id and the log-probabilities (V,), float32, of all tokens in its place.
            An exception from it ends the answer.
    """
    from transformers import LogitsProcessor, StoppingCriteria

    latest: list[torch.Tensor] = []

    class Logits(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            latest[:] = [scores]
            return scores

    class Choices(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            on_token(int(input_ids[0, -1]), torch.log_softmax(latest[0][0].float(), dim=-1))
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return Logits(), Choices()
