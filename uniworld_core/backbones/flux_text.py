"""FLUX's own text encoders: T5 encodes the plain prompt to tokens, CLIP pools it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import UniWorldError, brief, shown
from ..loading.meta import build
from ..loading.names import SAME_NAMES, Names
from ..loading.offload import explain_out_of_memory
from ..loading.parts import NetworkPart
from ..loading.settings import (
    ACTIVATION,
    EPSILON,
    HEADS,
    HIDDEN,
    LAYERS,
    SHARE,
    TOKEN,
    VOCABULARY,
    WIDTH,
    Rule,
    check_heads,
    choice,
    either,
    listed,
    optional,
    read_json,
    take,
    whole,
)
from ..loading.storage import ComputeModule
from ..loading.vocabulary import check_ids, clip_tokenizer, t5_tokenizer
from ..loading.weights import Shards

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

# Number of T5 tokens, padded and unmasked (published: serve/cli.py).
T5_LENGTH = 256

_CLIP: dict[str, Rule] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "projection_dim": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": whole(2, 2**14),
    "hidden_act": ACTIVATION,
    "layer_norm_eps": EPSILON,
    "attention_dropout": SHARE,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), optional(TOKEN)),
}
# transformers' defaults. Configurations that it saves may omit them.
_CLIP_DEFAULTS = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "eos_token_id": 49407}
# CLIP configurations from before transformers 4.24 have this id as end of text. transformers then pools at the highest id.
_OLD_CLIP_END = 2
_T5: dict[str, Rule] = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": whole(1, 2**12),
    "d_ff": HIDDEN,
    "num_layers": LAYERS,
    "num_heads": HEADS,
    "relative_attention_num_buckets": whole(4, 2**12),
    "relative_attention_max_distance": whole(2, 2**20),
    "dropout_rate": SHARE,
    "layer_norm_epsilon": EPSILON,
    "feed_forward_proj": choice("relu", "gelu", "gated-gelu", "gated-relu", "gated-silu"),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), optional(TOKEN)),
    "eos_token_id": optional(either(TOKEN, listed(TOKEN, 1, 64))),
}
_T5_DEFAULTS = {"num_layers": 6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}


class CLIP(ComputeModule):
    """FLUX's CLIP-L, which pools a prompt."""

    def __init__(self, encoder: CLIPTextModel, tokenizer: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer

    @property
    def working_bytes(self) -> int:
        config = self.encoder.config
        return int(config.max_position_embeddings) * 20 * int(config.hidden_size) * self.dtype.itemsize  # estimated

    @classmethod
    def from_pretrained(
        cls, flux: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> CLIP:
        """Load `text_encoder` and `tokenizer` of a FLUX folder in diffusers layout. Raises UniWorldError for invalid files."""
        return clip_part(flux).load(dtype, device)

    @torch.no_grad()
    def pool(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the pooled prompts (B, P): the states at the end-of-text token."""
        ids = _ids(self.tokenizer, prompts, self.encoder.config.max_position_embeddings).to(self.device)
        return self.encoder(input_ids=ids).pooler_output


class T5(ComputeModule):
    """FLUX's T5-XXL encoder, which encodes a prompt to tokens."""

    def __init__(self, encoder: T5EncoderModel, tokenizer: Any) -> None:
        super().__init__()
        # Both names are the same table, and files may store it under one name or both.
        encoder.encoder.embed_tokens.weight = encoder.shared.weight
        self.encoder = encoder
        self.tokenizer = tokenizer

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.encoder.encoder,)

    @property
    def working_bytes(self) -> int:
        return T5_LENGTH * 20 * int(self.encoder.config.d_model) * self.dtype.itemsize  # estimated

    @classmethod
    def from_pretrained(
        cls, flux: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> T5:
        """Load `text_encoder_2` and `tokenizer_2` of a FLUX folder in diffusers layout. Raises UniWorldError for invalid files."""
        return t5_part(flux).load(dtype, device)

    @torch.no_grad()
    def tokens(self, prompts: Sequence[str], length: int = T5_LENGTH) -> torch.Tensor:
        """Return prompt tokens (B, length, D), padded and without a mask, as published. Raises UniWorldError if length < 1."""
        if length < 1:
            raise UniWorldError(f"t5_length is {length}; it must be at least 1.")
        with explain_out_of_memory(self, "t5_length"):
            return self.encoder(input_ids=_ids(self.tokenizer, prompts, length).to(self.device)).last_hidden_state


class TextEncoders:
    """CLIP and T5 of one FLUX folder, each loaded on first use.

    Args:
        get_clip: returns CLIP; called at every access.
        get_t5: returns T5; called at every access.
    """

    def __init__(self, get_clip: Callable[[], CLIP], get_t5: Callable[[], T5]) -> None:
        self._get_clip, self._get_t5 = get_clip, get_t5

    @property
    def clip(self) -> CLIP:
        return self._get_clip()

    @property
    def t5(self) -> T5:
        return self._get_t5()


def clip_part(flux: str | Path) -> NetworkPart[CLIP]:
    """Open CLIP of a FLUX folder without loading it. Raises UniWorldError if the configuration is missing or invalid."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(flux) / "text_encoder"
    file, shards = folder / "config.json", Shards(folder)
    settings = _CLIP_DEFAULTS | _settings(file, "clip_text_model", _CLIP)
    check_heads(settings["hidden_size"], settings["num_attention_heads"], str(file))
    shards.check_depth(settings["num_hidden_layers"], ("text_model.encoder.layers.", "encoder.layers."), file)

    def make() -> CLIPTextModel:
        return build(lambda: CLIPTextModel(CLIPTextConfig(**settings)), file)

    first = make()
    names = nested_names(first, shards, "text_model.")
    return NetworkPart(
        make,
        shards,
        CLIP,
        names,
        precise=("*",),  # under 1 % of the model
        read=lambda: (read_clip_tokenizer(Path(flux), first.config),),
    )


def t5_part(flux: str | Path) -> NetworkPart[T5]:
    """Open T5 of a FLUX folder without loading it. Raises UniWorldError if the configuration is missing or invalid."""
    from transformers import T5Config, T5EncoderModel

    folder = Path(flux) / "text_encoder_2"
    file, shards = folder / "config.json", Shards(folder)
    settings = _T5_DEFAULTS | _settings(file, "t5", _T5)
    # A quarter of the buckets are for exact distances, the others grow up to the maximum (T5's relative_position_bucket).
    # A maximum within the exact ones makes transformers take the logarithm of 0.
    single, distance = settings["relative_attention_num_buckets"] // 4, settings["relative_attention_max_distance"]
    if distance <= single:
        raise UniWorldError(
            f"{file} has relative_attention_max_distance {distance}, expected more than {single}: copy the file again."
        )
    shards.check_depth(settings["num_layers"], ("encoder.block.",), file)

    def make() -> T5EncoderModel:
        return build(lambda: T5EncoderModel(T5Config(**settings)), file)

    config = make().config
    # Both names are the same table, and files may store it under one name or both.
    shared, own = "shared.weight", "encoder.embed_tokens.weight"
    return NetworkPart(
        make,
        shards,
        T5,
        SAME_NAMES if shared in shards.shapes else Names((("", ""), (own, shared))),
        optional=(own,),
        # transformers casts activations to the dtype of `wo` (T5DenseGatedActDense.forward), and two modules share the table.
        compute=("*.wo", "shared", "*.embed_tokens"),
        read=lambda: (read_t5_tokenizer(Path(flux), config),),
    )


def read_clip_tokenizer(flux: Path, config: Any) -> PreTrainedTokenizerFast:
    """Read CLIP's tokenizer of a FLUX folder.

    Args:
        config: CLIP's configuration, against which the token ids are checked.

    Raises:
        UniWorldError: a file is missing or damaged, or does not match the configuration.
    """
    tokenizer, file = clip_tokenizer(flux / "tokenizer"), flux / "text_encoder" / "config.json"
    check_ids(tokenizer, config.vocab_size, file)
    if config.eos_token_id not in (_OLD_CLIP_END, tokenizer.eos_token_id):
        raise UniWorldError(
            f"{file} has eos_token_id {config.eos_token_id}, at which the prompt is pooled, but the tokenizer ends prompts "
            f"with {tokenizer.eos_token_id}: copy the files of the same model again."
        )
    return tokenizer


def read_t5_tokenizer(flux: Path, config: Any) -> PreTrainedTokenizerFast:
    """Read T5's tokenizer of a FLUX folder; see `read_clip_tokenizer`."""
    tokenizer = t5_tokenizer(flux / "tokenizer_2")
    check_ids(tokenizer, config.vocab_size, flux / "text_encoder_2" / "config.json")
    return tokenizer


def nested_names(encoder: nn.Module, shards: Shards, prefix: str) -> Names:
    """Map the names of an encoder whose prefix transformers 5 has dropped, both in the module and in the files it saves.

    Old files also store position ids, which the module computes.
    """
    in_module = prefix if any(name.startswith(prefix) for name in encoder.state_dict()) else ""
    in_file = prefix if any(name.startswith(prefix) for name in shards.shapes) else ""
    return Names(((in_file, in_module),), skipped=("position_ids",))


def _settings(file: Path, model_type: str, rules: dict[str, Rule]) -> dict[str, Any]:
    raw = read_json(file)
    if raw.get("model_type") != model_type:
        raise UniWorldError(
            f"{file} has model_type {shown(raw.get('model_type'))}, expected {model_type!r}: "
            "copy the folder of a FLUX.1 model in diffusers layout."
        )
    return take(raw, rules, str(file))


def _ids(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], length: int) -> torch.Tensor:
    try:
        made = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        # Damage in T5's character map shows only when a prompt has the affected character, as a panic of the Rust library.
        raise UniWorldError(
            f"The tokenizer in {tokenizer.name_or_path} is damaged ({brief(error)}): copy the folder again."
        ) from error
    return made["input_ids"]
