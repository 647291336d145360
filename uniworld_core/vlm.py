"""The VLM: Qwen2.5-VL reads the instruction and the pictures, answers, and gives the states that condition the DiT."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import nn

from .config import UniWorldConfig, read_json
from .prompt import ASSISTANT, IMAGE_PAD, chat_text, check_prompt
from .rope import rope_positions
from .weights import Shards, build, check, load

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

# Every picture reaches the VLM at this many pixels, as minimum and maximum (published: serve/cli.py).
VLM_PIXELS = 448 * 448

# B batch, L tokens (padded on the left), D width; a patch is one row of `patches`.


@dataclass(frozen=True)
class VLMInputs:
    """A batch as the VLM takes it.

    Attributes:
        ids: (B, L) token ids, padded on the left.
        mask: (B, L) True where there is a token.
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
        """One batch of inputs of one and the same length."""
        with_pictures = [item for item in items if item.patches is not None]
        return VLMInputs(
            ids=torch.cat([item.ids for item in items]),
            mask=torch.cat([item.mask for item in items]),
            positions=torch.cat([item.positions for item in items], dim=1),
            patches=torch.cat([item.patches for item in with_pictures]) if with_pictures else None,  # type: ignore[misc]
            grids=torch.cat([item.grids for item in with_pictures]) if with_pictures else None,  # type: ignore[misc]
        )


class VLM(nn.Module):
    """Qwen2.5-VL of a UniWorld checkpoint with its tokenizer and picture processor."""

    def __init__(
        self,
        config: UniWorldConfig,
        tokenizer: PreTrainedTokenizerBase,
        processor: Any,
        qwen: Any,
        generation: GenerationConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.processor = processor
        # Any: transformers' `generate` does not type-check on its own models.
        self.qwen: Any = qwen
        self.generation = generation
        self.assistant_token = _single_id(tokenizer, ASSISTANT)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> VLM:
        """Load the VLM alone from a UniWorld checkpoint folder.

        Raises:
            ValueError: a file is missing, damaged, or does not fit the configuration; it is named.
        """
        folder = Path(checkpoint)
        raw = read_json(folder / "config.json")
        config = UniWorldConfig.from_dict(raw, source=str(folder / "config.json"))
        qwen = load(build_qwen(config), Shards(folder), qwen_key, dtype, device)
        return cls(config, read_tokenizer(folder), read_processor(folder), qwen, _generation_config(folder, config))

    @staticmethod
    def check(config: UniWorldConfig, shards: Shards) -> None:
        """Hold a checkpoint's names and shapes against the VLM without loading it. Raises ValueError as `load` does."""
        check(build_qwen(config), shards, qwen_key)

    @property
    def device(self) -> torch.device:
        return next(self.qwen.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.qwen.parameters()).dtype

    def inputs(self, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]]) -> VLMInputs:
        """Tokens, patches and positions of a batch.

        Args:
            prompts: one instruction per item.
            pictures: per item its RGB pictures, in order.

        Raises:
            ValueError: a prompt is empty or holds reserved tokens.
        """
        grids, patches = self._patches([picture for item in pictures for picture in item])
        merged = [] if grids is None else (grids.prod(dim=1) // self.processor.merge_size**2).tolist()
        texts, used = [], 0
        for prompt, item in zip(prompts, pictures):
            texts.append(chat_text(check_prompt(prompt), merged[used : used + len(item)]))
            used += len(item)
        # Padded here and not by the tokenizer: a checkpoint's tokenizer_config may ask for the right side.
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        length = max(map(len, rows))
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

    @torch.no_grad()  # not inference_mode, whose tensors the trainers could not carry on
    def hidden_states(self, inputs: VLMInputs) -> torch.Tensor:
        """The last hidden states (B, L, D), after the final norm: what both the condition and the routing head read."""
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
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        callback: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Token ids (B, new) of the answers, without the prompt.

        Args:
            inputs: without padding, that is of prompts of one length (`answer` takes any): transformers 4 places the
                new tokens of a padded batch wrongly.
            temperature: 0 takes the likeliest token each time.
            seed: of the random choice when the temperature is above 0; the global random state is left as it was.
            callback: called with the number of tokens so far, after each; what it raises ends the answer.

        Raises:
            ValueError: the length is not positive, the temperature negative, or the batch padded.
        """
        if not bool(inputs.mask.all()):
            raise ValueError("The batch holds prompts of different lengths: answer them with VLM.answer.")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; it must be 0 (the likeliest answer) or above.")
        start = inputs.ids.shape[1]
        config = copy.deepcopy(self.generation)
        config.update(max_new_tokens=max_new_tokens, pad_token_id=self.tokenizer.pad_token_id)
        config.update(**({"do_sample": True, "temperature": temperature} if temperature > 0 else _GREEDY))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            ids = self.qwen.generate(
                input_ids=inputs.ids,
                attention_mask=inputs.mask.long(),
                generation_config=config,
                stopping_criteria=_after_each_token(start, callback),
                **self._pictures(inputs),
            )
        return ids[:, start:]

    def answer(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Sequence[Image.Image]],
        temperature: float = 0.0,
        **options: Any,
    ) -> list[str]:
        """Answers as text, one per item, each as it would be alone; options as `generate`."""
        groups: dict[int, list[int]] = {}
        items = [self.inputs([prompt], [item]) for prompt, item in zip(prompts, pictures)]
        for index, item in enumerate(items):
            # Random choices of several items would come from one stream: drawn one item at a time.
            groups.setdefault(item.ids.shape[1] if temperature == 0 else -1 - index, []).append(index)
        answers = [""] * len(items)
        for group in groups.values():
            ids = self.generate(VLMInputs.join([items[i] for i in group]), temperature=temperature, **options)
            texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for index, text in zip(group, texts):
                answers[index] = text
        return answers

    def assistant_states(self, inputs: VLMInputs, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden state (B, D) at the last `assistant` token of each item, float32 (published: serve/cli.py)."""
        columns = torch.arange(inputs.ids.shape[1], device=inputs.ids.device)
        last = torch.where(inputs.ids == self.assistant_token, columns, -1).amax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), last].float()

    def _patches(self, pictures: list[Image.Image]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if not pictures:
            return None, None
        made = self.processor(images=pictures, return_tensors="pt", input_data_format="channels_last")
        return made["image_grid_thw"], made["pixel_values"]

    def _pictures(self, inputs: VLMInputs) -> dict[str, torch.Tensor]:
        """What `generate` takes of the pictures, if there are any."""
        if inputs.patches is None or inputs.grids is None:
            return {}
        pictures = {"pixel_values": inputs.patches, "image_grid_thw": inputs.grids}
        # transformers 5 needs to be told which tokens are pictures to place the tokens that it generates.
        if "mm_token_type_ids" in inspect.signature(self.qwen.forward).parameters:
            pictures["mm_token_type_ids"] = (inputs.ids == self.config.tokens["image_token_id"]).int()
        return pictures


# A checkpoint's generation_config may ask for sampling; these undo what would then only draw a warning.
_GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def build_qwen(config: UniWorldConfig) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL of the configured widths, its weights on the meta device."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    # rope_parameters is what transformers 5 calls rope_scaling and rope_theta together.
    scaling = dict(config.text.get("rope_scaling") or {})
    scaling.pop("type", None)
    text = config.text | {"rope_parameters": scaling | {"rope_theta": config.text.get("rope_theta", 1000000.0)}}
    tokens: dict[str, Any] = dict(config.tokens)
    qwen_config = Qwen2_5_VLConfig(text_config=text, vision_config=config.vision, tie_word_embeddings=False, **tokens)
    return build(lambda: Qwen2_5_VLForConditionalGeneration(qwen_config))


# Published prefix -> transformers' (4.52 and later).
_PREFIXES = (("visual.", "model.visual."), ("model.", "model.language_model."), ("lm_head.", "lm_head."))


def qwen_key(name: str) -> str | None:
    """From a tensor's name in a UniWorld checkpoint to its name in transformers' Qwen2.5-VL, or None."""
    for published, ours in _PREFIXES:
        if name.startswith(published):
            return ours + name[len(published) :]
    return None


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a UniWorld checkpoint. Raises ValueError if its files are missing or of another model."""
    import transformers

    # Version 5 has one Qwen2Tokenizer, which is the fast one; before it that name was the slow one.
    kind = getattr(transformers, "Qwen2TokenizerFast", None) or transformers.Qwen2Tokenizer
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        raise ValueError(
            f"The tokenizer in {folder} cannot be read ({error}): copy vocab.json, merges.txt, tokenizer.json and "
            "tokenizer_config.json of the checkpoint again."
        ) from error
    _single_id(tokenizer, IMAGE_PAD)
    return tokenizer


def read_processor(folder: Path) -> Any:
    """The picture processor of a UniWorld checkpoint, Pillow's resizing always.

    The published programs bring every picture to 448x448 pixels whatever `preprocessor_config.json` says, since the one
    of the published checkpoint carries Qwen's own wide range. A checkpoint whose two limits are equal sets its own.

    Raises:
        ValueError: the file is missing or damaged.
    """
    raw = read_json(folder / "preprocessor_config.json")
    size = raw.get("size") or {}
    low = raw.get("min_pixels") or size.get("shortest_edge")
    high = raw.get("max_pixels") or size.get("longest_edge")
    pixels = low if low and low == high else VLM_PIXELS
    # Said in both ways, before the processor is made: transformers 4 and 5 differ in which they believe.
    limits = {"min_pixels": pixels, "max_pixels": pixels, "size": {"shortest_edge": pixels, "longest_edge": pixels}}
    return pil_processor("Qwen2VLImageProcessor").from_dict(raw | limits)


def pil_processor(name: str) -> Any:
    """transformers' image processor that resizes with Pillow: `NAMEPil` from version 5 on, `NAME` before.

    The "fast" ones, which the Auto classes prefer where torchvision is installed, give other pixels.
    """
    import transformers

    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)


def _generation_config(folder: Path, config: UniWorldConfig) -> GenerationConfig:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
    return GenerationConfig(eos_token_id=config.text.get("eos_token_id"), bos_token_id=config.text.get("bos_token_id"))


def _single_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"The tokenizer in {tokenizer.name_or_path} splits {word!r} into {len(ids)} tokens instead of one: "
            "it is not the tokenizer of Qwen2.5-VL. Copy the tokenizer files of the checkpoint again."
        )
    return int(ids[0])


def _after_each_token(start: int, callback: Callable[[int], None] | None) -> Any:
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Report(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if callback is not None:
                callback(input_ids.shape[1] - start)
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return StoppingCriteriaList([Report()])
