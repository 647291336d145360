"""The VLM: Qwen2.5-VL reads instructions and pictures, answers, and provides the hidden states that condition the DiT."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from ..errors import UniWorldError
from ..loading.offload import explain_out_of_memory
from ..loading.parts import NetworkPart
from ..loading.storage import ComputeModule
from ..loading.weights import Shards
from ..prompts.conversation import Conversation, Prompt, as_conversations, as_list
from ..prompts.reference import Reference
from ..prompts.text import ASSISTANT, IMAGE_PAD
from .generation import OnToken, answer_settings, read_generation, seeded, token_hooks
from .qwen_config import QwenVLConfig
from .qwen_files import QWEN_NAMES, build_qwen, read_processor, read_tokenizer, single_id
from .qwen_template import conversation_text, turns_in
from .rope import rope_positions

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 128

# An edit with four pictures, and the values of a token that are held at once, for each of the model's width. Estimated.
_TOKENS, _TOKEN_VALUES = 1500, 20
# Layers that are not quantized. The vision half is 8 % of the VLM, and in NF4 it puts nano's condition off by 50 %, against
# 7 % for the language model.
PRECISE = ("lm_head", "model.visual.*")

# B batch, L tokens (padded on the left), D width; a patch is one row of `patches`.


@dataclass(frozen=True, eq=False)
class VLMInputs:
    """A batch of inputs for the VLM.

    Attributes:
        ids: (B, L) token ids, padded on the left.
        mask: (B, L) True at tokens.
        positions: (3, B, L) rotary positions.
        patches: (patches, 1176) pixel values of all pictures, or None.
        grids: (pictures, 3) frames, height and width of each picture in patches, or None.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    patches: torch.Tensor | None
    grids: torch.Tensor | None

    @staticmethod
    def join(items: Sequence[VLMInputs]) -> VLMInputs:
        """Concatenate inputs of the same length to one batch."""
        with_pictures = [item for item in items if item.patches is not None]
        return VLMInputs(
            ids=torch.cat([item.ids for item in items]),
            mask=torch.cat([item.mask for item in items]),
            positions=torch.cat([item.positions for item in items], dim=1),
            patches=torch.cat([item.patches for item in with_pictures]) if with_pictures else None,  # type: ignore[misc]
            grids=torch.cat([item.grids for item in with_pictures]) if with_pictures else None,  # type: ignore[misc]
        )


class VLM(ComputeModule):
    """Qwen2.5-VL with its tokenizer and picture processor."""

    def __init__(
        self,
        config: QwenVLConfig,
        qwen: Any,
        tokenizer: PreTrainedTokenizerFast,
        processor: Any,
        generation: GenerationConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.processor = processor
        # Any: transformers' `generate` does not type-check on its own models.
        self.qwen: Any = qwen
        self.generation = generation
        self.assistant_token = single_id(tokenizer, ASSISTANT)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        # Not the model around them, which the published hidden states do not pass through.
        return (self.qwen.model.visual, self.qwen.model.language_model)

    @property
    def working_bytes(self) -> int:
        return _TOKENS * _TOKEN_VALUES * self.config.width * self.dtype.itemsize

    def inputs(self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Image.Image]] | None = None) -> VLMInputs:
        """Prepare tokens, patches and positions of a batch.

        Args:
            prompts: one instruction or conversation per item.
            pictures: one list of RGB pictures per item, in order, or None. Conversations have their own pictures, so their
                lists must be empty.

        Raises:
            UniWorldError: a prompt is empty, contains reserved tokens or exceeds the context length, or the number of lists
                does not match the number of prompts.
        """
        conversations = _conversations(prompts, pictures)
        texts = [
            conversation_text([(turn.role, turn.text, [1] * len(turn.refs)) for turn in item.turns])
            for item in conversations
        ]
        return self.text_inputs(texts, [ref.picture for item in conversations for ref in item.refs])

    def text_inputs(self, texts: Sequence[str], pictures: Sequence[Image.Image]) -> VLMInputs:
        """Prepare inputs as `inputs` does, from texts that are already rendered with a template.

        Args:
            texts: one per item, with one `<|image_pad|>` for each of its pictures.
            pictures: RGB pictures of all items in order.

        Raises:
            UniWorldError: a text exceeds the context length, or the number of pictures does not match the placeholders.
        """
        placeholders = sum(text.count(IMAGE_PAD) for text in texts)
        if placeholders != len(pictures):
            raise UniWorldError(
                f"The texts have {placeholders} of {IMAGE_PAD} for {len(pictures)} pictures: give one for each."
            )
        grids, patches = self._patches(list(pictures))
        merged = iter([] if grids is None else (grids.prod(dim=1) // self.processor.merge_size**2).tolist())
        texts = [re.sub(re.escape(IMAGE_PAD), lambda _: IMAGE_PAD * next(merged), text) for text in texts]
        # Not padded by the tokenizer, because a checkpoint's tokenizer_config may set padding on the right.
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        length = max(map(len, rows))
        limit = self.config.positions
        if length > limit:
            turns = turns_in(texts[max(range(len(rows)), key=lambda i: len(rows[i]))])
            what = "prompt" if turns == 1 else f"conversation of {turns} turns"
            raise UniWorldError(
                f"A {what} with its pictures has {length} tokens; the model reads at most {limit}: shorten it, or leave out "
                "pictures or early turns."
            )
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
        positions = rope_positions(ids, mask, grids, self.config.tokens["image_token_id"], self.processor.merge_size)
        to = self.device
        return VLMInputs(
            ids=ids.to(to),
            mask=mask.to(to),
            positions=positions.to(to),
            patches=None if patches is None else patches.to(to, self.dtype),
            grids=None if grids is None else grids.to(to),
        )

    @torch.no_grad()  # not inference_mode, because autograd rejects its tensors when a trainer uses them
    def hidden_states(self, inputs: VLMInputs) -> torch.Tensor:
        """Return the last hidden states (B, L, D) after the final norm, for the condition and the routing head."""
        with explain_out_of_memory(self, "conversation"):
            output = self.qwen.model(
                input_ids=inputs.ids,
                attention_mask=inputs.mask.long(),
                position_ids=inputs.positions,
                pixel_values=inputs.patches,
                image_grid_thw=inputs.grids,
                use_cache=False,
            )
        return output.last_hidden_state

    @torch.inference_mode()
    def generate(
        self,
        inputs: VLMInputs,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
        on_token: OnToken | None = None,
    ) -> torch.Tensor:
        """Generate answers and return their token ids (B, new), without the prompt.

        Args:
            inputs: a batch without padding, so all prompts have the same length (`answer` takes any). transformers 4 gives
                the new tokens of a padded batch wrong positions.
            max_new_tokens: maximum length of an answer.
            temperature: 0 for greedy decoding, or from 1e-6 to 1e6.
            seed: seed for sampling at temperatures above 0, from 0 to 2**64 - 1. The global random state is restored.
            callback: called after each token with the number of tokens so far. An exception from it ends the answer.
            on_token: for a single prompt, called after each token with its id and the log-probabilities (V,), float32, of
                all tokens in its place, before the temperature. An exception from it ends the answer.

        Raises:
            UniWorldError: length, temperature or seed is out of range, the batch is padded, or logits are not finite (the
                message names the token).
        """
        if not bool(inputs.mask.all()):
            raise UniWorldError("The prompts of the batch have different lengths: answer them with VLM.answer.")
        start = inputs.ids.shape[1]
        config = answer_settings(self.generation, self.tokenizer.pad_token_id, max_new_tokens, temperature)
        with explain_out_of_memory(self, "conversation"), seeded(seed, self.device):
            ids = self.qwen.generate(
                input_ids=inputs.ids,
                attention_mask=inputs.mask.long(),
                generation_config=config,
                **token_hooks(start, callback, on_token),
                **self._pictures(inputs),
            )
        return ids[:, start:]

    def answer(
        self,
        prompts: Sequence[Prompt],
        pictures: Sequence[Sequence[Image.Image]] | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Answer in text. Each answer is the same as without the rest of the batch. Arguments as in `inputs` and `generate`."""
        groups: dict[int, list[int]] = {}
        items = [self.inputs([conversation]) for conversation in _conversations(prompts, pictures)]
        for index, item in enumerate(items):
            # Greedy answers are batched by length. Sampled ones are not: the items of a batch share one random stream.
            groups.setdefault(item.ids.shape[1] if temperature == 0 else -1 - index, []).append(index)
        answers = [""] * len(items)
        for group in groups.values():
            joined = VLMInputs.join([items[i] for i in group])
            ids = self.generate(joined, max_new_tokens, temperature, seed, callback)
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for index, text in zip(group, texts, strict=True):
                answers[index] = text
        return answers

    def assistant_states(self, inputs: VLMInputs, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden state (B, D), float32, at the last `assistant` token of each item (published: serve/cli.py)."""
        columns = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
        last = torch.where(inputs.ids == self.assistant_token, columns, -1).amax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last].float()

    def _patches(self, pictures: list[Image.Image]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not pictures:
            return None, None
        made = self.processor(images=pictures, return_tensors="pt", input_data_format="channels_last")
        return made["image_grid_thw"], made["pixel_values"]

    def _pictures(self, inputs: VLMInputs) -> dict[str, torch.Tensor]:
        """Return the picture arguments of transformers' `generate`; empty without pictures."""
        if inputs.patches is None or inputs.grids is None:
            return {}
        pictures = {"pixel_values": inputs.patches, "image_grid_thw": inputs.grids}
        # Without these, transformers 5 silently gives generated tokens plain text positions.
        if "mm_token_type_ids" in inspect.signature(self.qwen.forward).parameters:
            pictures["mm_token_type_ids"] = (inputs.ids == self.config.tokens["image_token_id"]).int()
        return pictures


def vlm_part(
    folder: Path,
    config: QwenVLConfig,
    shards: Shards,
    pixels: int | None,
    tokenizer: Path | None = None,
    processor: Path | None = None,
) -> NetworkPart[VLM]:
    """Open Qwen2.5-VL of a checkpoint folder without loading it.

    Args:
        pixels: as in `read_processor`.
        tokenizer, processor: the folders of its tokenizer and picture processor, if they have their own.

    Raises:
        UniWorldError: the files store a different number of layers than the configuration has.
    """
    shards.check_depth(config.layers, ("model.layers.", "model.language_model.layers."), config.source)
    shards.check_depth(config.depth, ("visual.blocks.", "model.visual.blocks."), config.source)
    return NetworkPart(
        lambda: build_qwen(config),
        shards,
        partial(VLM, config),
        QWEN_NAMES,
        precise=PRECISE,
        read=lambda: (
            read_tokenizer(tokenizer or folder, config),
            read_processor(processor or folder, config, pixels),
            read_generation(folder, config.text),
        ),
    )


def _conversations(prompts: Sequence[Prompt], pictures: Sequence[Sequence[Image.Image]] | None) -> list[Conversation]:
    if pictures is None:
        return as_conversations(prompts)
    prompts = as_list(prompts)
    if not prompts or len(prompts) != len(pictures):
        raise UniWorldError(
            f"There are {len(prompts)} prompts and {len(pictures)} lists of pictures: give one list for each prompt, "
            "empty for a prompt without pictures, and at least one prompt."
        )
    return as_conversations(prompts, [[Reference(picture) for picture in item] for item in pictures])
