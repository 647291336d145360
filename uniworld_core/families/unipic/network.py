"""UniPic's network: MAR's encoder, the language model, MAR's decoder and the diffusion head, with the tokenizer.

Shapes: B pictures, R rows (B, or with guidance 2 B, the unconditional ones second), L = h * w tokens of the grid in raster
order, K buffers, V visible tokens, C channels, W MAR's width, D the language model's, T tokens of a prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...backbones.mar import MARDecoder, MAREncoder
from ...backbones.qwen2 import make_qwen2
from ...backbones.token_diffusion import DiffusionHead
from ...errors import UniWorldError
from ...loading.names import Names
from ...loading.storage import ComputeModule
from ...loading.vocabulary import check_ids, qwen_tokenizer
from ...sampling.latents import LatentFormat
from .config import UNIPIC_LATENTS, UniPicConfig

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast

# The special token that stands for a picture. It is not in Qwen's vocabulary: the published code adds it.
IMAGE = "<image>"

# Published names. The class embedding is stored and never used.
UNIPIC_NAMES = Names(
    (
        ("llm.", "llm."),
        ("proj_in.", "proj_in."),
        ("proj_out.", "proj_out."),
        ("mar.fake_latent", "encoder.fake_latent"),
        ("mar.encoder_pos_embed_learned", "encoder.positions"),
        ("mar.z_proj.", "encoder.z_proj."),
        ("mar.z_proj_ln.", "encoder.z_proj_ln."),
        ("mar.encoder_blocks.", "encoder.blocks."),
        ("mar.encoder_norm.", "encoder.norm."),
        ("mar.mask_token", "decoder.mask_token"),
        ("mar.decoder_pos_embed_learned", "decoder.positions"),
        ("mar.decoder_embed.", "decoder.embed."),
        ("mar.decoder_blocks.", "decoder.blocks."),
        ("mar.decoder_norm.", "decoder.norm."),
        ("mar.diffusion_pos_embed_learned", "decoder.places"),
        ("mar.diffloss.net.", "head."),
    )
)
# Layers that are not quantized: the diffusion head draws values through 100 steps, and the rest is small.
PRECISE = ("head.*", "proj_in.*", "proj_out.*", "encoder.z_proj", "decoder.embed", "llm.lm_head")


class UniPicNetwork(nn.Module):
    """The networks of a checkpoint, without tokenizer and settings."""

    def __init__(self, config: UniPicConfig) -> None:
        super().__init__()
        width, inner = config.mar.width, config.llm.width
        # Any: transformers' `generate` does not type-check on its own models.
        self.llm: Any = make_qwen2(config.llm)
        self.encoder, self.decoder = MAREncoder(config.mar), MARDecoder(config.mar)
        self.head = DiffusionHead(config.head)
        self.proj_in = nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.proj_out = nn.Sequential(nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, width))


class UniPic(ComputeModule):
    """UniPic with its tokenizer. Painting is in `painting`, understanding in `understanding`."""

    def __init__(
        self,
        config: UniPicConfig,
        network: UniPicNetwork,
        tokenizer: PreTrainedTokenizerFast,
        generation: GenerationConfig,
    ) -> None:
        super().__init__()
        self.config, self.network = config, network
        self.tokenizer, self.generation = tokenizer, generation
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))  # type: ignore[arg-type]

    @property
    def latent_format(self) -> LatentFormat:
        """The format of the painted latents."""
        return UNIPIC_LATENTS

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        network = self.network
        return (network.llm.model, network.encoder, network.decoder, network.head)

    @property
    def working_bytes(self) -> int:
        return 1500 * token_bytes(self.config)

    def encode_visible(self, x_BLC: torch.Tensor, visible_BL: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return MAR's states (B, K + V, W) of the buffers and of the visible tokens, in raster order."""
        return self.network.encoder(x_BLC.to(self.device, self.dtype), visible_BL.to(self.device), grid)

    def for_llm(self, x_BNW: torch.Tensor) -> torch.Tensor:
        """Return the language model's inputs (B, V + K, D) for MAR's states: the buffers come last."""
        return self.network.proj_in(x_BNW).roll(-self.config.mar.buffers, dims=1)

    def from_llm(self, h_BND: torch.Tensor) -> torch.Tensor:
        """Return the language model's states (B, V + K, D) at MAR's width, with the buffers first."""
        return self.network.proj_out(h_BND.roll(self.config.mar.buffers, dims=1))

    def read_picture(self, x_BLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Return MAR's states (B, K + L, W) of whole pictures, from their normalized latents."""
        return self.encode_visible(x_BLC, torch.ones(x_BLC.shape[:2], dtype=torch.bool), grid)

    def embed(self, text: str, picture_ND: torch.Tensor | None = None) -> torch.Tensor:
        """Return the embeddings (T, D) of a rendered prompt.

        Args:
            picture_ND: embeddings that replace `<image>` in it.

        Raises:
            UniWorldError: the prompt exceeds the context length.
        """
        ids = self.ids(text, 0 if picture_ND is None else len(picture_ND)).to(self.device)
        rows: torch.Tensor = self.network.llm.get_input_embeddings()(ids).to(self.device, self.dtype)
        if picture_ND is not None:
            rows = rows.masked_scatter((ids == self.image_id)[:, None], picture_ND.to(rows))
        return rows

    def ids(self, text: str, picture: int = 0) -> torch.Tensor:
        """Return the token ids (T,) of a rendered prompt, in which `<image>` is repeated `picture` times."""
        ids = self.tokenizer(text.replace(IMAGE, IMAGE * picture), add_special_tokens=False)["input_ids"]
        if len(ids) > self.config.llm.positions:
            raise UniWorldError(
                f"The prompt with its picture has {len(ids)} tokens; the model reads at most {self.config.llm.positions}: "
                "shorten it or choose a smaller side."
            )
        return torch.tensor(ids)


class PromptPrefix:
    """The keys and values of the prompts, behind which the tokens of pictures run.

    Prompts are padded on the right. The padding is masked, and the picture's positions follow the prompt's last token.

    Args:
        model: the model.
        tokens_RTD: embeddings of the prompts.
        mask_RT: True at tokens, False at padding.
    """

    def __init__(self, model: UniPic, tokens_RTD: torch.Tensor, mask_RT: torch.Tensor) -> None:
        from transformers import DynamicCache

        self._llm, self._mask_RT = model.network.llm.model, mask_RT.to(model.device)
        self.hidden_RTD: torch.Tensor
        out = self._llm(
            inputs_embeds=tokens_RTD.to(model.device, model.dtype), past_key_values=DynamicCache(), use_cache=True
        )
        self._cache, self.hidden_RTD = out.past_key_values, out.last_hidden_state

    def positions(self, count: int) -> torch.Tensor:
        """Return the positions (R, count) of the tokens that follow."""
        return self._mask_RT.sum(dim=1, keepdim=True) + torch.arange(count, device=self._mask_RT.device)

    def states(self, x_RND: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states (R, N, D) of tokens that follow the prompts. Nothing of them is kept."""
        count = x_RND.shape[1]
        mask = torch.cat([self._mask_RT.long(), self._mask_RT.new_ones(x_RND.shape[:2], dtype=torch.long)], dim=1)
        out = self._llm(
            inputs_embeds=x_RND,
            attention_mask=mask,
            position_ids=self.positions(count),
            past_key_values=self._cache,
            use_cache=True,
        )
        # The only form that all supported versions of transformers share is that with a negative number.
        self._cache.crop(-count)
        return out.last_hidden_state


def read_tokenizer(config: UniPicConfig) -> PreTrainedTokenizerFast:
    """Read Qwen's tokenizer and add `<image>`. Raises UniWorldError if a file is damaged or belongs to another model."""
    tokenizer = qwen_tokenizer(config.llm.folder)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    check_ids(tokenizer, config.llm.vocab_size, str(config.llm.folder / "config.json"))
    return tokenizer


def token_bytes(config: UniPicConfig) -> int:
    """Return the working memory per token and row: the widest activations of the two transformers in float32. Estimated."""
    llm = 3 * int(config.llm.values["intermediate_size"]) + 8 * config.llm.width
    mar = 2 * config.mar.hidden + 8 * config.mar.width
    return 4 * max(llm, mar)
