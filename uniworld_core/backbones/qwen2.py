"""Qwen2, the language model: settings, network and tokenizer from a folder such as Qwen2.5-1.5B-Instruct."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import UniWorldError
from ..loading.settings import FLAG, check_heads, exactly, read_json, take
from .qwen_config import TEXT_RULES

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

MODEL_TYPE = "qwen2"
# Scaled rotary positions are for contexts longer than any that is used here.
_RULES = {key: rule for key, rule in TEXT_RULES.items() if key != "rope_scaling"} | {
    "model_type": exactly(MODEL_TYPE, "because the language model is Qwen2"),
    "tie_word_embeddings": FLAG,
}
_NEEDED = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


@dataclass(frozen=True)
class Qwen2Config:
    """The configuration of a Qwen2.

    Attributes:
        values: arguments of transformers' class of the same name.
        folder: folder of its configuration and tokenizer.
    """

    values: dict[str, Any]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Qwen2Config:
        """Read `config.json`. Raises UniWorldError if it is missing or damaged, or belongs to another model."""
        file = folder / "config.json"
        raw = read_json(file)
        rotary = raw.get("rope_parameters")  # transformers 5 has rope_theta in it
        if isinstance(rotary, dict) and "rope_theta" in rotary:
            raw = {"rope_theta": rotary["rope_theta"], **raw}
        values = take(raw, _RULES, str(file), _NEEDED)
        heads = values["num_attention_heads"]
        check_heads(values["hidden_size"], heads, str(file), even=True)
        if heads % values["num_key_value_heads"]:
            raise UniWorldError(
                f"{file} has {heads} attention heads, which is not divisible by its {values['num_key_value_heads']} key and "
                "value heads: copy the file again."
            )
        return cls(values, folder)

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return int(self.values["hidden_size"])

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self.values["num_hidden_layers"])

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding table."""
        return int(self.values["vocab_size"])

    @property
    def positions(self) -> int:
        """Context length in tokens."""
        return int(self.values.get("max_position_embeddings", 32768))

    @property
    def tied(self) -> bool:
        """Whether the embedding table is also the output layer."""
        return bool(self.values.get("tie_word_embeddings", False))

    @property
    def layer_weights(self) -> int:
        """Number of weights of one layer."""
        width, inner = self.width, int(self.values["intermediate_size"])
        keys = width * int(self.values["num_key_value_heads"]) // int(self.values["num_attention_heads"])
        return 2 * width * width + 2 * width * keys + 3 * width * inner


def make_qwen2(config: Qwen2Config) -> Qwen2ForCausalLM:
    """Make the network; call it within `weights.build`. If its output layer is tied, it has no weights of its own."""
    from transformers import Qwen2Config as Settings
    from transformers import Qwen2ForCausalLM

    values = {key: value for key, value in config.values.items() if key != "model_type"}
    # transformers 4 reads rope_theta, transformers 5 rope_parameters: give both.
    theta = values.get("rope_theta", 1000000.0)
    made = Qwen2ForCausalLM(Settings(**values, rope_parameters={"rope_type": "default", "rope_theta": theta}))
    if config.tied:
        made.lm_head = TiedHead(made.model.embed_tokens)  # type: ignore[assignment]
    return made


class TiedHead(nn.Module):
    """An output layer whose weight is an embedding table, wherever and in whichever dtype that is stored."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self._table: Callable[[], nn.Embedding] = lambda: table  # not a submodule, so that the weight is listed once

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, L, vocabulary)."""
        weight = self._table().weight
        return F.linear(x_BLD.to(weight.device), weight.to(x_BLD.dtype)).to(x_BLD.device)
