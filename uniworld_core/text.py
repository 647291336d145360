"""FLUX's own text encoders: T5 puts the plain prompt in front of the condition, CLIP pools it. Both are optional."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .config import read_json
from .weights import Names, Shards, Weights, build

if TYPE_CHECKING:
    from transformers import CLIPTextModel, T5EncoderModel

# Tokens of the T5 prompt, padded and unmasked (published: serve/cli.py).
T5_LENGTH = 256

_LABELS = ("model_type", "architectures", "torch_dtype", "transformers_version")


class CLIP(nn.Module):
    """FLUX's CLIP-L: the pooled prompt."""

    def __init__(self, encoder: CLIPTextModel, tokenizer: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, flux: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> CLIP:
        """Load `text_encoder` and `tokenizer` of a FLUX folder in diffusers layout. Raises ValueError naming a bad file."""
        return cls(clip_weights(flux).load(dtype, device), read_text_tokenizer(Path(flux) / "tokenizer"))

    @torch.no_grad()
    def pool(self, prompts: Sequence[str]) -> torch.Tensor:
        """Pooled prompts (B, P), at the end-of-text token."""
        first = next(self.encoder.parameters())
        ids = _ids(self.tokenizer, prompts, self.encoder.config.max_position_embeddings).to(first.device)
        return self.encoder(input_ids=ids).pooler_output


class T5(nn.Module):
    """FLUX's T5-XXL encoder: the prompt as tokens."""

    def __init__(self, encoder: T5EncoderModel, tokenizer: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, flux: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> T5:
        """Load `text_encoder_2` and `tokenizer_2` of a FLUX folder in diffusers layout. Raises ValueError naming a bad file."""
        encoder = t5_weights(flux).load(dtype, device)
        # The encoder's table is the shared one; files carry it once or twice.
        encoder.encoder.embed_tokens.weight = encoder.shared.weight
        return cls(encoder, read_text_tokenizer(Path(flux) / "tokenizer_2"))

    @torch.no_grad()
    def tokens(self, prompts: Sequence[str], length: int = T5_LENGTH) -> torch.Tensor:
        """Prompt tokens (B, length, D), padded to `length` and, as published, without a mask. Raises ValueError for no length."""
        if length < 1:
            raise ValueError(f"t5_length is {length}; it must be at least 1.")
        first = next(self.encoder.parameters())
        return self.encoder(input_ids=_ids(self.tokenizer, prompts, length).to(first.device)).last_hidden_state


class TextEncoders:
    """CLIP and T5 of one FLUX folder, each loaded when first asked for."""

    def __init__(self, flux: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> None:
        self.flux, self.dtype, self.device = Path(flux), dtype, device
        self._clip: CLIP | None = None
        self._t5: T5 | None = None

    @property
    def clip(self) -> CLIP:
        if self._clip is None:
            self._clip = CLIP.from_pretrained(self.flux, self.dtype, self.device)
        return self._clip

    @property
    def t5(self) -> T5:
        if self._t5 is None:
            self._t5 = T5.from_pretrained(self.flux, self.dtype, self.device)
        return self._t5


def clip_weights(flux: str | Path) -> Weights[CLIPTextModel]:
    """CLIP of a FLUX folder and its file. Raises ValueError if its configuration is missing or of another model."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(flux) / "text_encoder"
    settings = _settings(folder, "clip_text_model")
    encoder = build(lambda: CLIPTextModel(CLIPTextConfig(**settings)), folder / "config.json")
    return Weights(encoder, Shards(folder), nested_names(encoder, "text_model."))


def t5_weights(flux: str | Path) -> Weights[T5EncoderModel]:
    """T5 of a FLUX folder and its files. Raises ValueError if its configuration is missing or of another model."""
    from transformers import T5Config, T5EncoderModel

    folder = Path(flux) / "text_encoder_2"
    settings = _settings(folder, "t5")
    encoder = build(lambda: T5EncoderModel(T5Config(**settings)), folder / "config.json")
    return Weights(encoder, Shards(folder), optional=("encoder.embed_tokens.weight",))


def read_text_tokenizer(folder: Path) -> Any:
    """A tokenizer of a FLUX folder. Raises ValueError if its files are missing or damaged."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise ValueError(f"The tokenizer in {folder} cannot be read ({error}): copy the folder again.") from error


def nested_names(encoder: nn.Module, prefix: str) -> Names:
    """Names of an encoder whose published prefix transformers 5 has dropped from the module.

    Old files carry position ids too, which the module computes.
    """
    nested = any(name.startswith(prefix) for name in encoder.state_dict())
    return Names(((prefix, prefix if nested else ""),), left_out=("position_ids",))


def without_labels(settings: Any, file: Path) -> dict[str, Any]:
    """A configuration without what only says where it comes from. Raises ValueError if it is no object."""
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__} where a configuration is expected: copy it again.")
    return {key: value for key, value in settings.items() if key not in _LABELS}


def _settings(folder: Path, model_type: str) -> dict[str, Any]:
    file = folder / "config.json"
    raw = read_json(file)
    if raw.get("model_type") != model_type:
        raise ValueError(
            f"{file} has model_type {raw.get('model_type')!r}, expected {model_type!r}: "
            "choose a FLUX.1-dev folder in diffusers layout."
        )
    return without_labels(raw, file)


def _ids(tokenizer: Any, prompts: Sequence[str], length: int) -> torch.Tensor:
    made = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return made["input_ids"]
